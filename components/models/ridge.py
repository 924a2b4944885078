"""Ridge member: pooled prognosis, and interactions of every option with every feature, shrunk feature by feature (`shrinkage.py`).

Fast, deterministic, strong on small samples, and with a posterior for every difference between options. The rows are read once, into a
Gram matrix a fold; everything that is chosen is chosen from the folds that a prediction may know.

Axis suffixes: N rows, F features, P expanded features, K options, T targets, D = P + K + K P columns (P for one target), R parts of the
outcome, S draws.
"""

import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_limits

from components.models.expansion import Expansion
from components.models.shrinkage import DRAWS, Groups, Posterior, sample
from components.tensors import FOLDS, Batch, Scaler, Training
from features.feature import Floats

SCALES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # of a dose: prior spread of a product of features against that of a feature
PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0)
# What features are expected to say of the outcome, what an option does to everybody, and what features say of its effect by their values
# and by their hinges, in spreads of the outcome; so the difference between two options is expected to vary by 0.2. Anything from half to
# twice of that changes the regret on the simulated world by less than 0.05 mmol/mol; hinges with a spread of their own lose 0.07 less on
# worlds that are nearly straight.
EXPECTED = {"prognosis": 1.0, "options": 0.15, "value": 0.14, "bend": 0.07}
OWN = ("options", "options")  # family and group of what an option does to everybody: few are given some options
# Variance of effects between people that no record shows, as a share of what the records show. An assumption, not an estimate: no record
# of one outcome a person can tell it. Latent adherence or organ function modify effects in every world that is worth simulating.
UNSEEN = 0.1
OF_A_FOLD = 70  # draws where only their mean is asked for


@dataclass(kw_only=True)
class Ridge:
    """A fitted member. `weight_D` and the draws are on the modelled scale, unscaled columns; `oof_NT` exists only after fitting."""

    scaler: Scaler
    expansion: Expansion
    options: int
    targets: int
    intercept: float
    mean_P: Floats
    weight_D: Floats
    draws_SD: Floats
    unseen_TT: Floats  # covariance of the targets that no record shows
    carried_FTT: Floats  # covariance of the targets over the values that each feature takes: what is open where it is missing
    scales: dict[str, float]  # how much each modality's features tell the options apart (of a dose: the prior scale of each group)
    oof_NT: Floats | None = None

    def _columns(self, x_NF: Floats) -> Floats:
        return self.expansion.apply(self.scaler.batch(x_NF)) - self.mean_P

    def predict(self, x_NF: Floats) -> Floats:
        """Expected target under each option, N by T."""
        return _predict(self._columns(x_NF), self.weight_D, self.intercept, self.targets)

    def covariance(self, x_NF: Floats) -> Floats:
        """How unsure the expected targets are, N by T by T; what cancels between options is left out of K targets.

        Posterior of the weights, what a row's missing features leave open, and for effects UNSEEN.
        """
        return self._unsure(self._columns(x_NF), x_NF)

    def both(self, x_NF: Floats) -> tuple[Floats, Floats]:
        """Expected targets and their covariance, from one reading of the rows."""
        phi_NP = self._columns(x_NF)
        return _predict(phi_NP, self.weight_D, self.intercept, self.targets), self._unsure(phi_NP, x_NF)

    @cached_property
    def _off(self) -> tuple[Floats, Floats]:
        """The draws about their mean: of the columns, and of the options themselves, S by K."""
        off_SD, size = self.draws_SD - self.weight_D, len(self.mean_P)
        if self.targets == 1:
            return off_SD, np.zeros((len(off_SD), 0))
        return off_SD[:, size + self.targets :].reshape(-1, size), off_SD[:, size : size + self.targets]

    def _unsure(self, phi_NP: Floats, x_NF: Floats) -> Floats:
        posterior_NTT = _covariance(phi_NP, *self._off, self.targets)
        missing_NTT = np.einsum("nf,ftu->ntu", np.isnan(x_NF).astype(np.float64), self.carried_FTT)
        whole_NTT = posterior_NTT + missing_NTT + self.unseen_TT
        return (whole_NTT + whole_NTT.transpose(0, 2, 1)) / 2  # rounding leaves no other trace

    def save(self, folder: Path) -> None:
        """`ridge.safetensors` and `ridge.json`."""
        arrays = {"mean_P": self.mean_P, "weight_D": self.weight_D, "draws_SD": self.draws_SD.astype(np.float32)}
        arrays |= {
            "carried_FTT": self.carried_FTT,
            "unseen_TT": self.unseen_TT,
            "center_F": self.scaler.center_F,
            "spread_F": self.scaler.spread_F,
        }
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "ridge.safetensors")
        told: dict[str, Any] = {"options": self.options, "targets": self.targets, "intercept": self.intercept, "scales": self.scales}
        told |= {"modality_F": self.scaler.modality_F, "expansion": asdict(self.expansion)}
        (folder / "ridge.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Ridge":
        """The member that `save` wrote."""
        arrays, told = load_file(folder / "ridge.safetensors"), json.loads((folder / "ridge.json").read_text(encoding="utf-8"))
        parts = {name: tuple(values) for name, values in told["expansion"].items()}
        parts["pairs"] = tuple((i, j) for i, j in parts["pairs"])
        return cls(
            scaler=Scaler(center_F=arrays["center_F"], spread_F=arrays["spread_F"], modality_F=tuple(told["modality_F"])),
            expansion=Expansion(**parts),
            options=told["options"],
            targets=told["targets"],
            intercept=told["intercept"],
            mean_P=arrays["mean_P"],
            weight_D=arrays["weight_D"],
            draws_SD=arrays["draws_SD"].astype(np.float64),
            unseen_TT=arrays["unseen_TT"],
            carried_FTT=arrays["carried_FTT"],
            scales=told["scales"],
        )


def _predict(phi_NP: Floats, weight_D: Floats, intercept: float, targets: int) -> Floats:
    base_N = intercept + phi_NP @ weight_D[: phi_NP.shape[1]]
    if targets == 1:
        return base_N[:, None]
    size = phi_NP.shape[1]
    main_K, cross_KP = weight_D[size : size + targets], weight_D[size + targets :].reshape(targets, size)
    return np.asarray(base_N[:, None] + main_K + phi_NP @ cross_KP.T)


def _covariance(phi_NP: Floats, off_RP: Floats, main_SK: Floats, targets: int) -> Floats:
    """Of the draws of the targets about their mean, N by T by T. `off_RP`: every draw of every target in turn."""
    if targets == 1:
        return np.mean((phi_NP @ off_RP.T) ** 2, axis=1)[:, None, None]
    out_NKK, draws = np.zeros((len(phi_NP), targets, targets)), len(main_SK)
    for first in range(0, len(phi_NP), 2000):  # bounded memory
        rows = slice(first, first + 2000)
        off_NKS = (phi_NP[rows] @ off_RP.T).reshape(-1, draws, targets).transpose(0, 2, 1) + main_SK.T
        out_NKK[rows] = off_NKS @ off_NKS.transpose(0, 2, 1) / draws
    return out_NKK


def _carried(phi_NP: Floats, batch: Batch, expansion: Expansion, draws_SD: Floats, targets: int) -> Floats:
    """Each feature apart, over the rows where it is known: products of features and what one tells of another are left out."""
    size, kind_P, feature_P = phi_NP.shape[1], np.array(expansion.kind_P), np.array(expansion.feature_P)
    weight_STP = draws_SD[:, None, :] if targets == 1 else draws_SD[:, size + targets :].reshape(-1, targets, size)
    out_FTT = np.zeros((batch.seen_NF.shape[1], targets, targets))
    for f in range(len(out_FTT)):
        own, seen_N = np.flatnonzero((feature_P == f) & np.isin(kind_P, ("value", "bend"))), batch.seen_NF[:, f]
        if seen_N.sum() > 1:
            within = np.atleast_2d(np.cov(phi_NP[np.ix_(seen_N, own)], rowvar=False))
            out_FTT[f] = np.einsum("stp,pq,suq->tu", weight_STP[..., own], within, weight_STP[..., own], optimize=True) / len(draws_SD)
    return out_FTT


def _unseen(phi_NP: Floats, weight_D: Floats, targets: int) -> Floats:
    """A share of what the fit shows to differ between people; what it only holds possible is in the posterior already."""
    if targets == 1:
        return np.zeros((1, 1))
    effect_NT = _predict(phi_NP, weight_D, 0.0, targets)
    return np.asarray(UNSEEN * np.cov(effect_NT - effect_NT.mean(1, keepdims=True), rowvar=False))


def fit(training: Training) -> Ridge:
    """Fit on all observed rows, with predictions for every row from a fit that did not see its fold. One thread: the same bits anywhere."""
    with threadpool_limits(1):
        return _fit(training)


def _fit(training: Training) -> Ridge:
    scaler = Scaler.fit(training.x_NF, training.modality_F)
    batch = scaler.batch(training.x_NF)
    expansion = Expansion.fit(batch, scaler.spread_F, pairs=training.targets == 1)
    phi_NP = expansion.apply(batch)
    mean_P = phi_NP.mean(0)
    phi_NP = phi_NP - mean_P
    sums = [_Sums.of(phi_NP, expansion, training, training.observed_N & (training.fold_N == f)) for f in range(FOLDS)]
    whole = _Sums.total(sums)
    learn = _DoseFit.chosen(sums, expansion) if training.targets == 1 else _OptionsFit(expansion=expansion, options=training.options)
    oof_NT = np.zeros((len(training), training.targets))
    for f in range(FOLDS):
        rows, others = training.fold_N == f, whole.without(sums[f])
        oof_NT[rows] = _predict(phi_NP[rows], learn(others, draws=OF_A_FOLD).mean_D, others.mean_R.sum(), training.targets)
    posterior = learn(whole)
    return Ridge(
        scaler=scaler,
        expansion=expansion,
        options=training.options,
        targets=training.targets,
        intercept=float(whole.mean_R.sum()),
        mean_P=mean_P,
        weight_D=posterior.mean_D,
        draws_SD=posterior.draws_SD,
        unseen_TT=_unseen(phi_NP, posterior.mean_D, training.targets),
        carried_FTT=_carried(phi_NP, batch, expansion, posterior.draws_SD, training.targets),
        scales=learn.scales(posterior),
        oof_NT=oof_NT,
    )


@dataclass(frozen=True, kw_only=True)
class _Sums:
    """What a fit needs to know of some rows: Z'Z, Z'y, Z'1, sum and sum of squares of every part of y, and their number."""

    gram_DD: Floats
    cross_RD: Floats
    column_D: Floats
    sum_R: Floats
    square_R: Floats
    rows: int

    @classmethod
    def of(cls, phi_NP: Floats, expansion: Expansion, training: Training, rows_N: Any) -> "_Sums":
        """Of some rows; their design is forgotten at once."""
        phi_NP, y_RN = phi_NP[rows_N], _parts(training)[:, rows_N]
        if training.targets > 1:
            given_NK = np.eye(training.options)[training.option_N[rows_N]]
            cross_NKP = given_NK[:, :, None] * phi_NP[:, None, expansion.crossed_P]
            phi_NP = np.concatenate([phi_NP, given_NK, cross_NKP.reshape(len(phi_NP), -1)], axis=1)
        return cls(
            gram_DD=phi_NP.T @ phi_NP,
            cross_RD=y_RN @ phi_NP,
            column_D=phi_NP.sum(0),
            sum_R=y_RN.sum(1),
            square_R=(y_RN**2).sum(1),
            rows=len(phi_NP),
        )

    @classmethod
    def total(cls, parts: "list[_Sums]") -> "_Sums":
        """Of all parts together."""
        return cls(**{field.name: sum(getattr(part, field.name) for part in parts) for field in fields(cls)})

    def without(self, part: "_Sums") -> "_Sums":
        """Of the rows that are not in `part`."""
        return _Sums(**{field.name: getattr(self, field.name) - getattr(part, field.name) for field in fields(self)})

    @property
    def mean_R(self) -> Floats:
        """Mean of each part."""
        return self.sum_R / self.rows

    @property
    def centred_RD(self) -> Floats:
        """Z'(y - mean of y) of each part."""
        return self.cross_RD - self.mean_R[:, None] * self.column_D

    @property
    def spread_R(self) -> Floats:
        """Sum of squares of each part about its mean."""
        return np.maximum(self.square_R - self.rows * self.mean_R**2, 1e-12)


def _parts(training: Training) -> Floats:
    """Parts of the outcome that are modelled apart and add up to it, R by N: what was measured, and adverse events where they count."""
    if training.harm_N is None:
        return training.target_N[None]
    return np.stack([training.target_N - training.harm_N, training.harm_N])


@dataclass(frozen=True, kw_only=True)
class _OptionsFit:
    """Options: how strongly to shrink is part of the fit, so a fold's own outcomes have no say in it.

    Each part of the outcome has noise and modifiers of its own, so each is shrunk by itself; the weights of the parts add up. Apart,
    adverse events cost 0.05 mmol/mol of regret less on 2,000 rows of the simulated world than within one sum.
    """

    expansion: Expansion
    options: int

    def __call__(self, sums: _Sums, draws: int = DRAWS) -> Posterior:
        told = list(zip(self.expansion.group_P, self.expansion.feature_P, self.expansion.kind_P, strict=True))
        base = [(f"prognosis {kind}", f"{feature} {kind}") for _, feature, kind in told]
        crossed_P = self.expansion.crossed_P
        cross = [(f"{kind} of {m}", f"{f} {kind}") for (m, f, kind), crossed in zip(told, crossed_P, strict=True) if crossed]
        spread = np.diag(sums.gram_DD)[: len(told)].sum() / sums.rows  # of all columns together, were their coefficients 1
        groups = Groups.of(
            [*base, *[OWN] * self.options, *cross * self.options],
            lambda family: EXPECTED[family.split()[0]] ** 2 / (1.0 if family == OWN[0] else spread),
        )
        live_D = np.concatenate([np.ones(len(told) + self.options, bool), np.tile(crossed_P, self.options)])
        mean_D, draws_SD = np.zeros(len(live_D)), np.zeros((draws, len(live_D)))
        for part, (centred_D, square) in enumerate(zip(sums.centred_RD, sums.spread_R, strict=True)):
            found = sample(sums.gram_DD, centred_D, square, sums.rows, groups, draws=draws, seed=part)
            mean_D[live_D] += found.mean_D
            draws_SD[:, live_D] += found.draws_SD
        return Posterior(mean_D=mean_D, draws_SD=draws_SD)

    def scales(self, posterior: Posterior) -> dict[str, float]:
        """Typical difference that a spread of a modality's feature makes between options."""
        groups = np.array(self.expansion.group_P)
        cross_KP = posterior.mean_D[len(groups) + self.options :].reshape(self.options, -1)
        square_P = ((cross_KP - cross_KP.mean(0)) ** 2).mean(0)
        return {name: float(np.sqrt(square_P[groups == name].mean())) for name in dict.fromkeys(self.expansion.group_P)}


@dataclass(frozen=True, kw_only=True)
class _DoseFit:
    """Dose: closed form, for there are many products of features. Penalty and scale are chosen once, by cross-validation over all folds."""

    scale_D: Floats
    penalty: float
    chosen_scale: float

    @classmethod
    def chosen(cls, sums: list[_Sums], expansion: Expansion) -> "_DoseFit":
        """Coordinate descent; a scale of 0 drops the products."""
        whole, pair_D = _Sums.total(sums), np.array([group == "pairs" for group in expansion.group_P])
        centred_D = whole.centred_RD[0]
        cross = [part.cross_RD[0] - whole.mean_R[0] * part.column_D for part in sums]

        def loss(scale: float, penalty: float) -> float:
            found, scale_D = 0.0, np.where(pair_D, scale, 1.0)
            for part, cross_D in zip(sums, cross, strict=True):
                weight_D = _solve(whole.gram_DD - part.gram_DD, centred_D - cross_D, scale_D, penalty)
                found += float(weight_D @ part.gram_DD @ weight_D - 2 * weight_D @ cross_D)
            return found

        penalties = {penalty: loss(0.12, penalty) for penalty in PENALTIES}
        for _ in range(2):
            penalty = min(penalties, key=penalties.__getitem__)
            losses = {scale: loss(scale, penalty) for scale in SCALES}
            scale = min(losses, key=losses.__getitem__)
            penalties = {penalty: loss(scale, penalty) for penalty in PENALTIES}
        penalty = min(penalties, key=penalties.__getitem__)
        return cls(scale_D=np.where(pair_D, scale, 1.0), penalty=penalty, chosen_scale=scale)

    def __call__(self, sums: _Sums, draws: int = DRAWS) -> Posterior:
        centred_D = sums.centred_RD[0]
        mean_D = _solve(sums.gram_DD, centred_D, self.scale_D, self.penalty)
        left = sums.spread_R[0] - 2 * mean_D @ centred_D + mean_D @ sums.gram_DD @ mean_D
        live = self.scale_D > 0
        s = self.scale_D[live]
        lower = np.linalg.cholesky(sums.gram_DD[np.ix_(live, live)] * s[:, None] * s + self.penalty * np.eye(len(s)))
        random_DS = np.random.default_rng(0).standard_normal((len(s), draws))
        draws_SD = np.tile(mean_D, (draws, 1))
        draws_SD[:, live] += np.sqrt(left / max(sums.rows - 1, 1)) * np.linalg.solve(lower.T, random_DS).T * s
        return Posterior(mean_D=mean_D, draws_SD=draws_SD)

    def scales(self, _: Posterior) -> dict[str, float]:
        """The prior scale of each group."""
        return {"base": 1.0, "pairs": self.chosen_scale}


def _solve(gram_DD: Floats, cross_D: Floats, scale_D: Floats, penalty: float) -> Floats:
    live = scale_D > 0
    s = scale_D[live]
    weight_D = np.zeros(len(scale_D))
    weight_D[live] = s * np.linalg.solve(gram_DD[np.ix_(live, live)] * s[:, None] * s + penalty * np.eye(len(s)), s * cross_D[live])
    return weight_D
