"""From the members' predictions to effects: expected outcome under each option, every pairwise difference with an interval, overlap.

The blend is learned out of fold. Effects and level have weights of their own: a member may be good at prognosis and poor at telling
options apart. "The same effect for everybody" is always a candidate, so that the blend need not personalise where nothing is to be gained.

Axis suffixes: N rows, K options, T targets (K, or 1 for dose finding), J members.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.optimize import nnls
from threadpoolctl import threadpool_limits

from components.decision import Decision, untransform
from components.overlap import Overlap, Propensity
from components.support import Support
from components.tensors import FOLDS, Scaler, Training
from features.feature import Floats

LEVEL = 0.95
QUANTILES = np.linspace(0.0125, 0.9875, 40)
# The ridge's effects are shrunk already, so on few rows the blend starts from them: prior spread of the weights about 1 for this member and
# 0 for the others. Wide for other families of models, for effects may be anything but straight: trees then take over in a few hundred rows.
# Narrow for the constant effect, towards which the ridge has shrunk by what it saw: let free, it takes half the weight on 2,000 rows of the
# simulated world and costs 0.3 mmol/mol of regret.
TRUSTED, OF_MEMBERS, OF_CONSTANT = "ridge", 0.5, 0.1
CLIP = 0.02  # smallest propensity that a weight is made of

Predictions = Mapping[str, Floats]  # member -> N by T


@dataclass(frozen=True, kw_only=True)
class Effects:
    """What each option would do, in the outcome's unit. `difference_NKK[n, k, l]` is outcome k minus l, `sd_NKK` its uncertainty."""

    outcome_NK: Floats
    sd_NKK: Floats
    overlap_NK: Floats
    dose_N: Floats | None = None
    families: Mapping[str, Floats] | None = None  # outcome_NK by each model family alone
    for_all: bool = False  # the gate found no gain in choosing by patient: the order of the means stands for everybody

    @property
    def difference_NKK(self) -> Floats:
        """Outcome of the first option minus that of the second."""
        return self.outcome_NK[:, :, None] - self.outcome_NK[:, None, :]

    def among(self, rows_N: np.typing.NDArray[np.bool_]) -> "Effects":
        """The same effects in the rows of a mask, which are all that it holds; NaN in the others."""

        def at(found: Floats) -> Floats:
            whole = np.full((len(rows_N), *found.shape[1:]), np.nan)
            whole[rows_N] = found
            return whole

        return replace(
            self,
            outcome_NK=at(self.outcome_NK),
            sd_NKK=at(self.sd_NKK),
            overlap_NK=at(self.overlap_NK),
            dose_N=None if self.dose_N is None else at(self.dose_N),
            families=None if self.families is None else {name: at(found) for name, found in self.families.items()},
        )

    def interval(self, level: float = LEVEL) -> tuple[Floats, Floats]:
        """Lower and upper bound of every pairwise difference."""
        half_NKK = NormalDist().inv_cdf(0.5 + level / 2) * self.sd_NKK
        return self.difference_NKK - half_NKK, self.difference_NKK + half_NKK


@dataclass(kw_only=True)
class Blend:
    """How the members are put together, and how far to trust the result."""

    members: tuple[str, ...]
    level_J: Floats
    effect_J: Floats  # one more than members: the last is the constant effect
    constant_K: Floats
    residual_Q: Floats  # quantiles of what is left unexplained, on the modelled scale
    overlap: Overlap | None = None
    support: Support | None = None
    for_all_KK: Floats | None = None  # set by `for_all`: the error of every mean difference

    def for_all(self, aipw_NK: Floats) -> "Blend":
        """The same blend with one effect for everybody: the mean difference of doubly robust scores, and its error."""
        score_NK = aipw_NK[~np.isnan(aipw_NK).any(1)]
        difference_NKK = score_NK[:, :, None] - score_NK[:, None, :]
        alone_J = np.eye(len(self.effect_J))[-1]
        mean_K = score_NK.mean(0)
        error_KK = difference_NKK.std(0) / np.sqrt(len(score_NK))
        return replace(self, effect_J=alone_J, constant_K=mean_K - mean_K.mean(), for_all_KK=error_KK)

    def compared(self) -> "Blend":
        """The same blend for rows whose options are only compared with each other, or whose dose is: it gives the same differences.

        Without the level, which cancels, without members that have no weight in them, and without overlap.
        """
        dose = not len(self.effect_J)
        weight_J = self.level_J if dose else self.effect_J[: len(self.members)]
        kept = [j for j, weight in enumerate(weight_J) if weight > 0] or [0]
        return replace(
            self,
            members=tuple(self.members[j] for j in kept),
            level_J=self.level_J[kept] if dose else np.zeros(len(kept)),
            effect_J=self.effect_J if dose else self.effect_J[[*kept, -1]],
            overlap=None,
            support=None,
        )

    def target(self, predictions: Predictions) -> Floats:
        """Blended targets, N by T."""
        stack_JNT = np.stack([predictions[name] for name in self.members])
        if stack_JNT.shape[2] == 1:
            return np.einsum("j,jnt->nt", self.level_J, stack_JNT)
        base_N = np.einsum("j,jn->n", self.level_J, stack_JNT.mean(2))
        effect_JNK = _centred(stack_JNT, self.constant_K)
        return base_N[:, None] + np.einsum("j,jnk->nk", self.effect_J, effect_JNK)

    def spread(self, predictions: Predictions, covariance_NTT: Floats) -> Floats:
        """Standard deviation of every difference between targets (or of the one target), N by T by T."""
        stack_JNT = np.stack([predictions[name] for name in self.members])
        if stack_JNT.shape[2] == 1:
            off_JN = stack_JNT[..., 0] - self.target(predictions)[:, 0]
            disagreement_N = np.einsum("j,jn->n", self.level_J, off_JN**2)
            return np.sqrt(np.maximum(covariance_NTT[:, 0, 0], 0) + disagreement_N)[:, None, None]
        if self.for_all_KK is not None:
            return np.broadcast_to(self.for_all_KK, (stack_JNT.shape[1], *self.for_all_KK.shape)).copy()
        effect_JNK = _centred(stack_JNT, self.constant_K)
        pair_JNKK = effect_JNK[:, :, :, None] - effect_JNK[:, :, None, :]
        mean_NKK = np.einsum("j,jnkl->nkl", self.effect_J, pair_JNKK)
        disagreement_NKK = np.einsum("j,jnkl->nkl", self.effect_J, (pair_JNKK - mean_NKK) ** 2)
        variance_NK = np.einsum("nkk->nk", covariance_NTT)
        posterior_NKK = variance_NK[:, :, None] + variance_NK[:, None, :] - 2 * covariance_NTT
        return np.sqrt(np.maximum(posterior_NKK, 0) + disagreement_NKK)

    def effects(self, decision: Decision, predictions: Predictions, covariance_NTT: Floats, x_NF: Floats) -> Effects:
        """Effects of new rows."""
        assert self.overlap is not None or decision.outcome.kind == "dose"  # a choice between treatments needs overlap, a dose does not
        overlap_NK = None if self.overlap is None else self.overlap.predict(x_NF)
        found = self.differences(decision, predictions, covariance_NTT, overlap_NK)
        if self.for_all_KK is not None:
            return replace(found, for_all=True)
        return replace(found, families=families(decision, predictions, self.residual_Q))

    def differences(
        self, decision: Decision, predictions: Predictions, covariance_NTT: Floats, overlap_NK: Floats | None = None
    ) -> Effects:
        """What of the effects stands between options: without families, and, where none is given, without overlap."""
        target_NT, sd_NTT = self.target(predictions), self.spread(predictions, covariance_NTT)
        return of_targets(decision, target_NT, sd_NTT, self.residual_Q, np.ones_like(target_NT) if overlap_NK is None else overlap_NK)

    def save(self, folder: Path) -> None:
        """`blend.safetensors` and `blend.json`."""
        arrays = {"level_J": self.level_J, "effect_J": self.effect_J, "constant_K": self.constant_K, "residual_Q": self.residual_Q}
        told: dict[str, object] = {"members": self.members}
        if self.for_all_KK is not None:
            arrays["for_all_KK"] = self.for_all_KK
        if self.overlap is not None:
            self.overlap.save(folder)
            told["modality_F"] = self.overlap.smooth.scaler.modality_F
        if self.support is not None:
            self.support.save(folder)
            told["support_modality_F"] = self.support.scaler.modality_F
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "blend.safetensors")
        (folder / "blend.json").write_text(json.dumps(told), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Blend":
        """The blend that `save` wrote."""
        a, told = load_file(folder / "blend.safetensors"), json.loads((folder / "blend.json").read_text(encoding="utf-8"))
        overlap = Overlap.load(folder, tuple(told["modality_F"])) if "modality_F" in told else None
        support = Support.load(folder, tuple(told["support_modality_F"])) if "support_modality_F" in told else None
        return cls(
            members=tuple(told["members"]),
            level_J=a["level_J"],
            effect_J=a["effect_J"],
            constant_K=a["constant_K"],
            residual_Q=a["residual_Q"],
            overlap=overlap,
            support=support,
            for_all_KK=a.get("for_all_KK"),
        )


@dataclass(frozen=True, kw_only=True)
class CrossFitted:
    """Out-of-fold results for every training row: nothing in row n has seen the outcome of row n."""

    target_NT: Floats
    propensity_NK: Floats
    aipw_NK: Floats  # doubly robust score of every option; NaN where not observed. Empty for dose finding


def fit(training: Training, oof: Predictions) -> tuple[Blend, CrossFitted]:
    """Blend the members' out-of-fold predictions; the blend that predicts a fold is learned on the other folds.

    One thread: the same bits anywhere.
    """
    with threadpool_limits(1):
        return _fit(training, oof)


def _fit(training: Training, oof: Predictions) -> tuple[Blend, CrossFitted]:
    members = tuple(oof)
    if training.targets == 1:
        return _fit_dose(training, members, oof)
    propensity_NK = cross_propensity(training)
    everything = np.ones(len(training), bool)
    whole = _weights(training, members, oof, propensity_NK, everything & training.observed_N)
    target_NT = np.zeros((len(training), training.targets))
    for fold in range(FOLDS):
        held = training.fold_N == fold
        blend = _weights(training, members, oof, propensity_NK, ~held & training.observed_N)
        target_NT[held] = blend.target({name: oof[name][held] for name in members})
    aipw_NK = _aipw(training, target_NT, propensity_NK)
    residual_N = training.target_N - np.take_along_axis(target_NT, training.option_N[:, None], 1)[:, 0]
    whole.residual_Q = np.nanquantile(residual_N, QUANTILES)
    whole.overlap = Overlap.fit(training, everything)
    whole.support = Support.fit(training.x_NF, whole.overlap.smooth.scaler)
    return whole, CrossFitted(target_NT=target_NT, propensity_NK=propensity_NK, aipw_NK=aipw_NK)


def _fit_dose(training: Training, members: tuple[str, ...], oof: Predictions) -> tuple[Blend, CrossFitted]:
    stack_JN = np.stack([oof[name][:, 0] for name in members])
    seen_N, target_NT = training.observed_N, np.zeros((len(training), 1))
    for fold in range(FOLDS):
        held = training.fold_N == fold
        weight_J = _simplex(stack_JN[:, ~held & seen_N].T, training.target_N[~held & seen_N])
        target_NT[held, 0] = weight_J @ stack_JN[:, held]
    blend = Blend(
        members=members,
        level_J=_simplex(stack_JN[:, seen_N].T, training.target_N[seen_N]),
        effect_J=np.zeros(0),
        constant_K=np.zeros(0),
        residual_Q=np.nanquantile(training.target_N - target_NT[:, 0], QUANTILES),
        support=Support.fit(training.x_NF, Scaler.fit(training.x_NF, training.modality_F)),
    )
    return blend, CrossFitted(target_NT=target_NT, propensity_NK=np.ones((len(training), training.options)), aipw_NK=np.zeros((0, 0)))


def _weights(training: Training, members: tuple[str, ...], oof: Predictions, e_NK: Floats, rows: np.typing.NDArray[np.bool_]) -> Blend:
    """Level by least squares on what was given; effects by the residual-on-residual loss, with the constant effect as a candidate."""
    stack_JNT = np.stack([oof[name][rows] for name in members])
    option_N, y_N, e_NK = training.option_N[rows], training.target_N[rows], e_NK[rows]
    factual_NJ = np.take_along_axis(stack_JNT, option_N[None, :, None], 2)[:, :, 0].T
    level_J = _simplex(factual_NJ, y_N)
    expected_N = np.einsum("j,jnk,nk->n", level_J, stack_JNT, e_NK)
    given_NK = np.eye(training.options)[option_N] - e_NK
    constant_K = np.linalg.lstsq(given_NK, y_N - expected_N, rcond=None)[0]
    constant_K = constant_K - constant_K.mean()
    contrast_NJ = np.einsum("jnk,nk->nj", _centred(stack_JNT, constant_K), given_NK)
    if TRUSTED in members:  # rows that stand for what is believed before any data, in units of the noise
        noise = float(np.std(y_N - factual_NJ @ level_J))
        prior_JJ = noise * np.diag([1 / OF_MEMBERS] * len(members) + [1 / OF_CONSTANT])
        contrast_NJ, expected_N, y_N = (
            np.vstack([contrast_NJ, prior_JJ]),
            np.append(expected_N, np.zeros(len(prior_JJ))),
            np.append(y_N, prior_JJ[members.index(TRUSTED)]),
        )
    effect_J = _simplex(contrast_NJ, y_N - expected_N)
    return Blend(members=members, level_J=level_J, effect_J=effect_J, constant_K=constant_K, residual_Q=np.zeros(0))


def _centred(stack_JNT: Floats, constant_K: Floats) -> Floats:
    """Each member's effects about their mean over the options, and last the constant effect: J+1 by N by K."""
    centred_JNK = stack_JNT - stack_JNT.mean(2, keepdims=True)
    return np.concatenate([centred_JNK, np.broadcast_to(constant_K, centred_JNK[:1].shape)])


def _simplex(columns_NJ: Floats, y_N: Floats) -> Floats:
    """Non-negative weights that sum to 1, by least squares."""
    heavy = 1e4 * np.sqrt(len(y_N)) * max(float(np.abs(y_N).mean()), 1e-6)
    weight_J, _ = nnls(np.vstack([columns_NJ, np.full(columns_NJ.shape[1], heavy)]), np.append(y_N, heavy))
    return np.asarray(weight_J / weight_J.sum())


def _aipw(training: Training, target_NT: Floats, e_NK: Floats) -> Floats:
    """Doubly robust score of every option: its mean over rows estimates the mean outcome had everybody been given it."""
    given_NK = np.eye(training.options)[training.option_N]
    score_NK = target_NT + given_NK / np.maximum(e_NK, CLIP) * (training.target_N[:, None] - target_NT)
    return np.where(training.observed_N[:, None], score_NK, np.nan)


def cross_propensity(training: Training) -> Floats:
    e_NK = np.zeros((len(training), training.options))
    for fold in range(FOLDS):
        held = training.fold_N == fold
        e_NK[held] = Propensity.fit(training, ~held).predict(training.x_NF[held])
    return e_NK


def of_targets(decision: Decision, target_NT: Floats, sd_NTT: Floats, residual_Q: Floats, overlap_NK: Floats) -> Effects:
    """Effects from targets and their uncertainty; of a dose, overlap is not looked at."""
    if decision.outcome.kind == "dose":
        return dose_effects(decision, target_NT[:, 0], sd_NTT[:, 0, 0], residual_Q)
    return Effects(outcome_NK=target_NT, sd_NKK=sd_NTT, overlap_NK=overlap_NK)


def families(decision: Decision, predictions: Predictions, residual_Q: Floats) -> dict[str, Floats]:
    """Outcome of every option as each family alone expects it, N by K: where two of them put another option first, nobody is to choose."""
    if decision.outcome.kind != "dose":
        return dict(predictions)
    return {name: _distance(decision, target_NT[:, 0], residual_Q) for name, target_NT in predictions.items()}


def dose_effects(decision: Decision, target_N: Floats, sd_N: Floats, residual_Q: Floats) -> Effects:
    """Expected distance of each option's dose from the right one, over what the model leaves open; uncertainty by moving the prediction."""

    low_NK, high_NK = (_distance(decision, at_N, residual_Q) for at_N in (target_N - sd_N, target_N + sd_N))
    swing_NK = high_NK - low_NK
    outcome_NK = _distance(decision, target_N, residual_Q)
    return Effects(
        outcome_NK=outcome_NK,
        sd_NKK=np.abs(swing_NK[:, :, None] - swing_NK[:, None, :]) / 2,
        overlap_NK=np.ones_like(outcome_NK),  # the right dose tells the outcome of every band: nothing is extrapolated between options
        dose_N=np.asarray(untransform(decision, target_N)),
    )


def _distance(decision: Decision, target_N: Floats, residual_Q: Floats) -> Floats:
    """Expected distance of each option's dose from the right one, N by K."""
    dose_NQ = untransform(decision, target_N[:, None] + residual_Q)
    option_K = np.array([option.dose_mg_week for option in decision.options.values()])
    return np.asarray(np.abs(option_K[None, :, None] - dose_NQ[:, None, :]).mean(2))
