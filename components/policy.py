"""From effects to a recommendation: a ranked set with intervals and reasons, or an honest abstention with a code from a closed list.

Axis suffixes: N patients, K options.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from components.decision import Decision
from components.effects import LEVEL, Effects
from features.feature import Floats

Mask = npt.NDArray[np.bool_]
LEVEL_TO_NAME_ONE = 0.90  # of the interval that must exclude "no difference" before one option is named alone
SMALLEST_OVERLAP = 0.02  # an option that fewer than 2 in 100 such patients were given is outside what the records can tell


class Abstain(StrEnum):
    """Why there is no single best option. The list is closed."""

    MISSING_REQUIRED = "MISSING_REQUIRED"
    STALE_INPUT = "STALE_INPUT"
    OUT_OF_POPULATION = "OUT_OF_POPULATION"
    LOW_OVERLAP = "LOW_OVERLAP"
    EQUIPOISE = "EQUIPOISE"
    NO_PERMITTED_OPTION = "NO_PERMITTED_OPTION"


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is expected of one option: its outcome, and the difference to the best with its interval (0 for the best itself)."""

    option: str
    label: str
    outcome: float
    difference_to_best: float
    low: float
    high: float
    overlap: float


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """An option that is not offered, and why."""

    option: str
    label: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer for one patient.

    `ranked`: options from best to worst expected outcome, in the outcome's unit; without order where `abstained` is EQUIPOISE.
    `equivalent`: options that can't be told from the best by the minimal important difference. `recommended` is set only where one is left.
    """

    recommended: str | None
    ranked: tuple[Expected, ...]
    equivalent: tuple[str, ...]
    excluded: tuple[Excluded, ...]
    abstained: Abstain | None
    reasons: tuple[str, ...]
    dose_mg_week: float | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is known about the inputs of one patient, apart from their values: required ones that are missing or stale, eligibility."""

    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    outside: str | None = None  # why the decision is not about this patient


def recommend(decision: Decision, effects: Effects, known: Sequence[Inputs]) -> list[Recommendation]:
    """A recommendation for each of N patients. An input that is missing, stale or outside comes before every score."""
    low_NKK, high_NKK = effects.interval()
    surely_NKK = _surely_worse(decision, effects)
    answers = []
    for n, state in enumerate(known):
        code, reason = _refusal(decision, state)
        if code is not None:
            answers.append(Recommendation(recommended=None, ranked=(), equivalent=(), excluded=(), abstained=code, reasons=(reason,)))
        else:
            answers.append(_rank(decision, effects, n, (low_NKK[n], high_NKK[n], surely_NKK[n])))
    return answers


def _surely_worse(decision: Decision, effects: Effects) -> Mask:
    """Whether option k is shown to be worse than option l: the interval excludes no difference, and the expected difference matters."""
    sign = 1.0 if decision.outcome.better == "lower" else -1.0
    low_NKK, high_NKK = effects.interval(LEVEL_TO_NAME_ONE)
    nearest_NKK = low_NKK if sign > 0 else -high_NKK
    return np.asarray((nearest_NKK > 0) & (sign * effects.difference_NKK >= decision.minimal_important_difference))


def inputs(decision: Decision, x_NF: Floats, stale: Sequence[tuple[str, ...]], outside: Sequence[str]) -> list[Inputs]:
    """State of the inputs of N rows: `x_NF` with stale values already NaN, and the names of those."""
    names = [feature.name for feature in decision.columns]
    column = {name: names.index(name) for name in decision.required}
    answers = []
    for row, old, reason in zip(x_NF, stale, outside, strict=True):
        gone = [name for name in decision.required if np.isnan(row[column[name]])]
        answers.append(
            Inputs(missing=tuple(n for n in gone if n not in old), stale=tuple(n for n in gone if n in old), outside=reason or None)
        )
    return answers


def _refusal(decision: Decision, known: Inputs) -> tuple[Abstain | None, str]:
    if known.outside:
        return Abstain.OUT_OF_POPULATION, f"{decision.title} does not apply: {known.outside}."
    if known.missing:
        return Abstain.MISSING_REQUIRED, f"Not known: {', '.join(known.missing)}. Record it and ask again."
    if known.stale:
        return Abstain.STALE_INPUT, f"Too old to rely on: {', '.join(known.stale)}. Measure it again and ask again."
    return None, ""


def _rank(decision: Decision, effects: Effects, n: int, pairs: tuple[Floats, Floats, Mask]) -> Recommendation:
    """The answer for row n; `pairs` are the bounds of every difference and which option is surely worse than which, K by K."""
    names, options = decision.option_names, decision.options
    sign = 1.0 if decision.outcome.better == "lower" else -1.0
    supported = [k for k in range(len(names)) if effects.overlap_NK[n, k] >= SMALLEST_OVERLAP]
    excluded = tuple(_unsupported(names[k], options[names[k]].label) for k in range(len(names)) if k not in supported)
    dose = None if effects.dose_N is None else float(effects.dose_N[n])
    if len(supported) < 2:
        reasons: tuple[str, ...] = ("Too few comparable patients were given these options to compare them.",)
        code: Abstain | None = Abstain.LOW_OVERLAP
        ranked: tuple[Expected, ...] = ()
        equivalent: tuple[str, ...] = ()
    else:
        order = sorted(supported, key=lambda k: (sign * effects.outcome_NK[n, k], k))
        ranked = tuple(_expected(decision, effects, n, k, order[0], pairs) for k in order)
        equivalent = tuple(names[k] for k in order if not pairs[2][k, order[0]])
        code = None if len(equivalent) == 1 else Abstain.EQUIPOISE
        reasons = _reasons(decision, ranked, equivalent)
    return Recommendation(
        recommended=equivalent[0] if code is None else None,
        ranked=ranked,
        equivalent=equivalent,
        excluded=excluded,
        abstained=code,
        reasons=reasons,
        dose_mg_week=dose,
    )


def _unsupported(name: str, label: str) -> Excluded:
    reason = f"fewer than {SMALLEST_OVERLAP:.0%} of comparable patients were given it, so the records can't tell what it would do"
    return Excluded(option=name, label=label, code=Abstain.LOW_OVERLAP, reason=reason)


def _expected(decision: Decision, effects: Effects, n: int, k: int, best: int, pairs: tuple[Floats, Floats, Mask]) -> Expected:
    name, outcome_K = decision.option_names[k], effects.outcome_NK[n]
    return Expected(
        option=name,
        label=decision.options[name].label,
        outcome=float(outcome_K[k]),
        difference_to_best=float(outcome_K[k] - outcome_K[best]),
        low=float(pairs[0][k, best]),
        high=float(pairs[1][k, best]),
        overlap=float(effects.overlap_NK[n, k]),
    )


def _reasons(decision: Decision, ranked: Sequence[Expected], equivalent: Sequence[str]) -> tuple[str, ...]:
    unit, best = decision.outcome.unit, ranked[0]
    if len(equivalent) == 1:
        second = ranked[1]
        gap = f"{abs(second.difference_to_best):.1f} {unit} ({LEVEL:.0%} interval of the difference {second.low:.1f} to {second.high:.1f})"
        return (f"{best.label} is expected to do better than {second.label} by {gap}.",)
    labels = ", ".join(entry.label for entry in ranked if entry.option in equivalent)
    important = f"{decision.minimal_important_difference:g} {unit}"
    return (
        f"No clear choice: at {LEVEL_TO_NAME_ONE:.0%} confidence these can't be told apart by {important} or more: {labels}.",
        "Choose among them by tolerability, preference and cost.",
    )
