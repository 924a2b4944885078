"""Which Medication an order means: the one of its own file, wherever that stands in it; else the first of that id in the source.

Of several of one id in a file the last before the order counts; where none stands before it, the first. A reader in one pass, or of some
pieces, can't know what its file still holds: it takes the drug of another file meanwhile and remembers that it did. Where the file turns
out to have another drug under that id, what was read is read again, with all Medications known.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from operator import itemgetter

Told = list[tuple[int, str | None]]  # row and drug of the Medications of one id in one file
Table = dict[str, dict[str, Told]]  # by file and id
Leaned = dict[str, dict[str, str | None]]  # by file of an order and id: the drug that was taken from another file


class Medications(dict[str, str | None]):
    """The drug of each id, as the resource at `row` sees it. What lies in it is of the lines of its file that were read just before.

    A miss looks into `table`, all Medications of the source, where those are known; then into `known`, of other files, None: of all files
    before this one. Raises KeyError where neither has it: whoever asks has to wait for the end.
    """

    def __init__(self, known: Mapping[str, str | None] | None = None, table: Table | None = None) -> None:
        super().__init__()
        self.found: Table = {}
        self.leaned: Leaned = {}
        self.row = 0
        self._first: dict[str, str | None] = {}
        self._known, self._table = self._first if known is None else known, table
        self._file, self._task = "", -1

    def begin(self, file: str, task: int) -> None:
        """What follows is of a file, or of a piece of it; if it is the next piece, what stood before still does."""
        if (file, task) != (self._file, self._task + 1):
            self.clear()
        self._file, self._task = file, task

    def add(self, identity: str, drug: str | None) -> None:
        """A Medication, at `row`."""
        if identity not in self or self[identity] != drug:
            self.found.setdefault(self._file, {}).setdefault(identity, []).append((self.row, drug))
            self[identity] = drug
            self._first.setdefault(identity, drug)

    def __missing__(self, identity: str) -> str | None:
        if self._table is not None and (own := self._table.get(self._file, {}).get(identity)):
            return chosen(own, self.row)
        drug = self._known[identity]
        if self._table is None:
            self.leaned.setdefault(self._file, {})[identity] = drug
        return drug


def chosen(told: Told, row: int) -> str | None:
    """The drug that an order at `row` means, of those that its file has under the id, by row."""
    return told[max(bisect_left(told, row, key=itemgetter(0)) - 1, 0)][1]


def merged(tables: Iterable[Table]) -> Table:
    """What several readers found, of each id by row."""
    whole: Table = {}
    for table in tables:
        for file, own in table.items():
            together = whole.setdefault(file, {})
            for identity, told in own.items():
                alone = len(told) == 1 and identity not in together  # nearly always
                together[identity] = told if alone else sorted([*together.get(identity, ()), *told], key=itemgetter(0))
    return whole


def firsts(table: Table) -> dict[str, str | None]:
    """The drug of the first of each id in the source. `table`: of each id by row."""
    found: dict[str, tuple[int, str | None]] = {}
    for own in table.values():
        for identity, told in own.items():
            if identity not in found or told[0][0] < found[identity][0]:
                found[identity] = told[0]
    return {identity: drug for identity, (_, drug) in found.items()}


def misled(leaned: Leaned, table: Table) -> bool:
    """Whether an order may have got the drug of another file while its own file has a different one under that id."""
    for file in leaned.keys() & table.keys():
        own = table[file]
        if any(drug != taken for identity, taken in leaned[file].items() for _, drug in own.get(identity, ())):
            return True
    return False
