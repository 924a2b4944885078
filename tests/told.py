"""Events as a test tells them: days counted from a date, for patients who do not exist."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from hypothesis import strategies as st

from features import catalogue
from features.events import SCHEMA
from features.feature import DAY_US
from features.moment import NEVER_US, instant

FEATURES = tuple(catalogue.FEATURES.values())
DIPLOTYPES = ("*1/*3", "*2/*2", "*1/*1", "no-call", "indeterminate", "A- 202A_376G/MALE", "B (reference)/B (reference)")
PATIENTS = ("anna", "bela", "cora")
T = instant("2020-01-01")


@dataclass(frozen=True)
class Event:
    """One row of the events table, days counted from T."""

    concept: str
    day: float
    value: float = 1.0
    code: str = ""
    patient: str = "anna"
    recorded: float | None = None
    superseded: float | None = None
    source: str = ""

    @property
    def known_day(self) -> float:
        return max(self.day, self.day if self.recorded is None else self.recorded)

    def row(self, number: int) -> dict[str, Any]:
        def stamp(day: float | None) -> int:
            return NEVER_US if day is None else T + round(day * DAY_US)

        times = {"time": stamp(self.day), "recorded": stamp(self.known_day), "superseded": stamp(self.superseded)}
        words = {"patient_id": self.patient, "concept": self.concept, "code": self.code, "unit": ""}
        return (
            times
            | words
            | {"ordinal": PATIENTS.index(self.patient), "value": self.value, "source": self.source or f"Observation/{number:04d}"}
        )


def table(told: Sequence[Event]) -> pa.Table:
    rows = [event.row(number) for number, event in enumerate(told)]
    return pa.table({name: [row[name] for row in rows] for name in SCHEMA.names}, schema=SCHEMA)


DAYS = st.one_of(st.integers(-4000 * 24, 4000 * 24), st.integers(-20 * 24, 20 * 24)).map(lambda hours: hours / 24)


def _hour(day: float) -> float:
    """The same full hour as the one float of it that `DAYS` gives: two sums that mean one moment must be equal."""
    return round(day * 24) / 24


@st.composite
def told_events(draw: st.DrawFn, concepts: Sequence[str] | None = None) -> list[Event]:
    """Up to twelve events of a handful of concepts that one or two features read, so that several meet in one feature."""
    read = concepts or [
        concept for feature in draw(st.lists(st.sampled_from(FEATURES), min_size=1, max_size=2)) for concept in feature.concepts
    ]
    few = draw(st.lists(st.sampled_from(read), min_size=1, max_size=4))
    found = []
    for _ in range(draw(st.integers(0, 12))):
        concept = draw(st.sampled_from(few))
        code = draw(st.sampled_from(DIPLOTYPES)) if concept.startswith("diplotype") else ""
        code = draw(st.sampled_from(["white", "hispanic"])) if concept == "race" else code
        day = draw(DAYS)
        recorded = _hour(day + draw(st.sampled_from([0, 0, 1 / 24, 30, 400])))
        superseded = draw(st.sampled_from([None, None, recorded, _hour(recorded + 20), _hour(recorded + 700)]))
        value = draw(st.one_of(st.sampled_from([0.0, 1.0, float("nan")]), st.floats(-1e6, 1e6)))
        found.append(Event(concept, day, value, code, draw(st.sampled_from(PATIENTS)), recorded, superseded))
    return found
