"""The feature store against Feast's own: the point-in-time join, the online write, the online read. Writes its section of RESULTS.md.

Every row of the tables is a process of its own, so that its peak memory is its own. Times are the least of a few runs, beside CPU time,
which other work on the machine does not change. Redis and PostgreSQL are real servers on this machine.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from results import table, write

PATIENTS, VALUES, ROWS_EACH, TTL_DAYS = 100_000, 50, 3, 365
NAMES = [f"f{n:02d}" for n in range(VALUES)]
DAY_US = 86_400_000_000
TOLD = "MEASURED "
JOINS = {
    "ours: `features.offline.AsOfOfflineStore`": ("features.offline.AsOfOfflineStore", False),
    "Feast file (dask)": ("dask", False),
    "Feast file (dask), `filter_by_created_timestamp`": ("dask", True),
    "Feast DuckDB": ("duckdb", False),
    "Feast DuckDB, `filter_by_created_timestamp`": ("duckdb", True),
}


TENFOLD = {"ours: `features.offline.AsOfOfflineStore`": "4", "Feast DuckDB": "2", "Feast file (dask)": "1"}  # runs on ten times the rows


# ------------------------------------------------------------------------------------------------------------------------- the data


def make(folder: Path, patients: int) -> None:
    """Three rows of 50 values a patient, shuffled by time; 5 % recorded late, 5 % of patients have only rows that are expired or later."""
    rng, count = np.random.default_rng(0), patients * ROWS_EACH
    who = np.repeat(np.arange(patients), ROWS_EACH)
    asked_N = 20_000 * DAY_US + rng.integers(0, 300, patients) * DAY_US
    event_M = asked_N[who] - rng.integers(1, 300, count) * DAY_US
    odd = rng.random(patients)
    event_M = np.where(odd[who] < 0.025, asked_N[who] - (TTL_DAYS + 50) * DAY_US - rng.integers(0, 99, count) * DAY_US, event_M)
    event_M = np.where((odd[who] >= 0.025) & (odd[who] < 0.05), asked_N[who] + rng.integers(1, 99, count) * DAY_US, event_M)
    late = np.where(rng.random(count) < 0.05, 400, 0) * DAY_US
    event_M = event_M + np.arange(count)  # no two rows at one time: which of them is newest would be anybody's choice
    order = np.argsort(event_M, kind="stable")
    ids = pa.array([f"{n:032x}" for n in range(patients)])
    stamp = pa.timestamp("us", tz="UTC")
    columns = {"patient_id": ids.take(pa.array(who[order])), "event_timestamp": pa.array(event_M[order], stamp)}
    columns["created"] = pa.array((event_M + late)[order], stamp)
    columns |= {name: pa.array(rng.random(count, np.float32)) for name in NAMES}
    pq.write_table(pa.table(columns), folder / "values.parquet")
    asks = rng.permutation(patients)
    pq.write_table(
        pa.table({"patient_id": ids.take(pa.array(asks)), "event_timestamp": pa.array(asked_N[asks], stamp)}), folder / "asks.parquet"
    )


def truth(folder: Path) -> pd.DataFrame:
    """What is right, the slow way: every pair of ask and row, known by then, the newest, unless expired. By patient."""
    asks = pd.read_parquet(folder / "asks.parquet")
    rows = pd.read_parquet(folder / "values.parquet", columns=["patient_id", "event_timestamp", "created", NAMES[0], NAMES[-1]])
    both = asks.merge(rows.rename(columns={"event_timestamp": "event"}), on="patient_id")
    both = both[(both["event"] <= both["event_timestamp"]) & (both["created"] <= both["event_timestamp"])]
    newest = both.sort_values(["patient_id", "event", "created"], kind="stable").groupby("patient_id").tail(1).set_index("patient_id")
    newest.loc[newest["event"] < newest["event_timestamp"] - timedelta(days=TTL_DAYS), [NAMES[0], NAMES[-1]]] = np.nan
    return newest[[NAMES[0], NAMES[-1]]].reindex(asks["patient_id"])


# ------------------------------------------------------------------------------------------------ the children: one figure each


def join(folder: Path, kind: str, cutoff: bool, repeat: int) -> dict[str, Any]:
    """Feast's get_historical_features on one offline store."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float32

    place = Path(tempfile.mkdtemp(dir=folder))
    source = FileSource(path=str(folder / "values.parquet"), timestamp_field="event_timestamp", created_timestamp_column="created")
    patient = Entity(name="patient", join_keys=["patient_id"], value_type=ValueType.STRING)
    schema = [Field(name=name, dtype=Float32) for name in NAMES]
    view = FeatureView(name="labs", entities=[patient], ttl=timedelta(days=TTL_DAYS), source=source, schema=schema)
    settings = {"project": "bench", "provider": "local", "registry": str(place / "registry.db"), "offline_store": {"type": kind}}
    settings |= {"online_store": {"type": "sqlite", "path": str(place / "online.db")}, "entity_key_serialization_version": 3}
    store = FeatureStore(config=RepoConfig(**settings, repo_path=place))
    store.apply([patient, view])
    asks = pd.read_parquet(folder / "asks.parquet")
    asks["event_timestamp"] = asks["event_timestamp"].astype("datetime64[us, UTC]")
    before = peak_mb()
    options = {"filter_by_created_timestamp": True} if cutoff else {}
    refs = [f"labs:{name}" for name in NAMES]
    best, cpu, frame = least(lambda: store.get_historical_features(asks.copy(), features=refs, **options).to_df(), repeat)
    told = {"wall_s": best, "cpu_s": cpu, "peak_mb": peak_mb(), "before_mb": before, "rows": len(frame)}
    return told | judged(folder, frame, asks)


def judged(folder: Path, frame: pd.DataFrame, asks: pd.DataFrame) -> dict[str, Any]:
    """How many asks have their right values, and of those that do not, why."""
    right = truth(folder)
    got = frame.drop_duplicates("patient_id").set_index("patient_id")[[NAMES[0], NAMES[-1]]].reindex(right.index)
    present = right.index.isin(frame["patient_id"])
    same = ((got == right) | (got.isna() & right.isna())).all(axis=1).to_numpy()
    return {
        "dropped": int((~present).sum()),
        "wrong": int((present & ~same).sum()),
        "ordered": len(frame) == len(asks) and bool((frame["patient_id"].to_numpy() == asks["patient_id"].to_numpy()).all()),
    }


def from_events(folder: Path, repeat: int) -> dict[str, Any]:
    """Our features computed from the events themselves: the same number of rows, and as many features, as of the same kind of times."""
    from components.decision import load
    from components.study import rows_at
    from features import events
    from features.events import PseudonymKey, ingest
    from features.feature import Events
    from pipelines.simulate import World, simulate

    simulate(World(patients=4000), folder / "export")
    ingest(str(folder / "export"), folder / "events", PseudonymKey(b"benchmark-benchmark-benchmark-00"))
    decision, rng = load("glucose_lowering"), np.random.default_rng(0)
    known = Events(events.read(folder / "events"))
    ids = tuple(known.patients[n] for n in rng.integers(0, len(known.patients), PATIENTS))
    time_N = known.newest_us - rng.integers(0, 6 * 365, PATIENTS) * DAY_US
    before = peak_mb()
    best, cpu, rows = least(lambda: rows_at(decision, known, ids, time_N), repeat)
    return {"wall_s": best, "cpu_s": cpu, "peak_mb": peak_mb(), "before_mb": before, "rows": len(rows), "features": rows.x_NF.shape[1]}


def packed_rows(count: int) -> Any:
    """Serving rows of a decision with coded records of a usual length."""
    from components.decision import load
    from features.rows import Rows

    rng, width = np.random.default_rng(1), len(load("glucose_lowering").columns)
    record = json.dumps(
        {"measured": {f"m{n}": [80.5, 1_700_000_000_000_000] for n in range(14)}, "conditions": {}, "drugs": {"metformin": [1, 2]}}
    )
    x_NF = np.where(rng.random((count, width)) < 0.3, np.nan, rng.normal(size=(count, width)))
    fact_NF = rng.integers(10**15, 17 * 10**14, x_NF.shape)
    ids = tuple(f"{n:032x}" for n in range(count))
    time_N = np.full(count, 17 * 10**14)
    return Rows(patient_ids=ids, time_N=time_N, x_NF=x_NF, fact_NF=fact_NF, outside=("",) * count, record=(record,) * count)


def online(folder: Path) -> dict[str, Any]:
    """Write 100,000 patients to the store that CONCORDANT_ONLINE_STORE names, read one and a hundred of them."""
    from components.decision import load
    from features import store

    rows, features = packed_rows(PATIENTS), load("glucose_lowering").columns
    nobody = packed_rows(0)
    store.fill(folder / "warm", "warm", features, nobody, nobody)  # imports and the first connection are not the write
    before = peak_mb()
    server = store.Server.chosen()
    wall, cpu, told = least(lambda: store.online.fill(folder / "warm", server, "bench", "catalogue", rows), 1)
    (folder / "warm" / "store.json").write_text(
        json.dumps(json.loads((folder / "warm" / "store.json").read_text(encoding="utf-8")) | {"online": told}), encoding="utf-8"
    )
    reader, rng = store.OnlineRows(folder / "warm", server), np.random.default_rng(2)
    found = {"wall_s": wall, "cpu_s": cpu, "peak_mb": peak_mb(), "before_mb": before, "features": len(features)}
    for size, repeat in ((1, 4000), (100, 300)):
        asked = [[rows.patient_ids[n] for n in rng.integers(0, PATIENTS, size)] for _ in range(repeat)]
        spent = sorted(seconds(lambda ids=ids: reader.read(ids)) for ids in asked)
        found |= {f"p50_{size}": spent[repeat // 2] * 1e3, f"p99_{size}": spent[repeat * 99 // 100] * 1e3}
    return found


def scalars(folder: Path) -> dict[str, Any]:
    """Feast's own way on SQLite: a column a feature, `write_to_online_store` and `get_online_features`, on 5,000 patients."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    count = 5000
    patient = Entity(name="patient", join_keys=["patient_id"], value_type=ValueType.STRING)
    source = FileSource(path=str(folder / "none.parquet"), timestamp_field="event_timestamp")
    view = FeatureView(name="labs", entities=[patient], source=source, schema=[Field(name=name, dtype=Float64) for name in NAMES])
    settings = {"project": "bench", "provider": "local", "registry": str(folder / "scalars.db"), "offline_store": {"type": "duckdb"}}
    settings |= {"online_store": {"type": "sqlite", "path": str(folder / "scalars_online.db")}, "entity_key_serialization_version": 3}
    store = FeatureStore(config=RepoConfig(**settings, repo_path=folder))
    store.apply([patient, view])
    now = pd.Timestamp.now(tz="UTC").as_unit("us")
    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(count, VALUES)), columns=NAMES)
    frame = frame.assign(patient_id=[f"{n:032x}" for n in range(count)], event_timestamp=now)
    wall, cpu, _ = least(lambda: store.write_to_online_store("labs", frame), 1)
    found = {"wall_s": wall * PATIENTS / count, "cpu_s": cpu * PATIENTS / count, "peak_mb": float("nan")}
    refs = [f"labs:{name}" for name in NAMES]
    for size, repeat in ((1, 300), (100, 20)):
        asked = [[{"patient_id": frame["patient_id"][(n * 7 + m) % count]} for m in range(size)] for n in range(repeat)]
        spent = sorted(seconds(lambda ids=ids: store.get_online_features(features=refs, entity_rows=ids).to_dict()) for ids in asked)
        found |= {f"p50_{size}": spent[repeat // 2] * 1e3, f"p99_{size}": spent[repeat * 99 // 100] * 1e3}
    return found


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def least(work: Callable[[], Any], repeat: int) -> tuple[float, float, Any]:
    """Least wall and least CPU time of a few runs, and the last result."""
    walls, cpus, result = [], [], None
    for _ in range(repeat):
        result = None
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return min(walls), min(cpus), result


def peak_mb() -> float:
    """Most memory that this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# -------------------------------------------------------------------------------------------------------------------------- the parent


def child(*arguments: str, url: str = "sqlite") -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CONCORDANT_ONLINE_STORE": url}, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith(TOLD)]
    if not lines:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(lines[-1].removeprefix(TOLD))


def joins(place: Path) -> str:
    """The join at 100,000 rows on every store, ours at 1,000,000, and from events."""
    small, large = place / "small", place / "large"
    for folder, patients in ((small, PATIENTS), (large, 10 * PATIENTS)):
        folder.mkdir()
        child("make", str(folder), str(patients))
    found = {name: child("join", str(small), kind, str(int(cutoff)), "3") for name, (kind, cutoff) in JOINS.items()}
    ours = found[next(iter(JOINS))]
    rows = [_join_row(name, told, ours) for name, told in found.items()]
    tens = {name: child("join", str(large), JOINS[name][0], "0", repeat) for name, repeat in TENFOLD.items()}
    rows += [_join_row(f"{name}, 1,000,000 asks and 3,000,000 rows", told, ours) for name, told in tens.items()]
    events = child("events", str(place), "3")
    text = table(
        f"### Point-in-time join, {PATIENTS:,} asks of {ROWS_EACH * PATIENTS:,} rows x {VALUES} values, ttl {TTL_DAYS} days",
        (
            "offline store",
            "wall, s",
            "CPU, s",
            "wall, ours = 1",
            "peak, MB (before the join)",
            "asks dropped",
            "asks with wrong values",
            "in order",
        ),
        rows,
    )
    slower = {name: told["wall_s"] / ours["wall_s"] for name, told in found.items()}
    grown = ", ".join(
        f"{name} {told['wall_s'] / found[name]['wall_s']:.1f} ({told['cpu_s'] / found[name]['cpu_s']:.1f})" for name, told in tens.items()
    )
    told = (
        "All by `FeatureStore.get_historical_features(...).to_df()` on the same Parquet file. 5 in 100 patients have only rows that are\n"
        "expired or later than the question, 5 in 100 rows were recorded 400 days after they were true. Wrong: not yet recorded.\n"
        f"Ours is {slower['Feast file (dask)']:.1f} times as fast as Feast's file store and {slower['Feast DuckDB']:.1f} times as fast as\n"
        f"its DuckDB store. How many times as long ten times the rows take (in brackets: of CPU): {grown}.\n\n"
        "Without any stored values, from the events themselves (`components.study.rows_at`, 4,000 simulated patients asked\n"
        f"{PATIENTS:,} times, {events['features']} features of glucose_lowering computed as of each time): {events['wall_s']:.2f} s wall,\n"
        f"{events['cpu_s']:.2f} s CPU, peak {events['peak_mb']:,.0f} MB of which {events['before_mb']:,.0f} MB were held before.\n"
    )
    return text + "\n" + told


def _join_row(name: str, told: dict[str, Any], ours: dict[str, Any]) -> tuple[str, ...]:
    memory = f"{told['peak_mb']:,.0f} ({told['before_mb']:,.0f})"
    wrong = (f"{told['dropped']:,}", f"{told['wrong']:,}", "yes" if told["ordered"] else "no")
    return (name, f"{told['wall_s']:.2f}", f"{told['cpu_s']:.2f}", f"{told['wall_s'] / ours['wall_s']:.1f}", memory, *wrong)


def serving(place: Path) -> str:
    """Write and read on the three stores, beside Feast's scalars."""
    from conftest import server

    found = {}
    with ExitStack() as running:
        urls = {"SQLite": "sqlite"}
        urls |= {name: running.enter_context(server(kind)).url for name, kind in (("Redis", "redis"), ("PostgreSQL", "postgresql"))}
        for name, url in urls.items():
            folder = place / name
            folder.mkdir()
            found[f"ours, {name}"] = child("online", str(folder), url=url)
    found["Feast, a column a feature, SQLite (5,000 patients, write scaled)"] = child("scalars", str(place))
    rows = [
        (
            name,
            *(f"{told[key]:.1f}" for key in ("wall_s", "cpu_s")),
            *(f"{told[key]:.3f}" for key in ("p50_1", "p99_1", "p50_100", "p99_100")),
        )
        for name, told in found.items()
    ]
    features = found["ours, SQLite"]["features"]
    return table(
        f"### Online: {PATIENTS:,} patients, {features} features with the date of each and the coded record",
        ("store", "write all, s", "CPU, s", "read one, p50 ms", "p99 ms", "read a hundred, p50 ms", "p99 ms"),
        rows,
    )


def main() -> None:
    """Measure and write; with arguments, one measurement."""
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=["make", "join", "events", "online", "scalars"])
    parser.add_argument("rest", nargs="*")
    given = parser.parse_args()
    if given.what is None:
        place = Path(tempfile.mkdtemp())
        place.chmod(0o755)
        try:
            write("store", "The feature store", "python tests/benchmarks/store.py", joins(place) + "\n" + serving(place))
        finally:
            shutil.rmtree(place)
        return
    folder, rest = Path(given.rest[0]), given.rest[1:]
    told: Any = None
    if given.what == "make":
        told = make(folder, int(rest[0]))
    elif given.what == "join":
        told = join(folder, rest[0], rest[1] == "1", int(rest[2]))
    elif given.what == "events":
        told = from_events(folder, int(rest[0]))
    else:
        told = online(folder) if given.what == "online" else scalars(folder)
    print(TOLD + json.dumps(told or {}))


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # conftest's servers
    main()
