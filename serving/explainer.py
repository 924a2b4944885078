"""Where an expected outcome comes from: what every feature adds to it under every option, and with all others gives it exactly.

The blend is linear in its members, so their contributions are blended by the same weights: the ridge member's are its own terms, the
trees' are exact TreeSHAP values (Lundberg et al. 2020, in XGBoost), the network's are integrated gradients (Sundararajan et al. 2017)
from values at the training mean. What the integral leaves over, a modality that is absent as a whole, and the newest facts that the network
reads one after another stand in the base.

Axis suffixes: N patients, F features, K options, T targets (K, or 1 for dose finding), P columns of the ridge member, E members.
"""

from collections.abc import Sequence

import numpy as np

from components.bundle import Bundle
from components.models.fusion import Fusion
from components.models.ridge import Ridge
from components.models.trees import Trees
from features.feature import Floats
from serving.schema import Explanation, FeatureShare

STEPS = 16  # of the integral


def shares(bundle: Bundle, x_NF: Floats) -> tuple[Floats, Floats]:
    """What each tabular feature adds to each target, N by T by F, and the targets themselves, N by T, on the modelled scale."""
    x_NF, events_NLC = bundle.decision.split(x_NF)
    fusion_NTF = _fusion(bundle.fusion, x_NF, events_NLC)
    by_member = {"ridge": _ridge(bundle.ridge, x_NF), "trees": _trees(bundle.trees, x_NF), "fusion": fusion_NTF}
    stack_JNTF, blend = np.stack([by_member[name] for name in bundle.blend.members]), bundle.blend
    predictions = {"ridge": bundle.ridge.predict(x_NF), "trees": bundle.trees.predict(x_NF)}
    predictions["fusion"] = bundle.fusion.predict(x_NF, events_NLC)
    level_NF = np.einsum("j,jntf->nf", blend.level_J, stack_JNTF) / stack_JNTF.shape[2]
    if stack_JNTF.shape[2] == 1:
        return level_NF[:, None, :], blend.target(predictions)
    centred_JNTF = stack_JNTF - stack_JNTF.mean(2, keepdims=True)
    return level_NF[:, None, :] + np.einsum("j,jntf->ntf", blend.effect_J[:-1], centred_JNTF), blend.target(predictions)


def explain(bundle: Bundle, x_NF: Floats, as_of: Sequence[str], request_id: str) -> list[Explanation]:
    """An explanation for each row. Of a dose it is on the modelled scale, where contributions add up."""
    decision, (share_NTF, target_NT) = bundle.decision, shares(bundle, x_NF)
    dose = decision.outcome.kind == "dose"
    names = ("dose",) if dose else tuple(decision.option_names)
    unit = f"modelled scale of {decision.outcome.unit}" if dose else decision.outcome.unit
    told = []
    for x_F, share_TF, target_T, when in zip(x_NF, share_NTF, target_NT, as_of, strict=True):
        modality = np.array([feature.modality for feature in decision.tabular])
        by_modality = {m: _named(names, share_TF[:, modality == m].sum(1)) for m in dict.fromkeys(modality.tolist())}
        found = [
            FeatureShare(
                feature=feature.name,
                modality=feature.modality,
                meaning=feature.meaning,
                value=None if np.isnan(x_F[f]) else float(x_F[f]),
                by_option=_named(names, share_TF[:, f]),
            )
            for f in np.argsort(-np.abs(share_TF).max(0), kind="stable")
            for feature in (decision.tabular[int(f)],)
        ]
        told.append(
            Explanation(
                decision=decision.name,
                model_version=bundle.version,
                as_of=when,
                unit=unit,
                base=_named(names, target_T - share_TF.sum(1)),
                outcome=_named(names, target_T),
                by_modality=by_modality,
                contributions=tuple(found),
                request_id=request_id,
            )
        )
    return told


def _named(names: Sequence[str], value_T: Floats) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, value_T, strict=True)}


def _ridge(model: Ridge, x_NF: Floats) -> Floats:
    """Each column's own terms, summed over the columns that a feature is expanded to; a product of two is halved between them."""
    phi_NP = model._columns(x_NF)
    size, expansion = phi_NP.shape[1], model.expansion
    weight_TP = model.weight_D[None, :size]
    if model.targets > 1:
        weight_TP = weight_TP + model.weight_D[size + model.targets :].reshape(model.targets, size)
    of_P = [*range(x_NF.shape[1]), *expansion.missing, *(f for f in expansion.bent for _ in range(2))]
    belongs_PF = np.zeros((size, x_NF.shape[1]))
    belongs_PF[np.arange(len(of_P)), of_P] = 1.0
    for p, (i, j) in enumerate(expansion.pairs, len(of_P)):
        belongs_PF[p, [i, j]] += 0.5
    return np.einsum("np,tp,pf->ntf", phi_NP, weight_TP, belongs_PF, optimize=True)


def _trees(model: Trees, x_NF: Floats) -> Floats:
    """TreeSHAP values, mean of the boosters; what the option's own columns add belongs to the base of that option."""
    import xgboost

    from components.models.trees import _columns, _inputs

    rows, options = (x_NF, 1) if model.targets == 1 else (np.repeat(x_NF, model.options, axis=0), model.options)
    option_N = np.tile(np.arange(options), len(x_NF))
    names = list(_columns(model.names, model.options, model.targets))
    data = xgboost.DMatrix(_inputs(rows, option_N, model.options, model.targets), feature_names=names, nthread=1)
    found = model.merged.predict(data, pred_contribs=True)
    return np.asarray(found[:, : x_NF.shape[1]].reshape(len(x_NF), options, -1), np.float64)


def _fusion(model: Fusion, x_NF: Floats, events_NLC: Floats | None) -> Floats:
    """Integrated gradients of the members' mean, along the straight line to the scaled values and their masks; the newest facts stay."""
    import torch

    from components.models.fusion import inputs, widths
    from features.feature import MODALITIES

    given, present = inputs(model.scaler, x_NF, model.words, events_NLC)
    given, facts = given[: len(widths(model.scaler))], given[len(widths(model.scaler)) :]
    size = len(x_NF)
    step_S = (torch.arange(STEPS) + 0.5) / STEPS
    lines = [(x[None] * step_S[:, None, None]).reshape(-1, x.shape[1]).requires_grad_() for x in given]
    predicted, _, _ = model.network([*lines, *(x.repeat(STEPS, 1) for x in facts)], present.T.repeat(1, STEPS))
    spread_E = torch.from_numpy(model.spread_E).float()
    mean_NT = (predicted * spread_E[:, None, None]).mean(0)
    found_NTF = np.zeros((size, mean_NT.shape[1], x_NF.shape[1]))
    modality_F = np.array(model.scaler.modality_F)
    places = [np.flatnonzero(modality_F == name) for name in MODALITIES if (modality_F == name).any()]
    for t in range(mean_NT.shape[1]):
        gradients = torch.autograd.grad(mean_NT[:, t].sum(), lines, retain_graph=True)
        for place, gradient, x in zip(places, gradients, given, strict=True):
            both = (gradient.reshape(STEPS, size, -1).mean(0) * x).numpy().astype(np.float64)
            found_NTF[:, t, place] = both[:, : len(place)] + both[:, len(place) :]
    return found_NTF
