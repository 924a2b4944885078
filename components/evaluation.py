"""What the models are worth, out of fold: errors, policy values, the published peers on the same folds, and the gate before publication.

Axis suffixes: N rows, K options, T targets.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from components.cohort import Cohort, band
from components.decision import Decision, Reference, untransform
from components.effects import LEVEL, CrossFitted, Effects
from components.policy import Inputs, Recommendation, recommend
from components.tensors import FOLDS, Training
from features.feature import Floats, Ints

Metrics = dict[str, Any]
SMALLEST_GROUP = 50


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
    truth_NK: Floats | None = None  # expected outcome under every option, from a simulator


def evaluate(evidence: Evidence) -> Metrics:
    """Flat metrics with units in their names."""
    decision, cohort = evidence.decision, evidence.cohort
    metrics: Metrics = {
        "decision": decision.name,
        "patients": len(cohort),
        "patients_with_outcome": int(cohort.observed_N.sum()),
        "folds": FOLDS,
    }
    metrics |= _dose_metrics(evidence) if decision.outcome.kind == "dose" else _change_metrics(evidence)
    answers = recommend(decision, evidence.effects, [Inputs()] * len(cohort))
    metrics |= _answer_metrics(answers) | _abstention_by_group(evidence, answers)
    if evidence.truth_NK is not None:
        metrics |= _truth_metrics(evidence, answers)
    metrics["verdict"] = verdict(metrics)
    return metrics


def verdict(metrics: Metrics) -> str:
    """ "pass", or why the model must not be published. One word for a gate, so that no value of it can confuse a comparison."""
    values = [v for value in metrics.values() for v in (value if isinstance(value, list) else [value])]
    finite = all(np.isfinite(v) for v in values if isinstance(v, float))
    explained = metrics.get("variance_explained", 0.0)
    return "pass" if finite and explained > 0 else "blocked"


def _answer_metrics(answers: list[Recommendation]) -> Metrics:
    sizes = [len(answer.equivalent) for answer in answers if answer.ranked]
    return {
        "share_answered": float(np.mean([answer.recommended is not None for answer in answers])),
        "equivalent_options_mean": float(np.mean(sizes)) if sizes else 0.0,
    }


def _abstention_by_group(evidence: Evidence, answers: list[Recommendation]) -> Metrics:
    """Share without a single recommendation by sex, age band and race or ethnicity, groups of 50 or more; largest over smallest share."""
    column = {name: evidence.x_NF[:, n] for n, name in enumerate(evidence.names)}
    silent_N = np.array([answer.recommended is None for answer in answers])
    groups = {"female": column["female"] == 1, "male": column["female"] == 0} if "female" in column else {}
    age_N = column.get("age_years")
    if age_N is not None:
        groups |= {"under_50": age_N < 50, "50_to_69": (age_N >= 50) & (age_N < 70), "70_and_over": age_N >= 70}
    groups |= {name.removeprefix("race_"): values == 1 for name, values in column.items() if name.startswith("race_")}
    shares = {name: float(silent_N[rows].mean()) for name, rows in groups.items() if rows.sum() >= SMALLEST_GROUP}
    metrics: Metrics = {f"abstained_{name}": share for name, share in shares.items()}
    if shares and min(shares.values()) > 0:
        metrics["abstained_max_over_min"] = max(shares.values()) / min(shares.values())
    return metrics


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
    metrics["mae_mg_week_by_fold"] = [float(errors_N[evidence.training.fold_N == f].mean()) for f in range(FOLDS)]
    spread = float(np.var(evidence.training.target_N))
    metrics["variance_explained"] = 1 - float(np.mean((evidence.training.target_N - evidence.crossfit.target_NT[:, 0]) ** 2)) / spread
    metrics["band_right"] = float(np.mean(band(decision, _dose(decision, evidence.crossfit.target_NT)) == evidence.cohort.option_N))
    return metrics


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
    sign = 1 if evidence.decision.outcome.better == "lower" else -1
    metrics |= policy_values(evidence.crossfit.aipw_NK, (sign * target_NT).argmin(1), training, sign, unit)
    sizes = np.bincount(training.option_N, minlength=training.options)
    metrics |= {f"patients_given_{name}": int(size) for name, size in zip(evidence.decision.option_names, sizes, strict=True)}
    smallest = evidence.crossfit.propensity_NK.min(0)
    metrics |= {f"smallest_overlap_{name}": float(e) for name, e in zip(evidence.decision.option_names, smallest, strict=True)}
    return metrics


def policy_values(aipw_NK: Floats, choice_N: Ints, training: Training, sign: int, unit: str) -> Metrics:
    """Mean outcome under the policy, under the best fixed option, and as it was; differences with their 95 % interval."""
    seen_N = training.observed_N
    score_NK, choice = aipw_NK[seen_N], choice_N[seen_N]
    policy_N, actual_N = np.take_along_axis(score_NK, choice[:, None], 1)[:, 0], training.target_N[seen_N]
    best = int((sign * score_NK.mean(0)).argmin())
    metrics: Metrics = {
        f"policy_value_{unit}": float(policy_N.mean()),
        f"best_fixed_value_{unit}": float(score_NK[:, best].mean()),
        "best_fixed_option": best,
        f"actual_value_{unit}": float(actual_N.mean()),
    }
    for name, other_N in (("best_fixed", score_NK[:, best]), ("actual", actual_N)):
        gain_N = sign * (other_N - policy_N)
        half = 1.96 * float(gain_N.std()) / np.sqrt(len(gain_N))
        metrics |= {f"gain_over_{name}_{unit}": float(gain_N.mean()), f"gain_over_{name}_{unit}_low": float(gain_N.mean() - half)}
        metrics[f"gain_over_{name}_{unit}_high"] = float(gain_N.mean() + half)
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
    metrics |= {f"fixed_regret_{name}": float(value) for name, value in zip(names, fixed_K, strict=True)}
    metrics["top_choice_accuracy_when_answering"] = float(np.mean([k == best_N[n] for n, k in answered])) if answered else None
    return metrics
