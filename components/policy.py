"""From effects to a recommendation: a ranked set with intervals and reasons, or an honest abstention with a code from a closed list.

Axis suffixes: N patients, K options.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from components.decision import Decision
from components.effects import LEVEL, Effects
from components.excluded import Excluded, RuledOut, exclusion, ruled_out
from components.overlap import SMALLEST_OVERLAP
from components.preferences import Preferred, Weights, prefer, sentence
from components.safety import OptionSafety, Safety
from features.feature import Floats

Mask = npt.NDArray[np.bool_]
FOR_ALL = "No gain of choosing by patient was shown: the option that is best on average, and may be given, stands for everybody."


class Abstain(StrEnum):
    """Why there is no single best option. The list is closed."""

    MISSING_REQUIRED = "MISSING_REQUIRED"
    STALE_INPUT = "STALE_INPUT"
    OUT_OF_POPULATION = "OUT_OF_POPULATION"
    OOD = "OOD"
    LOW_OVERLAP = "LOW_OVERLAP"
    EQUIPOISE = "EQUIPOISE"
    NO_PERMITTED_OPTION = "NO_PERMITTED_OPTION"
    UNIT_UNKNOWN = "UNIT_UNKNOWN"
    IMPLAUSIBLE_INPUT = "IMPLAUSIBLE_INPUT"
    RULESET_EXPIRED = "RULESET_EXPIRED"


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one fact about the patient does to a difference between options: the shift against not knowing it, in the outcome's unit."""

    text: str
    features: tuple[str, ...]
    shift: float


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What is expected of one option: its outcome, and the difference to the best with its interval (0 for the best itself).

    `parts` are the facts that move this difference most; of the best, its difference to the second.
    """

    option: str
    label: str
    outcome: float
    difference_to_best: float
    low: float
    high: float
    overlap: float
    reason: str
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Note:
    """What a rule says about an option that is offered, or about the patient where `option` is None.

    `reviewed`: its threshold was compared with its source.
    """

    option: str | None
    kind: str
    text: str
    rule_id: str | None
    source: str | None
    reviewed: bool


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer for one patient.

    `ranked`: options from best to worst expected outcome, in the outcome's unit; without order where `abstained` is EQUIPOISE.
    `equivalent`: options that can't be told from the best by the minimal important difference. `recommended` is set only where one is left,
    and no option that is left out for want of comparable patients may well be better.
    `preferred`: those in the order of the patient's preferences, where any were given. `changes`: what would change the answer.
    `ruled_out`: drugs that may not be given although their option is not excluded for the same reason.
    """

    recommended: str | None
    ranked: tuple[Expected, ...]
    equivalent: tuple[str, ...]
    excluded: tuple[Excluded, ...]
    abstained: Abstain | None
    reasons: tuple[str, ...]
    dose_mg_week: float | None = None
    scored: bool = True  # False where the inputs allow no score at all
    notes: tuple[Note, ...] = ()
    preferred: tuple[Preferred, ...] = ()
    changes: tuple[str, ...] = ()
    ruled_out: tuple[RuledOut, ...] = ()
    ruleset: str | None = None


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is known about the inputs of one patient, apart from their values: required ones that are missing, stale or implausible."""

    missing: tuple[str, ...] = ()
    stale: tuple[str, ...] = ()
    implausible: tuple[str, ...] = ()
    outside: str | None = None  # why the decision is not about this patient
    unlike: bool = False  # unlike the patients that the models learned from


def recommend(
    decision: Decision,
    effects: Effects,
    known: Sequence[Inputs],
    safety: Sequence[Safety] | None = None,
    weights: Sequence[Weights] | None = None,
) -> list[Recommendation]:
    """A recommendation for each of N patients.

    What is missing, stale or outside comes before every score, and the rules of `safety` come before every ranking: a blocked option never
    reappears, and no score unblocks one. What a rule blocks is told also where no score is allowed. `weights` of the patients' preferences
    come last, among options that can't be told apart. Without `safety` the answers are the model's alone, for evaluation only.
    """
    low_NKK, high_NKK = effects.interval()
    answers = []
    for n, state in enumerate(known):
        judged = safety[n] if safety is not None else None
        code, reason = _refusal(decision, state, judged)
        if code is not None:
            answer = _refused(decision, code, reason, judged)
        else:
            answer = _rank(decision, effects, n, (low_NKK[n], high_NKK[n]), judged)
        if weights is not None and weights[n] and answer.ranked:
            answer = _by_preference(decision, answer, weights[n])
        answers.append(answer if judged is None else replace(answer, notes=_notes(answer, judged), ruleset=judged.ruleset))
    return answers


def _by_preference(decision: Decision, answer: Recommendation, weights: Weights) -> Recommendation:
    """The same answer, and the order of what can't be told apart by what matters to the patient: nothing else in it moves."""
    order = prefer(decision, answer.equivalent, weights)
    return replace(answer, preferred=order, reasons=(*answer.reasons, sentence(decision, answer.equivalent, order)))


def inputs(
    decision: Decision,
    x_NF: Floats,
    stale: Sequence[tuple[str, ...]],
    outside: Sequence[str],
    unlike_N: Mask,
    implausible: Sequence[tuple[str, ...]] | None = None,
) -> list[Inputs]:
    """State of the inputs of N rows: `x_NF` with stale and implausible values already NaN, and the names of those."""
    names = [feature.name for feature in decision.columns]
    column = {name: names.index(name) for name in decision.required}
    answers = []
    for row, old, wrong, reason, unlike in zip(x_NF, stale, implausible or [()] * len(x_NF), outside, unlike_N, strict=True):
        gone = [name for name in decision.required if np.isnan(row[column[name]])]
        aged, odd = (tuple(n for n in gone if n in names) for names in (old, wrong))
        missing = tuple(n for n in gone if n not in aged + odd)
        answers.append(Inputs(missing=missing, stale=aged, implausible=odd, outside=reason or None, unlike=bool(unlike)))
    return answers


def refused(decision: Decision, known: Sequence[Inputs], safety: Sequence[Safety]) -> Mask:
    """Rows whose inputs, or whose rules, allow no score at all."""
    return np.array([_refusal(decision, *each)[0] is not None for each in zip(known, safety, strict=True)], bool)


def _refusal(decision: Decision, known: Inputs, safety: Safety | None) -> tuple[Abstain | None, str]:
    if safety is not None and safety.expired:
        return Abstain.RULESET_EXPIRED, f"Safety rules have expired: {', '.join(safety.expired[:3])}. Install a current rule set."
    if known.outside:
        return Abstain.OUT_OF_POPULATION, f"{decision.title} does not apply: {known.outside}."
    if known.missing:
        return Abstain.MISSING_REQUIRED, f"Not known: {', '.join(known.missing)}. Record it and ask again."
    if known.implausible:
        return Abstain.IMPLAUSIBLE_INPUT, f"Not plausible: {', '.join(known.implausible)}. Check it at its source and ask again."
    if known.stale:
        return Abstain.STALE_INPUT, f"Too old to rely on: {', '.join(known.stale)}. Measure it again and ask again."
    if known.unlike:
        return Abstain.OOD, "This patient is unlike those whom the records tell about: no estimate can be relied on."
    return None, ""


def _refused(decision: Decision, code: Abstain, reason: str, safety: Safety | None) -> Recommendation:
    """No score. What rules block stays blocked, unless the question is not about this patient or the rules themselves have expired."""
    judged = None if code in (Abstain.OUT_OF_POPULATION, Abstain.RULESET_EXPIRED) else safety
    return Recommendation(
        recommended=None,
        ranked=(),
        equivalent=(),
        excluded=tuple(exclusion(decision, entry) for entry in judged.options if entry.state == "blocked") if judged else (),
        abstained=code,
        reasons=(reason,),
        scored=False,
        ruled_out=ruled_out(judged, blocked_only=True) if judged else (),
    )


def _rank(decision: Decision, effects: Effects, n: int, pairs: tuple[Floats, Floats], safety: Safety | None) -> Recommendation:
    """The answer for row n; `pairs` are the bounds of every difference, K by K."""
    names = decision.option_names
    sign = 1.0 if decision.outcome.better == "lower" else -1.0
    unsafe = {} if safety is None else {entry.option: entry for entry in safety.options if entry.state != "permitted"}
    permitted = [k for k, name in enumerate(names) if name not in unsafe]
    supported = [k for k in permitted if effects.overlap_NK[n, k] >= SMALLEST_OVERLAP]
    excluded = [exclusion(decision, entry) for entry in unsafe.values()]
    excluded += [_unsupported(names[k], decision.options[names[k]].label) for k in permitted if k not in supported]
    preferred = {option for option, _ in safety.preferred} if safety is not None else set()
    ranked: tuple[Expected, ...] = ()
    equivalent: tuple[str, ...] = ()
    if not permitted:
        code, reasons = _nothing_permitted(list(unsafe.values()))
    elif len(supported) < min(2, len(permitted)):
        code, reasons = Abstain.LOW_OVERLAP, ("Too few comparable patients were given these options to compare them.",)
    else:
        order = sorted(supported, key=lambda k: (names[k] not in preferred, sign * effects.outcome_NK[n, k], k))
        first = [k for k in order if names[k] in preferred] or order  # a guideline's choice stands before any score
        ranked = tuple(_expected(decision, effects, n, k, order, pairs) for k in order)
        ahead = any(names[k] in preferred for k in order)  # then only another of the guideline's choices could be better
        left = [k for k in permitted if k not in supported and (not ahead or names[k] in preferred)]
        unjudged = [] if effects.for_all else left
        together = _not_apart(decision, effects, n, [*first, *unjudged], sign)
        equivalent = tuple(names[k] for k in together if k in first)
        code = None if len(equivalent) == 1 else Abstain.EQUIPOISE
        reasons = _guideline(safety, names[order[0]]) + _reasons(decision, ranked, equivalent)
        if code is None and len(together) > 1:  # the best of those that can be judged need not be the best of all
            code, reasons = Abstain.LOW_OVERLAP, (_unjudged(decision, order[0], [k for k in together if k in unjudged]),)
        tops = _tops(effects, n, first, sign)
        if code is None and len(set(tops.values())) > 1:
            equivalent = tuple(names[k] for k in order if k == order[0] or k in tops.values())
            code, reasons = Abstain.EQUIPOISE, (_disagreement(decision, tops),)
        if effects.for_all:
            reasons = (FOR_ALL, *reasons)
        waiting = [entry for entry in unsafe.values() if entry.unresolved]
        if len(ranked) == 1 and waiting and not preferred:  # best of one: the others could not be cleared, which is not worse
            code, reasons = _nothing_permitted(waiting, f"Only {ranked[0].label} can be cleared so far.")
        elif code is None and effects.dose_N is not None and not _holds(decision, equivalent[0], float(effects.dose_N[n])):
            code, reasons = Abstain.EQUIPOISE, (f"The expected dose lies outside the nearest band, {ranked[0].label}: go by the dose.",)
    return Recommendation(
        recommended=equivalent[0] if code is None else None,
        ranked=ranked,
        equivalent=equivalent,
        excluded=tuple(excluded),
        abstained=code,
        reasons=reasons,
        dose_mg_week=None if effects.dose_N is None or not permitted else float(effects.dose_N[n]),
        ruled_out=ruled_out(safety) if safety is not None else (),
    )


def _not_apart(decision: Decision, effects: Effects, n: int, first: Sequence[int], sign: float) -> list[int]:
    """Options of `first` that can't be told from its best.

    Those nearer than what matters; and of the others the most doubtful, until the chance that one left out is truly better than the best
    is at most `largest_doubt`, all of them together. Where one option stands for all, whatever is behind it on average is behind it.
    """
    best = first[0]
    behind = {k: sign * float(effects.outcome_NK[n, k] - effects.outcome_NK[n, best]) for k in first}
    if effects.for_all:
        return [k for k in first if behind[k] <= 0]
    far = [k for k in first if behind[k] >= decision.minimal_important_difference]
    doubt = {k: NormalDist(0, max(float(effects.sd_NKK[n, k, best]), 1e-12)).cdf(-behind[k]) for k in far}
    left, out = 0.0, set()
    for k in sorted(far, key=doubt.__getitem__):
        left += doubt[k]
        if left > decision.largest_doubt:
            break
        out.add(k)
    return [k for k in first if k not in out]


def _tops(effects: Effects, n: int, first: Sequence[int], sign: float) -> dict[str, int]:
    """The option of `first` that each model family alone puts before the others."""
    return {name: min(first, key=lambda k: (sign * outcome_NK[n, k], k)) for name, outcome_NK in (effects.families or {}).items()}


def _unjudged(decision: Decision, best: int, rivals: Sequence[int]) -> str:
    labels = [entry.label for entry in decision.options.values()]
    return (
        f"No single choice: {', '.join(labels[k] for k in rivals)} may be better, but too few comparable patients were given it."
        f" Of the options that can be compared {labels[best]} is expected to be best."
    )


def _disagreement(decision: Decision, tops: dict[str, int]) -> str:
    labels = [entry.label for entry in decision.options.values()]
    said = "; ".join(f"{name}: {labels[k]}" for name, k in tops.items())
    return f"No clear choice: the model families put different options first ({said})."


def _holds(decision: Decision, option: str, dose: float) -> bool:
    """Whether the band of an option holds the expected dose."""
    low, high = decision.options[option].band_mg_week or (0.0, np.inf)
    return low <= dose <= high


def _nothing_permitted(
    unsafe: list[OptionSafety], told_first: str = "No option can be cleared yet."
) -> tuple[Abstain | None, tuple[str, ...]]:
    """All options are blocked, or some could be cleared if an input were known."""
    gaps = [finding for entry in unsafe if entry.unresolved for finding in entry.said("abstain")]
    if not gaps:
        return Abstain.NO_PERMITTED_OPTION, ("Every option is ruled out for this patient. See why each is.",)
    told = dict.fromkeys(gap.text for finding in gaps for gap in finding.missing)
    return Abstain(gaps[0].code or Abstain.MISSING_REQUIRED), (f"{told_first} " + " ".join(told),)


def _guideline(safety: Safety | None, best: str) -> tuple[str, ...]:
    """Why an option stands first although no score put it there."""
    found = [finding for option, finding in safety.preferred if option == best] if safety is not None else []
    return tuple(dict.fromkeys(f"{finding.rule.text} ({finding.rule.source.title})" for finding in found))


def _notes(answer: Recommendation, safety: Safety) -> tuple[Note, ...]:
    """What the rules say about the options that are offered, about drugs taken now, and what could not be checked."""
    offered = {entry.option for entry in answer.ranked}
    found = [(entry.option, finding) for entry in safety.options if entry.option in offered for finding in entry.findings]
    found = [(option, finding) for option, finding in found if finding.effect in ("warn", "dose", "monitor", "block")]
    told: list[Note] = []
    for option, finding in [*found, *((None, finding) for finding in safety.current if finding.effect != "unchecked")]:
        rule = finding.rule
        drugs = f" ({', '.join(finding.drugs)})" if option else ""
        text = rule.text + drugs
        told.append(
            Note(option=option, kind=finding.effect, text=text, rule_id=rule.rule_id, source=rule.source.title, reviewed=rule.reviewed)
        )
    unchecked = dict.fromkeys((gap.code, gap.text) for gap in safety.notices)
    told += [Note(option=None, kind=code, text=text, rule_id=None, source=None, reviewed=True) for code, text in unchecked]
    return tuple(told)


def _unsupported(name: str, label: str) -> Excluded:
    reason = f"fewer than {SMALLEST_OVERLAP:.0%} of comparable patients were given it, so the records can't tell what it would do"
    return Excluded(option=name, label=label, code=Abstain.LOW_OVERLAP, reason=reason)


def _expected(decision: Decision, effects: Effects, n: int, k: int, order: Sequence[int], pairs: tuple[Floats, Floats]) -> Expected:
    """Option k of those in `order`; the reason compares it with the best, and the best with the second."""
    name, outcome_K, best = decision.option_names[k], effects.outcome_NK[n], order[0]
    reason = f"Expected outcome {outcome_K[k]:+.1f} {decision.outcome.unit}"
    if len(order) > 1:
        other = best if k != best else order[1]
        interval = f"{LEVEL:.0%} interval {pairs[0][k, other]:+.1f} to {pairs[1][k, other]:+.1f}"
        reason += f", {outcome_K[k] - outcome_K[other]:+.1f} against {decision.options[decision.option_names[other]].label} ({interval})"
    return Expected(
        option=name,
        label=decision.options[name].label,
        outcome=float(outcome_K[k]),
        difference_to_best=float(outcome_K[k] - outcome_K[best]),
        low=float(pairs[0][k, best]),
        high=float(pairs[1][k, best]),
        overlap=float(effects.overlap_NK[n, k]),
        reason=reason + ".",
    )


def _reasons(decision: Decision, ranked: Sequence[Expected], equivalent: Sequence[str]) -> tuple[str, ...]:
    unit, best = decision.outcome.unit, ranked[0]
    if len(ranked) == 1:
        return (f"{best.label} is the only option that is permitted.",)
    if len(equivalent) == 1:
        second = ranked[1]
        interval = f"({LEVEL:.0%} interval {second.low:+.1f} to {second.high:+.1f})"
        return (f"Expected difference of {second.label} to {best.label}: {second.difference_to_best:+.1f} {unit} {interval}.",)
    labels = ", ".join(entry.label for entry in ranked if entry.option in equivalent)
    important = f"{decision.minimal_important_difference:g} {unit}"
    return (
        f"No clear choice: {labels}. The chance that an option left out is better is at most {decision.largest_doubt:.0%};"
        f" less than {important} does not count.",
        "Choose among them by tolerability, preference and cost.",
    )
