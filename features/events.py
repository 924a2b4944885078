"""The events table: one row a dated clinical fact, in our unit, under a keyed pseudonym. Also the account of what was not accepted."""

import gc
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import resources, source
from features.account import Account
from features.assembly import SCHEMA, Assembly
from features.collector import GROUPS, Collected, Collector
from features.medications import misled
from features.moment import BEGIN_US, DAY_US
from features.pseudonym import PseudonymKey
from features.source import Line, Task
from features.validation import Which, validate

__all__ = ["SCHEMA", "Line", "PseudonymKey", "collect", "ingest", "newest_us", "now_us", "of_bundle", "of_source", "raw_ids", "read"]

Progress = Callable[[str, int], None]
Dates = Literal["kept", "shifted"]


def collect(received: Iterable[Line], key: PseudonymKey, now_us: int) -> pa.Table:
    """Events table of some lines, for a single record; what is refused is left out."""
    collector, task = Collector(key, now_us, known={}), 0  # of what is small anyway, all that needs another file may wait
    for line in received:
        if line.file != collector.file:
            collector.begin(line.file, task := task + 1, f"@{task}")
        problem = line.problem or "unreadable"
        collector.take(resources.gate(line.raw) if line.resource is not None else resources.Broken("unreadable", problem), line.number)
    return _in_memory([collector.finish()], Collector(key, now_us))


def of_bundle(bundle: dict[str, Any], key: PseudonymKey, now_us: int) -> pa.Table:
    """Events table of an inline FHIR Bundle: the same code that reads a bulk export."""
    collector = Collector(key, now_us)
    collector.begin("bundle", 0)
    collector.take_file(resources.encoded(bundle))
    return _in_memory([collector.finish()], Collector(key, now_us))


def of_source(origin: str, key: PseudonymKey, now_us: int) -> pa.Table:
    """Events table of a whole source, in memory: for answers of which nothing is kept."""
    collector = Collector(key, now_us, known={})
    for task in source.tasks(origin):
        _take(collector, task, None)
    return _in_memory([collector.finish()], Collector(key, now_us))


def cleared(out: Path) -> None:
    """The folder of an ingest, without what a killed one left of patients there."""
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob(".spool*"):
        shutil.rmtree(left)


def ingest(
    origin: str,
    out: Path,
    key: PseudonymKey,
    *,
    now: datetime | None = None,
    progress: Progress | None = None,
    dates: Dates = "kept",
    check: Which | None = None,
    checked: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Read a source into `out`: `events.parquet`, `quarantine.parquet`, `summary.json`; returns the summary.

    accepted + quarantined = received, per file and per resource type. `shards.ingest` makes the same bytes with several processes.
    Memory is bounded by a sixteenth of the events or 1 GB of the source, whichever is less; the rest lies in `out` meanwhile. Nothing
    appears under its name before it is whole. `dates` shifted: those of each patient are moved by one secret number of days. `check`:
    which resources are also validated in full, while `checked` gets how many of how many were passed.
    Raises SourceError where the source can't be read at all.
    """
    now_us, tasks = _micros(now or datetime.now(UTC)), source.tasks(origin)
    groups = finer(sum(source.weights(tasks)))
    cleared(out)
    with tempfile.TemporaryDirectory(prefix=".spool", dir=out) as place:
        spool = Path(place)
        collected = _collected(Collector(key, now_us, _folder(spool / "read"), groups=groups), tasks, progress)
        if misled(collected.leaned, collected.medications):
            medications = collected.medications
            del collected  # before the second reading needs as much
            shutil.rmtree(spool / "read")
            collected = _collected(Collector(key, now_us, _folder(spool / "read"), groups=groups, table=medications), tasks, progress)
        again = Collector(key, now_us, _folder(spool / "again"), groups=groups)
        assembly = Assembly([collected], again, offsets(key, dates))
        with writer(spool / "events.parquet", groups) as file:
            for table in assembly:
                file.write_table(table)
        validated = validate(origin, check, assembly.account, checked) if check else None
        return write_account(assembly.account, spool, out, dates, validated)


def _collected(collector: Collector, tasks: Iterable[Task], progress: Progress | None) -> Collected:
    read_tasks(collector, tasks, progress)
    return collector.finish()


def finer(size: int) -> int:
    """Into how many groups the patients of a source of so many bytes are divided, for each to fit into memory; a power of 16."""
    return next(groups for groups in (GROUPS, GROUPS**2, GROUPS**3) if size <= groups << 30 or groups == GROUPS**3)


def offsets(key: PseudonymKey, dates: Dates) -> Callable[[str], int] | None:
    """By how much the dates of a patient are moved, in microseconds; None where they are kept."""
    return (lambda patient: key.offset_days(patient) * DAY_US) if dates == "shifted" else None


def write_account(account: Account, draft: Path, out: Path, dates: Dates, validated: dict[str, Any] | None) -> dict[str, Any]:
    """`quarantine.parquet` and `summary.json`, and all three files from `draft` to where they belong; returns the summary."""
    pq.write_table(account.table(), draft / "quarantine.parquet")
    summary = account.summary() | {"dates": dates} | ({"validation": validated} if validated else {})
    (draft / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    for name in ("events.parquet", "quarantine.parquet", "summary.json"):
        (draft / name).replace(out / name)
    return summary


def read_tasks(collector: Collector, tasks: Iterable[Task], progress: Progress | None = None, holding: bytes = b"") -> None:
    """Read some tasks in order; `holding`: only the lines that hold these bytes."""
    collects = gc.isenabled()
    gc.disable()  # nothing that is read here points back at what holds it; looking for that takes a sixth of the time
    try:
        for task in tasks:
            _take(collector, task, progress, holding)
    finally:
        if collects:
            gc.enable()


def _take(collector: Collector, task: Task, progress: Progress | None, holding: bytes = b"") -> None:
    collector.begin(task.name, task.number, f"@{task.start}" if task.start else "")
    if source.is_whole(task.name):
        raw = source.whole(task)
        if raw is None:
            collector.take(resources.Broken("unreadable", "file_truncated"), 1)
        elif holding in raw:
            collector.take_file(raw)
        return
    for block in source.blocks(task):
        if holding and holding in block.text:
            collector.take_all([line for line in block.lines if holding in line], block.first)
        elif not holding:
            collector.take_block(block)
        if block.problem:
            collector.take(resources.Broken("unreadable", block.problem), block.first + block.size)
        if progress:
            progress(task.name, block.first + block.size)


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


def _in_memory(read: list[Collected], again: Collector) -> pa.Table:
    return _ordered(pa.concat_tables(Assembly(read, again)))


def _ordered(table: pa.Table) -> pa.Table:
    """Rows by the patients' order in the source; the rows of one patient keep theirs."""
    order = np.argsort(np.asarray(table["ordinal"]), kind="stable")
    return table.unify_dictionaries().combine_chunks().take(pa.array(order))


@contextmanager
def writer(path: Path | BinaryIO, groups: int) -> Iterator[pq.ParquetWriter]:
    """An events file, to be written group by group."""
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as file:
        yield file
        file.add_key_value_metadata({"groups": str(groups)})


def read(folder: Path, shard: int = 0, shards: int = 1) -> pa.Table:
    """The events table that `ingest` wrote, or of every n-th group of patients."""
    with pq.ParquetFile(folder / "events.parquet") as file:
        if shards == 1:
            return _ordered(file.read())
        wanted = [n for n in range(file.num_row_groups) if _group(file, n) % shards == shard]
        return _ordered(file.read_row_groups(wanted))


def _group(file: pq.ParquetFile, number: int) -> int:
    """The group of patients that a row group holds some events of; -1 where it is empty."""
    digits = len(f"{int(file.metadata.metadata[b'groups']) - 1:x}")
    told = file.metadata.row_group(number).column(SCHEMA.get_field_index("patient_id")).statistics
    return int(told.min[:digits], 16) if told is not None and told.has_min_max else -1


def newest_in(folder: Path) -> int:
    """As `newest_us`, of what `ingest` wrote, without reading it."""
    found, place = BEGIN_US, SCHEMA.get_field_index("recorded")
    with pq.ParquetFile(folder / "events.parquet") as file:
        for number in range(file.num_row_groups):
            told = file.metadata.row_group(number).column(place).statistics
            if told is not None and told.has_min_max:
                found = max(found, (told.max - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1))
    return found


def newest_us(table: pa.Table) -> int:
    """When the newest fact was recorded: the time as of which an archived export is asked. Microseconds since 1970 UTC."""
    return int(np.max(np.asarray(table["recorded"].cast(pa.int64())), initial=BEGIN_US))


def now_us() -> int:
    """The wall clock, microseconds since 1970 UTC."""
    return _micros(datetime.now(UTC))


def _micros(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def raw_ids(origin: str) -> Iterator[str]:
    """Ids of the patients of a source, as they stand there: for answers that go back to whoever owns the source, and nowhere else."""
    for path in source.files(origin):
        if path.rsplit("/", 1)[-1].startswith("Patient") or source.is_whole(path):
            for line in source.lines(path):
                if line.resource and line.resource["resourceType"] == "Patient" and isinstance(line.resource.get("id"), str):
                    yield line.resource["id"]
