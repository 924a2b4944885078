"""What the models are worth, out of fold: errors, policy values, the published peers on the same folds, and the gate before publication.

Axis suffixes: N rows, K options, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from components.balance import comparability
from components.calibration import Scores, by_group, comparable, of_pair, overall, updates
from components.classification import below, classified
from components.cohort import Cohort, band
from components.decision import Decision, Reference, transform, untransform
from components.effects import CLIP, LEVEL, CrossFitted, Effects
from components.gate import judge
from components.groups import Mask, groups
from components.modalities import sequence_value, values
from components.overlap import SMALLEST_OVERLAP
from components.policy import Inputs, Recommendation, recommend
from components.surest import doubt, of_truth, surest
from components.tensors import FOLDS, Training
from components.value import concordant_benefit, gain_in_overlap, policy_values, ranking, self_normalised, supported
from features.feature import Floats

Metrics = dict[str, Any]
FEWEST_SHARED = 100  # patients whom champion and challenger both know: below that nothing is told between them


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything that evaluation looks at; nothing in it has seen the outcome of its own row."""

    decision: Decision
    cohort: Cohort
    training: Training
    crossfit: CrossFitted
    effects: Effects  # out of fold
    members: Mapping[str, Floats]  # out-of-fold targets of each member, N by T
    x_NF: Floats  # raw features, the reference equations' extra ones behind the decision's own
    names: tuple[str, ...]
    without_genomics_NT: Floats | None = None
    without_events_NT: Floats | None = None  # of the network, refitted without the newest facts
    truth_NK: Floats | None = None  # expected outcome under every option, from a simulator
    champion_NT: Floats | None = None  # out-of-fold targets of the model in use, NaN for patients whom it does not know
    champion: str = ""

    def column(self, name: str) -> Floats:
        """Raw values of a feature, N."""
        return np.asarray(self.x_NF[:, self.names.index(name)])

    @cached_property
    def groups(self) -> dict[str, Mask]:
        """Rows of each group for whom every figure must hold by itself."""
        return groups(self.names, self.x_NF, self.cohort.site_N)

    @cached_property
    def scores(self) -> Scores:
        """Predictions, doubly robust scores and propensities of the rows whose outcome was seen."""
        return Scores.of(self.crossfit, self.training)


def evaluate(evidence: Evidence) -> Metrics:
    """Flat metrics with units in their names."""
    decision, cohort = evidence.decision, evidence.cohort
    metrics: Metrics = {
        "decision": decision.name,
        "patients": len(cohort),
        "patients_with_outcome": int(cohort.observed_N.sum()),
        "folds": FOLDS,
        **{f"known_{name}": float((~np.isnan(evidence.column(name))).mean()) for name in decision.required},
    }
    metrics |= _dose_metrics(evidence) if decision.outcome.kind == "dose" else _change_metrics(evidence)
    answers = recommend(decision, evidence.effects, [Inputs()] * len(cohort))
    metrics |= _answer_metrics(answers)
    metrics |= _abstention_by_group(np.array([answer.recommended is None for answer in answers]), evidence.groups)
    if evidence.truth_NK is not None:
        metrics |= _truth_metrics(evidence, answers)
    if evidence.champion_NT is not None:
        metrics |= _challenge(evidence)
    found = judge(decision, metrics)
    return metrics | {"verdict": found.word, "advice": found.advice}


def _answer_metrics(answers: list[Recommendation]) -> Metrics:
    sizes = [len(answer.equivalent) for answer in answers if answer.ranked]
    return {
        "share_answered": float(np.mean([answer.recommended is not None for answer in answers])),
        "equivalent_options_mean": float(np.mean(sizes)) if sizes else 0.0,
    }


def _abstention_by_group(silent_N: Mask, within: Mapping[str, Mask]) -> Metrics:
    """Share without a single recommendation in each group; largest over smallest share."""
    shares = {name: float(silent_N[rows].mean()) for name, rows in within.items()}
    metrics: Metrics = {f"abstained_{name}": share for name, share in shares.items()}
    if shares and min(shares.values()) > 0:
        metrics["abstained_max_over_min"] = max(shares.values()) / min(shares.values())
    return metrics


def _challenge(evidence: Evidence) -> Metrics:
    """Gain over the model in use on the patients whom both know, each predicted out of fold; nothing with fewer than 100 of them."""
    decision, rival_NT = evidence.decision, evidence.champion_NT
    assert rival_NT is not None
    shared = evidence.training.observed_N & np.isfinite(rival_NT).all(1)
    metrics: Metrics = {"champion": evidence.champion, "champion_shared_patients": int(shared.sum())}
    if shared.sum() < FEWEST_SHARED or rival_NT.shape[1] != evidence.training.targets:
        return metrics
    if decision.outcome.kind == "dose":
        dose_N = evidence.cohort.target_N[shared]
        errors = [np.abs(_dose(decision, target_NT[shared]) - dose_N) for target_NT in (rival_NT, evidence.crossfit.target_NT)]
        gain_N = errors[0] - errors[1]
        mean, half = float(gain_N.mean()), 1.96 * float(gain_N.std()) / float(np.sqrt(len(gain_N)))
        return metrics | triple("gain_over_champion", (mean, mean - half, mean + half))
    sign = 1 if decision.outcome.better == "lower" else -1
    both = evidence.scores.only(shared[evidence.training.observed_N])
    choice_N, rival_N = (
        supported(sign * target_NK[shared], both.propensity_NK, SMALLEST_OVERLAP) for target_NK in (evidence.crossfit.target_NT, rival_NT)
    )
    return metrics | triple("gain_over_champion", gain_in_overlap(both, choice_N, rival_N, sign))


# ----------------------------------------------------------------------------------------------------------------------- dose finding


def _dose_metrics(evidence: Evidence) -> Metrics:
    decision, dose_N = evidence.decision, evidence.cohort.target_N
    metrics = dose_errors("", _dose(decision, evidence.crossfit.target_NT), dose_N)
    if evidence.without_genomics_NT is not None:
        metrics |= dose_errors("_without_genomics", _dose(decision, evidence.without_genomics_NT), dose_N)
        metrics["genomics_gain_mg_week"] = metrics["mae_mg_week_without_genomics"] - metrics["mae_mg_week"]
    for name, reference in decision.references.items():
        predicted_N = _reference(decision, reference, evidence)
        metrics |= dose_errors(f"_{name}", predicted_N, dose_N)
    for name, target_NT in evidence.members.items():
        metrics[f"mae_mg_week_{name}_alone"] = dose_errors("", _dose(decision, target_NT), dose_N)["mae_mg_week"]
    errors_N = np.abs(_dose(decision, evidence.crossfit.target_NT) - dose_N)
    metrics |= _dose_gains(evidence, errors_N) | _dose_by_group(evidence)
    metrics["mae_mg_week_by_fold"] = [float(errors_N[evidence.training.fold_N == f].mean()) for f in range(FOLDS)]
    spread = float(np.var(evidence.training.target_N))
    metrics["variance_explained"] = 1 - float(np.mean((evidence.training.target_N - evidence.crossfit.target_NT[:, 0]) ** 2)) / spread
    for name, option in decision.options.items():
        metrics |= _needs(evidence, name, option.band_mg_week or (0.0, np.inf))
    metrics["band_right"] = float(np.mean(band(decision, _dose(decision, evidence.crossfit.target_NT)) == evidence.cohort.option_N))
    return metrics


def _needs(evidence: Evidence, name: str, band_mg_week: tuple[float, float]) -> Metrics:
    """Who needs a dose of a band: a yes-or-no outcome."""
    target_N, predicted_N, fold_N = evidence.training.target_N, evidence.crossfit.target_NT[:, 0], evidence.training.fold_N
    low, high = (
        below(float(transform(evidence.decision, np.array(limit))), predicted_N, target_N - predicted_N, fold_N) for limit in band_mg_week
    )
    return classified(f"needs_{name}", evidence.cohort.option_N == evidence.decision.option_names.index(name), high - low)


def _dose_gains(evidence: Evidence, errors_N: Floats) -> Metrics:
    """How much smaller the error is than that of one dose for all, of the model without genomics, of each published equation."""
    decision, dose_N, fold_N = evidence.decision, evidence.cohort.target_N, evidence.training.fold_N
    one_N = np.array([np.nanmedian(dose_N[fold_N != fold]) for fold in range(FOLDS)])[fold_N]
    others = {"one_dose": one_N} | {name: _reference(decision, reference, evidence) for name, reference in decision.references.items()}
    if evidence.without_genomics_NT is not None:
        others["without_genomics"] = _dose(decision, evidence.without_genomics_NT)
    metrics: Metrics = {}
    for name, predicted_N in others.items():
        gain_N = np.abs(predicted_N - dose_N) - errors_N
        half = 1.96 * float(gain_N.std()) / np.sqrt(len(gain_N))
        metrics |= triple(f"gain_over_{name}_mg_week", (float(gain_N.mean()), float(gain_N.mean()) - half, float(gain_N.mean()) + half))
    return metrics


def _dose_by_group(evidence: Evidence) -> Metrics:
    """Errors in each group, and those of the published equations in it."""
    decision, dose_N = evidence.decision, evidence.cohort.target_N
    predicted = {"": _dose(decision, evidence.crossfit.target_NT)}
    predicted |= {f"_{name}": _reference(decision, reference, evidence) for name, reference in decision.references.items()}
    metrics: Metrics = {}
    for group, rows in evidence.groups.items():
        for suffix, predicted_N in predicted.items():
            metrics |= dose_errors(f"_group_{group}{suffix}", predicted_N[rows], dose_N[rows])
    return metrics


def triple(name: str, found: tuple[float, float, float]) -> Metrics:
    """A figure with its interval as three flat ones; nothing where it can't be told."""
    told = dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))
    return told if all(np.isfinite(value) for value in found) else {}


def dose_errors(suffix: str, predicted_N: Floats, dose_N: Floats) -> Metrics:
    """Mean absolute error in mg a week, and the share of predictions within 20 % of the right dose."""
    error_N = np.abs(predicted_N - dose_N)
    return {f"mae_mg_week{suffix}": float(error_N.mean()), f"within_20_percent{suffix}": float((error_N <= 0.2 * dose_N).mean())}


def _dose(decision: Decision, target_NT: Floats) -> Floats:
    return np.asarray(untransform(decision, target_NT[:, 0]))


def _reference(decision: Decision, reference: Reference, evidence: Evidence) -> Floats:
    """A published equation on the cohort. What it needs as a number and is missing is the mean of the other folds' patients."""
    total_N = np.full(len(evidence.cohort), reference.intercept)
    for term in reference.terms:
        holds_N = np.ones(len(evidence.cohort), bool)
        for name, wanted in term.when.items():
            column = evidence.x_NF[:, evidence.names.index(name)]
            holds_N &= np.isnan(column) if wanted is None else column == wanted
        value_N = np.ones(len(evidence.cohort)) if term.feature is None else _imputed(evidence, term.feature)
        total_N += np.where(holds_N, term.coefficient * value_N, 0.0)
    return np.asarray(untransform(decision, total_N))


def _imputed(evidence: Evidence, feature: str) -> Floats:
    column = evidence.x_NF[:, evidence.names.index(feature)].copy()
    for fold in range(FOLDS):
        held = evidence.training.fold_N == fold
        column[held & np.isnan(column)] = np.nanmean(column[~held])
    return column


# ------------------------------------------------------------------------------------------------------------------ choice of treatment


def _change_metrics(evidence: Evidence) -> Metrics:
    """Error of the outcome that was seen, and policy values by the doubly robust score, each a mean outcome (in its unit)."""
    training, target_NT, unit = evidence.training, evidence.crossfit.target_NT, _unit(evidence.decision)
    seen_N = training.observed_N
    given_N = np.take_along_axis(target_NT, training.option_N[:, None], 1)[:, 0][seen_N]
    outcome_N = training.target_N[seen_N]
    metrics: Metrics = {
        f"outcome_rmse_{unit}": float(np.sqrt(np.mean((outcome_N - given_N) ** 2))),
        "variance_explained": 1 - float(np.mean((outcome_N - given_N) ** 2) / np.var(outcome_N)),
        "outcome_calibration_slope": float(np.polyfit(given_N, outcome_N, 1)[0]),
    }
    overlap_NK = evidence.crossfit.propensity_NK
    sign = 1 if evidence.decision.outcome.better == "lower" else -1
    metrics |= policy_values(evidence.crossfit.aipw_NK, supported(sign * target_NT, overlap_NK, SMALLEST_OVERLAP), training, sign, unit)
    sizes = np.bincount(training.option_N, minlength=training.options)
    metrics |= {f"patients_given_{name}": int(size) for name, size in zip(evidence.decision.option_names, sizes, strict=True)}
    smallest = overlap_NK.min(0)
    metrics |= {f"smallest_overlap_{name}": float(e) for name, e in zip(evidence.decision.option_names, smallest, strict=True)}
    if np.isfinite(target_NT).all():
        names = evidence.decision.option_names
        metrics |= comparability(names, training, overlap_NK, evidence.cohort.controls, CLIP)
        metrics |= _worth(evidence, sign, unit) | _effect_calibration(evidence) | _response(evidence, sign)
        metrics |= values(training, evidence.scores, unit, sign, SMALLEST_OVERLAP)
        if evidence.without_events_NT is not None:
            metrics |= sequence_value(training, evidence.scores, unit, evidence.members["fusion"], evidence.without_events_NT)
    return metrics


def _worth(evidence: Evidence, sign: int, unit: str) -> Metrics:
    """Gain of the policy that would be served over the best fixed option as it would be served: neither offers what has no support."""
    scores = evidence.scores
    fixed_K = np.nanmean(evidence.crossfit.aipw_NK, axis=0)
    choice_N = supported(sign * scores.predicted_NK, scores.propensity_NK, SMALLEST_OVERLAP)
    fixed_N = supported(np.broadcast_to(sign * fixed_K, scores.predicted_NK.shape), scores.propensity_NK, SMALLEST_OVERLAP)
    x_NF = evidence.training.x_NF[evidence.training.observed_N]
    metrics = triple(f"gain_over_best_fixed_in_overlap_{unit}", gain_in_overlap(scores, choice_N, fixed_N, sign))
    metrics |= triple(f"gain_over_best_fixed_self_normalised_{unit}", self_normalised(scores, choice_N, fixed_N, sign, CLIP))
    metrics |= triple(f"gain_over_actual_self_normalised_{unit}", self_normalised(scores, choice_N, None, sign, CLIP))
    for name, found in ranking(scores, choice_N, fixed_N, sign, CLIP).items():
        metrics |= triple(f"{name}_{unit}", found)
    seen = evidence.training.observed_N
    doubt_N = doubt(evidence.effects.outcome_NK[seen], evidence.effects.sd_NKK[seen], choice_N, sign)
    metrics |= surest(doubt_N, scores, (choice_N, fixed_N), sign, unit)
    matched = concordant_benefit(x_NF, scores, choice_N, sign)
    if matched is not None:
        metrics |= triple(f"concordant_benefit_{unit}", matched[:3]) | {"concordant_matched": matched[3]}
    return metrics


def _response(evidence: Evidence, sign: int) -> Metrics:
    """Who improves by the minimal important difference or more under what was given: a yes-or-no outcome."""
    scores, fold_N = evidence.scores, evidence.training.fold_N[evidence.training.observed_N]
    predicted_N = sign * scores.predicted_NK[np.arange(len(scores)), scores.option_N]
    outcome_N, limit = sign * scores.outcome_N, -evidence.decision.minimal_important_difference
    return classified("improves", outcome_N <= limit, below(limit, predicted_N, outcome_N - predicted_N, fold_N))


def _effect_calibration(evidence: Evidence) -> Metrics:
    """Slope over all pairs, of each pair, and of each group (jointly over the groups); the updates that a closed test asks for."""
    scores, names, level = evidence.scores, evidence.decision.option_names, evidence.decision.gate.calibration_level
    everybody = np.ones(len(scores), bool)
    found = overall(scores, everybody, level)
    if found is None:
        return {}
    metrics = triple("effect_calibration_slope", found)
    for a, b in comparable(scores, everybody):
        pair = of_pair(scores, a, b, everybody)
        metrics |= triple(f"effect_calibration_slope_pair_{names[a]}_{names[b]}", (pair.slope, pair.low, pair.high))
        metrics[f"effect_update_pair_{names[a]}_{names[b]}"] = pair.update
    seen = evidence.training.observed_N
    within = {name: rows[seen] for name, rows in evidence.groups.items()}
    joint = 1 - (1 - level) / max(len(within), 1)
    for name, slope in by_group(scores, within, joint).items():
        metrics |= triple(f"effect_calibration_slope_group_{name}", slope)
    for name, needed in updates(scores, within).items():
        told = [f"{names[a]} against {names[b]}: {update}" for (a, b), update in needed.items()]
        metrics[f"effect_updates_group_{name}"] = "; ".join(told) or "none"
    return metrics


def _unit(decision: Decision) -> str:
    return "".join(c if c.isalnum() else "_" for c in decision.outcome.unit).strip("_")


def _truth_metrics(evidence: Evidence, answers: list[Recommendation]) -> Metrics:
    """Against the simulator's truth: mean loss against the best option for each patient, in the outcome's unit."""
    truth_NK, names = evidence.truth_NK, list(evidence.decision.option_names)
    assert truth_NK is not None
    sign = 1 if evidence.decision.outcome.better == "lower" else -1
    cost_NK = sign * truth_NK
    rows, best_N = np.arange(len(cost_NK)), cost_NK.argmin(1)
    loss_NK = cost_NK - cost_NK.min(1, keepdims=True)
    choice_N = (sign * evidence.effects.outcome_NK).argmin(1)
    answered = [(n, names.index(a.recommended)) for n, a in enumerate(answers) if a.recommended]
    low_NKK, high_NKK = evidence.effects.interval(LEVEL)
    true_NKK = truth_NK[:, :, None] - truth_NK[:, None, :]
    upper = np.triu_indices(len(names), 1)
    covered = ((low_NKK <= true_NKK) & (true_NKK <= high_NKK))[:, upper[0], upper[1]]
    error = (evidence.effects.difference_NKK - true_NKK)[:, upper[0], upper[1]]
    fixed_K = loss_NK.mean(0)
    metrics: Metrics = {
        "policy_regret": float(loss_NK[rows, choice_N].mean()),
        "best_fixed_regret": float(fixed_K.min()),
        "prescriber_regret": float(loss_NK[rows, evidence.cohort.option_N].mean()),
        "random_regret": float(loss_NK.mean()),
        "policy_true_outcome": float(truth_NK[rows, choice_N].mean()),
        "oracle_true_outcome": float(truth_NK[rows, best_N].mean()),
        "prescriber_true_outcome": float(truth_NK[rows, evidence.cohort.option_N].mean()),
        "top_choice_accuracy": float((choice_N == best_N).mean()),
        "best_is_in_equivalent_set": float(np.mean([names[b] in a.equivalent for a, b in zip(answers, best_N, strict=True)])),
        "interval_coverage": float(covered.mean()),
        "pairwise_error_rms": float(np.sqrt(np.mean(error**2))),
    }
    offered_N = supported(sign * evidence.effects.outcome_NK, evidence.effects.overlap_NK, SMALLEST_OVERLAP)
    doubt_N = doubt(evidence.effects.outcome_NK, evidence.effects.sd_NKK, offered_N, sign)
    metrics |= of_truth(doubt_N, offered_N, truth_NK, sign)
    metrics |= {f"fixed_regret_{name}": float(value) for name, value in zip(names, fixed_K, strict=True)}
    metrics["top_choice_accuracy_when_answering"] = float(np.mean([k == best_N[n] for n, k in answered])) if answered else None
    return metrics
