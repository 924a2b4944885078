"""Observations by the thousand: the same meaning as `fhir.state`, worked out on columns instead of one resource at a time.

A laboratory sends the same few codes, units and answers again and again, and its dates in one format: what a code stands for is looked
up once for each text of it, dates are read as columns. Whatever is not of the usual shape (a period, a status that is not final, a value
that can't be used, a date in the future) is handed back, and `fhir.state` decides. A test holds that both give the same events.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from features import fhir, observed, resources
from features.concepts import Measurement, concepts
from features.moment import BEGIN_US, NEVER_US, instants
from features.resources import NULL, Observation
from features.statement import FINAL

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Said = tuple[tuple[int, float], ...]  # number of a meaning, value
Meant = dict[Any, int] | bool  # of a measurement the number of each unit; False: nothing, True: something that is no measurement
_MEMORY = 50_000  # texts that are remembered; a source of endless new ones begins anew
_EXACT = 2**53  # beyond it a whole number and its float may differ
_LEAST = np.iinfo(np.int64).min
_NONE = type(None)
_EMPTY = resources.Quantity()
_code, _component, _quantity = attrgetter("code"), attrgetter("component"), attrgetter("valueQuantity")
_subject, _meta, _issued, _status, _id = (attrgetter(name) for name in ("subject", "meta", "issued", "status", "id"))


class Batch(NamedTuple):
    """Observations of the usual shape, a row each; `meaning` and `value` hold the `said` values of each of them, in order."""

    identities: list[str]
    patients: list[str]
    recorded: Ints
    updated: Ints
    version: Ints
    row: Ints
    line: Ints
    said: Ints  # number of values
    time: Ints
    meaning: Ints
    value: Floats


class Observations:
    """Makes columns of the Observations of the usual shape; the others go back to `odd(resource, line, row)`."""

    def __init__(self, now_us: int, odd: Callable[[Observation, int, int], None]) -> None:
        self._now_us, self._odd, self._table = now_us, odd, concepts()
        self.meanings: list[tuple[str, str, str]] = []  # concept, code, unit
        self._numbers: dict[tuple[str, str, str], int] = {}
        self._units: dict[str, dict[Any, int]] = {}  # of a measurement: place of each unit in the next
        self._scales: list[tuple[float, float, float, float, float]] = []  # factor, offset, least, most, meaning
        self._meant: dict[bytes, Meant] = {}
        self._told: dict[tuple[bytes, bytes, bytes], Said | None] = {}
        self._whose: dict[str | None, str | None] = {}

    def batch(self, found: Sequence[Observation], line: Ints, row: Ints) -> Batch:
        """The columns of some Observations; what is unusual is handed back."""
        try:
            return self._columns(found, line, row)
        except TypeError:  # a list or an object where a word should be
            for one in zip(found, line.tolist(), row.tolist(), strict=True):
                self._odd(*one)
            return self._columns([], line[:0], row[:0])

    def _columns(self, found: Sequence[Observation], line: Ints, row: Ints) -> Batch:
        usual, count, meaning, value = self._values(found)
        patients = self._patients(found)
        issued, metas, ids = list(map(_issued, found)), list(map(_meta, found)), list(map(_id, found))
        says = count > 0
        effective = [one.effectiveDateTime if said else None for one, said in zip(found, says.tolist(), strict=True)]
        final = [status in FINAL for status in map(_status, found)]
        usual &= np.array(final, bool) & np.array([text.__class__ is str for text in effective], bool) | ~says
        usual &= np.array([patient is not None for patient in patients], bool)
        usual &= np.array([bool(text) and text.__class__ is str for text in ids], bool)
        if any(meta is not None for meta in metas):
            updated = [None if meta is None else meta.lastUpdated for meta in metas]
            version = np.array([0 if meta is None else fhir.counted(meta.versionId) for meta in metas], np.int64)
        else:
            updated, version = [None] * len(found), np.zeros(len(found), np.int64)
        moments, read = _dates([*effective, *issued])
        (time, made), (timed, said), (written, wrote) = moments.reshape(2, -1), read.reshape(2, -1), _dates(updated)
        written = np.maximum(written, BEGIN_US)
        recorded = np.where(says, np.maximum(time, made), np.maximum(made, written))
        usual &= timed & said & wrote & (~says | (recorded <= self._now_us))
        for n in np.flatnonzero(~usual).tolist():
            self._odd(found[n], int(line[n]), int(row[n]))
        recorded = np.where(~says & (recorded == BEGIN_US), NEVER_US, recorded)
        keep = usual & (says | (recorded != NEVER_US))  # else it says nothing, and not when: no version of anything
        kept = np.flatnonzero(keep).tolist()
        of_kept = np.repeat(keep, count)
        return Batch(
            identities=["Observation/" + ids[n] for n in kept],
            patients=[str(patients[n]) for n in kept],
            recorded=recorded[keep],
            updated=written[keep],
            version=version[keep],
            row=row[keep],
            line=line[keep],
            said=count[keep],
            time=time[keep],
            meaning=meaning[of_kept],
            value=value[of_kept],
        )

    def _values(self, found: Sequence[Observation]) -> tuple[Bools, Ints, Ints, Floats]:
        """Which are of the usual shape, how many values each says, and these: meanings and numbers."""
        codes = list(map(bytes, map(_code, found)))
        meant: list[Meant | None] = list(map(self._meant.get, codes))
        if None in meant:
            meant = [self._look(code) for code in codes]
        plain = [component is NULL for component in map(_component, found)]
        usual, count = np.ones(len(found), bool), np.zeros(len(found), np.int64)
        measured = [n for n, (one, alone) in enumerate(zip(meant, plain, strict=True)) if alone and one.__class__ is dict]
        meaning, value, good = self._measured([found[n].valueQuantity for n in measured], [meant[n] for n in measured])
        usual[measured] = good
        count[measured] = good
        rest: list[tuple[int, float]] = []
        for n, (one, alone) in enumerate(zip(meant, plain, strict=True)):
            if not alone or one is True:
                said = self._repeated(found[n], codes[n])
                if said is None:
                    usual[n] = False
                else:
                    count[n] = len(said)
                    rest += said
        single = np.zeros(len(found), bool)
        single[measured] = True
        single = np.repeat(single, count)
        meanings, values = np.empty(len(single), np.int64), np.empty(len(single))
        meanings[single], values[single] = meaning[good], value[good]
        meanings[~single] = [one for one, _ in rest]
        values[~single] = [one for _, one in rest]
        return usual, count, meanings, values

    def _measured(self, quantities: list[resources.Quantity | None], meant: list[Any]) -> tuple[Ints, Floats, Bools]:
        """Numbers in a unit that we know and in the range that we believe: what each means, its value in our unit, whether it is one."""
        given = [quantity or _EMPTY for quantity in quantities]
        scale = np.array([units.get(one.code or one.unit, -1) for units, one in zip(meant, given, strict=True)], np.int64)
        number = np.array([_plain(one.value) for one in given], np.float64)
        bare = np.array([not one.comparator for one in given], bool)
        factor, offset, least, most, meaning = np.array([*self._scales, (1.0, 0.0, 1.0, 0.0, -1.0)], np.float64)[scale].T
        with np.errstate(over="ignore", invalid="ignore"):
            value = number * factor + offset
            return meaning.astype(np.int64), value, bare & (least <= value) & (value <= most)

    def _patients(self, found: Sequence[Observation]) -> list[str | None]:
        """Whom each is about; None where that has to be looked at."""
        references = [None if subject is None else subject.reference for subject in map(_subject, found)]
        if len(self._whose) > 100 * _MEMORY:
            self._whose.clear()
        for reference in set(references).difference(self._whose):
            self._whose[reference] = fhir.patient_of(reference)
        return list(map(self._whose.__getitem__, references))

    def _look(self, code: bytes) -> Meant:
        known = self._meant.get(code)
        if known is not None:
            return known
        if len(self._meant) > _MEMORY:
            self._meant.clear()
        try:
            concept = resources.concept(code)
            about = observed.about(concept, self._table)
            genotype = bool(observed.genotypes(concept, self._table))
        except (TypeError, ValueError):
            return True
        measurement = self._table.measurements[about[1]] if about and about[0] == "measurement" else None
        self._meant[code] = self._units_of(measurement) if measurement else (about is not None or genotype)
        return self._meant[code]

    def _units_of(self, measurement: Measurement) -> dict[Any, int]:
        units = self._units.get(measurement.name)
        if units is None:
            units = self._units[measurement.name] = {}
            meaning = self._number(measurement.name, "", measurement.unit)
            for unit, (factor, offset) in measurement.units.items():
                units[unit] = len(self._scales)
                self._scales.append((factor, offset, measurement.low, measurement.high, meaning))
        return units

    def _number(self, *meaning: str) -> int:
        number = self._numbers.setdefault(meaning, len(self.meanings))  # type: ignore[arg-type]
        if number == len(self.meanings):
            self.meanings.append(meaning)  # type: ignore[arg-type]
        return number

    def _repeated(self, found: Observation, code: bytes) -> Said | None:
        """A coded answer or a genotype, whose text says it all, is understood once; a panel of numbers each time."""
        component = bytes(found.component)
        if found.valueQuantity is not None or found.valueInteger is not None or b"Integer" in component:
            return self._tell(found)
        if b"Quantity" in component:
            return self._panel(component) if self._meant.get(code) is False else self._tell(found)
        text = (code, component, bytes(found.valueCodeableConcept))
        if text not in self._told:
            if len(self._told) > _MEMORY:
                self._told.clear()
            self._told[text] = self._tell(found)
        return self._told[text]

    def _panel(self, component: bytes) -> Said | None:
        """The numbers of a panel that itself says nothing."""
        said: list[tuple[int, float]] = []
        try:
            parts = resources.panel(component)
        except ValueError:
            return None
        for part in parts:
            meant = self._look(bytes(part.code))
            if meant is not False:
                one = None if meant is True else self._one(part.valueQuantity or _EMPTY, meant)
                if one is None:
                    return None
                said.append(one)
        return tuple(said)

    def _one(self, quantity: resources.Quantity, meant: Any) -> tuple[int, float] | None:
        """As `_measured`, for one."""
        scale, value = meant.get(quantity.code or quantity.unit), _plain(quantity.value)
        if scale is None or quantity.comparator:
            return None
        factor, offset, least, most, meaning = self._scales[scale]
        value = value * factor + offset
        return (int(meaning), value) if least <= value <= most else None

    def _tell(self, found: Observation) -> Said | None:
        try:
            said = observed.values(found)
        except (AttributeError, TypeError, ValueError, IndexError, ArithmeticError):
            return None
        if said.problem or said.parts:
            return None
        return tuple((self._number(one.concept, one.code, one.unit), one.value) for one in said.values)


def _plain(value: Any) -> float:
    """A number that a float holds exactly; NaN for anything else."""
    if value.__class__ is float or (value.__class__ is int and -_EXACT < value < _EXACT):
        return value
    return np.nan


def _dates(texts: list[Any]) -> tuple[Ints, Bools]:
    """Microseconds, the least number for None, and whether each text was read."""
    kinds = set(map(type, texts))
    if kinds == {_NONE}:
        return np.full(len(texts), _LEAST), np.ones(len(texts), bool)
    good = np.array([text is None for text in texts], bool) if _NONE in kinds else None
    if not kinds <= {str, _NONE}:
        texts = [text if text.__class__ is str else None for text in texts]
    found, read = instants(texts)
    return np.where(read, found, _LEAST), read if good is None else read | good
