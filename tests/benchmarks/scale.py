"""Ingest and features of 1, 4 and 16 times the patients in 1, 2 and 4 shards: `python tests/benchmarks/scale.py`.

Every run is a process tree of its own; the digest over all that it leaves must be that of one process. CPU time, not the wall clock, is
what can be compared: the machine has two cores and does other work. From the phases the cost of 10 million patients is computed.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from results import table, write

from components import sharded, study
from components.cohort import select
from components.decision import load
from features import engines, events, shards
from features.events import PseudonymKey
from features.parts import Place

KEY = PseudonymKey(b"benchmark-benchmark-benchmark-00")
NOW_US = 1_780_000_000_000_000
ONE = 750  # patients of 1x
SIZES, SHARDS = (1, 4, 16), (1, 2, 4)
DECISION = "glucose_lowering"
MILLIONS = 10
SERIAL = ("plan", "settle", "join", "join features")  # phases that are one task however many shards there are
SYNTHEA_KB = 426  # FHIR a patient: Synthea's 615 patients are 262 MB


def peak_mib() -> float:
    """The most memory that this process has held."""
    status = Path("/proc/self/status").read_text(encoding="ascii")  # the peak of getrusage is that of the process before exec
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def cpu_s() -> float:
    """CPU seconds of this process and those it has waited for."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in used)


def task(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float, float]:
    """A shard's work in its process: result, CPU seconds, peak MiB."""
    began = time.process_time()
    result = function(*arguments)
    return result, time.process_time() - began, peak_mib()


def build(folder: Path, shard: int, count: int) -> None:
    piece = folder / f"piece-{shard}"
    piece.mkdir()
    sharded.build(load(DECISION), folder / "events", shard, count, piece)


def bytes_in(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


class Phases:
    """CPU seconds of each phase, task by task, and the peak of any process."""

    def __init__(self, run: engines.Map) -> None:
        self._run, self.cpu, self.peak = run, dict[str, list[float]](), 0.0

    def each(self, name: str, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """A phase in shards."""
        done = self._run(task, [(function, *one) for one in arguments])
        self.cpu[name] = [cpu for _, cpu, _ in done]
        self.peak = max(self.peak, *(peak for _, _, peak in done))

    def here(self, name: str, function: Callable[[], Any]) -> Any:
        """A phase in this process."""
        result, used, _ = task(function)
        self.cpu[name] = [used]
        return result


def in_shards(source: str, folder: Path, count: int) -> dict[str, Any]:
    """All phases; what lies between them is measured on the way."""
    place, decision = str(folder / "place"), load(DECISION)
    with engines.opened("processes", count) as run:
        phases = Phases(run)
        phases.here("plan", lambda: shards.plan(source, place, count, NOW_US, KEY))
        phases.each("read", shards.read_share, [(place, share, KEY) for share in range(count)])
        phases.here("settle", lambda: shards.settle(place, KEY))
        phases.each("build", shards.build, [(place, shard, KEY) for shard in range(count)])
        there = Place(place).local
        assert there is not None
        sizes = {"columns": bytes_in(there, "part-*/*"), "settled": bytes_in(there, "settled/*"), "groups": bytes_in(there, "events/*")}
        phases.here("join", lambda: shards.join(place, folder / "events"))
        phases.each("features", build, [(folder, shard, count) for shard in range(count)])
        pieces = [folder / f"piece-{shard}" for shard in range(count)]
        for name in ("cohort", "features"):
            (folder / name).mkdir()
        phases.here(
            "join features",
            lambda: (sharded.join_cohorts(decision, pieces, folder / "cohort"), sharded.join_features(pieces, folder / "features")),
        )
    sizes |= {"events": bytes_in(folder / "events", "events.parquet"), "features": bytes_in(folder / "features", "*")}
    return {"cpu_of": phases.cpu, "peak": max(phases.peak, peak_mib()), "sizes": sizes}


def alone(source: str, folder: Path) -> dict[str, Any]:
    """One process."""
    from datetime import UTC, datetime

    events.ingest(source, folder / "events", KEY, now=datetime.fromtimestamp(NOW_US / 1e6, UTC))
    read, decision = events.read(folder / "events"), load(DECISION)
    cohort = select(read, decision)
    for name in ("cohort", "features"):
        (folder / name).mkdir()
    cohort.write(folder / "cohort")
    study.build(decision, read, cohort, folder / "features")
    return {"cpu_of": {}, "peak": peak_mib(), "sizes": {}}


def measured(source: str, count: int) -> None:
    """In a new process: run, print."""
    with tempfile.TemporaryDirectory() as name:
        folder, began, before = Path(name), time.perf_counter(), cpu_s()
        told = alone(source, folder) if count == 1 else in_shards(source, folder, count)
        told |= {"wall": time.perf_counter() - began, "cpu": cpu_s() - before}
        whole = sha256()
        for part in ("events", "cohort", "features"):
            for path in sorted((folder / part).iterdir()):
                whole.update(path.name.encode() + path.read_bytes())
        summary = json.loads((folder / "events" / "summary.json").read_text(encoding="utf-8"))
    counts = {what: summary[what] for what in ("received", "events", "patients")}
    print(json.dumps(told | counts | {"digest": whole.hexdigest()[:16]}))


def runs(place: Path) -> list[dict[str, Any]]:
    """Every size in every number of shards."""
    from pipelines.simulate import World, simulate

    found = []
    for size in SIZES:
        source = place / f"{size}x"
        simulate(World(patients=ONE * size), source)
        for count in SHARDS:
            command = [sys.executable, __file__, "--measure", str(source), "--shards", str(count)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            told = json.loads(done.stdout.splitlines()[-1]) | {"size": size, "shards": count, "mb": bytes_in(source, "*.ndjson") / 1e6}
            found.append(told)
            print({name: told[name] for name in ("size", "shards", "wall", "cpu", "peak", "digest")}, flush=True)
        assert len({told["digest"] for told in found[-len(SHARDS) :]}) == 1, "a sharded run left other bytes"
    return found


def rows(found: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A line a run."""
    lines = []
    for told in found:
        base = next(one for one in found if one["size"] == told["size"] and one["shards"] == 1)
        longest = sum(max(each) for each in told["cpu_of"].values())
        lines.append(
            (
                f"{told['size']}x: {told['patients']:,} patients, {told['mb']:,.0f} MB",
                str(told["shards"]),
                f"{told['wall']:.1f}",
                f"{told['cpu']:.1f}",
                f"{told['cpu'] / base['cpu']:.2f}",
                f"{longest:.1f}" if longest else f"{told['cpu']:.1f}",
                f"{told['peak']:,.0f}",
                "equal" if told["digest"] == base["digest"] else "DIFFERENT",
            )
        )
    return lines


def paper(told: dict[str, Any], kb_a_patient: float, title: str) -> str:
    """The cost of ten million patients from the phases of one measured run. Everything is taken to grow with bytes, or with patients."""
    patients, cpu = MILLIONS * 1e6, {name: sum(each) for name, each in told["cpu_of"].items()}
    by_bytes = patients * kb_a_patient / 1e3 / told["mb"]
    by_patients = patients / told["patients"]
    hours = {name: cpu[name] * (by_bytes if name != "join features" else by_patients) / 3600 for name in cpu}
    size = {name: number * by_bytes / 1e12 for name, number in told["sizes"].items()}
    size["features"] = told["sizes"]["features"] * by_patients / 1e12
    groups = events.finer(int(patients * kb_a_patient * 1e3))
    alone_h = sum(hours[name] for name in SERIAL)
    shared_h = sum(hours.values()) - alone_h
    lines = [
        ("FHIR read", f"{patients * kb_a_patient / 1e9:,.1f} TB, {told['received'] * by_bytes / 1e9:,.1f} billion resources"),
        ("CPU hours in shards: read, build, features", " + ".join(f"{hours[name]:,.0f}" for name in ("read", "build", "features"))),
        (
            "CPU hours in one task: plan, settle, join, join features",
            " + ".join(f"{hours[name]:,.1f}" for name in SERIAL),
        ),
        (
            "wall hours with 64 and 512 cores, without waiting for disks",
            f"{alone_h + shared_h / 64:,.1f} and {alone_h + shared_h / 512:,.1f}",
        ),
        (
            "shuffle: columns written once and read once; events between build and join",
            f"{size['columns']:,.1f} TB; {size['groups']:,.1f} TB",
        ),
        (
            "shuffle: what every build task reads besides (versions, vocabulary, its own patients)",
            f"{size['settled'] * 1e3:,.0f} GB at most",
        ),
        ("kept: events, feature rows", f"{size['events']:,.2f} TB, {size['features']:,.2f} TB"),
        ("groups of patients; files of the shuffle with 512 shards", f"{groups:,}; {512 * groups * 2:,}"),
    ]
    return table(f"#### {title}", ("what", "figure"), lines)


def text(found: list[dict[str, Any]]) -> str:
    """The section."""
    columns = ("patients", "shards", "wall s", "CPU s", "CPU to 1 shard", "CPU s on the longest way", "peak MiB a process", "all bytes")
    largest = next(told for told in found if told["size"] == SIZES[-1] and told["shards"] == SHARDS[-1])
    told = (
        f"Engine: processes, at most {os.cpu_count()} at once, forked; starting them is in the CPU time. The longest way is the sum\n"
        "over the phases of the slowest task of each: the wall clock with a core a shard and nothing else to do. The machine did other\n"
        "work: the wall clock says little.\n"
    )
    own = largest["mb"] * 1e3 / largest["patients"]
    assumed = (
        f"### {MILLIONS} million patients, on paper\n\n"
        f"Computed from the phases of {SIZES[-1]}x in {SHARDS[-1]} shards. Assumptions: every phase grows with the bytes of FHIR (join\n"
        "features: with patients); the same share of resources states something that is read; cores like this one; storage that gives the\n"
        f"bytes as fast as they are asked for. Not measured: object storage and network at that size, more than {SHARDS[-1]} shards, a\n"
        "cluster, and the memory of `settle`, which holds every pseudonym (0.3 kB each by the size of Python's strings: 3 GB).\n"
        "`settle` and `join` are one task each and do not divide; the shuffle has a file for each share and group, too\n"
        "many for an object store at the finest division (fewer, larger shares help).\n\n"
    )
    return (
        table("### Ingest and features in shards", columns, rows(found)) + "\n" + told + "\n" + assumed
        + paper(largest, own, f"Records as the simulator makes them, {own:.0f} kB a patient") + "\n"
        + paper(largest, SYNTHEA_KB, f"Records as large as Synthea's, {SYNTHEA_KB} kB a patient")
    )  # fmt: skip


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure")
    parser.add_argument("--shards", type=int, default=1)
    asked = parser.parse_args()
    if asked.measure:
        measured(asked.measure, asked.shards)
        return
    with tempfile.TemporaryDirectory() as name:
        found = runs(Path(name))
    write("scale", "Scale", "python tests/benchmarks/scale.py", text(found))


if __name__ == "__main__":
    main()
