"""Ingest in MB a second of CPU, beside its floors and its peers in the same run: `python tests/benchmarks/ingest.py [--tenfold]`.

The sources: real-shaped records (Synthea, where the shared data lie beside the checkout; unpacked into a temporary folder) and a simulated
export of about the same size. Every figure is CPU time of a process of its own, threads included, because other work on the machine
changes the wall clock most; the parse of orjson in the same run says how fast the machine was.
"""

import argparse
import gzip
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

from results import table, write

from features import events, shards
from features.concepts import concepts
from features.events import PseudonymKey
from features.resources import READ

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("CONCORDANT_SHARED_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))
KEY = b"benchmark-benchmark-benchmark-00"
KEPT = tuple(sorted(READ))
SAMPLE_MB = 4.0  # of the slow peers
PYSOF = "pysof==0.2.6"


def megabytes(folder: Path) -> float:
    """Size of what a folder holds."""
    return sum(path.stat().st_size for path in folder.iterdir()) / 1e6


# What is measured, each in a process of its own -------------------------------------------------------------------------------------


def read_bytes(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            while stream.read(1 << 20):
                pass


def parse_orjson(folder: Path) -> None:
    import orjson

    for path in folder.iterdir():
        with path.open("rb") as stream:
            for line in stream:
                orjson.loads(line)


def project_duckdb(folder: Path) -> None:
    """The fields of a full Observation view, no gate, no meaning: what a columnar reader gives by itself."""
    import duckdb

    coded = "STRUCT(coding STRUCT(system VARCHAR, code VARCHAR)[])"
    quantity = "STRUCT(value DOUBLE, unit VARCHAR, code VARCHAR)"
    columns = {
        **dict.fromkeys(("id", "status", "effectiveDateTime", "issued"), "VARCHAR"),
        **{"code": coded, "subject": "STRUCT(reference VARCHAR)", "valueQuantity": quantity, "valueCodeableConcept": coded},
        "component": f"STRUCT(code {coded}, valueQuantity {quantity})[]",
    }
    told = ", ".join(f"{name}: '{kind}'" for name, kind in columns.items())
    source = f"read_json('{folder}/*.ndjson', format='newline_delimited', columns={{{told}}}, maximum_object_size=134217728)"
    connection = duckdb.connect(config={"threads": 1})
    connection.execute("SET memory_limit='800MB'")
    connection.execute(f"COPY (SELECT * FROM {source}) TO '{folder.parent}/duckdb.parquet' (FORMAT parquet)")


def validate(folder: Path) -> None:
    import orjson
    from fhir.resources.R4B import get_fhir_model_class

    for path in folder.iterdir():
        for line in path.read_bytes().splitlines():
            told = orjson.loads(line)
            get_fhir_model_class(told["resourceType"]).model_validate(told)


def parse_twice(folder: Path) -> None:
    """The same parse in two processes at once: how far the machine itself lets two go."""
    both = [get_context("fork").Process(target=parse_orjson, args=(folder,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()


def ours(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        events.ingest(str(folder), Path(out), PseudonymKey(KEY))


def ours_two(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as out:
        shards.ingest(str(folder), Path(out), PseudonymKey(KEY), shards=2)


MEASURED: dict[str, Callable[[Path], None]] = {
    function.__name__: function for function in (read_bytes, parse_orjson, parse_twice, project_duckdb, validate, ours, ours_two)
}


def measure(name: str, folder: Path) -> dict[str, float]:
    """CPU seconds, peak MiB and wall seconds of one function in a new process, less what importing costs."""
    command, environment = [sys.executable, __file__, "--measure", name, "--folder", str(folder)], dict(os.environ)
    if name == "pysof":
        command, environment = [str(pysof()), str(HERE / "ingest_pysof.py"), str(folder), f"{folder}.csv"], _own_environment()
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def measured(name: str, folder: Path) -> None:
    """In the new process: measure, print. Imports and the reading of `concepts.yaml` come before."""
    import time

    import duckdb  # noqa: F401 - not timed
    import pyarrow.parquet  # noqa: F401

    events.of_bundle({"resourceType": "Bundle"}, PseudonymKey(KEY), 0)
    concepts()

    def cpu() -> float:
        return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))

    before, began = cpu(), time.perf_counter()
    MEASURED[name](folder)
    used = {"cpu": cpu() - before, "wall": time.perf_counter() - began}
    status = Path("/proc/self/status").read_text(encoding="ascii")  # the peak of getrusage is that of the process before exec
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024
    peak = max(peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)  # of whichever process had the most; they are forked
    print(json.dumps(used | {"peak": peak}))


# The sources ------------------------------------------------------------------------------------------------------------------------


def unpack(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in sorted(folder.glob("*.gz")):
        with gzip.open(path) as stream, (to / path.stem).open("wb") as out:
            shutil.copyfileobj(stream, out)
    return to


def simulated(place: Path, patients: int) -> Path:
    from pipelines.simulate import World, simulate

    simulate(World(patients=patients), place)
    return place


def only(folder: Path, kinds: tuple[str, ...], to: Path) -> Path:
    """Some resource types of a folder, by link."""
    to.mkdir()
    for path in folder.glob("*.ndjson"):
        if path.name.split(".")[0] in kinds:
            (to / path.name).symlink_to(path)
    return to


def sample(folder: Path, to: Path) -> Path:
    """Every so many lines of each file, a few MB in all."""
    to.mkdir()
    step = max(1, int(megabytes(folder) / SAMPLE_MB))
    for path in folder.glob("*.ndjson"):
        (to / path.name).write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[::step]))
    return to


def pysof() -> Path | None:
    """Python of an environment with pysof, made where it is absent; None where pysof does not load in it.

    Its wheel brings an OpenSSL that asks for a newer C library than the wheel says; the one of the machine does where that is so.
    """
    place = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "concordant" / PYSOF.replace("==", "-")
    python = place / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", place], check=True)
    load = [python, "-c", "import pysof._pysof"]
    if _silent([python, "-c", "import pysof"]) and _silent([python, "-m", "pip", "install", "--quiet", PYSOF]):
        return None
    if _silent(load):
        for bundled in place.glob("lib/python*/site-packages/pysof.libs/lib*-*.so.3"):
            own = next(Path("/usr/lib").glob(f"*/{bundled.name.split('-')[0]}.so.3"), None)
            if own:
                bundled.unlink()
                bundled.symlink_to(own)
    return None if _silent(load) else python


def _silent(command: list[str | Path]) -> int:
    return subprocess.run(command, capture_output=True, check=False, env=_own_environment()).returncode


def _own_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"RAYON_NUM_THREADS": "1"}


def rows(title: str, folder: Path, place: Path) -> tuple[list[tuple[str, ...]], str]:
    """One source: floors, peers, ours; and what a second process gains."""
    observations = only(folder, ("Observation",), place / f"{folder.name}-observations")
    kept = only(folder, KEPT, place / f"{folder.name}-kept")
    few = sample(observations, place / f"{folder.name}-sample")
    told = (
        ("read bytes, all", "read_bytes", folder),
        ("orjson parse alone, all", "parse_orjson", folder),
        ("orjson parse alone, all, twice at once", "parse_twice", folder),
        ("orjson parse alone, Observation", "parse_orjson", observations),
        ("plain DuckDB projection to Parquet, one thread, Observation", "project_duckdb", observations),
        ("fhir.resources R4B, a sample of Observation", "validate", few),
        *((("pysof, SQL on FHIR in Rust, the same sample", "pysof", few),) if pysof() else ()),
        ("**ingest, Observation**", "ours", observations),
        ("**ingest, the types that we read**", "ours", kept),
        ("**ingest, all**", "ours", folder),
        ("ingest, all, 2 shards", "ours_two", folder),
    )
    found, wall = [], {}
    for what, name, source in told:
        size, used = megabytes(source) * (2 if name == "parse_twice" else 1), measure(name, source)
        wall[what] = used["wall"]
        figures = (
            f"{size:,.0f}",
            f"{size / used['cpu']:,.0f}",
            f"{used['cpu'] / size * 1e3:,.1f}",
            f"{used['wall']:.1f}",
            f"{used['peak']:,.0f}",
        )
        found.append((f"{title}: {what}", *figures))
        print(*found[-1], sep=" | ", flush=True)
    gained = wall["**ingest, all**"] / wall["ingest, all, 2 shards"]
    most = 2 * wall["orjson parse alone, all"] / wall["orjson parse alone, all, twice at once"]
    return found, f"{title}: {gained:.2f} times (two processes that only parse: {most:.2f})"


def copied(folder: Path, to: Path, times: int) -> Path:
    """As many times the patients: every resource of each copy has an id of its own, and so has the patient whom it is about."""
    to.mkdir()
    for path in folder.glob("*.ndjson"):
        text = path.read_bytes()
        with (to / path.name).open("wb") as out:
            for n in range(times):
                out.write(text.replace(b',"id":"', b',"id":"%d-' % n).replace(b'"Patient/', b'"Patient/%d-' % n))
    return to


def tenfold(place: Path, sources: Sequence[tuple[str, Callable[[Path], Path]]]) -> list[tuple[str, ...]]:
    """Exports of several sizes: time a MB and peak memory must not grow, and what a second process gains must not shrink."""
    found = []
    for title, made in sources:
        folder = made(place / "source")
        size, used = megabytes(folder), {name: measure(name, folder) for name in ("ours", "ours_two", "parse_orjson", "parse_twice")}
        one, two, parse, twice = used.values()
        times, most = one["wall"] / two["wall"], 2 * parse["wall"] / twice["wall"]
        figures = (f"{size / one['cpu']:,.0f}", f"{one['cpu'] / size * 1e3:.1f}", f"{one['peak']:,.0f}", f"{two['peak']:,.0f}")
        more = f"{two['cpu'] / one['cpu']:.2f}"
        found.append((title, f"{size:,.0f}", *figures, f"{one['wall']:.1f}", f"{two['wall']:.1f}", more, f"{times:.2f}", f"{most:.2f}"))
        print(*found[-1], sep=" | ", flush=True)
        shutil.rmtree(folder)
    return found


def of_sizes(place: Path) -> list[tuple[str, Callable[[Path], Path]]]:
    """Exports up to 2.7 GB, and how each is made."""
    found = [("simulated", lambda to, patients=patients: simulated(to, patients)) for patients in (2_000, 8_000, 80_000)]
    if (SHARED / "synthea_615").is_dir():
        real = unpack(SHARED / "synthea_615", place / "synthea")
        found += [(f"Synthea, {615 * times:,} patients", lambda to, times=times: copied(real, to, times)) for times in (1, 10)]
    return found


SIZES = (
    "source",
    "MB",
    "MB/s of CPU",
    "CPU ms a MB",
    "peak MiB, one",
    "peak MiB of a process, two",
    "wall s, one",
    "wall s, two",
    "CPU, two to one",
    "times as fast, two",
    "times as fast, two that only parse",
)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--measure")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--tenfold", action="store_true", help="only the table of sizes up to 2.7 GB")
    asked = parser.parse_args()
    if asked.measure:
        measured(asked.measure, asked.folder)
        return
    command = "python tests/benchmarks/ingest.py"
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        if asked.tenfold:
            text = table("### Ingest of exports of several sizes, by one process and by two", SIZES, tenfold(place, of_sizes(place)))
            write("ingest-sizes", "Ingest does not slow down with size", f"{command} --tenfold", text)
            return
        sources: list[tuple[str, Path]] = [("simulated", simulated(place / "simulated", 8000))]
        if (SHARED / "synthea_615").is_dir():
            sources.insert(0, ("Synthea, 615 patients", unpack(SHARED / "synthea_615", place / "synthea")))
        found = [rows(title, folder, place) for title, folder in sources]
        columns = ("what", "MB", "MB/s of CPU", "CPU ms a MB", "wall s", "peak MiB")
        note = f"By the clock 2 shards are faster than one: {'; '.join(gained for _, gained in found)}.\n"
        if not pysof():
            note += f"{PYSOF} could not be installed, or does not load here: no row.\n"
        text = table("### From NDJSON to the events table", columns, [row for told, _ in found for row in told]) + "\n" + note
        write("ingest", "Ingest of FHIR", command, text)


if __name__ == "__main__":
    main()
