"""Local endpoints: the two serving processes of a run, started, watched and stopped; and one question to them."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from features.errors import ConcordantError
from pipelines.port import free_port

STARTING_S = 90.0


class Endpoints:
    """Transformer and predictor of a run on 127.0.0.1. A context manager: both processes end with it.

    `audit`: file of the audit trail. `more`: further arguments of the transformer.
    """

    def __init__(self, *, run: Path, key_file: Path, port: int | None = None, audit: Path | None = None, more: Sequence[str] = ()) -> None:
        if not (run / "bundle").is_dir() or not (run / "store").is_dir():
            raise ConcordantError(f"{run} is not a run folder: it needs bundle/ and store/. Make one with: concordant run glucose_lowering")
        self._run, self._key_file, self._audit, self._more = run, key_file, audit, tuple(more)
        self._port, self._predictor_port = (port, port + 1) if port else (free_port(), free_port())
        self.name = json.loads((run / "run.json").read_text(encoding="utf-8"))["decision"]
        self.base = f"http://127.0.0.1:{self._port}"
        self.url = f"{self.base}/v1/models/{self.name}:predict"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []

    def __enter__(self) -> "Endpoints":
        self._start("predictor", self._predictor_port, "--bundle", str(self._run / "bundle"))
        told = ["--store", str(self._run / "store"), "--key-file", str(self._key_file), "--predictor", f"127.0.0.1:{self._predictor_port}"]
        told += ["--decision", str(self._run / "bundle" / "decision.yaml")]
        told += ["--audit", str(self._audit)] if self._audit else []
        self._start("transformer", self._port, *told, *self._more)
        try:
            for port in (self._predictor_port, self._port):
                self._await(f"http://127.0.0.1:{port}/v2/health/ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
        for log in self._logs:
            log.close()

    def wait(self) -> None:
        """Until a process ends or Ctrl-C."""
        while all(process.poll() is None for process in self._processes):
            time.sleep(0.5)
        raise ConcordantError(f"A serving process ended by itself. Its last words: {self._last_words()}")

    def _start(self, role: str, port: int, *arguments: str) -> None:
        command = [sys.executable, "-m", "serving", role, "--name", self.name, "--port", str(port), "--drain-wait", "0", *arguments]
        environment = {**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "CONCORDANT_RUN_PID": str(os.getpid())}
        log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the processes
        self._logs.append(log)
        self._processes.append(subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment))

    def _await(self, url: str) -> None:
        deadline = time.monotonic() + STARTING_S
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in self._processes):
                raise ConcordantError(f"A serving process did not start. Its last words: {self._last_words()}")
            try:
                with urllib.request.urlopen(url, timeout=2):  # noqa: S310  our own loopback address
                    return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.2)
        raise ConcordantError(f"The endpoint was not ready within {STARTING_S:g} s. Its last words: {self._last_words()}")

    def _last_words(self) -> str:
        """The last line of the process that ended, else of the transformer."""
        ended = [log for process, log in zip(self._processes, self._logs, strict=True) if process.poll() is not None]
        log = (ended or self._logs)[-1]
        log.seek(0)
        lines = log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "none"


def weights(given: Sequence[str]) -> dict[str, float]:
    """Preferences from `matter=weight` pairs. Raises ConcordantError."""
    found = {}
    for text in given:
        matter, _, number = text.partition("=")
        try:
            found[matter] = float(number)
        except ValueError:
            raise ConcordantError(f"--prefer takes a matter and a weight from 0 to 1, as in weight_change=1; found '{text}'.") from None
    return found


def question(base: str, name: str, query: dict[str, Any]) -> dict[str, Any]:
    """The answer for one patient from a running endpoint. Raises ConcordantError, which does not repeat who was asked for."""
    body = json.dumps({"instances": [query]}).encode()
    request = urllib.request.Request(f"{base}/v1/models/{name}:predict", body, {"content-type": "application/json"})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:  # noqa: S310
            told: dict[str, Any] = json.load(reply)["predictions"][0]
            return told
    except urllib.error.HTTPError as error:
        detail = json.loads(error.read() or b"{}").get("detail", "no detail")
        hint = " Check the id; it is the id of the Patient resource." if error.code == 404 else ""
        raise ConcordantError(f"The endpoint answered {error.code}: {detail}{hint}") from None
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        raise ConcordantError(f"Nothing answers at {base}. Start it with: concordant serve   (or ask with --start)") from None


def served(base: str) -> str:
    """Name of the decision that an endpoint serves."""
    try:
        with urllib.request.urlopen(f"{base}/v1/models", timeout=5) as reply:  # noqa: S310
            return str(json.load(reply)["models"][0])
    except (urllib.error.URLError, ConnectionError, TimeoutError, KeyError, IndexError, ValueError):
        raise ConcordantError(f"Nothing answers at {base}. Start it with: concordant serve   (or ask with --start)") from None
