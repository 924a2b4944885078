"""The events table, put together from what one or several collectors read: versions resolved, undated facts dated, rows sorted."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from features.account import Account
from features.collector import KINDS, Collected, Collector
from features.medications import merged as merged_medications
from features.moment import BEGIN_US, DAY_US, NEVER_US, UNDATED_US
from features.pseudonym import WIDEST_DAYS
from features.versions import Resolved, at, merged, resolve

Ints = npt.NDArray[np.int64]
_STAMP = pa.timestamp("us", tz="UTC")
WIDEST_US = WIDEST_DAYS * DAY_US
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


class Assembly:
    """What all collectors read, settled: versions resolved, words and patients numbered, every resource accounted for.

    `again` takes what waited for its Medication. Iterating gives the events, a group of patients at a time; `offset_us` tells by how much
    the dates of a patient, named by pseudonym, are moved; None: they are kept.
    """

    def __init__(self, read: Sequence[Collected], again: Collector, offset_us: Callable[[str], int] | None = None) -> None:
        waiting = [one for part in read for one in part.waiting]
        again.take_again(waiting, merged_medications(part.medications for part in read) if waiting else {})
        self.parts, self._offset_us, self.groups = [*read, again.finish()], offset_us, again.collected.groups
        words = {name: Words.merged([getattr(part, name) for part in self.parts]) for name in ("patients", "concepts", "codes", "units")}
        found = [resolve(np.concatenate([part.read("versions", n) for part in self.parts])) for n in range(self.groups)]
        first = np.full(len(words["patients"].words), NEVER_US, np.int64)
        for part, numbers in zip(self.parts, words["patients"].numbers, strict=True):
            np.minimum.at(first, numbers, np.array(part.first_rows, np.int64))
        newest = (max(part.newest_us[0] for part in self.parts), max(part.newest_us[1] for part in self.parts))
        self.settled = Settled(words, merged(found), np.argsort(np.argsort(first)), newest)
        self.account = self._account()

    def _account(self) -> Account:
        """What became of every received resource, with the lines of a piece counted from the beginning of its file."""
        whole = Account(patients=len(self.settled.words["patients"].words))
        tasks = {task: told for part in reversed(self.parts) for task, told in part.tasks.items()}
        before, so_far = {}, defaultdict[str, int](int)
        for task, (file, lines) in sorted(tasks.items()):
            before[task] = so_far[file]
            so_far[file] += lines
        for part in self.parts:
            whole.received.update(part.account.received)
            whole.quarantine += part.account.quarantine
        for version in self.settled.resolved.repeats:
            task = int(version["task"])
            whole.refuse(tasks[task][0], int(version["line"]), KINDS[version["kind"]], "repeated", task=task)
        whole.quarantine = sorted(refusal._replace(line=refusal.line + before[refusal.task], task=0) for refusal in whole.quarantine)
        return whole

    def __iter__(self) -> Iterator[pa.Table]:
        for number in range(self.groups):
            table = self.settled.events([part.read("facts", number) for part in self.parts], self._offset_us)
            self.account.events += table.num_rows
            yield table


@dataclass
class Words:
    """Words of several collectors in one list, and each collector's numbers in it."""

    words: list[str]
    numbers: list[npt.NDArray[np.int32]]

    @classmethod
    def merged(cls, lists: Sequence[list[str]]) -> "Words":
        """In the order of the collectors."""
        known: dict[str, int] = {}
        numbers = [np.array([known.setdefault(word, len(known)) for word in words], np.int32) for words in lists]
        return cls(list(known), numbers)


@dataclass
class Settled:
    """What has to be known of the whole source to make events of some of its facts."""

    words: dict[str, Words]
    resolved: Resolved
    ordinals: Ints  # of the patients
    newest_us: tuple[int, int]  # of what is dated: time, recorded

    def events(self, parts: Sequence[npt.NDArray[np.void]], offset_us: Callable[[str], int] | None = None) -> pa.Table:
        """Events of one group of patients, sorted so that the order of the lines within a patient does not matter.

        `parts`: the facts of the group, as each collector read them.
        """
        facts = np.concatenate([self._renumbered(n, part) for n, part in enumerate(parts)])
        resolved = self.resolved
        facts = facts[at(facts["row"], resolved.dropped, np.ones(len(resolved.dropped), np.int64), 0) == 0]
        ordinal = self.ordinals[facts["patient"]]
        time = _dated(facts["time"], self.newest_us[0])
        recorded = _dated(facts["recorded"], self.newest_us[1])
        recorded = np.maximum(recorded, at(facts["row"], resolved.late, resolved.late_us, BEGIN_US))
        ended = at(facts["row"], resolved.ended, resolved.ended_us, NEVER_US)
        if offset_us is not None:
            used, whose = np.unique(facts["patient"], return_inverse=True)
            offsets = np.array([offset_us(self.words["patients"].words[n]) for n in used], np.int64)
            time, recorded, ended = self._shifted(facts, offsets[whose], time, recorded, ended)
        superseded = np.maximum(ended, recorded)
        order = np.lexsort([facts["row"], facts["identity"], facts["kind"], recorded, time, ordinal])
        facts = facts[order]
        columns = {
            "patient_id": self._word("patients", facts["patient"]),
            "ordinal": ordinal[order],
            "time": pa.array(time[order], _STAMP),
            "recorded": pa.array(recorded[order], _STAMP),
            "superseded": pa.array(superseded[order], _STAMP),
            "concept": self._word("concepts", facts["concept"]),
            "value": pa.array(facts["value"].copy()),
            "code": self._word("codes", facts["code"]),
            "unit": self._word("units", facts["unit"]),
            "source": _source(facts["kind"], facts["identity"]),
        }
        return pa.table(columns, schema=SCHEMA)

    def _shifted(self, facts: npt.NDArray[np.void], own: Ints, time: Ints, recorded: Ints, ended: Ints) -> tuple[Ints, Ints, Ints]:
        """Dates moved by each patient's offset, `own`; what stands for always and never stays.

        Undated facts go by the widest offset whoever they are of: still after everything that is dated, and their date, the same for
        all, does not tell the offset.
        """
        words = self.words["concepts"].words
        born = facts["concept"] == (words.index("birth_date") if "birth_date" in words else -1)
        facts["value"] += np.where(born, own / DAY_US, 0.0)
        by_time = np.where(facts["time"] == UNDATED_US, WIDEST_US, own)
        by_recorded = np.where(facts["recorded"] == UNDATED_US, WIDEST_US, own)
        return _moved(time, by_time), _moved(recorded, by_recorded), _moved(ended, own)

    def _renumbered(self, part: int, facts: npt.NDArray[np.void]) -> npt.NDArray[np.void]:
        for column, name in (("patient", "patients"), ("concept", "concepts"), ("code", "codes"), ("unit", "units")):
            facts[column] = self.words[name].numbers[part][facts[column]]
        return facts

    def _word(self, name: str, numbers: npt.NDArray[np.int32]) -> pa.DictionaryArray:
        """The words behind numbers, in their own order: the bytes do not depend on who read what first."""
        words = self.words[name].words
        used = sorted(np.flatnonzero(np.bincount(numbers, minlength=1)).tolist(), key=words.__getitem__)
        place = np.zeros(len(words) + 1, np.int32)
        place[used] = np.arange(len(used))
        return pa.DictionaryArray.from_arrays(pa.array(place[numbers]), pa.array([words[n] for n in used], pa.string()))


def _dated(column: Ints, newest: int) -> Ints:
    """Undated facts are placed at the newest date of the source: no past question sees them, the safety of today's patient does."""
    return np.where(column == UNDATED_US, newest, column)


def _moved(column: Ints, by: Ints) -> Ints:
    """Dates moved; sentinels are no dates."""
    return np.where((column == BEGIN_US) | (column >= UNDATED_US), column, column + by)


def _source(kind: npt.NDArray[np.int16], identity: Ints) -> pa.Array:
    """Resource type and the 16 hexadecimal digits of the keyed number of its id."""
    digits = identity.astype(">i8").tobytes().hex().encode()
    hexadecimal = pa.Array.from_buffers(
        pa.string(), len(identity), [None, pa.py_buffer(np.arange(0, 16 * len(identity) + 1, 16, dtype=np.int32)), pa.py_buffer(digits)]
    )
    kinds = pa.DictionaryArray.from_arrays(pa.array(kind.astype(np.int32)), pa.array(KINDS)).cast(pa.string())
    return pc.binary_join_element_wise(kinds, hexadecimal, "/")
