"""A steady load for a while: no error, and memory that stays. `python tests/benchmarks/serving.py --soak 30` is the long one."""

import http.client
import json
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from conftest import examples

from pipelines.serve import Endpoints

pytestmark = [pytest.mark.slow, pytest.mark.deep, pytest.mark.xdist_group("whole")]
RATE = 25  # a second: whole answers by both processes
WARM_S = 3.0


def _memory_mb(pid: int) -> float:
    told = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in told if line.startswith("VmRSS")).split()[1]) / 1024


def test_under_a_steady_load_nothing_fails_and_memory_stays(endpoints: Endpoints, scored: tuple[str, ...]) -> None:
    """8 s in the suite, where only a gross leak shows; two minutes under `make deep`, where a megabyte a minute does."""
    seconds, url = float(examples(8, 120)), urlsplit(endpoints.url)
    plug = http.client.HTTPConnection(url.netloc, timeout=10)
    pids, began, asked, memory = [process.pid for process in endpoints._processes], time.monotonic(), 0, list[float]()
    while (at := time.monotonic() - began) < WARM_S + seconds:
        body = json.dumps({"instances": [{"pseudonym": scored[asked % len(scored)]}]})
        plug.request("POST", url.path, body, {"content-type": "application/json"})
        reply = plug.getresponse()
        told = reply.read()
        assert reply.status == 200, told
        asked += 1
        if at > WARM_S and not asked % RATE:
            memory.append(sum(map(_memory_mb, pids)))
        time.sleep(max(began + asked / RATE - time.monotonic(), 0))
    plug.close()
    third = max(len(memory) // 3, 1)
    grown = sum(memory[-third:]) / third - sum(memory[:third]) / third  # over two thirds of the time
    assert asked > RATE and grown < 2 + 1.0 * (seconds / 60) * 2 / 3, memory
