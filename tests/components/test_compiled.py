"""The network as arrays gives the numbers of the network that was trained, to 1e-5, whatever is missing."""

import numpy as np
import pytest
import torch
from worlds import F, world

from components.models import fusion_training
from components.models.fusion import FEW, Fusion, Settings, inputs
from components.tensors import Training
from features.feature import Floats

TRAINING, _ = world()


def trained(dose: bool) -> Fusion:
    data = TRAINING if not dose else Training(**{**vars(TRAINING), "targets": 1})
    return fusion_training.fit(data, Settings(epochs=2, width=8))


def network(member: Fusion, x_NF: Floats) -> Floats:
    given, present = inputs(member.scaler, x_NF)
    with torch.inference_mode():
        predicted_ENT = member.network(given, present.T)[0].double().numpy()
    return predicted_ENT * member.spread_E[:, None, None] + member.center_E[:, None, None]


@pytest.mark.parametrize("dose", [False, True], ids=["options", "dose"])
def test_few_rows_are_predicted_as_the_network_predicts_them(dose: bool) -> None:
    member, dice = trained(dose), np.random.default_rng(0)
    x_NF = TRAINING.x_NF[:FEW].copy()
    modality_F = np.array(TRAINING.modality_F)
    for n, absent in enumerate(dict.fromkeys(modality_F.tolist())):
        x_NF[np.ix_(np.arange(n, FEW, 4), modality_F == absent)] = np.nan
    x_NF[dice.random(x_NF.shape) < 0.2] = np.nan
    x_NF[-1], x_NF[-2] = np.nan, 1e6 * np.ones(F)
    wanted_ENT = network(member, x_NF)
    np.testing.assert_allclose(member.members(x_NF), wanted_ENT, rtol=1e-5, atol=1e-5 * np.abs(wanted_ENT).max())
    for n in range(FEW - 8, FEW):
        np.testing.assert_allclose(member.members(x_NF[n : n + 1]), wanted_ENT[:, [n]], rtol=1e-5, atol=1e-5 * np.abs(wanted_ENT).max())
    again = member.members(np.concatenate([x_NF, x_NF]))  # more than a few: the network itself
    np.testing.assert_allclose(again[:, :FEW], wanted_ENT, rtol=1e-5, atol=1e-5 * np.abs(wanted_ENT).max())
