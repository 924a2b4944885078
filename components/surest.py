"""How good the answers would be if only the surest were given: gain, and where a simulator tells the truth accuracy and regret, by share.

Axis suffixes: N rows, K options.
"""

from typing import Any

import numpy as np
from scipy.special import ndtr

from components.calibration import Scores
from components.value import gain_in_overlap
from features.feature import Floats, Ints

Metrics = dict[str, Any]
SHARES = (20, 40, 60, 80, 100)  # percent of the patients, the surest first


def doubt(outcome_NK: Floats, sd_NKK: Floats, choice_N: Ints, sign: int) -> Floats:
    """Chances that an option is truly better than the chosen one, added over the options: the doubt that `largest_doubt` bounds, N."""
    rows = np.arange(len(choice_N))
    behind_NK = sign * (outcome_NK - outcome_NK[rows, choice_N][:, None])
    sd_NK = np.maximum(sd_NKK[rows, :, choice_N], 1e-12)
    return np.asarray(ndtr(-behind_NK / sd_NK).sum(1) - 0.5)  # the choice itself, behind by nothing, counts a half


def surest(doubt_N: Floats, scores: Scores, choices: tuple[Ints, Ints], sign: int, unit: str) -> Metrics:
    """Gain of the first choice over the second among the surest patients, in overlap, with 95 % intervals; rows as in `scores`."""
    choice_N, fixed_N = choices
    order, metrics = np.argsort(doubt_N, kind="stable"), Metrics()
    for share in SHARES:
        rows = np.sort(order[: max(len(order) * share // 100, 1)])
        value, low, high = gain_in_overlap(scores.only(rows), choice_N[rows], fixed_N[rows], sign)
        name = f"gain_of_surest_{share}_{unit}"
        metrics |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return metrics


def of_truth(doubt_N: Floats, choice_N: Ints, truth_NK: Floats, sign: int) -> Metrics:
    """Accuracy and mean regret among the surest patients, against a simulator's truth."""
    loss_NK, rows_N = sign * truth_NK - (sign * truth_NK).min(1, keepdims=True), np.arange(len(choice_N))
    order, loss_N = np.argsort(doubt_N, kind="stable"), loss_NK[rows_N, choice_N]
    metrics = Metrics()
    for share in SHARES:
        found_N = loss_N[order[: max(len(order) * share // 100, 1)]]
        metrics |= {f"accuracy_of_surest_{share}": float((found_N == 0).mean()), f"regret_of_surest_{share}": float(found_N.mean())}
    return metrics
