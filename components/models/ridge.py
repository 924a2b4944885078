"""Ridge member: pooled prognosis, and shrunk interactions of every option with every feature, one prior scale a modality.

Closed form, so that it is fast, deterministic, strong on small samples, and has a posterior for every difference between options.
With D columns of the design, fold Gram matrices are computed once; every candidate scale is then one Cholesky solve.

Axis suffixes: N rows, F features, P expanded features, K options, T targets, D = P + K + K P columns (P for one target).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from components.tensors import FOLDS, Batch, Scaler, Training
from features.feature import Floats

SCALES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # prior spread of an interaction against that of a prognostic term
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)
KNOTS = (-0.6, 0.6)  # of scaled features with more than a few values: response to age or eGFR is not a straight line


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """From scaled features to the P columns: the value, whether it is missing, two hinges where it is continuous, products of pairs."""

    missing: tuple[int, ...]
    bent: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]
    group_P: tuple[str, ...]  # modality of each column; "pairs" for products

    @classmethod
    def fit(cls, batch: Batch, pairs: bool) -> "Expansion":
        features = range(batch.scaled_NF.shape[1])
        share = 1 - batch.seen_NF.mean(0)
        missing = tuple(f for f in features if 0.005 < share[f] < 0.995)
        bent = tuple(f for f in features if len(np.unique(batch.scaled_NF[:500, f])) > 12)
        both = tuple((i, j) for i in features for j in features if i < j) if pairs else ()
        named = [*features, *missing, *(f for f in bent for _ in KNOTS)]
        return cls(missing=missing, bent=bent, pairs=both, group_P=tuple(batch.modality_F[f] for f in named) + ("pairs",) * len(both))

    def apply(self, batch: Batch) -> Floats:
        x_NF = batch.scaled_NF
        columns = [x_NF, (~batch.seen_NF[:, list(self.missing)]).astype(np.float64)]
        for f in self.bent:
            columns += [np.where(batch.seen_NF[:, [f]], np.maximum(x_NF[:, [f]] - knot, 0), 0.0) for knot in KNOTS]
        if self.pairs:
            left, right = (list(side) for side in zip(*self.pairs, strict=True))
            columns.append(x_NF[:, left] * x_NF[:, right])
        return np.concatenate(columns, axis=1)


@dataclass(kw_only=True)
class Ridge:
    """A fitted member. `weight_D` and `cov_DD` are on the modelled scale, unscaled columns; `oof_NT` exists only after fitting."""

    scaler: Scaler
    expansion: Expansion
    options: int
    targets: int
    intercept: float
    mean_P: Floats
    weight_D: Floats
    cov_DD: Floats
    scales: dict[str, float]
    penalty: float
    oof_NT: Floats | None = None

    def _columns(self, x_NF: Floats) -> Floats:
        return self.expansion.apply(self.scaler.batch(x_NF)) - self.mean_P

    def predict(self, x_NF: Floats) -> Floats:
        """Expected target under each option, N by T."""
        return _predict(self._columns(x_NF), self.weight_D, self.intercept, self.targets)

    def covariance(self, x_NF: Floats) -> Floats:
        """Posterior covariance of the expected targets, N by T by T; prognosis cancels between options and is left out of K targets."""
        phi_NP = self._columns(x_NF)
        if self.targets == 1:
            return np.einsum("np,pq,nq->n", phi_NP, self.cov_DD, phi_NP, optimize=True)[:, None, None]
        size, k = phi_NP.shape[1], self.options
        blocks = [np.concatenate([np.ones((len(phi_NP), 1)), phi_NP], 1)]
        cov = self.cov_DD[size:, size:]
        index = [np.r_[[o], k + o * size + np.arange(size)] for o in range(k)]
        out = np.zeros((len(phi_NP), k, k))
        for a in range(k):
            half = blocks[0] @ cov[np.ix_(index[a], np.concatenate(index[a:]))]
            for b in range(a, k):
                part = half[:, (b - a) * (size + 1) : (b - a + 1) * (size + 1)]
                out[:, a, b] = out[:, b, a] = np.einsum("np,np->n", part, blocks[0])
        return out

    def save(self, folder: Path) -> None:
        """`ridge.safetensors` and `ridge.json`."""
        arrays = {"mean_P": self.mean_P, "weight_D": self.weight_D, "cov_DD": self.cov_DD.astype(np.float32)}
        arrays |= {"center_F": self.scaler.center_F, "spread_F": self.scaler.spread_F}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "ridge.safetensors")
        told: dict[str, Any] = {"options": self.options, "targets": self.targets, "intercept": self.intercept, "penalty": self.penalty}
        told |= {
            "scales": self.scales,
            "modality_F": self.scaler.modality_F,
            "missing": self.expansion.missing,
            "bent": self.expansion.bent,
        }
        told |= {"pairs": self.expansion.pairs, "group_P": self.expansion.group_P}
        (folder / "ridge.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Ridge":
        """The member that `save` wrote."""
        arrays, told = load_file(folder / "ridge.safetensors"), json.loads((folder / "ridge.json").read_text(encoding="utf-8"))
        expansion = Expansion(
            missing=tuple(told["missing"]),
            bent=tuple(told["bent"]),
            pairs=tuple((i, j) for i, j in told["pairs"]),
            group_P=tuple(told["group_P"]),
        )
        scaler = Scaler(center_F=arrays["center_F"], spread_F=arrays["spread_F"], modality_F=tuple(told["modality_F"]))
        return cls(
            scaler=scaler,
            expansion=expansion,
            options=told["options"],
            targets=told["targets"],
            intercept=told["intercept"],
            mean_P=arrays["mean_P"],
            weight_D=arrays["weight_D"],
            cov_DD=arrays["cov_DD"].astype(np.float64),
            scales=told["scales"],
            penalty=told["penalty"],
        )


def _predict(phi_NP: Floats, weight_D: Floats, intercept: float, targets: int) -> Floats:
    base_N = intercept + phi_NP @ weight_D[: phi_NP.shape[1]]
    if targets == 1:
        return base_N[:, None]
    size = phi_NP.shape[1]
    main_K, cross_KP = weight_D[size : size + targets], weight_D[size + targets :].reshape(targets, size)
    return np.asarray(base_N[:, None] + main_K + phi_NP @ cross_KP.T)


def _design(phi_NP: Floats, training: Training) -> Floats:
    if training.targets == 1:
        return phi_NP
    given_NK = np.eye(training.options)[training.option_N]
    cross_NKP = given_NK[:, :, None] * phi_NP[:, None, :]
    return np.concatenate([phi_NP, given_NK, cross_NKP.reshape(len(phi_NP), -1)], axis=1)


class _Search:
    """Cross-validated choice of the penalty and of one prior scale a group, from Gram matrices by fold."""

    def __init__(self, z_ND: Floats, y_N: Floats, fold_N: Any, group_D: list[str]) -> None:
        self.z_ND, self.y_N, self.fold_N, self.group_D = z_ND, y_N, fold_N, np.array(group_D)
        self.gram = [z.T @ z for z in (z_ND[fold_N == f] for f in range(FOLDS))]
        self.cross = [z_ND[fold_N == f].T @ y_N[fold_N == f] for f in range(FOLDS)]
        self.whole, self.whole_cross = sum(self.gram), sum(self.cross)

    def scale_D(self, scales: dict[str, float]) -> Floats:
        return np.array([scales[group] for group in self.group_D])

    def weights(self, gram: Any, cross: Any, scale_D: Floats, penalty: float) -> Floats:
        live = scale_D > 0
        s = scale_D[live]
        system = gram[np.ix_(live, live)] * s[:, None] * s[None, :] + penalty * np.eye(int(live.sum()))
        weight_D = np.zeros(len(scale_D))
        weight_D[live] = s * np.linalg.solve(system, s * cross[live])
        return weight_D

    def fold_weights(self, scales: dict[str, float], penalty: float) -> list[Floats]:
        scale_D = self.scale_D(scales)
        return [self.weights(self.whole - g, self.whole_cross - c, scale_D, penalty) for g, c in zip(self.gram, self.cross, strict=True)]

    def loss(self, scales: dict[str, float], penalty: float) -> float:
        total = 0.0
        for f, weight_D in enumerate(self.fold_weights(scales, penalty)):
            c, g = self.cross[f], self.gram[f]
            total += float(weight_D @ g @ weight_D - 2 * weight_D @ c)
        return total

    def choose(self) -> tuple[dict[str, float], float]:
        """Coordinate descent over the groups; a scale of 0 drops a group, so that a useless modality costs nothing."""
        groups = [g for g in dict.fromkeys(self.group_D.tolist()) if g not in ("base", "option")]
        scales: dict[str, float] = {"base": 1.0, "option": 10.0} | dict.fromkeys(groups, 0.12)
        penalty = min(PENALTIES, key=lambda p: self.loss(scales, p))
        for _ in range(2):
            for group in groups:
                scales[group] = min(SCALES, key=lambda s, g=group: self.loss(scales | {g: s}, penalty))  # type: ignore[misc]
            penalty = min(PENALTIES, key=lambda p: self.loss(scales, p))
        return scales, penalty


def fit(training: Training) -> Ridge:
    """Fit on all observed rows, with predictions for every row from a fit that did not see its fold."""
    scaler = Scaler.fit(training.x_NF, training.modality_F)
    batch = scaler.batch(training.x_NF)
    expansion = Expansion.fit(batch, pairs=training.targets == 1)
    phi_NP = expansion.apply(batch)
    mean_P = phi_NP.mean(0)
    phi_NP = phi_NP - mean_P
    seen_N = training.observed_N
    intercept = float(training.target_N[seen_N].mean())
    search = _Search(
        _design(phi_NP, training)[seen_N], training.target_N[seen_N] - intercept, training.fold_N[seen_N], _groups(expansion, training)
    )
    scales, penalty = search.choose()
    weight_D = search.weights(search.whole, search.whole_cross, search.scale_D(scales), penalty)
    oof_NT = np.zeros((len(training), training.targets))
    for f, fold_D in enumerate(search.fold_weights(scales, penalty)):
        rows = training.fold_N == f
        oof_NT[rows] = _predict(phi_NP[rows], fold_D, intercept, training.targets)
    return Ridge(
        scaler=scaler,
        expansion=expansion,
        options=training.options,
        targets=training.targets,
        intercept=intercept,
        mean_P=mean_P,
        weight_D=weight_D,
        cov_DD=_posterior(search, scales, penalty, weight_D),
        scales=scales,
        penalty=penalty,
        oof_NT=oof_NT,
    )


def _groups(expansion: Expansion, training: Training) -> list[str]:
    """Which prior scale each column of the design has."""
    base = ["pairs" if g == "pairs" else "base" for g in expansion.group_P]
    if training.targets == 1:
        return base
    return base + ["option"] * training.options + list(expansion.group_P) * training.options


def _posterior(search: _Search, scales: dict[str, float], penalty: float, weight_D: Floats) -> Floats:
    """Posterior covariance of the weights, with the noise variance of the residuals."""
    scale_D = search.scale_D(scales)
    system = search.whole * scale_D[:, None] * scale_D[None, :] + penalty * np.eye(len(scale_D))
    residual_N = search.y_N - search.z_ND @ weight_D
    noise = float(residual_N @ residual_N) / max(len(residual_N) - 1, 1)
    return np.asarray(noise * scale_D[:, None] * np.linalg.inv(system) * scale_D[None, :])
