"""What the processes that share one ingest leave for each other: columns, words and accounts in a folder or object store.

Nothing is pickled, and no id of a patient lies there in clear: the few resources that wait for their Medication are encrypted under a key
that is derived from that of the pseudonyms.
"""

import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import msgspec
import numpy as np
import numpy.typing as npt

from features.account import Refusal
from features.assembly import Assembly, Settled, Words
from features.collector import FACT, Collected, Waiting
from features.medications import Leaned, Table
from features.pseudonym import PseudonymKey
from features.resources import MedicationRequest, MedicationStatement
from features.versions import VERSION, Resolved

_VOCABULARY = ("concepts", "codes", "units")
_PLAIN = ("patients", *_VOCABULARY, "first_rows", "tasks", "medications", "leaned", "newest_us", "groups")  # kept as they are
Common = tuple[dict[str, Any], dict[str, Any], Resolved]
_RESOLVED = ("dropped", "ended", "ended_us", "late", "late_us")


class Place:
    """A folder or fsspec URL that every process reaches. What is written appears whole or not at all."""

    def __init__(self, root: str) -> None:
        self._files, self.root = fsspec.core.url_to_fs(root)
        self.local = Path(self.root) if "file" in self._files.protocol else None

    def write(self, name: str, content: bytes) -> None:
        """One file."""
        if self.local is None:
            self._files.pipe_file(f"{self.root}/{name}", content)
            return
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.part")
        draft.write_bytes(content)
        draft.replace(path)

    def read(self, name: str) -> bytes:
        """One file; b"" where there is none."""
        try:
            return (self.local / name).read_bytes() if self.local is not None else bytes(self._files.cat_file(f"{self.root}/{name}"))
        except FileNotFoundError:
            return b""

    def rows(self, name: str, kind: np.dtype[np.void]) -> npt.NDArray[np.void]:
        """A file of rows; none where there is no file."""
        if self.local is None:
            return np.frombuffer(bytearray(self.read(name)), kind)
        try:
            return np.fromfile(self.local / name, kind)
        except FileNotFoundError:
            return np.zeros(0, kind)

    def in_turn(self, what: str, numbers: Iterable[int]) -> Iterator[int]:
        """Those of some numbers that no other process has taken: each is taken by whoever is free first. On one machine only."""
        assert self.local is not None
        taken = self.local / "taken"
        taken.mkdir(parents=True, exist_ok=True)
        for number in numbers:
            try:
                (taken / f"{what}-{number}").touch(exist_ok=False)
            except FileExistsError:
                continue
            yield number

    def take_in(self, folder: Path, name: str) -> None:
        """Move a local folder here, in place of what a killed attempt left under its name."""
        if self.local is None:
            if self._files.exists(f"{self.root}/{name}"):
                self._files.rm(f"{self.root}/{name}", recursive=True)
            for path in sorted(folder.iterdir()):
                self._files.put_file(str(path), f"{self.root}/{name}/{path.name}")
            return
        shutil.rmtree(self.local / name, ignore_errors=True)
        shutil.move(folder, self.local / name)

    def remove(self) -> None:
        """Everything."""
        if self._files.exists(self.root):
            self._files.rm(self.root, recursive=True)


@dataclass(kw_only=True)
class Part(Collected):
    """What one collector read, with its columns at a place."""

    place: Place
    name: str

    def read(self, name: str, group: int) -> npt.NDArray[np.void]:
        """As `Collected.read`."""
        return self.place.rows(f"{self.name}/{name}-{group:04d}", FACT if name == "facts" else VERSION)


class _Waited(msgspec.Struct):
    resource: MedicationRequest | MedicationStatement
    file: str
    line: int
    row: int
    identity: str


@dataclass(kw_only=True)
class _Told:
    """The rest of Collected, as JSON can hold it."""

    patients: list[str]
    concepts: list[str]
    codes: list[str]
    units: list[str]
    received: list[tuple[str, str, int]]
    quarantine: list[Refusal]
    first_rows: list[int]
    tasks: dict[int, tuple[str, int]]
    medications: Table
    leaned: Leaned
    newest_us: tuple[int, int]
    groups: int
    waiting: str  # encrypted


def save(collected: Collected, place: Place, name: str, key: PseudonymKey) -> None:
    """Leave what was collected under a name: first the columns, then what says that they are whole."""
    assert collected.spool is not None
    place.take_in(collected.spool, name)
    waiting = [_Waited(one.resource, one.file, one.line, one.row, one.identity) for one in collected.waiting]
    told = _Told(
        **{name: getattr(collected, name) for name in _PLAIN},
        received=[(file, kind, count) for (file, kind), count in collected.account.received.items()],
        quarantine=collected.account.quarantine,
        waiting=key.sealed(msgspec.json.encode(waiting)),
    )
    place.write(f"{name}.json", msgspec.json.encode(told))


def load(place: Place, name: str, key: PseudonymKey) -> Part:
    """What `save` left, the columns where they lie."""
    told = msgspec.json.decode(place.read(f"{name}.json"), type=_Told)
    waited = msgspec.json.decode(key.opened(told.waiting), type=list[_Waited])
    part = Part(
        place=place,
        name=name,
        **{name: getattr(told, name) for name in _PLAIN},
        waiting=[Waiting(one.resource, one.file, one.line, one.row, one.identity) for one in waited],
    )
    part.account.received = Counter({(file, kind): count for file, kind, count in told.received})
    part.account.quarantine = told.quarantine
    return part


# What is settled of the whole -------------------------------------------------------------------------------------------------------


def save_settled(assembly: Assembly, place: Place, names: list[str]) -> None:
    """Leave what the groups need: for all of them the vocabulary and the versions, for each its own patients. `names`: of the parts."""
    settled, groups = assembly.settled, assembly.groups
    vocabulary = {f"{name}-{n}": numbers for name in _VOCABULARY for n, numbers in enumerate(settled.words[name].numbers)}
    words = {name: settled.words[name].words for name in _VOCABULARY}
    told = {"words": words, "newest_us": settled.newest_us, "parts": names}
    resolved = {name: getattr(settled.resolved, name) for name in _RESOLVED}
    patients = settled.words["patients"]
    digits = len(f"{groups - 1:x}")
    group_of = np.array([int(word[:digits], 16) for word in patients.words], np.int64)
    order = np.argsort(group_of, kind="stable")
    bounds = np.searchsorted(group_of[order], np.arange(groups + 1))
    for number in range(groups):
        mine = order[bounds[number] : bounds[number + 1]]
        content = {"words": np.array([patients.words[n] for n in mine], "S32"), "ordinals": settled.ordinals[mine]}
        new = np.full(len(patients.words), -1, np.int32)
        new[mine] = np.arange(len(mine))
        for n, numbers in enumerate(patients.numbers):
            local = np.flatnonzero(new[numbers] >= 0)
            content |= {f"local-{n}": local.astype(np.int32), f"number-{n}": new[numbers[local]]}
        place.write(f"settled/patients-{number:04d}", _packed(content))
    place.write("settled/versions", _packed(resolved))
    place.write("settled/vocabulary", _packed(vocabulary))
    place.write("settled/settled.json", msgspec.json.encode(told))


def load_settled(place: Place) -> Common:
    """What `save_settled` left for all groups: words and newest dates, numbers of the words, versions."""
    told, vocabulary = msgspec.json.decode(place.read("settled/settled.json")), _unpacked(place.read("settled/vocabulary"))
    found = _unpacked(place.read("settled/versions"))
    return told, vocabulary, Resolved(**found, repeats=np.zeros(0, VERSION))


def facts(place: Place, number: int, common: Common) -> list[npt.NDArray[np.void]]:
    """The facts of a group of patients, as each collector read them."""
    return [place.rows(f"{name}/facts-{number:04d}", FACT) for name in common[0]["parts"]]


def of_group(place: Place, number: int, common: Common) -> Settled:
    """What a group of patients needs to become events. `common`: from `load_settled`."""
    told, vocabulary, resolved = common
    content, count = _unpacked(place.read(f"settled/patients-{number:04d}")), len(told["parts"])
    words = {name: Words(told["words"][name], [vocabulary[f"{name}-{n}"] for n in range(count)]) for name in _VOCABULARY}
    numbers = []
    for n in range(count):
        local = content[f"local-{n}"]
        all_numbers = np.full(int(local.max(initial=-1)) + 1, -1, np.int32)
        all_numbers[local] = content[f"number-{n}"]
        numbers.append(all_numbers)
    words["patients"] = Words([word.decode() for word in content["words"].tolist()], numbers)
    first, second = told["newest_us"]
    return Settled(words, resolved, content["ordinals"], (first, second))


def _packed(arrays: dict[str, Any]) -> bytes:
    return msgspec.msgpack.encode({name: (array.dtype.str, array.tobytes()) for name, array in arrays.items()})


def _unpacked(content: bytes) -> dict[str, Any]:
    found = msgspec.msgpack.decode(content, type=dict[str, tuple[str, bytes]])
    return {name: np.frombuffer(array, kind) for name, (kind, array) in found.items()}
