"""The question's cohort: a target-trial emulation. Who was asked, when, what was done, what happened; every exclusion is counted.

Axis suffixes: P patients on record, N rows of the cohort, K options, C negative controls.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from components.decision import Decision
from features import catalogue
from features.errors import ConcordantError
from features.feature import DAY_US, AsOf, Events, Floats, Ints, condition, takes
from features.moment import NEVER_US

Mask = npt.NDArray[np.bool_]


class EmptyCohort(ConcordantError):
    """Nobody is left to learn from; the message holds the flow of patients."""


@dataclass(frozen=True, kw_only=True)
class Cohort:
    """Rows of patients at time zero. `target_N`: the outcome under the option that was given (for dose finding: the stable dose)."""

    patient_ids: tuple[str, ...]
    time_N: Ints  # microseconds since 1970 UTC
    option_N: Ints
    target_N: Floats  # NaN where not observed
    site_N: tuple[str, ...]
    flow: tuple[tuple[str, int], ...]
    harm_N: Floats | None = None  # what of `target_N` adverse events make up, where they count
    controls: dict[str, Floats] = field(default_factory=dict)  # each negative control in its window, NaN where not measured

    def __len__(self) -> int:
        return len(self.patient_ids)

    @property
    def observed_N(self) -> Mask:
        """Whether the outcome was seen."""
        return ~np.isnan(self.target_N)

    def write(self, folder: Path) -> None:
        """`cohort.parquet` and `flow.json`."""
        table = pa.table(
            {
                "patient_id": list(self.patient_ids),
                "time": pa.array(self.time_N, pa.timestamp("us", tz="UTC")),
                "option": self.option_N,
                "target": self.target_N,
                "site": list(self.site_N),
                **({} if self.harm_N is None else {"harm": self.harm_N}),
                **{f"control_{name}": control_N for name, control_N in self.controls.items()},
            }
        )
        pq.write_table(table, folder / "cohort.parquet")
        (folder / "flow.json").write_text(json.dumps(self.flow), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Cohort":
        """The cohort that `write` wrote."""
        table = pq.read_table(folder / "cohort.parquet")
        flow = json.loads((folder / "flow.json").read_text(encoding="utf-8"))
        return cls(
            patient_ids=tuple(table["patient_id"].to_pylist()),
            time_N=np.asarray(table["time"].cast(pa.int64())),
            option_N=np.asarray(table["option"]),
            target_N=np.asarray(table["target"]),
            site_N=tuple(table["site"].to_pylist()),
            flow=tuple((str(step), int(count)) for step, count in flow),
            harm_N=np.asarray(table["harm"]) if "harm" in table.column_names else None,
            controls={n.removeprefix("control_"): np.asarray(table[n]) for n in table.column_names if n.startswith("control_")},
        )


def select(table: pa.Table, decision: Decision, *, smallest: int = 50) -> Cohort:
    """Cohort of a decision from an events table.

    Raises EmptyCohort, with the flow, where fewer than `smallest` patients with an outcome are left.
    """
    return enough(found(Events(table), decision), decision, smallest)


def found(events: Events, decision: Decision) -> Cohort:
    """Cohort of a decision among the patients of some events, however few they are."""
    start_P, option_P = first_option(events, decision)
    keep_P, flow = _eligible(events, decision, start_P, option_P)
    rows = np.flatnonzero(keep_P)
    ids, time_N, option_N = [events.patients[p] for p in rows], start_P[rows], option_P[rows]
    harm_N = None
    if decision.outcome.kind == "dose":
        target_N = _dose(events, decision, ids)
        option_N = band(decision, target_N)
        keep = option_N >= 0
        flow.append(("whose stable dose is on record", int(keep.sum())))
        ids, time_N, option_N, target_N = [i for i, k in zip(ids, keep, strict=True) if k], time_N[keep], option_N[keep], target_N[keep]
    else:
        target_N, harm_N = _change(events, decision, ids, time_N)
        flow.append(("of these with an outcome in the window", int((~np.isnan(target_N)).sum())))
    return Cohort(
        patient_ids=tuple(ids),
        time_N=time_N,
        option_N=option_N,
        target_N=target_N,
        site_N=_sites(events, ids, time_N),
        flow=tuple(flow),
        harm_N=harm_N,
        controls=_controls(events, decision, ids, time_N),
    )


def enough(cohort: Cohort, decision: Decision, smallest: int = 50) -> Cohort:
    """The same cohort. Raises EmptyCohort, with the flow, where fewer than `smallest` patients with an outcome are left."""
    if int(cohort.observed_N.sum()) < smallest:
        lines = "\n".join(_told(cohort.flow))
        raise EmptyCohort(
            f"Decision '{decision.name}': {int(cohort.observed_N.sum())} patients with an outcome are left, {smallest} are needed.\n"
            f"{lines}\nGive a source with more patients who started one of: {', '.join(decision.option_names)}."
        )
    return cohort


def _told(flow: Sequence[tuple[str, int]]) -> list[str]:
    """The flow for people: who is left and how many were lost at each criterion, up to the first that leaves nobody."""
    told, before = [], flow[0][1]
    for step, count in flow:
        told.append(f"  {count:>8,}  {step}" + (f"  ({before - count:,} lost)" if count < before else ""))
        if count == 0:
            break
        before = count
    return told


def first_option(events: Events, decision: Decision) -> tuple[Ints, Ints]:
    """When each patient on record first started an option, and which: NEVER_US, -1 for none; -2 where two were started at once."""
    size = len(events.patients)
    start_P, option_P = np.full(size, NEVER_US, np.int64), np.full(size, -1, np.int64)
    distinct = decision.outcome.kind != "dose"
    for k, option in enumerate(decision.options.values()):
        first_P = np.full(size, NEVER_US, np.int64)
        for drug in option.drugs:
            facts = events.facts(f"start:{drug}")
            if facts is not None:
                held = facts.superseded_M >= NEVER_US
                np.minimum.at(first_P, facts.patient_M[held], facts.time_M[held])
        tied = distinct & (first_P == start_P) & (first_P < NEVER_US)
        earlier = first_P < start_P
        option_P = np.where(tied, -2, np.where(earlier, k, option_P))
        start_P = np.minimum(start_P, first_P)
    return start_P, option_P


def _eligible(events: Events, decision: Decision, start_P: Ints, option_P: Ints) -> tuple[Mask, list[tuple[str, int]]]:
    """Who may be asked, with the number left after every criterion."""
    indication, ids = decision.indication, events.patients
    ever = AsOf(events, ids, np.full(len(ids), NEVER_US - 1))
    at = AsOf(events, ids, start_P)
    keep_P = np.ones(len(ids), bool)
    flow = [("patients on record", len(ids))]

    def require(step: str, holds: Callable[[], Mask]) -> None:
        nonlocal keep_P
        keep_P = keep_P & holds()
        flow.append((step, int(keep_P.sum())))

    if indication.conditions:
        require(f"with {_words(indication.conditions)} on record", lambda: condition(*indication.conditions)(ever) == 1)
    if indication.drugs:
        require(f"who were given {_words(indication.drugs)}", lambda: takes(indication.drugs, 1e9)(ever) == 1)
    require("who started one of the options", lambda: start_P < NEVER_US)
    if decision.outcome.kind != "dose":
        require("and no two options at once", lambda: option_P >= 0)
    if indication.conditions:
        require(f"with {_words(indication.conditions)} known at time zero", lambda: condition(*indication.conditions)(at) == 1)
    if indication.drugs:
        require(f"with {_words(indication.drugs)} given before time zero", lambda: takes(indication.drugs, 1e9)(at) == 1)
    if decision.time_zero.washout_days:
        days = decision.time_zero.washout_days
        require(f"whose record reaches {days} days back", lambda: _first_seen(events) <= start_P - days * DAY_US)
    low, high = indication.age_years
    age = catalogue.FEATURES["age_years"].compute
    require(f"aged {low:g} to {high:g} years, or of unknown age", lambda: ~((age(at) < low) | (age(at) > high)))
    if decision.outcome.baseline:
        baseline = catalogue.FEATURES[decision.outcome.baseline]
        require(f"with {baseline.meaning} known and not stale at time zero", lambda: ~np.isnan(baseline.compute(at)))
    return keep_P, flow


def outside(decision: Decision, at: AsOf) -> tuple[str, ...]:
    """Why the decision is not about each asked patient at that time, "" where it is. Nothing is said of a value."""
    indication, age_N = decision.indication, catalogue.FEATURES["age_years"].compute(at)
    low, high = indication.age_years
    checks = [((age_N < low) | (age_N > high), f"it is for ages {low:g} to {high:g}")]
    if indication.conditions:
        checks.append((condition(*indication.conditions)(at) != 1, f"no {_words(indication.conditions)} on record"))
    if indication.drugs:
        checks.append((takes(indication.drugs, 1e9)(at) != 1, f"no {_words(indication.drugs)} on record"))
    reasons = np.full(len(at), "", object)
    for fails_N, reason in reversed(checks):
        reasons[fails_N] = reason
    return tuple(reasons)


def _words(names: tuple[str, ...]) -> str:
    return " or ".join(name.replace("_", " ") for name in names)


def _first_seen(events: Events) -> Ints:
    """When each patient's record begins: the first condition, encounter or supply."""
    first_P = np.full(len(events.patients), NEVER_US, np.int64)
    for concept in events.concepts("record:") + events.concepts("supply:") + events.concepts("takes:"):
        facts = events.facts(concept)
        if facts is not None:
            np.minimum.at(first_P, facts.patient_M, facts.time_M)
    return first_P


def _change(events: Events, decision: Decision, ids: list[str], time_N: Ints) -> tuple[Floats, Floats | None]:
    """Change of the outcome's concept to the value nearest the target day, plus the weight of a new adverse event; and that weight."""
    outcome = decision.outcome
    assert outcome.baseline and outcome.window_days and outcome.target_day
    baseline_N = catalogue.FEATURES[outcome.baseline].compute(AsOf(events, ids, time_N))
    at = AsOf(events, ids, np.full(len(ids), NEVER_US - 1))  # outcomes lie after time zero; no feature is computed from this
    known = at.known(outcome.concept)
    day_M = (known.time_M - time_N[known.ask_M]) / DAY_US
    inside_M = (day_M >= outcome.window_days[0]) & (day_M <= outcome.window_days[1])
    known, day_M = known.where(inside_M), day_M[inside_M]
    target_N = np.full(len(ids), np.nan)
    order = np.lexsort([-np.abs(day_M - outcome.target_day), known.ask_M])  # the nearest to the target day comes last and stays
    target_N[known.ask_M[order]] = known.value_M[order]
    change_N = target_N - baseline_N
    if not outcome.harms:
        return change_N, None
    harm_N = outcome.harms.weight * (1 if outcome.better == "lower" else -1) * _harmed(at, decision, time_N)
    return change_N + harm_N, harm_N


def _controls(events: Events, decision: Decision, ids: list[str], time_N: Ints) -> dict[str, Floats]:
    """The newest value of each negative control inside its window."""
    at, found = AsOf(events, ids, np.full(len(ids), NEVER_US - 1)), {}
    for control in decision.negative_controls:
        known = at.known(control.concept)
        day_M = (known.time_M - time_N[known.ask_M]) / DAY_US
        known = known.where((day_M >= control.window_days[0]) & (day_M <= control.window_days[1]))
        found[control.concept] = known.pick(known.last_row(), known.value_M)
    return found


def _harmed(at: AsOf, decision: Decision, time_N: Ints) -> Floats:
    """1 where any of the adverse events was first seen within the days after time zero."""
    harms = decision.outcome.harms
    assert harms
    harmed_N = np.zeros(len(time_N))
    for name in harms.conditions:
        known = at.known(f"condition:{name}")
        day_M = (known.time_M - time_N[known.ask_M]) / DAY_US
        harmed_N[known.ask_M[(day_M > 0) & (day_M <= harms.within_days) & (known.value_M == 1)]] = 1.0
    return harmed_N


def _dose(events: Events, decision: Decision, ids: list[str]) -> Floats:
    """The stable weekly dose: the newest on record."""
    known = AsOf(events, ids, np.full(len(ids), NEVER_US - 1)).known(decision.outcome.concept)
    return known.pick(known.last_row(), known.value_M)


def band(decision: Decision, dose_N: Floats) -> Ints:
    """Option whose band holds each dose, -1 where there is no dose. The middle bands are open at both ends, the outer ones closed."""
    bands = [option.band_mg_week or (0.0, 0.0) for option in decision.options.values()]
    upper = np.array([band[1] for band in bands[:-1]])
    band_N = np.zeros(len(dose_N), np.int64)
    for k, limit in enumerate(upper):
        band_N += (dose_N > limit) if k < len(upper) - 1 or len(upper) == 1 else (dose_N >= limit)
    return np.where(np.isnan(dose_N), -1, band_N)


def _sites(events: Events, ids: list[str], time_N: Ints) -> tuple[str, ...]:
    at = AsOf(events, ids, time_N)
    known = at.known("site")
    site_N = [""] * len(ids)
    for ask, text in zip(known.ask_M, at.text(known), strict=True):
        site_N[int(ask)] = text
    return tuple(site_N)
