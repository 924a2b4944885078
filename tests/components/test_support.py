"""Who is unlike the training rows: together, or in one value; and who is not."""

import numpy as np
import pytest

from components.support import Support
from components.tensors import Scaler
from features.feature import Floats

MODALITIES = ("history",) * 6


@pytest.fixture(scope="module")
def training() -> Floats:
    """2,000 rows of six correlated features, a fifth of the values missing."""
    dice = np.random.default_rng(0)
    common = dice.normal(size=(2000, 1))
    x_NF = 50 + 10 * (0.8 * common + 0.6 * dice.normal(size=(2000, 6)))
    x_NF[dice.random(x_NF.shape) < 0.2] = np.nan
    return x_NF


@pytest.fixture(scope="module")
def support(training: Floats) -> Support:
    return Support.fit(training, Scaler.fit(training, MODALITIES))  # type: ignore[arg-type]


def test_patients_of_the_same_population_are_rarely_refused(support: Support) -> None:
    dice = np.random.default_rng(1)
    common = dice.normal(size=(4000, 1))
    x_NF = 50 + 10 * (0.8 * common + 0.6 * dice.normal(size=(4000, 6)))
    x_NF[dice.random(x_NF.shape) < 0.2] = np.nan
    assert support.outside(x_NF).mean() < 0.02


def test_every_patient_far_away_is_refused(support: Support, training: Floats) -> None:
    assert support.outside(training[:500] + 80).all()


def test_one_value_far_beyond_any_seen_is_enough(support: Support) -> None:
    x_NF = np.full((1, 6), 50.0)
    assert not support.outside(x_NF).any()
    x_NF[0, 2] = 200
    assert support.outside(x_NF).all()


def test_values_that_never_go_together_are_refused_although_each_alone_is_common(support: Support) -> None:
    together, against = np.full((1, 6), 68.0), np.array([[68.0, 32.0, 68.0, 32.0, 68.0, 32.0]])
    assert not support.outside(together).any()
    assert support.outside(against).all()


def test_knowing_nothing_of_a_patient_is_not_being_unlike(support: Support) -> None:
    assert not support.outside(np.full((1, 6), np.nan)).any()
