"""A feature, and what was known about a patient at a time. One function computes the training row and the serving row.

Axis suffixes: N asked (patient, time) pairs, M matching facts, F features.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from features.kidney import ckd_epi_2021
from features.moment import BEGIN_US
from features.moment import DAY_US as DAY_US

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Modality = Literal["history", "genomics", "lifestyle", "sequence"]
MODALITIES: tuple[Modality, ...] = ("history", "genomics", "lifestyle")  # of which a row is a table; a sequence stands behind them
YEAR_DAYS = 365.25
REPORTED_DAYS = 365.0  # an eGFR of a laboratory keeps estimates from creatinine out for as long as its feature is valid


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of a row: its declaration is the only place where it is described.

    `compute` gives N values in `unit`, NaN where nothing is known. `concepts` are the facts it reads, over the last `window_days` (None:
    over all time); `valid_days` is how old the newest of them may be before the value counts as stale (None: never). `source` says who
    defined the quantity, where that is not plain from the codes.
    """

    name: str
    modality: Modality
    unit: str
    meaning: str
    concepts: tuple[str, ...]
    compute: "Callable[[AsOf], Floats]"
    valid_days: float | None = None
    window_days: float | None = None
    source: str = ""
    dtype: Literal["float64"] = "float64"  # the only one that can say "missing" without a second column


@dataclass(frozen=True)
class _Facts:
    """Facts of one concept, sorted by patient, time, recorded time and source."""

    patient_M: Ints
    time_M: Ints
    recorded_M: Ints
    superseded_M: Ints
    value_M: Floats
    code_M: Ints


@dataclass(frozen=True)
class Known:
    """Facts that were known to the askers: which asker (ascending), when it was true, value, code."""

    asks: int
    ask_M: Ints
    time_M: Ints
    value_M: Floats
    code_M: Ints
    days_ago_M: Floats

    def count(self) -> Floats:
        """Number of facts of each asker."""
        return np.bincount(self.ask_M, minlength=self.asks).astype(np.float64)

    def last_row(self) -> Ints:
        """Row of each asker's newest fact, -1 where there is none."""
        row_N = np.full(self.asks, -1, np.int64)
        row_N[self.ask_M] = np.arange(len(self.ask_M))  # ascending in time: the last assignment stays
        return row_N

    def pick(self, row_N: Ints, column_M: Floats) -> Floats:
        """Column at the given rows, NaN where the row is -1."""
        if len(column_M) == 0:
            return np.full(self.asks, np.nan)
        return np.where(row_N >= 0, column_M[np.maximum(row_N, 0)], np.nan)

    def where(self, keep_M: npt.NDArray[np.bool_]) -> "Known":
        """The facts that a mask keeps."""
        columns = (self.ask_M, self.time_M, self.value_M, self.code_M, self.days_ago_M)
        return Known(self.asks, *(column[keep_M] for column in columns))  # type: ignore[arg-type]


class Events:
    """The events table as arrays by concept, ready to be asked."""

    def __init__(self, table: pa.Table) -> None:
        table = table.unify_dictionaries().combine_chunks()
        patients, self._patient_of = _codes(table["patient_id"])
        self.patients: list[str] = patients
        self._number = {patient: n for n, patient in enumerate(patients)}
        names, concept = _codes(table["concept"])
        self.codes, code = _codes(table["code"])
        time, recorded, superseded = (np.asarray(table[c].cast(pa.int64())) for c in ("time", "recorded", "superseded"))
        value = np.asarray(table["value"], dtype=np.float64)
        source = np.asarray(table["source"].to_pylist() or [], dtype=str)
        rank = np.argsort(np.argsort(np.asarray(self.codes, dtype=str)))  # ties end alike whatever the order of rows and the key
        order = np.lexsort([source, rank[code], value, recorded, time, self._patient_of, concept])
        bounds = np.searchsorted(concept[order], np.arange(len(names) + 1))
        columns: list[Any] = [column[order] for column in (self._patient_of, time, recorded, superseded, value, code)]
        self._facts = {name: _Facts(*(column[bounds[n] : bounds[n + 1]] for column in columns)) for n, name in enumerate(names)}
        self.newest_us = int(recorded.max(initial=BEGIN_US))

    def numbers(self, patient_ids: Sequence[str]) -> Ints:
        """Number of each patient, -1 for one without any event."""
        return np.array([self._number.get(patient, -1) for patient in patient_ids], np.int64)

    def facts(self, concept: str) -> _Facts | None:
        """Facts of one concept, None where there is none in the table."""
        return self._facts.get(concept)

    def concepts(self, prefix: str) -> list[str]:
        """Concepts present in the table that begin with a prefix."""
        return sorted(name for name in self._facts if name.startswith(prefix))


def _codes(column: pa.ChunkedArray) -> tuple[list[str], Ints]:
    """Distinct words in order of first appearance, and each row's number."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    number, words = np.asarray(array.indices, dtype=np.int64), array.dictionary.to_pylist()
    used, first = np.unique(number, return_index=True)
    used = used[np.argsort(first)]
    renumber = np.full(len(words), -1, np.int64)
    renumber[used] = np.arange(len(used))
    return [words[n] for n in used], renumber[number]


class AsOf:
    """What was known about each of N patients at each one's time: time and recorded time up to it, and not yet replaced by then."""

    def __init__(self, events: Events, patient_ids: Sequence[str], time_us: Ints) -> None:
        self.events = events
        self.time_N = np.asarray(time_us, np.int64)
        self.patient_N = events.numbers(patient_ids)
        self._cache: dict[str, Known] = {}
        self._made: dict[Callable[[AsOf], Floats], Floats] = {}

    def __len__(self) -> int:
        return len(self.time_N)

    def known(self, *concepts: str, within_days: float | None = None) -> Known:
        """Facts of some concepts, by asker and time; `within_days` keeps those that were true no longer ago than that."""
        parts = [self._one(concept) for concept in concepts]
        found = parts[0] if len(parts) == 1 else self._merge(parts)
        return found if within_days is None else found.where(found.days_ago_M <= within_days)

    def once(self, make: "Callable[[AsOf], Floats]") -> Floats:
        """What `make` gives of these askers, made once for all features that are cut from it."""
        if make not in self._made:
            self._made[make] = make(self)
        return self._made[make]

    def newest(self, concepts: Sequence[str]) -> Ints:
        """When each asker's newest fact of some concepts was true, microseconds since 1970 UTC; BEGIN_US where there is none."""
        newest_N = np.full(len(self), BEGIN_US, np.int64)
        for concept in concepts:
            known = self._one(concept)
            np.maximum.at(newest_N, known.ask_M, known.time_M)
        return newest_N

    def text(self, known: Known) -> list[str]:
        """Codes of some facts as words."""
        return [self.events.codes[code] for code in known.code_M]

    def _merge(self, parts: list[Known]) -> Known:
        columns = [
            np.concatenate(column) for column in zip(*((p.ask_M, p.time_M, p.value_M, p.code_M, p.days_ago_M) for p in parts), strict=True)
        ]
        order = np.lexsort([columns[1], columns[0]])
        return Known(len(self), *(column[order] for column in columns))

    def _one(self, concept: str) -> Known:
        if concept not in self._cache:
            found = self._look(self.events.facts(concept))
            self._cache[concept] = self._with_estimates(found) if concept == "egfr" else found
        return self._cache[concept]

    def _with_estimates(self, reported: Known) -> Known:
        """Where no laboratory reported an eGFR in a year, each creatinine since the last report stands for one, by CKD-EPI 2021.

        Age is that at the time of the creatinine. What was reported is always kept, and within a year of a report nothing is added.
        """
        creatinine = self._one("creatinine")
        if not len(creatinine.ask_M):
            return reported
        row_N = reported.last_row()
        silent_N = np.where(row_N >= 0, reported.pick(row_N, reported.days_ago_M), np.inf)
        born, sex = self._one("birth_date"), self._one("female")
        born_N, female_N = (known.pick(known.last_row(), known.value_M) for known in (born, sex))
        ask_M = creatinine.ask_M
        age_M = (creatinine.time_M / DAY_US - born_N[ask_M]) / YEAR_DAYS
        estimate_M = ckd_epi_2021(creatinine.value_M, age_M, female_N[ask_M])
        estimates = replace(creatinine, value_M=estimate_M)
        used_M = (silent_N[ask_M] > REPORTED_DAYS) & (creatinine.days_ago_M < silent_N[ask_M]) & np.isfinite(estimate_M)
        return self._merge([reported, estimates.where(used_M)])

    def _look(self, facts: _Facts | None) -> Known:
        if facts is None:
            none = np.zeros(0, np.int64)
            return Known(len(self), none, none, none.astype(np.float64), none, none.astype(np.float64))
        start_N = np.searchsorted(facts.patient_M, self.patient_N, "left")
        count_N = np.where(self.patient_N < 0, 0, np.searchsorted(facts.patient_M, self.patient_N, "right") - start_N)
        ask_M = np.repeat(np.arange(len(self)), count_N)
        row_M = np.arange(len(ask_M)) + np.repeat(start_N - np.cumsum(count_N) + count_N, count_N)
        at_M = self.time_N[ask_M]
        seen_M = (facts.time_M[row_M] <= at_M) & (facts.recorded_M[row_M] <= at_M) & (facts.superseded_M[row_M] > at_M)
        ask_M, row_M = ask_M[seen_M], row_M[seen_M]
        days_ago_M = (self.time_N[ask_M] - facts.time_M[row_M]) / DAY_US
        return Known(len(self), ask_M, facts.time_M[row_M], facts.value_M[row_M], facts.code_M[row_M], days_ago_M)


# ------------------------------------------------------------------------------------------------------- the shapes a feature can have
# Each takes a declaration's facts and gives a function of AsOf. The modalities build their lists from these.


def latest(concept: str, valid_days: float | None = None) -> Callable[[AsOf], Floats]:
    """Newest value, in the concept's unit."""

    def compute(at: AsOf) -> Floats:
        known = at.known(concept, within_days=valid_days)
        return known.pick(known.last_row(), known.value_M)

    return compute


def mean(concept: str, within_days: float) -> Callable[[AsOf], Floats]:
    """Mean over a window before the time, in the concept's unit."""

    def compute(at: AsOf) -> Floats:
        known = at.known(concept, within_days=within_days)
        count_N = known.count()
        total_N = np.bincount(known.ask_M, known.value_M, minlength=len(at))
        return np.divide(total_N, count_N, out=np.full(len(at), np.nan), where=count_N > 0)

    return compute


def slope_per_year(concept: str, within_days: float) -> Callable[[AsOf], Floats]:
    """Least-squares slope over a window, in the concept's unit a year; NaN with fewer than two values or none 30 days apart."""

    def compute(at: AsOf) -> Floats:
        known = at.known(concept, within_days=within_days)
        years_M, size = -known.days_ago_M / YEAR_DAYS, len(at)
        count_N = np.maximum(known.count(), 1)
        years_N = np.bincount(known.ask_M, years_M, minlength=size) / count_N
        value_N = np.bincount(known.ask_M, known.value_M, minlength=size) / count_N
        off_M = years_M - years_N[known.ask_M]
        spread_N = np.bincount(known.ask_M, off_M * off_M, minlength=size)
        joint_N = np.bincount(known.ask_M, off_M * (known.value_M - value_N[known.ask_M]), minlength=size)
        first_N, last_N = np.full(size, np.inf), np.full(size, -np.inf)
        np.minimum.at(first_N, known.ask_M, known.days_ago_M)
        np.maximum.at(last_N, known.ask_M, known.days_ago_M)
        enough_N = last_N - first_N > 30
        return np.divide(joint_N, spread_N, out=np.full(size, np.nan), where=enough_N)

    return compute


def count(concept: str, within_days: float) -> Callable[[AsOf], Floats]:
    """Number of facts in a window; 0 is a statement only about records that hold the concept at all, else NaN."""

    def compute(at: AsOf) -> Floats:
        return np.where(at.known(concept).count() > 0, at.known(concept, within_days=within_days).count(), np.nan)

    return compute


def condition(*names: str) -> Callable[[AsOf], Floats]:
    """1 where the newest statement about one of some conditions affirms it, 0 where the patient has a problem list without, else NaN."""

    def compute(at: AsOf) -> Floats:
        stated_N = np.full(len(at), np.nan)
        for name in names:
            known = at.known(f"condition:{name}")
            stated_N = np.fmax(stated_N, known.pick(known.last_row(), known.value_M))
        listed_N = np.where(at.known("record:condition").count() > 0, 0.0, np.nan)
        return np.where(np.isnan(stated_N), listed_N, stated_N)

    return compute


def years_since(concept: str) -> Callable[[AsOf], Floats]:
    """Years since the first fact of a concept that affirms it."""

    def compute(at: AsOf) -> Floats:
        known = at.known(concept)
        known = known.where(known.value_M != 0)
        days_N = np.full(len(at), np.nan)
        np.fmax.at(days_N, known.ask_M, known.days_ago_M)
        return days_N / YEAR_DAYS

    return compute


def takes(drugs: Sequence[str], valid_days: float) -> Callable[[AsOf], Floats]:
    """1 where any of some drugs was last stated as taken within the window, 0 where all statements say not taken, else NaN."""

    def compute(at: AsOf) -> Floats:
        found_N = np.full(len(at), np.nan)
        for drug in drugs:
            known = at.known(f"takes:{drug}", within_days=valid_days)
            found_N = np.fmax(found_N, known.pick(known.last_row(), known.value_M))
        return found_N

    return compute


def compute(features: Sequence[Feature], at: AsOf) -> Floats:
    """Rows of N by F: the only place where a feature's value comes from, offline and online."""
    columns = [feature.compute(at) for feature in features]
    return np.stack(columns, axis=1) if columns else np.zeros((len(at), 0))


def fact_times(features: Sequence[Feature], at: AsOf) -> Ints:
    """When the newest fact behind each value was true, N by F, microseconds since 1970 UTC."""
    columns = [at.newest(feature.concepts) for feature in features]
    return np.stack(columns, axis=1) if columns else np.zeros((len(at), 0), np.int64)
