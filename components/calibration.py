"""Do predicted effects come true? Calibration of the effect for every pair of options, overall and by group, without a known truth.

The pseudo-outcome of a pair is the difference of doubly robust scores; pairs are weighted by overlap, so that a patient who would hardly
ever be given one of the two says little (Li, Morgan and Zaslavsky 2018). Axis suffixes: N rows, K options, P pairs, B draws.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy.stats import chi2

from components.effects import CrossFitted
from components.tensors import Training
from features.feature import Floats, Ints

Mask = npt.NDArray[np.bool_]
DRAWS = 400
SMALLEST_JUDGED = 500  # patients of a group with a slope of its own
FEWEST = 50  # of each option of a pair, in a group: below that nothing is said
Update = Literal["none", "shift", "shift and scale"]


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Observed rows only: predicted outcomes, doubly robust scores without clipping, propensities, what was given and what came of it."""

    predicted_NK: Floats
    score_NK: Floats
    propensity_NK: Floats
    option_N: Ints
    outcome_N: Floats

    @classmethod
    def of(cls, crossfit: CrossFitted, training: Training) -> "Scores":
        seen = training.observed_N
        predicted_NK, e_NK = crossfit.target_NT[seen], np.maximum(crossfit.propensity_NK[seen], 1e-4)
        option_N, outcome_N = training.option_N[seen], training.target_N[seen]
        given_NK = np.eye(training.options)[option_N]
        score_NK = predicted_NK + given_NK / e_NK * (outcome_N[:, None] - predicted_NK)
        return cls(predicted_NK=predicted_NK, score_NK=score_NK, propensity_NK=e_NK, option_N=option_N, outcome_N=outcome_N)

    def __len__(self) -> int:
        return len(self.option_N)

    def only(self, rows: Mask | Ints) -> "Scores":
        """Some of the rows, by mask or number."""
        return Scores(
            predicted_NK=self.predicted_NK[rows],
            score_NK=self.score_NK[rows],
            propensity_NK=self.propensity_NK[rows],
            option_N=self.option_N[rows],
            outcome_N=self.outcome_N[rows],
        )

    def pair(self, a: int, b: int) -> tuple[Floats, Floats, Floats]:
        """Predicted difference, pseudo-outcome and overlap weight of a pair of options, N each."""
        e_NK = self.propensity_NK
        weight_N = e_NK[:, a] * e_NK[:, b] / (e_NK[:, a] + e_NK[:, b])
        return self.predicted_NK[:, a] - self.predicted_NK[:, b], self.score_NK[:, a] - self.score_NK[:, b], weight_N


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Slope of the pseudo-outcome on the predicted difference with its interval, mean difference, and the update that it calls for."""

    slope: float
    low: float
    high: float
    predicted: float
    found: float
    found_low: float
    found_high: float
    update: Update
    points: tuple[tuple[float, float, float, float], ...]  # by quantile of the predicted difference: predicted, found, low, high


def draws(rows: int, seed: int = 0) -> Floats:
    """Poisson weights of the bootstrap, B by N."""
    return np.random.default_rng(seed).poisson(1.0, (DRAWS, rows)).astype(np.float64)


def interval(drawn_B: Floats, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of bootstrap draws."""
    if not len(drawn_B) or not np.isfinite(drawn_B).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(drawn_B, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def comparable(scores: Scores, rows: Mask) -> list[tuple[int, int]]:
    """Pairs of options that enough of these rows were given."""
    counts = np.bincount(scores.option_N[rows], minlength=scores.predicted_NK.shape[1])
    return [(a, b) for a, b in combinations(range(len(counts)), 2) if min(counts[a], counts[b]) >= FEWEST]


def overall(scores: Scores, rows: Mask, level: float = 0.95) -> tuple[float, float, float] | None:
    """One slope over all pairs, each about its own means, patients drawn whole: slope, low, high. None where nothing varies.

    Only differences between patients count: the average difference of a pair can't stand in for knowing who gains.
    """
    numerator_N, denominator_N = np.zeros(int(rows.sum())), np.zeros(int(rows.sum()))
    for a, b in comparable(scores, rows):
        predicted_N, found_N, weight_N = (column[rows] for column in scores.pair(a, b))
        centred_N = predicted_N - np.average(predicted_N, weights=weight_N)
        residual_N = found_N - np.average(found_N, weights=weight_N)
        numerator_N += weight_N * centred_N * residual_N
        denominator_N += weight_N * centred_N**2
    if denominator_N.sum() <= 1e-9 * len(denominator_N):
        return None
    drawn_BN = draws(len(numerator_N))
    slope_B = (drawn_BN @ numerator_N) / np.maximum(drawn_BN @ denominator_N, 1e-12)
    slope = float(numerator_N.sum() / denominator_N.sum())
    half = NormalDist().inv_cdf(0.5 + level / 2) * float(slope_B.std())  # not percentiles: joint levels lie beyond what the draws can tell
    return slope, slope - half, slope + half


def of_pair(scores: Scores, a: int, b: int, rows: Mask, bins: int = 5) -> Calibration:
    """Calibration of the difference of two options over some rows."""
    predicted_N, found_N, weight_N = (column[rows] for column in scores.pair(a, b))
    centre = float(np.average(predicted_N, weights=weight_N))
    design_N2 = np.stack([np.ones(len(predicted_N)), predicted_N - centre], axis=1)
    coef_2, cov_22 = _regression(design_N2, found_N, weight_N)
    slope_error = float(np.sqrt(cov_22[1, 1]))
    mean_error = float(np.sqrt(cov_22[0, 0]))
    return Calibration(
        slope=float(coef_2[1]),
        low=float(coef_2[1]) - 1.96 * slope_error,
        high=float(coef_2[1]) + 1.96 * slope_error,
        predicted=centre,
        found=float(coef_2[0]),
        found_low=float(coef_2[0]) - 1.96 * mean_error,
        found_high=float(coef_2[0]) + 1.96 * mean_error,
        update=closed_test(coef_2, cov_22, centre),
        points=tuple(_point(predicted_N[g], found_N[g], weight_N[g]) for g in np.array_split(np.argsort(predicted_N, kind="stable"), bins)),
    )


def closed_test(coef_2: Floats, cov_22: Floats, centre: float) -> Update:
    """The smallest update that the data ask for, at 5 % over all steps (closed testing, Vergouwe 2017).

    First "mean and slope are as predicted" is tested; then, with the mean free, "the slope is 1".
    """
    off_2 = coef_2 - np.array([centre, 1.0])
    live = np.diag(cov_22) > 1e-12
    if not live.any():
        return "none"
    joint = float(off_2[live] @ np.linalg.pinv(cov_22[np.ix_(live, live)]) @ off_2[live])
    if chi2.sf(joint, int(live.sum())) >= 0.05:
        return "none"
    if not live[1] or chi2.sf(off_2[1] ** 2 / cov_22[1, 1], 1) >= 0.05:
        return "shift"
    return "shift and scale"


def _regression(design_ND: Floats, y_N: Floats, weight_N: Floats) -> tuple[Floats, Floats]:
    """Weighted least squares with the sandwich covariance; a column that does not vary gets coefficient 0 and variance 0."""
    gram = (design_ND * weight_N[:, None]).T @ design_ND
    inverse = np.linalg.pinv(gram, rcond=1e-10)
    coef = inverse @ ((design_ND * weight_N[:, None]).T @ y_N)
    score_ND = design_ND * (weight_N * (y_N - design_ND @ coef))[:, None]
    return coef, inverse @ (score_ND.T @ score_ND) @ inverse


def _point(predicted_N: Floats, found_N: Floats, weight_N: Floats) -> tuple[float, float, float, float]:
    total = max(float(weight_N.sum()), 1e-12)
    mean = float((weight_N * found_N).sum() / total)
    half = 1.96 * float(np.sqrt((weight_N**2 * (found_N - mean) ** 2).sum()) / total)
    return float((weight_N * predicted_N).sum() / total), mean, mean - half, mean + half


def by_group(scores: Scores, groups: Mapping[str, Mask], level: float = 0.95) -> dict[str, tuple[float, float, float]]:
    """Overall slope in each group of SMALLEST_JUDGED or more: of a smaller one the slope of so many pairs says nothing."""
    found = {name: overall(scores, rows, level) for name, rows in groups.items() if rows.sum() >= SMALLEST_JUDGED}
    return {name: slope for name, slope in found.items() if slope is not None}


def updates(scores: Scores, groups: Mapping[str, Mask]) -> dict[str, dict[tuple[int, int], Update]]:
    """For each group, the pairs whose predicted difference would need an update there; an empty entry is a group that needs none."""
    told: dict[str, dict[tuple[int, int], Update]] = {}
    for name, rows in groups.items():
        pairs = comparable(scores, rows)
        needed = {(a, b): of_pair(scores, a, b, rows).update for a, b in pairs}
        if pairs:
            told[name] = {pair: update for pair, update in needed.items() if update != "none"}
    return told
