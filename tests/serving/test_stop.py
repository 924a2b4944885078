"""SIGTERM while requests are answered: who asks again elsewhere loses none."""

import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from conftest import WholeRun, examples
from served import ask

from pipelines.port import free_port
from serving.patient import Patients
from serving.schema import PatientQuery

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]


class Replica:
    """One predictor process, as an orchestrator runs it."""

    def __init__(self, run: WholeRun, port: int) -> None:
        command = [sys.executable, "-m", "serving", "predictor", "--name", "m", "--bundle", str(run.folder / "bundle")]
        command += ["--port", str(port), "--drain-wait", "0.5", "--watch", "0"]
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "CONCORDANT_RUN_PID": str(os.getpid())}
        self.port, self.process = port, subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def await_ready(self) -> "Replica":
        """Until it says so."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if ask(f"http://127.0.0.1:{self.port}/v2/health/ready", timeout=2).status == 200:
                    return self
            except OSError:
                assert self.process.poll() is None
            time.sleep(0.1)
        raise AssertionError("not ready")


class Client:
    """Asks over connections that stay open; what a replica does not answer, or answers with 503, it asks the next one."""

    def __init__(self, ports: list[int], path: str, body: bytes) -> None:
        self._ports, self._path, self._body = ports, path, body
        self._open: dict[int, http.client.HTTPConnection] = {}
        self.answered = self.failed = 0

    def once(self) -> None:
        """One question, asked up to six times."""
        for attempt in range(6):
            port = self._ports[(self.answered + attempt) % len(self._ports)]
            if self._tried(port):
                self.answered += 1
                return
            time.sleep(0.05 * attempt)
        self.failed += 1

    def close(self) -> None:
        """Close what is still open."""
        for plug in self._open.values():
            plug.close()

    def _tried(self, port: int) -> bool:
        plug = self._open.setdefault(port, http.client.HTTPConnection("127.0.0.1", port, timeout=5))
        try:
            plug.request("POST", self._path, self._body, {"content-type": "application/json"})
            reply = plug.getresponse()
            told = reply.read()
            return reply.status == 200 and b"predictions" in told
        except (OSError, http.client.HTTPException):
            self._open.pop(port).close()
            return False


@pytest.mark.deep
def test_replicas_that_are_stopped_and_replaced_under_load_lose_no_request(
    whole_run: WholeRun, run_key: Any, stored: Any, record_property: Any
) -> None:
    """Each replica in turn is told to stop, ends by itself with nothing half answered, and a new one takes its place."""
    (row,) = Patients(whole_run.folder / "store", run_key, wall_clock=False).rows([PatientQuery(pseudonym=stored.patient_ids[0])])
    body = json.dumps({"instances": [row.model_dump(mode="json")]}).encode()
    ports = [free_port(), free_port()]
    replicas = [Replica(whole_run, port) for port in ports]
    for replica in replicas:
        replica.await_ready()
    over, clients = threading.Event(), [Client(ports, "/v1/models/m:predict", body) for _ in range(4)]

    def work(client: Client) -> None:
        while not over.is_set():
            client.once()

    threads = [threading.Thread(target=work, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        for n in range(examples(1, 10)):
            old = replicas[n % 2]
            old.process.send_signal(signal.SIGTERM)
            assert old.process.wait(40) == 0  # by itself, drained
            replicas[n % 2] = Replica(whole_run, old.port).await_ready()
    finally:
        over.set()
        for thread in threads:
            thread.join()
        for client in clients:
            client.close()
        for replica in replicas:
            replica.process.kill()
            replica.process.wait()
    answered = sum(client.answered for client in clients)
    assert sum(client.failed for client in clients) == 0 and answered > 200, answered
    record_property("found", f"{examples(1, 10)} replicas stopped and replaced under {answered:,} requests: 0 failed")


def test_a_replica_that_stops_says_so_before_it_closes_its_door(whole_run: WholeRun) -> None:
    replica = Replica(whole_run, free_port()).await_ready()
    base = f"http://127.0.0.1:{replica.port}"
    try:
        replica.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        told = ask(f"{base}/v2/health/ready")
        assert told.status == 503 and "shutting down" in told.body["detail"]
        live = ask(f"{base}/v2/health/live")
        assert live.status == 200 and live.headers["connection"] == "close"
        assert replica.process.wait(20) == 0
    finally:
        replica.process.kill()
        replica.process.wait()
