"""Could these patients be compared at all? Overlap, balance before and after weighting, and outcomes that no option can change.

Axis suffixes: N rows, F features, K options, D columns of a design.
"""

from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from components.tensors import Training
from features.feature import Floats

LEVEL = 0.95  # of the joint statement over all comparisons
PREFERENCE = (0.3, 0.7)  # Walker 2013: where the choice between two options was open
FEWEST = 30  # of each option: below that a standardised difference is chance


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The standardised mean difference of one feature between two options, before and after weighting; `low`: what is surely exceeded."""

    feature: str
    options: tuple[int, int]
    before: float
    after: float
    low: float


def overlap_weights(propensity_NK: Floats) -> Floats:
    """Weight of the population in which every option was possible (Li and Li 2019): the harmonic mean of the propensities, N."""
    return np.asarray(1 / (1 / np.maximum(propensity_NK, 1e-6)).sum(1))


def differences(training: Training, propensity_NK: Floats) -> list[Difference]:
    """Standardised differences of every feature (and of its being known) for every pair of options, with generalised overlap weights.

    `low` is the joint 95 % lower bound of the weighted difference: a small option differs by chance (Hripcsak 2024).
    """
    columns_ND, names = _columns(training)
    option_N = training.option_N
    weight_N = overlap_weights(propensity_NK) / np.maximum(np.take_along_axis(propensity_NK, option_N[:, None], 1)[:, 0], 1e-6)
    arms = [k for k in range(training.options) if (option_N == k).sum() >= FEWEST]
    pairs = list(combinations(arms, 2))
    bound = NormalDist().inv_cdf(1 - (1 - LEVEL) / max(len(pairs) * len(names), 1))
    moments = {k: (_moments(columns_ND[option_N == k], np.ones(int((option_N == k).sum())))) for k in arms}
    weighted = {k: _moments(columns_ND[option_N == k], weight_N[option_N == k]) for k in arms}
    found = []
    for a, b in pairs:
        spread_D = np.sqrt((moments[a][1] + moments[b][1]) / 2)
        live = spread_D > 1e-9
        before_D, after_D = (
            np.abs(np.divide(m[a][0] - m[b][0], spread_D, out=np.zeros(len(names)), where=live)) for m in (moments, weighted)
        )
        error_D = np.sqrt(1 / weighted[a][2] + 1 / weighted[b][2])
        for d in np.flatnonzero(live & np.isfinite(after_D)):
            low = max(float(after_D[d] - bound * error_D[d]), 0.0)
            found.append(Difference(feature=names[d], options=(a, b), before=float(before_D[d]), after=float(after_D[d]), low=low))
    return found


def _columns(training: Training) -> tuple[Floats, list[str]]:
    """Raw features, and a flag for each that is known of some patients only."""
    known_NF = ~np.isnan(training.x_NF)
    share_F = known_NF.mean(0)
    flags = [f for f in range(len(share_F)) if 0.02 < share_F[f] < 0.98]
    names = [*training.names, *(f"{training.names[f]} known" for f in flags)]
    return np.concatenate([training.x_NF, known_NF[:, flags].astype(np.float64)], axis=1), names


def _moments(x_ND: Floats, weight_N: Floats) -> tuple[Floats, Floats, Floats]:
    """Weighted mean, variance and effective number of rows of each column, over what is known."""
    known_ND = ~np.isnan(x_ND)
    weight_ND = np.where(known_ND, weight_N[:, None], 0.0)
    total_D = np.maximum(weight_ND.sum(0), 1e-12)
    filled_ND = np.where(known_ND, x_ND, 0.0)
    mean_D = (weight_ND * filled_ND).sum(0) / total_D
    variance_D = (weight_ND * np.square(filled_ND - mean_D)).sum(0) / total_D
    effective_D = np.maximum(total_D**2 / np.maximum((weight_ND**2).sum(0), 1e-12), 1.0)
    return mean_D, variance_D, effective_D


def effective_sizes(training: Training, propensity_NK: Floats, clip: float) -> Floats:
    """Effective sample size of each option under inverse-probability weights, K."""
    given_N = np.take_along_axis(propensity_NK, training.option_N[:, None], 1)[:, 0]
    weight_N = 1 / np.maximum(given_N, clip)
    weights = [weight_N[(training.option_N == k) & training.observed_N] for k in range(training.options)]
    return np.array([float(w.sum() ** 2 / (w**2).sum()) if len(w) else 0.0 for w in weights])


def equipoise(training: Training, propensity_NK: Floats) -> dict[tuple[int, int], float]:
    """For each pair: share of those given either whose preference score lies between 0.3 and 0.7 (Walker 2013)."""
    found = {}
    counts = np.bincount(training.option_N, minlength=training.options)
    for a, b in combinations(range(training.options), 2):
        if min(counts[a], counts[b]) < FEWEST:
            continue
        rows = (training.option_N == a) | (training.option_N == b)
        odds_N = propensity_NK[rows, a] / np.maximum(propensity_NK[rows, b], 1e-12) * counts[b] / counts[a]
        preference_N = odds_N / (1 + odds_N)
        found[(a, b)] = float(((preference_N >= PREFERENCE[0]) & (preference_N <= PREFERENCE[1])).mean())
    return found


@dataclass(frozen=True, kw_only=True)
class Control:
    """What a negative control shows: p of "no option differs", and the largest difference between two options in its own spreads."""

    name: str
    measured: int
    p: float
    largest: float
    low: float
    high: float
    options: tuple[int, int]


def negative_control(name: str, control_N: Floats, training: Training, propensity_NK: Floats) -> Control | None:
    """Joint Wald test of the options in a regression on every feature and on what was given beyond what the features foretold.

    Doubly robust and heteroscedasticity-consistent (the partially linear model of Robinson 1988). Without inverse weights, which leave
    half of the effective patients. None where the control was measured in too few patients, or is the same in all: it says nothing then.
    """
    from scipy.stats import chi2

    seen = np.isfinite(control_N)
    arms = [k for k in range(training.options) if (seen & (training.option_N == k)).sum() >= FEWEST]
    columns_ND = _filled(training)
    rows = seen & np.isin(training.option_N, arms)
    if len(arms) < 2 or rows.sum() < 2 * columns_ND.shape[1]:
        return None
    spread = float(control_N[rows].std())
    if spread <= 1e-9 * max(1.0, abs(float(control_N[rows].mean()))):  # the same in all: it says nothing
        return None
    foretold_NK = propensity_NK[rows][:, arms] / np.maximum(propensity_NK[rows][:, arms].sum(1, keepdims=True), 1e-6)
    beyond_NK = np.stack([training.option_N[rows] == k for k in arms], axis=1) - foretold_NK
    centred_ND = columns_ND[rows] - columns_ND[rows].mean(0)
    design_ND = np.concatenate([beyond_NK[:, 1:], np.ones((len(centred_ND), 1)), centred_ND], axis=1)
    effect_D, cov_DD = _regression(design_ND, control_N[rows] / spread)
    cov = cov_DD[: len(arms) - 1, : len(arms) - 1]  # of the differences from the first option
    difference = effect_D[: len(arms) - 1]
    effect_K, cov_KK = np.append(0.0, difference), np.pad(cov, ((1, 0), (1, 0)))
    a, b = max(combinations(range(len(arms)), 2), key=lambda pair: abs(effect_K[pair[0]] - effect_K[pair[1]]))
    half = 1.96 * float(np.sqrt(max(cov_KK[a, a] + cov_KK[b, b] - 2 * cov_KK[a, b], 0)))
    gap = float(effect_K[a] - effect_K[b])
    statistic = float(difference @ np.linalg.solve(cov, difference))
    return Control(
        name=name,
        measured=int(rows.sum()),
        p=float(chi2.sf(statistic, len(arms) - 1)),
        largest=gap,
        low=gap - half,
        high=gap + half,
        options=(arms[a], arms[b]),
    )


def _filled(training: Training) -> Floats:
    """Features with the mean where missing, and a flag for each that is known of some only; columns without spread left out."""
    columns_ND, _ = _columns(training)
    seen_D = (~np.isnan(columns_ND)).any(0)
    columns_ND = columns_ND[:, seen_D]
    columns_ND = np.where(np.isnan(columns_ND), np.nanmean(columns_ND, 0), columns_ND)
    spread_D = columns_ND.std(0)
    return np.asarray(columns_ND[:, spread_D > 1e-9] / spread_D[spread_D > 1e-9])


def _regression(design_ND: Floats, y_N: Floats) -> tuple[Floats, Floats]:
    """Coefficients and their sandwich covariance (HC1); a hair of ridge keeps collinear columns from ending it."""
    size, width = design_ND.shape
    gram = design_ND.T @ design_ND
    inverse = np.linalg.inv(gram + 1e-8 * np.trace(gram) / width * np.eye(width))
    effect_D = inverse @ design_ND.T @ y_N
    score_ND = design_ND * (y_N - design_ND @ effect_D)[:, None]
    return effect_D, np.asarray(inverse @ (score_ND.T @ score_ND) @ inverse * size / max(size - width, 1))


Told = dict[str, Any]
Mask = npt.NDArray[np.bool_]


def comparability(names: tuple[str, ...], training: Training, propensity_NK: Floats, controls: dict[str, Floats], clip: float) -> Told:
    """Flat figures of all of the above; `names` are the options."""
    found, pairs = differences(training, propensity_NK), equipoise(training, propensity_NK)
    told: Told = {f"effective_size_{names[k]}": size for k, size in enumerate(effective_sizes(training, propensity_NK, clip).tolist())}
    if found:
        told["smd_before_weighting_max"] = max(d.before for d in found)
        worst = max(found, key=lambda d: (d.low, d.after))
        told |= {"weighted_smd_max": max(d.after for d in found), "weighted_smd_surely_above": worst.low}
        told["weighted_smd_worst"] = f"{worst.feature}, {names[worst.options[0]]} against {names[worst.options[1]]}"
    told |= {f"equipoise_{names[a]}_{names[b]}": share for (a, b), share in pairs.items()}
    for name, control_N in controls.items():
        control = negative_control(name, control_N, training, propensity_NK)
        if control is not None:
            told |= {f"negative_control_{name}_p": control.p, f"negative_control_{name}_sd": control.largest}
            told |= {f"negative_control_{name}_sd_low": control.low, f"negative_control_{name}_sd_high": control.high}
            told[f"negative_control_{name}_between"] = f"{names[control.options[0]]} against {names[control.options[1]]}"
    return told
