"""What is each kind of input worth? A shrunk linear model of outcome and effects, refitted without it on the same folds.

The members of the blend are not refitted: that would double the training. The refit is closed form, from Gram matrices by fold.
Axis suffixes: N rows, F features, K options, P columns of features, D columns of the design.
"""

from typing import Any

import numpy as np

from components.calibration import Scores
from components.tensors import FOLDS, Scaler, Training
from components.value import gain_in_overlap, supported
from features.feature import MODALITIES, Floats, Modality

Metrics = dict[str, Any]
PENALTY, INTERACTION = (
    30.0,
    0.15,
)  # of prognostic terms, and the prior spread of an interaction against theirs: typical choices of the ridge


def values(training: Training, scores: Scores, unit: str, sign: int, smallest_overlap: float) -> Metrics:
    """For genomics and lifestyle: absolute error of the outcome that the input spares, and the gain of choosing with it, 95 % intervals."""
    held = [modality for modality in MODALITIES if modality != "history" and modality in training.modality_F]
    whole_NK = _predictions(training, None)
    seen, metrics = training.observed_N, Metrics()
    for modality in held:
        less_NK = _predictions(training, modality)
        metrics |= _spared(f"value_of_{modality}_error_{unit}", scores, whole_NK[seen], less_NK[seen])
        choices = [supported(sign * p_NK[seen], scores.propensity_NK, smallest_overlap) for p_NK in (whole_NK, less_NK)]
        metrics |= _three(f"value_of_{modality}_choice_{unit}", gain_in_overlap(scores, choices[0], choices[1], sign))
    return metrics


def sequence_value(training: Training, scores: Scores, unit: str, with_NK: Floats, without_NK: Floats) -> Metrics:
    """For the newest facts: absolute error of the outcome that they spare the network, which alone reads them; 95 % interval."""
    seen = training.observed_N
    return _spared(f"value_of_sequence_error_{unit}", scores, with_NK[seen], without_NK[seen])


def _spared(name: str, scores: Scores, with_NK: Floats, without_NK: Floats) -> Metrics:
    rows = np.arange(len(scores))
    error_N, less_N = (np.abs(scores.outcome_N - p_NK[rows, scores.option_N]) for p_NK in (with_NK, without_NK))
    spared_N = less_N - error_N
    half, mean = 1.96 * float(spared_N.std()) / len(spared_N) ** 0.5, float(spared_N.mean())
    return _three(name, (mean, mean - half, mean + half))


def _three(name: str, found: tuple[float, float, float]) -> Metrics:
    return dict(zip((name, f"{name}_low", f"{name}_high"), found, strict=True))


def _predictions(training: Training, left_out: Modality | None) -> Floats:
    """Out-of-fold outcome under every option, N by K."""
    data = training if left_out is None else training.without(left_out)
    batch = Scaler.fit(data.x_NF, data.modality_F).batch(data.x_NF)
    unknown_NF = (~batch.seen_NF).astype(np.float64)
    columns_NP = np.concatenate([batch.scaled_NF, unknown_NF[:, unknown_NF.any(0)]], axis=1)
    columns_NP -= columns_NP.mean(0)
    size, options, seen = columns_NP.shape[1], data.options, data.observed_N
    scale_D = np.concatenate([np.ones(size), np.full(options, 3.0), np.full(options * size, INTERACTION)])
    design_ND = _design(columns_NP[seen], np.eye(options)[data.option_N[seen]]) * scale_D
    centre = float(data.target_N[seen].mean())
    fold_N, target_N = data.fold_N[seen], data.target_N[seen] - centre
    grams = [design_ND[fold_N == f].T @ design_ND[fold_N == f] for f in range(FOLDS)]
    crosses = [design_ND[fold_N == f].T @ target_N[fold_N == f] for f in range(FOLDS)]
    predicted_NK = np.zeros((len(data), options))
    for f in range(FOLDS):
        system = sum(grams) - grams[f] + PENALTY * np.eye(len(scale_D))
        weight_D = np.linalg.solve(system, sum(crosses) - crosses[f]) * scale_D
        rows = data.fold_N == f
        cross_KP = weight_D[size + options :].reshape(options, size)
        base_N = centre + columns_NP[rows] @ weight_D[:size]
        predicted_NK[rows] = base_N[:, None] + weight_D[size : size + options] + columns_NP[rows] @ cross_KP.T
    return predicted_NK


def _design(columns_NP: Floats, given_NK: Floats) -> Floats:
    cross_NKP = given_NK[:, :, None] * columns_NP[:, None, :]
    return np.concatenate([columns_NP, given_NK, cross_NKP.reshape(len(columns_NP), -1)], axis=1)
