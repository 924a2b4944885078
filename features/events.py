"""The events table: one row a dated clinical fact, in our unit, under a keyed pseudonym. Also the account of what was not accepted."""

import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from features import fhir
from features.moment import BEGIN_US, NEVER_US, UNDATED_US
from features.source import Line, entries, files, lines

Ints = npt.NDArray[np.int64]
_STAMP = pa.timestamp("us", tz="UTC")
_WORDS = pa.dictionary(pa.int32(), pa.string())

SCHEMA = pa.schema(
    [
        ("patient_id", _WORDS),  # pseudonym
        ("ordinal", pa.int64()),  # order of the patients in the source, so that nothing numeric depends on the pseudonym's key
        ("time", _STAMP),  # when it was true
        ("recorded", _STAMP),  # when it could be known
        ("superseded", _STAMP),  # when a later version of the same resource replaced it
        ("concept", _WORDS),
        ("value", pa.float64()),
        ("code", _WORDS),
        ("unit", _WORDS),
        ("source", pa.string()),  # resource type and keyed pseudonym of its id
    ]
)


class PseudonymKey:
    """Keyed pseudonyms: the same id under the same key is the same word, and without the key nothing leads back."""

    def __init__(self, key: bytes) -> None:
        if len(key) < 16:
            raise ValueError(f"A pseudonym key needs at least 16 bytes, this one has {len(key)}.")
        self._key = key

    @classmethod
    def at(cls, path: Path) -> "PseudonymKey":
        """Key in a file that only its owner can read; made where there is none yet."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            draft = path.with_name(path.name + f".{secrets.token_hex(4)}")
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(32), encoding="ascii")
            with suppress(FileExistsError):  # another process was first: then its key counts
                path.hardlink_to(draft)
            draft.unlink()
        return cls(bytes.fromhex(path.read_text(encoding="ascii").strip()))

    def pseudonym(self, patient: str) -> str:
        """Pseudonym of a patient's id: 32 hexadecimal digits."""
        return blake2b(patient.encode(), key=self._key, digest_size=16).hexdigest()

    def number(self, text: str) -> int:
        """Keyed 63-bit number of any id."""
        return int.from_bytes(blake2b(text.encode(), key=self._key, digest_size=8).digest(), "big") >> 1


@dataclass(kw_only=True)
class Account:
    """Received = accepted + quarantined, by file and by resource type; reasons are codes from a closed list."""

    received: Counter[tuple[str, str]] = field(default_factory=Counter)  # file, resource type
    quarantined: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # file, resource type, reason
    events: int = 0
    patients: int = 0

    def summary(self) -> dict[str, Any]:
        """Plain numbers for people and for `summary.json`."""
        received, refused = Counter[str](), Counter[str]()
        for (_, kind), count in self.received.items():
            received[kind] += count
        for (_, kind, _), count in self.quarantined.items():
            refused[kind] += count
        return {
            "received": sum(received.values()),
            "accepted": sum(received.values()) - sum(refused.values()),
            "quarantined": sum(refused.values()),
            "events": self.events,
            "patients": self.patients,
            "by_type": {kind: {"received": received[kind], "quarantined": refused[kind]} for kind in sorted(received)},
            "by_file": [
                {
                    "file": file,
                    "type": kind,
                    "received": count,
                    "quarantined": sum(n for k, n in self.quarantined.items() if k[:2] == (file, kind)),
                }
                for (file, kind), count in sorted(self.received.items())
            ],
            "reasons": [
                {"file": file, "type": kind, "reason": reason, "resources": count}
                for (file, kind, reason), count in sorted(self.quarantined.items())
            ],
        }


class _Column:
    """A growing column of strings, kept as numbers of its distinct words."""

    def __init__(self) -> None:
        self.words: dict[str, int] = {}
        self.numbers: list[int] = []

    def add(self, word: str) -> None:
        self.numbers.append(self.words.setdefault(word, len(self.words)))

    def array(self) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(self.numbers, pa.int32()), pa.array(list(self.words), pa.string()))


class _Rows:
    """Events while they are collected: plain columns, one entry a fact."""

    def __init__(self) -> None:
        self.patient, self.concept, self.code, self.unit = _Column(), _Column(), _Column(), _Column()
        self.time: list[int] = []
        self.recorded: list[int] = []
        self.value: list[float] = []
        self.resource: list[int] = []  # row of the resource it came from

    def add(self, pseudonym: str, fact: fhir.Fact, resource: int) -> None:
        self.patient.add(pseudonym)
        self.concept.add(fact.concept)
        self.code.add(fact.code)
        self.unit.add(fact.unit)
        self.time.append(fact.time_us)
        self.recorded.append(fact.recorded_us)
        self.value.append(fact.value)
        self.resource.append(resource)


class _Resources:
    """The accepted or withdrawn resources while they are collected, to find repeats and later versions."""

    def __init__(self) -> None:
        self.identity: list[int] = []
        self.content: list[int] = []
        self.recorded: list[int] = []
        self.updated: list[int] = []
        self.refused: list[bool] = []  # already in quarantine
        self.file: list[str] = []
        self.kind: list[str] = []
        self.line: list[int] = []

    def add(self, identity: int, content: int, flat: fhir.Flat, refused: bool, line: Line, kind: str) -> int:
        self.identity.append(identity)
        self.content.append(content)
        self.recorded.append(flat.recorded_us)
        self.updated.append(flat.updated_us)
        self.refused.append(refused)
        self.file.append(line.file)
        self.kind.append(kind)
        self.line.append(line.number)
        return len(self.identity) - 1


class Collector:
    """Turns received lines into the events table, keeping account of every one."""

    def __init__(self, key: PseudonymKey, now_us: int) -> None:
        self.key, self.now_us = key, now_us
        self.account = Account()
        self.quarantine: list[tuple[str, int, str, str]] = []  # file, line, type, reason
        self._rows, self._resources = _Rows(), _Resources()

    def take(self, line: Line) -> None:
        """Account for one received line, and keep its facts."""
        kind = line.resource["resourceType"] if line.resource else "unreadable"
        kind = kind if kind in fhir.READERS or kind == "unreadable" else f"other: {kind}" if kind.isalpha() and len(kind) < 40 else "other"
        self.account.received[line.file, kind] += 1
        if line.resource is None:
            self._refuse(line.file, line.number, kind, line.problem or "unreadable")
            return
        flat = fhir.facts(line.resource)
        problem = flat.problem
        if problem is None and any(self.now_us < fact.recorded_us != UNDATED_US for fact in flat.facts):
            problem = "future"
        if problem is None and any(fact.concept == "birth_date" and fact.value * 86_400e6 > self.now_us for fact in flat.facts):
            problem = "future"
        if problem is not None:
            self._refuse(line.file, line.number, kind, problem)
        stated = flat.facts if problem is None else []
        if flat.patient is None or kind not in fhir.READERS or not (stated or flat.withdrawn or flat.recorded_us != NEVER_US):
            return  # says nothing, and not when: no version of anything
        text = f"{kind}/{line.resource.get('id') or f'{line.file}:{line.number}'}"
        content = orjson.dumps(line.resource, option=orjson.OPT_SORT_KEYS).decode()
        row = self._resources.add(self.key.number(text), self.key.number(content), flat, problem is not None, line, kind)
        pseudonym = self.key.pseudonym(flat.patient)
        for fact in stated:
            self._rows.add(pseudonym, fact, row)

    def _refuse(self, file: str, number: int, kind: str, reason: str) -> None:
        self.account.quarantined[file, kind, reason] += 1
        self.quarantine.append((file, number, kind, reason))

    def table(self) -> pa.Table:
        """The events, sorted so that the result does not depend on the order of the lines within a patient."""
        keep, superseded = self._versions()
        rows = self._rows
        time, recorded = _dated(np.asarray(rows.time, np.int64)), _dated(np.asarray(rows.recorded, np.int64))
        resource = np.asarray(rows.resource, np.int64)
        ordinal = np.asarray(rows.patient.numbers, np.int64)
        sources = np.array(
            [f"{kind}/{identity:016x}" for kind, identity in zip(self._resources.kind, self._resources.identity, strict=True)], object
        )
        table = pa.table(
            {
                "patient_id": rows.patient.array(),
                "ordinal": ordinal,
                "time": pa.array(time, _STAMP),
                "recorded": pa.array(recorded, _STAMP),
                "superseded": pa.array(superseded[resource] if len(resource) else resource, _STAMP),
                "concept": rows.concept.array(),
                "value": pa.array(np.asarray(rows.value, np.float64)),
                "code": rows.code.array(),
                "unit": rows.unit.array(),
                "source": pa.array(sources[resource] if len(resource) else [], pa.string()),
            },
            schema=SCHEMA,
        )
        table = table.filter(pa.array(keep[resource] if len(resource) else np.zeros(0, bool)))
        order = np.lexsort(
            [_text_rank(table["source"]), table["recorded"].cast(pa.int64()), table["time"].cast(pa.int64()), table["ordinal"]]
        )
        self.account.events, self.account.patients = table.num_rows, len(rows.patient.words)
        return table.take(pa.array(order))

    def _versions(self) -> tuple[npt.NDArray[np.bool_], Ints]:
        """Which resources to keep (an exact repeat is quarantined), and when each was replaced by a later version of the same id."""
        found = self._resources
        columns = (found.identity, found.content, found.recorded, found.updated)
        identity, content, recorded, updated = (np.asarray(c, np.int64) for c in columns)
        keep, superseded = np.ones(len(identity), bool), np.full(len(identity), NEVER_US, np.int64)
        order = np.lexsort([content, updated, recorded, identity])
        for earlier, later in zip(order[:-1], order[1:], strict=True):
            if identity[earlier] != identity[later]:
                continue
            if content[earlier] == content[later]:
                keep[earlier] = False
                if not found.refused[earlier]:
                    self._refuse(found.file[earlier], found.line[earlier], found.kind[earlier], "repeated")
            else:
                undated = recorded[later] == NEVER_US  # withdrawn, it is not said when: then it never held
                superseded[earlier] = recorded[earlier] if undated else recorded[later]
        return keep, superseded


def _dated(column: Ints) -> Ints:
    """Undated facts are placed at the newest date of the source: no past question sees them, the safety of today's patient does."""
    undated = column == UNDATED_US
    return np.where(undated, column[~undated].max(initial=BEGIN_US), column)


def _text_rank(column: pa.ChunkedArray) -> Ints:
    """Rank of each string, for sorting."""
    _, rank = np.unique(np.asarray(column.to_pylist() or [], dtype=str), return_inverse=True)
    return rank.astype(np.int64)


def collect(received: Iterable[Line], key: PseudonymKey, now_us: int) -> pa.Table:
    """Events table of some lines, for a single record; what is refused is left out."""
    collector = Collector(key, now_us)
    for line in received:
        collector.take(line)
    return collector.table()


def of_bundle(bundle: fhir.Resource, key: PseudonymKey, now_us: int) -> pa.Table:
    """Events table of an inline FHIR Bundle: the same code that reads a bulk export."""
    made = (Line("bundle", n, r, None, orjson.dumps(r)) for n, r in enumerate(entries(bundle), 1))
    return collect(made, key, now_us)


def ingest(
    source: str, out: Path, key: PseudonymKey, *, now: datetime | None = None, progress: Callable[[str, int], None] | None = None
) -> dict[str, Any]:
    """Read a source into `out`: `events.parquet`, `quarantine.parquet`, `summary.json`; returns the summary.

    accepted + quarantined = received, per file and per resource type. Raises SourceError where the source can't be read at all.
    """
    collector = Collector(key, _micros(now or datetime.now(UTC)))
    for path in files(source):
        for line in lines(path):
            collector.take(line)
            if progress and line.number % 10_000 == 0:
                progress(line.file, line.number)
    table = collector.table()
    out.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, out / "events.parquet", compression="zstd")
    columns = list(zip(*collector.quarantine, strict=True)) or [(), (), (), ()]
    types = (pa.string(), pa.int64(), pa.string(), pa.string())
    arrays = [pa.array(column, kind) for column, kind in zip(columns, types, strict=True)]
    pq.write_table(pa.table(arrays, names=["file", "line", "type", "reason"]), out / "quarantine.parquet")
    summary = collector.account.summary()
    (out / "summary.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")
    return summary


def read(folder: Path) -> pa.Table:
    """The events table that `ingest` wrote."""
    return pq.read_table(folder / "events.parquet", schema=SCHEMA)


def newest_us(table: pa.Table) -> int:
    """When the newest fact was recorded: the time as of which an archived export is asked. Microseconds since 1970 UTC."""
    return int(np.max(np.asarray(table["recorded"].cast(pa.int64())), initial=BEGIN_US))


def now_us() -> int:
    """The wall clock, microseconds since 1970 UTC."""
    return _micros(datetime.now(UTC))


def _micros(moment: datetime) -> int:
    return int(moment.timestamp() * 1_000_000)


def raw_ids(source: str) -> Iterator[str]:
    """Ids of the patients of a source, as they stand there: for answers that go back to whoever owns the source, and nowhere else."""
    for path in files(source):
        if path.rsplit("/", 1)[-1].startswith("Patient") or path.endswith(".json"):
            for line in lines(path):
                if line.resource and line.resource["resourceType"] == "Patient" and isinstance(line.resource.get("id"), str):
                    yield line.resource["id"]
