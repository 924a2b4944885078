"""The endpoint's speed beside a bare KServe chain in the same run, its overload, and how long it lasts: a section of RESULTS.md.

The peer is what KServe itself would do for us: a transformer that does nothing, asking a predictor that does nothing, as two processes of
the stock server. The client is one process of our own on raw sockets, so that it takes little of the cores that it shares.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from results import table, write

sys.path.remove(str(Path(__file__).parent))  # else this file would hide the package of its name
from components.bundle import load
from features.events import PseudonymKey
from features.store import Rows
from pipelines.port import free_port
from pipelines.serve import Endpoints

SECONDS = 4.0
TICKS = os.sysconf("SC_CLK_TCK")
ECHO = """
import logging, sys
role, port, predictor = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sys.argv[1:] = []
from kserve import Model, ModelServer, PredictorConfig
logging.disable(logging.INFO)
class Echo(Model):
    def __init__(self):
        super().__init__("echo")
        self.ready = True
if role == "predictor":
    async def predict(self, payload, headers=None):
        return {"predictions": payload["instances"]}
    Echo.predict = predict
host = predictor if role == "transformer" else None
config = PredictorConfig(predictor_host=host, predictor_protocol="v1", predictor_use_ssl=False,
                         predictor_request_timeout_seconds=5, predictor_request_retries=0, predictor_health_check=False)
ModelServer(http_port=port, enable_grpc=False, predictor_config=config).start([Echo()])
"""


HEALTH = """
import http.client, sys, time
host = sys.argv[1].split("/")[2]
took, over = [], time.monotonic() + float(sys.argv[2])
while time.monotonic() < over:
    began = time.monotonic()
    plug = http.client.HTTPConnection(host, timeout=5)
    plug.request("GET", "/v2/health/live")
    assert plug.getresponse().status == 200
    plug.close()
    took.append(time.monotonic() - began)
    time.sleep(0.02)
took.sort()
print(f"p50 {took[len(took) // 2] * 1e3:.0f} ms, p99 {took[int(len(took) * 0.99)] * 1e3:.0f} ms, {len(took)} times")
"""


@contextmanager
def bare_chain() -> Iterator[tuple[str, list[int]]]:
    """KServe's own server twice, doing nothing; the URL to ask and the processes."""
    ports, processes = (free_port(), free_port()), []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for role, port, other in (("predictor", ports[0], "-"), ("transformer", ports[1], f"127.0.0.1:{ports[0]}")):
        processes.append(subprocess.Popen([sys.executable, "-W", "ignore", "-c", ECHO, role, str(port), other], env=environment,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))  # fmt: skip
    url = f"http://127.0.0.1:{ports[1]}/v1/models/echo:predict"
    try:
        await_answer(url, b'{"instances": [{}]}')
        yield url, [process.pid for process in reversed(processes)]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def await_answer(url: str, body: bytes) -> None:
    """Until the first answer comes."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            request = urllib.request.Request(url, body, {"content-type": "application/json"})
            urllib.request.urlopen(request, timeout=5).read()
            return
        except OSError:
            time.sleep(0.3)
    raise SystemExit(f"nothing answers at {url}")


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used."""
    told = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(told[11]) + int(told[12])) / TICKS


def memory_mb(pid: int) -> float:
    """Resident memory of a process."""
    return int(next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@dataclass
class Load:
    """What came back."""

    seconds: list[float] = field(default_factory=list)
    status: Counter[int] = field(default_factory=Counter)
    shed: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    cpu: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def at(self, share: float) -> float:
        """A quantile of the answers with 200, in milliseconds."""
        return sorted(self.seconds)[min(int(len(self.seconds) * share), len(self.seconds) - 1)] * 1e3 if self.seconds else float("nan")

    @property
    def rps(self) -> float:
        """Good answers a second."""
        return self.status[200] / self.elapsed

    @property
    def per_core(self) -> float:
        """Good answers for each second of one core, all server processes together."""
        return self.status[200] / max(sum(self.cpu), 1e-9)


async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    """One request over an open connection; its status."""
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().split(b"content-length:")[1].split(b"\r\n")[0]
    await reader.readexactly(int(length))
    return int(head[9:12])


def requests_of(url: str, bodies: list[bytes]) -> tuple[str, int, list[bytes]]:
    """Host, port and whole requests."""
    host, path = url.removeprefix("http://").split("/", 1)
    head = f"POST /{path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    name, port = host.split(":")
    return name, int(port), [f"{head}content-length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


async def closed_loop(url: str, bodies: list[bytes], clients: int, seconds: float, rate: float = 0.0) -> Load:
    """Clients that each ask again when they have their answer; with `rate`, all together at most so many a second."""
    host, port, requests = requests_of(url, bodies)
    found, over = Load(), time.monotonic() + seconds

    async def client(number: int) -> None:
        dice, due = random.Random(number), time.monotonic() + number / max(rate, 1e-9) if rate else 0.0
        await asyncio.sleep(max(min(due, over) - time.monotonic(), 0))  # a connection that asks nothing for 5 s is closed
        reader, writer = await asyncio.open_connection(host, port)
        while time.monotonic() < over:
            if rate:
                await asyncio.sleep(max(min(due, over) - time.monotonic(), 0))
                if time.monotonic() >= over:  # not asked any more: else the run would end in a time in which nobody asks
                    break
                due = max(due + clients / rate, time.monotonic() - 1)
            began = time.monotonic()
            try:
                status = await once(reader, writer, dice.choice(requests))
            except (OSError, asyncio.IncompleteReadError, IndexError):
                found.status[0] += 1
                writer.close()
                reader, writer = await asyncio.open_connection(host, port)
                continue
            found.status[status] += 1
            (found.seconds if status == 200 else found.shed).append(time.monotonic() - began)
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(client(number) for number in range(clients)))
    found.elapsed = time.monotonic() - began
    return found


def measured(url: str, bodies: list[bytes], pids: list[int], clients: int, seconds: float = SECONDS, rate: float = 0.0) -> Load:
    """A load, with the CPU time and memory of the server's processes."""
    import uvloop

    before = [cpu_s(pid) for pid in pids]
    found = uvloop.run(closed_loop(url, bodies, clients, seconds, rate))
    found.cpu = [cpu_s(pid) - cpu for pid, cpu in zip(pids, before, strict=True)]
    found.memory = [memory_mb(pid) for pid in pids]
    return found


def inline_bodies(source: Path, ids: list[str]) -> list[bytes]:
    """Each patient's record as an inline Bundle."""
    held: dict[str, list[Any]] = {patient: [] for patient in ids}
    for path in sorted(source.glob("*.ndjson")):
        for line in path.read_bytes().splitlines():
            resource = json.loads(line)
            whom = (
                resource["id"]
                if resource["resourceType"] == "Patient"
                else (resource.get("subject") or resource.get("patient") or {}).get("reference", "")
            )
            if (patient := whom.removeprefix("Patient/")) in held:
                held[patient].append({"resource": resource})
    bundles = ({"resourceType": "Bundle", "type": "collection", "entry": entry} for entry in held.values() if entry)
    return [json.dumps({"instances": [{"bundle": bundle}]}).encode() for bundle in bundles]


def rows_of(kind: str, loads: dict[int, Load], bare: dict[int, Load]) -> list[tuple[str, ...]]:
    """The table's rows of one way to ask."""
    told = []
    for clients, load_ in loads.items():
        ratio = load_.at(0.99) / bare[clients].at(0.99)
        bad = sum(count for status, count in load_.status.items() if status != 200)
        told.append((kind, str(clients), f"{load_.rps:,.0f}", f"{load_.per_core:,.0f}", f"{load_.at(0.5):.1f}", f"{load_.at(0.99):.1f}",
                     f"{ratio:.2f}", str(bad), " + ".join(f"{mb:.0f}" for mb in load_.memory)))  # fmt: skip
    return told


def overload(url: str, bodies: list[bytes], pids: list[int]) -> tuple[str, Load, Load]:
    """Capacity at 48 clients, then three times as much asked as was answered."""
    capacity = measured(url, bodies, pids, 48)
    with subprocess.Popen([sys.executable, "-c", HEALTH, url, str(SECONDS)], stdout=subprocess.PIPE) as asking:
        pressed = measured(url, bodies, pids, 400, SECONDS, rate=3 * capacity.rps)
        health = (asking.communicate()[0] or b"?").decode().strip()
    shed = sorted(pressed.shed) or [0.0]
    each = [found.cpu[0] / max(sum(found.status.values()), 1) * 1e3 for found in (capacity, pressed)]
    arrived, last = sum(pressed.status.values()) / pressed.elapsed, shed[int(len(shed) * 0.99)] * 1e3
    text = (
        f"Capacity at 48 clients {capacity.rps:,.0f} rps; asked for three times that, {arrived:,.0f} rps arrived: {pressed.rps:,.0f} rps "
    )
    text += f"answered, {pressed.rps / capacity.rps:.0%} of capacity, p99 {pressed.at(0.99):.0f} ms; the rest was refused with 503, "
    text += f"p99 {last:.0f} ms. CPU of the transformer a request: {each[0]:.1f} ms, then {each[1]:.1f} ms. Health meanwhile {health}. "
    text += f"Statuses: {dict(pressed.status)}."
    return text, capacity, pressed


@contextmanager
def redis() -> Iterator[str | None]:
    """Debian's Redis on a free port, where it is installed."""
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    port, place = free_port(), tempfile.mkdtemp()
    process = subprocess.Popen(
        [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", place], stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(1)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(place)


def soak(url: str, bodies: list[bytes], pids: list[int], minutes: float, rate: float) -> str:
    """A modest load for a long time: errors, memory, open files."""
    told, began = [], time.monotonic()
    while time.monotonic() - began < minutes * 60:
        load_ = measured(url, bodies, pids, 4, 30.0, rate)
        files = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in pids]
        told.append((time.monotonic() - began, load_, files))
    late = [entry for entry in told if entry[0] > told[-1][0] * 0.2] or told
    minutes_run = max((late[-1][0] - late[0][0]) / 60, 1e-9)
    slope = [(last - first) / minutes_run for first, last in zip(late[0][1].memory, late[-1][1].memory, strict=True)]
    asked, bad = (
        sum(sum(entry[1].status.values()) for entry in told),
        sum(n for entry in told for s, n in entry[1].status.items() if s != 200),
    )
    rows = []
    for at, found, files in told[:: max(len(told) // 10, 1)]:
        memory, opened = " + ".join(f"{mb:.0f}" for mb in found.memory), " + ".join(map(str, files))
        rows.append((f"{at / 60:.0f}", f"{found.rps:.0f}", f"{found.at(0.5):.1f}", f"{found.at(0.99):.1f}", memory, opened))
    head = f"{asked:,} requests at {rate:.0f} rps for {told[-1][0] / 60:.0f} minutes: {bad} errors. Memory slope after the first fifth: "
    head += ", ".join(f"{name} {value:+.2f} MB/min" for name, value in zip(("transformer", "predictor"), slope, strict=True))
    return table(f"### Soak\n\n{head}.", ("minute", "rps", "p50 ms", "p99 ms", "memory MB", "open files"), rows)


def stages(run: Path, key: PseudonymKey, ranked: list[str]) -> str:
    """CPU time of each stage of one answer, called one after the other in this process; HTTP is not among them."""
    from serving import body as bodies
    from serving.audit import Reader, Trail
    from serving.patient import Patients
    from serving.predictor import _matrix, _time_us
    from serving.schema import FeatureRow, PatientQuery, instances, response
    from serving.transformer import _ANSWERS

    bundle, patients, patient = load(run), Patients(run / "store", key, wall_clock=False), ranked[0]
    raw = json.dumps({"instances": [{"pseudonym": patient}]}).encode()
    (row,) = patients.rows([PatientQuery(pseudonym=patient)])
    sent = row.model_dump_json().encode()
    x_NF, now_N = _matrix(bundle, [row]), np.array([_time_us(row.as_of)])
    told = ([row.stale], [row.outside], [row.record], now_N)
    facts = bundle.facts([row.record], now_N)
    _, (answer,) = bundle.answer(x_NF, *told)
    answered = b'{"predictions":[' + response(bundle, answer, row).model_dump_json().encode() + b"]}"
    trail = Trail(Path(tempfile.mkdtemp()) / "audit.ndjson", "bench")
    whole, plain = cpu_ms(lambda: bundle.answer(x_NF, *told, explained=True)), cpu_ms(lambda: bundle.answer(x_NF, *told))
    effects, rules = cpu_ms(lambda: bundle.effects(x_NF)), cpu_ms(lambda: bundle.safety(facts))
    found = [
        ("transformer", "body: bytes to queries", cpu_ms(lambda: instances(bodies.parse(raw), PatientQuery))),
        ("transformer", "store: pseudonym to row", cpu_ms(lambda: patients.rows([PatientQuery(pseudonym=patient)]))),
        ("transformer", "row to JSON, answer from JSON", cpu_ms(lambda: (row.model_dump_json(), _ANSWERS.validate_json(answered)))),
        ("transformer", "audit event, chained and written", cpu_ms(lambda: trail.write(Reader(), [patient], "0", "0" * 32))),
        ("predictor", "body: bytes to rows", cpu_ms(lambda: instances(bodies.parse(b'{"instances":[' + sent + b"]}"), FeatureRow))),
        ("predictor", "models: effects with intervals", effects),
        ("predictor", "safety rules", rules),
        ("predictor", "rest of the answer: record, distance, ranking", max(plain - effects - rules, 0.0)),
        ("predictor", "reasons and thresholds", whole - plain),
        ("predictor", "answer to JSON", cpu_ms(lambda: response(bundle, answer, row).model_dump_json())),
    ]
    total, blend = sum(ms for _, _, ms in found), bundle.blend
    even = replace(bundle, blend=replace(blend, level_J=np.full(3, 1 / 3), effect_J=np.full(4, 0.25), for_all_KK=None))
    every = cpu_ms(lambda: even.answer(x_NF, *told, explained=True)) - whole
    weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip((*blend.members, "constant"), blend.effect_J, strict=True))
    note = (
        f"Together {total:.1f} ms. Weights of the members in the effects: {weights}. Tried rows ask only members that have weight; where "
    )
    note += f"all have, an answer takes {every:.1f} ms more."
    rows = [(process, stage, f"{ms:.2f}", f"{ms / total:.0%}") for process, stage, ms in found]
    return table(f"### Stages of one ranked answer by patient id, CPU time\n\n{note}", ("process", "stage", "ms", "share"), rows)


def cpu_ms(work: Any, times: int = 60) -> float:
    """CPU milliseconds of a call: the best of three rounds."""
    work()
    best = float("inf")
    for _ in range(3):
        began = time.process_time()
        for _ in range(times // 3):
            work()
        best = min(best, (time.process_time() - began) / (times // 3) * 1e3)
    return best


def redis_run(run: Path, url: str, place: Path) -> Path:
    """The same run with its rows on a Redis server."""
    from components import decision as decisions
    from features import store

    os.environ["CONCORDANT_ONLINE_STORE"] = url
    place.mkdir()
    (place / "bundle").symlink_to((run / "bundle").resolve())
    shutil.copyfile(run / "run.json", place / "run.json")
    rows = Rows.read(run / "store" / "serving_row.parquet")
    decision = decisions.load(str(run / "bundle" / "decision.yaml"))
    store.fill(place / "store", decision.name, decision.columns, rows, rows)
    return place


def made(place: Path) -> tuple[Path, Path, Path]:
    """The run that the command line makes by itself, whose bundle chooses by patient: its folder, its key, its source."""
    if not (place / "ws").exists():
        command = [sys.executable, "-m", "pipelines", "run", "glucose_lowering", "--workspace", str(place / "ws")]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=place)
    source = next(path for path in (place / "ws" / "sources").iterdir() if path.is_dir())
    return next((place / "ws" / "runs").iterdir()), place / "ws" / "pseudonym.key", source


COUNTS = ("test_fuzz.py", "test_contract.py", "test_swap.py", "test_stop.py")


def counts() -> str:
    """The tests of what must never happen, on their full number of cases, and what each found."""
    import xml.etree.ElementTree as ElementTree

    rows = []
    root = Path(__file__).resolve().parents[2]
    for name in COUNTS:
        told = Path(tempfile.mkdtemp()) / "told.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-m",
            "deep",
            f"tests/serving/{name}",
            f"--junitxml={told}",
            "-o",
            "timeout=3600",
            "-o",
            "junit_family=xunit1",
        ]
        began = time.monotonic()
        subprocess.run(command, cwd=root, env={**os.environ, "CONCORDANT_DEEP": "1"}, check=False)
        for case in ElementTree.parse(told).iter("testcase"):
            found = next((p.get("value") for p in case.iter("property") if p.get("name") == "found"), None)
            rows.append(
                (case.get("name", "").removeprefix("test_").replace("_", " "), found or "FAILED", f"{float(case.get('time', 0)):.0f} s")
            )
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    return table("### What must never happen, on the full number of cases", ("test", "found", "took"), rows)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workspace", type=Path, help="folder with the `ws` of an earlier run of this command; else it is made")
    parser.add_argument("--counts", action="store_true", help="only the tests of `make deep` in tests/serving, with what they found")
    parser.add_argument("--soak", type=float, default=0.0, help="only the soak, this many minutes")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second of the soak; else 60 %% of capacity")
    given = parser.parse_args()
    if given.counts:
        write("serving-counts", "Serving: counts", "python tests/benchmarks/serving.py --counts", counts())
        return
    run, key_file, source = made(given.workspace or Path(tempfile.mkdtemp()))
    key, rows = PseudonymKey.at(key_file), Rows.read(run / "store" / "serving_row.parquet")
    _, answers = load(run).advise(rows, rows.time_N)
    ranked = [patient for patient, answer in zip(rows.patient_ids, answers, strict=True) if len(answer.ranked) > 1]
    anybody = list(rows.patient_ids[:: max(len(rows) // 200, 1)])
    asked = {
        name: [json.dumps({"instances": [{"pseudonym": p}]}).encode() for p in ids]
        for name, ids in (("ranked", ranked), ("anybody", anybody))
    }
    audit = Path(tempfile.mkdtemp()) / "audit.ndjson"
    if given.soak:
        with Endpoints(run=run, key_file=key_file, audit=audit) as ours:
            pids = [process.pid for process in reversed(ours._processes)]
            measured(ours.url, asked["anybody"], pids, 4, 3.0)
            rate = given.rate or 0.6 * measured(ours.url, asked["anybody"], pids, 32).rps
            write(
                "serving-soak",
                "Serving: soak",
                f"python tests/benchmarks/serving.py --soak {given.soak:g}",
                soak(ours.url, asked["anybody"], pids, given.soak, rate),
            )
        return
    text = compared(run, key_file, source, key, asked, ranked, audit)
    write("serving", "Serving", "python tests/benchmarks/serving.py", text)


def compared(
    run: Path, key_file: Path, source: Path, key: PseudonymKey, asked: dict[str, list[bytes]], ranked: list[str], audit: Path
) -> str:
    """All of it in one run."""
    told: list[tuple[str, ...]] = []
    with bare_chain() as (url, pids):
        measured(url, [b'{"instances": [{"patient_id": "a"}]}'], pids, 4, 2.0)
        bare = {n: measured(url, [b'{"instances": [{"patient_id": "a"}]}'], pids, n) for n in (1, 8, 32)}
        told += rows_of("bare KServe echo chain", bare, bare)
    with Endpoints(run=run, key_file=key_file, audit=audit) as ours:
        pids = [process.pid for process in reversed(ours._processes)]
        names = {key.pseudonym(line["id"]): line["id"] for line in map(json.loads, (source / "Patient.ndjson").read_text().splitlines())}
        asked["inline"] = inline_bodies(source, [names[patient] for patient in ranked[:40]])
        for kind, name in (
            ("anybody", "by id, SQLite, anybody"),
            ("ranked", "by id, SQLite, ranked only"),
            ("inline", "inline Bundle, ranked only"),
        ):
            measured(ours.url, asked[kind], pids, 4, 2.0)
            told += rows_of(name, {n: measured(ours.url, asked[kind], pids, n) for n in (1, 8, 32)}, bare)
        pressed = [(kind, overload(ours.url, asked[kind], pids)[0]) for kind in ("anybody", "ranked")]
    with redis() as address, tempfile.TemporaryDirectory() as place:
        if address:
            elsewhere = redis_run(run, address, Path(place) / "run")
            with Endpoints(run=elsewhere, key_file=key_file, audit=audit.with_name("redis.ndjson")) as ours:
                pids = [process.pid for process in reversed(ours._processes)]
                measured(ours.url, asked["anybody"], pids, 4, 2.0)
                told += rows_of("by id, Redis, anybody", {n: measured(ours.url, asked["anybody"], pids, n) for n in (1, 8, 32)}, bare)
            del os.environ["CONCORDANT_ONLINE_STORE"]
    columns = ("asked", "clients", "rps", "rps a core", "p50 ms", "p99 ms", "p99, times bare", "not 200", "memory MB")
    size = sum(map(len, asked["inline"])) / len(asked["inline"]) / 1e3
    heading = "### Load\n\nClient and servers share the machine's cores. `rps a core`: answers for a second of CPU of both processes. "
    heading += f"Inline: {size:.0f} kB each."
    strain = "\n".join(f"- {kind}: {text}" for kind, text in pressed)
    return "\n".join([table(heading, columns, told), f"### Three times as much as it can\n\n{strain}\n", stages(run, key, ranked)])


if __name__ == "__main__":
    main()
