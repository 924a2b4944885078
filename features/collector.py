"""Received lines become plain columns of numbers, in bounded memory: what one process read of a source, before versions are resolved.

Every few ten thousand resources the columns go to `spool` (a folder), grouped by patient and, for the versions, by resource, so that
whoever finishes the table needs one group in memory at a time. Without a spool they stay in memory: the records of one patient.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from features import fhir, resources
from features.account import Account
from features.medications import Leaned, Medications, Table, firsts
from features.moment import BEGIN_US, NEVER_US, UNDATED_US, readable
from features.observations import Batch, Observations
from features.pseudonym import PseudonymKey
from features.resources import Broken, Bundle, Deletion, Observation, Other
from features.source import Block
from features.versions import VERSION

Ints = npt.NDArray[np.int64]
GROUPS = 16  # of patients by the first digits of the pseudonym, of resources by the first bits of the keyed number: a power of 16
KINDS = (*sorted(resources.READ), "deletion")
TASK = 40  # bits of a row's number that count within its task: a file, or a piece of one
_KIND = {name: number for number, name in enumerate(KINDS)}
_FLUSH = 50_000  # resources
_BATCH = 4_000  # of those read one by one: as many as stay near the processor until they are columns

FACT = np.dtype(
    [
        ("time", "i8"),
        ("recorded", "i8"),
        ("value", "f8"),
        ("row", "i8"),  # of the resource: its place in the source
        ("identity", "i8"),
        ("patient", "i4"),  # this and the next three: numbers of words
        ("concept", "i4"),
        ("code", "i4"),
        ("unit", "i4"),
        ("kind", "i2"),
    ]
)


class Words:
    """Distinct words, the number of each, and a keyed digest of each."""

    def __init__(self, key: PseudonymKey) -> None:
        self._key = key
        self.numbers: dict[str, int] = {}
        self.digests: list[int] = []

    def of(self, column: Iterable[str]) -> npt.NDArray[np.int32]:
        """Number of each word."""
        column, numbers = list(column), self.numbers
        found = list(map(numbers.get, column))
        if None in found:
            found = [numbers.setdefault(word, len(numbers)) for word in column]
            self.digests += [self._key.number(word) for word in list(numbers)[len(self.digests) :]]
        return np.array(found, np.int32)


@dataclass
class Waiting:
    """A resource whose Medication was not read before it."""

    resource: Any
    file: str
    line: int
    row: int
    identity: str


@dataclass(kw_only=True)
class Collected:
    """What a collector read: the words behind the numbers, and where the columns lie."""

    patients: list[str] = field(default_factory=list)  # pseudonyms
    concepts: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    units: list[str] = field(default_factory=list)
    account: Account = field(default_factory=Account)
    first_rows: list[int] = field(default_factory=list)  # of each patient
    tasks: dict[int, tuple[str, int]] = field(default_factory=dict)  # file and number of lines of each
    medications: Table = field(default_factory=dict)
    leaned: Leaned = field(default_factory=dict)
    waiting: list[Waiting] = field(default_factory=list)
    newest_us: tuple[int, int] = (BEGIN_US, BEGIN_US)  # of what is dated: time, recorded
    groups: int = GROUPS
    spool: Path | None = None
    kept: dict[str, list[npt.NDArray[np.void]]] = field(default_factory=lambda: {"facts": [], "versions": []})  # where there is no spool

    def read(self, name: str, group: int) -> npt.NDArray[np.void]:
        """The `facts` of a group of patients, or the `versions` of a group of resources."""
        kind = FACT if name == "facts" else VERSION
        if self.spool is not None:
            path = self.spool / f"{name}-{group:04d}"
            return np.fromfile(path, kind) if path.exists() else np.zeros(0, kind)
        return np.concatenate(self.kept[name]) if self.kept[name] else np.zeros(0, kind)


class Collector:
    """Turns received lines into columns, keeping account of every one.

    `known`: who reads a share of a source can't tell which Medication is the first; what is not known here waits for the end. None:
    everything is read here, in order. `table`: all Medications of the source, where they were read before.
    """

    def __init__(
        self,
        key: PseudonymKey,
        now_us: int,
        spool: Path | None = None,
        known: Mapping[str, str | None] | None = None,
        groups: int = GROUPS,
        table: Table | None = None,
    ) -> None:
        self.key, self.now_us = key, now_us
        self._medications = Medications(known, table)
        self.collected = Collected(spool=spool, groups=1 if spool is None else groups)  # in memory everything is one group
        self.collected.medications, self.collected.leaned = self._medications.found, self._medications.leaned
        self._digits = len(f"{groups - 1:x}")
        self._patients: dict[str, int] = {}
        self._groups: list[int] = []  # of each patient
        self._unstored = 0
        self._concepts, self._codes, self._units, self._outcomes = Words(key), Words(key), Words(key), Words(key)
        self._facts: list[fhir.Fact] = []
        self._versions: list[tuple[Any, ...]] = []
        self._usual = Observations(now_us, self._odd)
        self._meanings: npt.NDArray[np.int32] = np.zeros((0, 3), np.int32)  # words of what the usual Observations mean
        self.file, self._task = "", 0

    def begin(self, file: str, task: int, place: str = "") -> None:
        """What follows is of a file, or of the piece of it that begins at `place`."""
        self.file, self._task, self._number, self._place = file, task, 0, f"{file}{place}"
        self._medications.begin(file, task)
        self._plain = True  # until a line has to be looked at by itself
        self.collected.tasks.setdefault(task, (file, 0))

    def take_block(self, block: Block) -> None:
        """Lines of NDJSON; blank ones are none."""
        found = resources.gate_all(block.text, block.size) if self._plain else None
        if found is None:
            self._plain = False
            self.take_all(block.lines, block.first)
        else:
            self._take_each(found, np.arange(block.first, block.first + block.size))
            self.collected.tasks[self._task] = (self.file, block.first + block.size - 1)

    def take_all(self, lines: Sequence[bytes], first: int) -> None:
        """As `take_block`, for lines that are apart already, the first of which has that number."""
        numbers = [line for line, raw in enumerate(lines, first) if raw and not raw.isspace()]
        self._take_each([resources.gate(lines[line - first]) for line in numbers], np.array(numbers, np.int64))
        self.collected.tasks[self._task] = (self.file, first + len(lines) - 1)

    def _take_each(self, received: Sequence[Any], lines: Ints) -> None:
        """The Observations among what was received as columns, all else by itself."""
        begun = (self._task << TASK) + self._number + 1
        mine = [found.__class__ is Observation for found in received]
        if all(mine):
            usual, rows = received, np.arange(begun, begun + len(received))
            self._number += len(received)
        else:
            usual, at = [], []
            for found, line, is_mine in zip(received, lines.tolist(), mine, strict=True):
                if is_mine:
                    self._number += 1
                    usual.append(found)
                    at.append(self._task << TASK | self._number)
                else:
                    self.take(found, line)
            lines, rows = lines[mine], np.array(at, np.int64)
        if usual:
            self.collected.account.received[self.file, "Observation"] += len(usual)
            self._take_usual(self._usual.batch(usual, lines, rows))

    def _odd(self, found: Observation, line: int, row: int) -> None:
        """An Observation that has to be looked at by itself."""
        self._keep(found, "Observation", line, row, f"Observation/{found.id or f'{self._place}:{row - (self._task << TASK)}'}")

    def take_file(self, raw: bytes) -> None:
        """A whole JSON file: a Bundle, whose entries are then counted as lines are, or a single resource."""
        found = resources.gate(raw)
        for line, part in enumerate(resources.unpacked(found) if isinstance(found, Bundle) else [found], 1):
            self.take(part, line)

    def take(self, found: resources.Received, line: int) -> None:
        """Account for one received resource, and keep its facts; a Bundle is as many resources as it has entries."""
        if isinstance(found, Bundle):
            for part in resources.unpacked(found):
                self.take(part, line)
            return
        self._number += 1
        kind = _kind(found)
        self.collected.account.received[self.file, kind] += 1
        if isinstance(found, Broken):
            self._refuse(line, kind, found.problem)
        elif isinstance(found, Deletion):
            self._delete(found, line, self._task << TASK | self._number)
        elif not isinstance(found, Other):
            identity = f"{kind}/{found.id or f'{self._place}:{self._number}'}"
            self._keep(found, kind, line, self._task << TASK | self._number, identity)

    def take_again(self, waiting: Iterable[Waiting], table: Table) -> None:
        """Resources that waited for their Medication, now that everything is read; where there is none, they go to quarantine."""
        self._medications = Medications(firsts(table), table)
        for one in waiting:
            self.begin(one.file, one.row >> TASK)
            self._keep(one.resource, type(one.resource).__name__, one.line, one.row, one.identity)
        for one in self.collected.waiting:
            self.begin(one.file, one.row >> TASK)
            self._refuse(one.line, type(one.resource).__name__, "medication_missing")
        self.collected.waiting = []

    def finish(self) -> Collected:
        """Everything that was collected."""
        self._flush()
        self._spool()
        self.collected.concepts, self.collected.codes, self.collected.units = (
            list(words.numbers) for words in (self._concepts, self._codes, self._units)
        )
        return self.collected

    def _refuse(self, line: int, kind: str, reason: str, part: str = "") -> None:
        self.collected.account.refuse(self.file, line, kind, reason, part, self._task)

    def _keep(self, found: Any, kind: str, line: int, row: int, identity: str) -> None:
        self._medications.row = row
        if kind == "Medication":
            if isinstance(found.id, str):
                self._medications.add(found.id, fhir.drug(found))
            return
        try:
            flat = fhir.state(found, self._medications)
        except fhir.MedicationUnread:
            self.collected.waiting.append(Waiting(found, self.file, line, row, identity))
            return
        facts, problem = flat.facts, flat.problem
        if facts and self._is_future(facts):
            facts, problem = [], "future"
        if problem is not None:
            self._refuse(line, kind, problem)
        elif flat.parts:
            for part in flat.parts:
                self._refuse(line, kind, part.problem, part.concept)
        patient = flat.patient
        if patient is None or not (facts or flat.withdrawn or flat.recorded_us != NEVER_US):
            return  # says nothing, and not when: no version of anything
        self._facts += facts
        outcome = "" if problem is None else problem
        times = (flat.recorded_us, flat.updated_us, flat.version)
        self._versions.append((identity, *times, row, line, _KIND[kind], problem is not None, patient, len(facts), outcome))
        if len(self._versions) >= _BATCH:
            self._flush()

    def _is_future(self, facts: list[fhir.Fact]) -> bool:
        now = self.now_us
        for fact in facts:
            if now < fact.recorded_us != UNDATED_US or (fact.concept == "birth_date" and fact.value * 86_400e6 > now):
                return True
        return False

    def _delete(self, deletion: Deletion, line: int, row: int) -> None:
        """A version that ends the ones before it, from when the server says so; where it does not say, they never held."""
        updated = readable(deletion.when, BEGIN_US)
        recorded = updated if updated > BEGIN_US else NEVER_US
        self._versions.append((deletion.whom, recorded, updated, 0, row, line, _KIND["deletion"], False, "", 0, "deleted"))

    def _flush(self) -> None:
        """Move what was read one by one into columns."""
        if self._versions:
            identities, *told, patients, count, outcomes = zip(*self._versions, strict=True)
            numeric = dict(zip(("recorded", "updated", "version", "row", "line", "kind", "refused"), told, strict=True))
            columns: Sequence[Any] = list(zip(*self._facts, strict=True)) or [()] * 6
            facts = dict(zip(("time", "recorded", "value"), columns[1:4], strict=True))
            for name, words, column in (("concept", self._concepts, 0), ("code", self._codes, 4), ("unit", self._units, 5)):
                facts[name] = words.of(columns[column])
            self._versions, self._facts = [], []
            self._columns(identities, numeric, patients, np.array(count, np.int64), self._outcomes.of(outcomes), facts)

    def _take_usual(self, batch: Batch) -> None:
        """Move the Observations of the usual shape into columns."""
        if not batch.identities:
            return
        numeric = {name: getattr(batch, name) for name in ("recorded", "updated", "version", "row", "line")}
        numeric |= {"kind": _KIND["Observation"], "refused": False}
        facts = {"time": np.repeat(batch.time, batch.said), "recorded": np.repeat(batch.recorded, batch.said), "value": batch.value}
        if len(new := self._usual.meanings[len(self._meanings) :]):
            words = (
                self._concepts.of([one[0] for one in new]),
                self._codes.of([one[1] for one in new]),
                self._units.of([one[2] for one in new]),
            )
            self._meanings = np.concatenate([self._meanings, np.stack(words, axis=1)])
        facts |= dict(zip(("concept", "code", "unit"), self._meanings[batch.meaning].T, strict=True))
        nothing = np.full(len(batch.identities), self._outcomes.of([""])[0])
        self._columns(batch.identities, numeric, batch.patients, batch.said, nothing, facts)

    def _columns(
        self,
        identities: Sequence[str],
        numeric: dict[str, Any],
        patients: Sequence[str],
        count: Ints,
        outcome: npt.NDArray[np.int32],
        facts: dict[str, Any],
    ) -> None:
        """Versions and their facts, `count` of each, to where they wait for the end of the source."""
        versions = np.empty(len(identities), VERSION)
        for name, column in numeric.items():
            versions[name] = column
        versions["identity"] = self.key.numbers(identities)
        versions["task"] = versions["row"] >> TASK
        found = np.empty(len(facts["value"]), FACT)
        for name in ("row", "identity", "kind"):
            found[name] = np.repeat(versions[name], count)
        for name, column in facts.items():
            found[name] = column
        found["patient"] = self._numbered(list(itertools.compress(patients, count)), found["row"], count[count > 0])
        silent = np.array(self._outcomes.digests, np.int64)[outcome]
        versions["content"] = np.where(count > 0, self._contents(found, count), silent ^ versions["recorded"])
        kept = self.collected.kept
        kept["versions"].append(versions)
        kept["facts"].append(found)
        self._unstored += len(versions)
        if self._unstored > _FLUSH and self.collected.spool is not None:
            self._spool()

    def _numbered(self, patients: list[str], row: Ints, count: Ints) -> Ints:
        """Number of each fact's patient; of each patient the lowest row is kept, in whatever order they come."""
        known, collected = self._patients, self.collected
        each = list(map(known.get, patients))
        if None in each:
            for patient in patients:
                if patient not in known:
                    known[patient] = len(known)
                    collected.patients.append(self.key.pseudonym(patient))
                    self._groups.append(int(collected.patients[-1][: self._digits], 16))
                    collected.first_rows.append(NEVER_US)
            each = [known[patient] for patient in patients]
        numbers = np.repeat(np.array(each, np.int64), count)
        order = np.argsort(row, kind="stable")
        first, at = np.unique(numbers[order], return_index=True)
        for number, place in zip(first.tolist(), row[order[at]].tolist(), strict=True):
            collected.first_rows[number] = min(collected.first_rows[number], place)
        return numbers

    def _contents(self, found: npt.NDArray[np.void], count: Ints) -> Ints:
        """For each resource the digest of what it states, whatever the order of its facts."""
        newest = [found[name][found[name] != UNDATED_US].max(initial=BEGIN_US) for name in ("time", "recorded")]
        time, recorded = (max(old, int(new)) for old, new in zip(self.collected.newest_us, newest, strict=True))
        self.collected.newest_us = (time, recorded)
        state = np.zeros(len(found), np.uint64)
        for name, words in (("concept", self._concepts), ("code", self._codes), ("unit", self._units)):
            state = _mix(state, np.array(words.digests, np.uint64)[found[name]] if len(found) else state)
        for name in ("time", "recorded", "value"):
            state = _mix(state, np.ascontiguousarray(found[name]).view(np.uint64))
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(state)])
        end = np.cumsum(count)
        return (total[end] - total[end - count]).view(np.int64)

    def _spool(self) -> None:
        """Move the columns from memory to their groups' files."""
        spool, kept, self._unstored = self.collected.spool, self.collected.kept, 0
        if spool is None or not kept["versions"]:
            return
        versions, facts = (np.concatenate(kept[name]) for name in ("versions", "facts"))
        self.collected.kept = {"facts": [], "versions": []}
        groups, bits = self.collected.groups, 63 - 4 * self._digits
        of_fact = np.array(self._groups, np.int64)[facts["patient"]] if len(facts) else facts["row"]
        for name, found, group in (("versions", versions, versions["identity"] >> bits), ("facts", facts, of_fact)):
            order = np.argsort(group, kind="stable")
            bounds = np.searchsorted(group[order], np.arange(groups + 1))
            for n in range(groups):
                part = found[order[bounds[n] : bounds[n + 1]]]
                if len(part):
                    with (spool / f"{name}-{n:04d}").open("ab") as stream:
                        part.tofile(stream)


def _kind(found: resources.Received) -> str:
    if isinstance(found, Other):
        return found.resourceType
    return found.kind if isinstance(found, Broken) else "deletion" if isinstance(found, Deletion) else type(found).__name__


def _mix(state: npt.NDArray[np.uint64], column: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """One round of splitmix64 (Steele, Lea and Flood 2014) over each element."""
    state = (state ^ column) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))
