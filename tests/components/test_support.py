"""Who is unlike the training rows: together, or in one value; and who is not."""

from pathlib import Path

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


def test_carriers_of_a_rare_variant_are_inside_and_do_not_hide_values_that_nobody_has(training: Floats) -> None:
    """One in a hundred carries each variant; six measured values three spreads away, each to its own side, are still unlike everybody."""
    dice = np.random.default_rng(2)
    known = np.where(np.isnan(training), 50.0, training)
    rare = (dice.random((2000, 8)) < 0.01).astype(float)
    support = Support.fit(np.hstack([known, rare]), Scaler.fit(np.hstack([known, rare]), MODALITIES + ("genomics",) * 8))  # type: ignore[arg-type]
    carriers = np.hstack([known, rare])[rare.sum(1) == 1]
    assert support.outside(carriers).mean() < 0.03
    apart = np.full((1, 14), 0.0)
    apart[0, :6] = [80, 20, 80, 20, 80, 20]
    assert support.outside(apart).all()


def test_a_support_that_was_saved_judges_alike(support: Support, training: Floats, tmp_path: Path) -> None:
    support.save(tmp_path)
    again = Support.load(tmp_path, support.scaler.modality_F)
    far = training + np.linspace(0, 60, len(training))[:, None]
    assert (again.outside(far) == support.outside(far)).all()
    assert 0 < support.outside(far).mean() < 1
