"""Comparability on worlds made by hand: weights balance what is measured, and a negative control tells what is not."""

import numpy as np
import pytest

from components.balance import comparability, differences, effective_sizes, equipoise, negative_control, overlap_weights
from components.tensors import Training, folds
from features.feature import Floats


def given(n: int, strength: float, hidden: float = 0.0, seed: int = 0) -> tuple[Training, Floats, Floats]:
    """Three options given by a measured x and a hidden u; rows, the propensity by x, and u."""
    rng = np.random.default_rng(seed)
    x_N, u_N = rng.normal(size=n), rng.normal(size=n)
    logit_NK = strength * x_N[:, None] * np.array([0.0, 1.0, -1.0]) + hidden * u_N[:, None] * np.array([0.0, 1.0, -1.0])
    p_NK = np.exp(logit_NK) / np.exp(logit_NK).sum(1, keepdims=True)
    option_N = (rng.random(n)[:, None] > p_NK.cumsum(1)).sum(1).clip(0, 2)
    measured_NK = np.exp(strength * x_N[:, None] * np.array([0.0, 1.0, -1.0]))
    data = Training(
        x_NF=np.stack([x_N, rng.normal(size=n)], axis=1),
        names=("x", "noise"),
        modality_F=("history", "history"),
        options=3,
        targets=3,
        option_N=option_N,
        target_N=rng.normal(size=n),
        fold_N=folds(n),
    )
    return data, measured_NK / measured_NK.sum(1, keepdims=True), u_N


def test_weights_balance_what_prescribers_went_by() -> None:
    data, e_NK, _ = given(6000, 1.0)
    found = differences(data, e_NK)
    assert max(d.before for d in found if d.feature == "x") > 0.8
    assert max(d.after for d in found) < 0.2
    assert max(d.low for d in found) < 0.05


def test_without_the_right_propensity_the_imbalance_is_named() -> None:
    data, e_NK, _ = given(6000, 1.0)
    wrong_NK = np.full_like(e_NK, 1 / 3)
    worst = max(differences(data, wrong_NK), key=lambda d: d.low)
    assert worst.feature == "x" and worst.low > 0.1 and worst.options == (1, 2)
    told = comparability(("a", "b", "c"), data, wrong_NK, {}, 0.02)
    assert told["weighted_smd_worst"] == "x, b against c" and told["weighted_smd_surely_above"] == worst.low


def test_a_difference_by_chance_is_not_surely_above_anything() -> None:
    data, e_NK, _ = given(200, 0.0)
    found = differences(data, e_NK)
    assert max(d.after for d in found) > 0.1  # 70 of an option: a tenth of a spread is chance
    assert max(d.low for d in found) == 0


def test_who_is_known_may_be_unbalanced_as_well() -> None:
    data, e_NK, _ = given(4000, 0.0)
    data.x_NF[(data.option_N == 1), 1] = np.where(np.arange((data.option_N == 1).sum()) % 2, np.nan, 0.0)
    assert max(differences(data, e_NK), key=lambda d: d.low).feature == "noise known"


def test_overlap_weights_are_the_harmonic_mean() -> None:
    assert overlap_weights(np.array([[0.5, 0.5], [0.2, 0.8]])) == pytest.approx([0.25, 0.16])


def test_effective_sizes_shrink_with_the_weights() -> None:
    data, e_NK, _ = given(3000, 1.5)
    counts = np.bincount(data.option_N)
    assert (effective_sizes(data, e_NK, 0.02) < counts).all()
    assert effective_sizes(data, np.full_like(e_NK, 1 / 3), 0.02) == pytest.approx(counts)


def test_equipoise_is_whole_where_lots_are_drawn_and_small_where_everybody_is_told() -> None:
    assert all(share == 1 for share in equipoise(*given(3000, 0.0)[:2]).values())
    told = equipoise(*given(3000, 4.0)[:2])
    assert told[(1, 2)] < 0.2


@pytest.mark.parametrize("seed", range(5))
def test_a_control_that_follows_measured_traits_only_passes(seed: int) -> None:
    data, e_NK, _ = given(3000, 1.0, 0.5, seed)
    control = negative_control("c", 3 * data.x_NF[:, 0] + np.random.default_rng(1000 + seed).normal(size=3000), data, e_NK)
    assert control is not None and control.p > 0.01


def test_a_control_that_follows_what_is_hidden_fails_and_says_between_whom() -> None:
    data, e_NK, u_N = given(3000, 1.0, 0.5)
    control = negative_control("c", u_N + np.random.default_rng(1).normal(size=3000), data, e_NK)
    assert control is not None and control.p < 1e-6 and set(control.options) == {1, 2}
    assert control.low < control.largest < control.high and control.low * control.high > 0


def test_the_test_of_a_control_fails_as_often_as_it_says() -> None:
    p = []
    for seed in range(200):
        data, e_NK, _ = given(400, 0.7, 0.5, seed)
        control = negative_control("c", data.x_NF[:, 0] + np.random.default_rng(1000 + seed).normal(size=400), data, e_NK)
        assert control is not None
        p.append(control.p)
    assert 0.01 <= np.mean(np.array(p) < 0.05) <= 0.10


@pytest.mark.parametrize(("shape", "propensity", "passes"), [("line", "flat", True), ("bowl", "right", True), ("bowl", "flat", False)])
def test_it_is_enough_that_either_the_propensity_or_the_line_is_right(shape: str, propensity: str, passes: bool) -> None:
    p = []
    for seed in range(20):
        data, right_NK, _ = given(2000, 1.0, seed=seed)
        x_N = data.x_NF[:, 0]
        told_N = (x_N if shape == "line" else x_N**2) + np.random.default_rng(1000 + seed).normal(size=2000)
        control = negative_control("c", told_N, data, right_NK if propensity == "right" else np.full_like(right_NK, 1 / 3))
        assert control is not None
        p.append(control.p)
    assert np.mean(np.array(p) < 0.01) <= 0.1 if passes else max(p) < 1e-3


def test_an_option_that_hardly_anybody_was_given_is_left_out_of_the_test() -> None:
    data, e_NK, u_N = given(3000, 1.0, 0.5)
    rare = (data.option_N == 0) & (np.cumsum(data.option_N == 0) > 20)
    control = negative_control("c", np.where(rare, np.nan, u_N + np.random.default_rng(1).normal(size=3000)), data, e_NK)
    assert control is not None and control.options in ((1, 2), (2, 1)) and control.p < 1e-6
    calm = negative_control("c", np.where(rare, np.nan, np.random.default_rng(1).normal(size=3000)), data, e_NK)
    assert calm is not None and calm.p > 0.01


def test_a_control_that_is_the_same_in_all_says_nothing_and_one_that_is_no_number_counts_as_not_measured() -> None:
    data, e_NK, u_N = given(3000, 1.0, 0.5)
    for value in (0.0, 7.3):
        assert negative_control("c", np.full(3000, value), data, e_NK) is None
    broken_N, missing_N = u_N.copy(), u_N.copy()
    broken_N[5], missing_N[5] = np.inf, np.nan
    assert negative_control("c", broken_N, data, e_NK) == negative_control("c", missing_N, data, e_NK)


def test_a_control_that_hardly_anybody_has_says_nothing() -> None:
    data, e_NK, u_N = given(300, 1.0)
    assert negative_control("c", np.where(np.arange(300) < 20, u_N, np.nan), data, e_NK) is None
