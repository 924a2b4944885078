"""From members to effects: weights that may only share, no personalising where nothing is to be gained, honest overlap."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import decision, effects
from components.effects import QUANTILES, Blend, CrossFitted, Effects
from components.tensors import Training, folds
from features.feature import Floats

N, F, K = 600, 4, 3
WARFARIN, GLUCOSE = decision.load("warfarin"), decision.load("glucose_lowering")


def world(strength: float = 1.0, seed: int = 0, options: int = K, rows: int = N) -> tuple[Training, Floats]:
    """Options that depend on the second feature; effects that cross over in the first, `strength` times."""
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(rows, F))
    slope_K = np.array([2.0, -2.0, 0.0])[:options]
    truth_NK = 3 * x_NF[:, [1]] + strength * x_NF[:, [0]] * slope_K + np.arange(options) * 0.5
    logit_NK = x_NF[:, [1]] * np.linspace(-0.7, 0.7, options)
    option_N = (logit_NK + rng.gumbel(size=logit_NK.shape)).argmax(1)
    target_N = truth_NK[np.arange(rows), option_N] + rng.normal(size=rows)
    training = Training(
        x_NF=x_NF,
        names=tuple(f"f{f}" for f in range(F)),
        modality_F=("history", "history", "genomics", "lifestyle"),
        options=options,
        targets=options,
        option_N=option_N,
        target_N=np.where(rng.random(rows) < 0.05, np.nan, target_N),
        fold_N=folds(rows),
    )
    return training, truth_NK


def opinions(truth_NK: Floats, seed: int = 1) -> dict[str, Floats]:
    """Three members: one near the truth, one that knows the prognosis alone, one that invents effects."""
    rng = np.random.default_rng(seed)
    level_NK = np.broadcast_to(truth_NK.mean(1, keepdims=True), truth_NK.shape)
    return {
        "near": truth_NK + 0.3 * rng.normal(size=truth_NK.shape),
        "prognosis": level_NK + 0.1 * rng.normal(size=truth_NK.shape),
        "noise": level_NK + 2.0 * rng.normal(size=truth_NK.shape),
    }


TRAINING, TRUTH_NK = world()
OOF = opinions(TRUTH_NK)


@pytest.fixture(scope="module")
def fitted() -> tuple[Blend, CrossFitted]:
    return effects.fit(TRAINING, OOF)


def loss(training: Training, outcome_NK: Floats) -> Floats:
    """Squared error of each observed outcome."""
    given_N = np.take_along_axis(outcome_NK, training.option_N[:, None], 1)[:, 0]
    return ((given_N - training.target_N) ** 2)[training.observed_N]


def centred(outcome_NK: Floats) -> Floats:
    return np.asarray(outcome_NK - outcome_NK.mean(1, keepdims=True))


# ------------------------------------------------------------------------------------------------------------------------------ the blend


def test_weights_are_shares(fitted: tuple[Blend, CrossFitted]) -> None:
    for weight_J in (fitted[0].level_J, fitted[0].effect_J):
        assert (weight_J >= 0).all()
        assert weight_J.sum() == pytest.approx(1)
    assert len(fitted[0].level_J) == 3
    assert len(fitted[0].effect_J) == 4  # the constant effect is a candidate of its own


@given(rows=st.integers(5, 60), members=st.integers(1, 5), scale=st.sampled_from([1e-3, 1.0, 1e4]), seed=st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_weights_are_shares_whatever_the_scale(rows: int, members: int, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    weight_J = effects._simplex(scale * rng.normal(size=(rows, members)), scale * rng.normal(size=rows))
    assert (weight_J >= 0).all()
    assert weight_J.sum() == pytest.approx(1)


def test_outcomes_that_are_all_zero_still_give_shares() -> None:
    weight_J = effects._simplex(np.random.default_rng(0).normal(size=(30, 3)), np.zeros(30))
    assert weight_J.sum() == pytest.approx(1)
    assert (weight_J >= 0).all()


def test_the_blend_is_not_worse_than_its_best_member_beyond_noise(fitted: tuple[Blend, CrossFitted]) -> None:
    blended_N = loss(TRAINING, fitted[1].target_NT)
    best_N = min((loss(TRAINING, oof_NT) for oof_NT in OOF.values()), key=lambda error_N: error_N.mean())
    gap_N = blended_N - best_N
    assert gap_N.mean() < 2 * gap_N.std() / np.sqrt(len(gap_N))


def test_the_member_that_knows_the_effects_carries_them(fitted: tuple[Blend, CrossFitted]) -> None:
    share = dict(zip((*fitted[0].members, "constant"), fitted[0].effect_J, strict=True))
    assert share["near"] > 0.7
    assert share["noise"] < 0.1


@pytest.mark.parametrize("seed", range(5))
def test_in_a_world_without_heterogeneity_nothing_is_personalised(seed: int) -> None:
    training, truth_NK = world(strength=0, seed=seed)
    rng = np.random.default_rng(seed + 100)
    invented = {name: truth_NK + rng.normal(size=truth_NK.shape) for name in ("a", "b")}
    blend, crossfit = effects.fit(training, invented)
    heterogeneity = (centred(crossfit.target_NT) - centred(crossfit.target_NT).mean(0)).std()
    assert blend.effect_J[-1] > 0.5 or heterogeneity < 0.3
    assert blend.target(invented) - blend.target(invented).mean(1, keepdims=True) == pytest.approx(centred(truth_NK), abs=1.5)


def test_constant_effects_that_the_members_miss_are_found() -> None:
    """Members that see no difference at all between options: the constant effect alone tells them apart."""
    training, truth_NK = world(strength=0, rows=3000)
    blind = {"blind": np.repeat(truth_NK.mean(1, keepdims=True), K, axis=1)}
    blend, _ = effects.fit(training, blind)
    assert blend.constant_K == pytest.approx([-0.5, 0.0, 0.5], abs=0.15)
    assert blend.effect_J[-1] == pytest.approx(1.0)


def test_on_few_rows_the_blend_starts_from_the_member_that_is_shrunk_already() -> None:
    training, truth_NK = world(strength=0.3, rows=60)
    found = opinions(truth_NK)
    free, trusting = (
        effects.fit(training, {name: found[key] for name, key in names.items()})[0]
        for names in ({"a": "noise", "b": "prognosis"}, {"ridge": "noise", "b": "prognosis"})
    )
    assert trusting.effect_J[0] > free.effect_J[0]
    training, truth_NK = world(rows=500)
    found = opinions(truth_NK)
    assert effects.fit(training, {"ridge": found["noise"], "b": found["near"]})[0].effect_J[1] > 0.7  # some hundred rows overrule it


def test_a_fold_is_blended_by_weights_that_were_learned_on_the_others(fitted: tuple[Blend, CrossFitted]) -> None:
    held = TRAINING.fold_N == 1
    target_N = np.where(held, 100 - TRAINING.target_N, TRAINING.target_N)
    again = effects.fit(replace(TRAINING, target_N=target_N), OOF)[1]
    np.testing.assert_array_equal(again.target_NT[held], fitted[1].target_NT[held])
    np.testing.assert_array_equal(again.propensity_NK, fitted[1].propensity_NK)  # no outcome has a say in overlap


def test_doubly_robust_scores_stand_where_an_outcome_was_seen_and_average_to_the_true_means(fitted: tuple[Blend, CrossFitted]) -> None:
    score_NK = fitted[1].aipw_NK
    np.testing.assert_array_equal(np.isnan(score_NK).any(1), ~TRAINING.observed_N)
    assert np.nanmean(score_NK, axis=0) == pytest.approx(TRUTH_NK.mean(0), abs=0.35)


def test_two_options_work_as_well_as_three() -> None:
    training, truth_NK = world(options=2)
    blend, crossfit = effects.fit(training, opinions(truth_NK))
    assert crossfit.target_NT.shape == (N, 2)
    assert crossfit.propensity_NK.sum(1) == pytest.approx(np.ones(N))
    difference_N = crossfit.target_NT[:, 0] - crossfit.target_NT[:, 1]
    assert np.corrcoef(difference_N, truth_NK[:, 0] - truth_NK[:, 1])[0, 1] > 0.95
    assert blend.overlap is not None
    wanted = training.x_NF[:, 1] > 1  # whom the second option was given to rather
    assert blend.overlap.predict(training.x_NF)[wanted, 1].mean() > 0.6


def test_a_saved_blend_gives_the_same_effects(fitted: tuple[Blend, CrossFitted], tmp_path: Path) -> None:
    blend = fitted[0]
    blend.save(tmp_path)
    again = Blend.load(tmp_path)
    covariance_NKK = np.broadcast_to(0.2 * np.eye(K), (N, K, K))
    one, other = (b.effects(GLUCOSE, OOF, covariance_NKK, TRAINING.x_NF) for b in (blend, again))
    for name in ("outcome_NK", "sd_NKK", "overlap_NK"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert again.members == blend.members
    assert len(blend.residual_Q) == len(QUANTILES)
    np.testing.assert_array_equal(again.residual_Q, blend.residual_Q)


# ------------------------------------------------------------------------------------------------------------------------------- overlap


def test_propensities_of_a_row_sum_to_one(fitted: tuple[Blend, CrossFitted]) -> None:
    assert fitted[0].overlap is not None
    x_NF = np.concatenate([TRAINING.x_NF, np.full((1, F), np.nan), np.full((1, F), 1e6)])
    found_NK = fitted[0].overlap.smooth.predict(x_NF)
    assert found_NK.sum(1) == pytest.approx(np.ones(len(x_NF)))
    assert (found_NK >= 0).all()
    assert fitted[1].propensity_NK.sum(1) == pytest.approx(np.ones(N))


def test_propensity_follows_who_was_given_what(fitted: tuple[Blend, CrossFitted]) -> None:
    found_NK = fitted[1].propensity_NK
    assert found_NK.mean(0) == pytest.approx(np.bincount(TRAINING.option_N) / N, abs=0.02)
    assert np.corrcoef(found_NK[:, 2], TRAINING.x_NF[:, 1])[0, 1] > 0.8


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_an_option_that_nobody_was_given_has_no_overlap(gone: int) -> None:
    kept = np.array([k for k in range(K) if k != gone])
    training = replace(TRAINING, option_N=kept[TRAINING.option_N % 2])
    blend, crossfit = effects.fit(training, OOF)
    assert crossfit.propensity_NK[:, gone].max() < 1e-6
    assert crossfit.propensity_NK.sum(1) == pytest.approx(np.ones(N))
    assert blend.overlap is not None
    assert blend.overlap.predict(TRAINING.x_NF)[:, gone].max() < 1e-6
    assert np.isfinite(blend.target(OOF)).all()


# ------------------------------------------------------------------------------------------------------------------------------- intervals


def test_differences_are_mirrored_and_an_option_does_not_differ_from_itself(fitted: tuple[Blend, CrossFitted]) -> None:
    covariance_NKK = np.broadcast_to(0.2 * np.eye(K), (N, K, K))
    found = fitted[0].effects(GLUCOSE, OOF, covariance_NKK, TRAINING.x_NF)
    low_NKK, high_NKK = found.interval()
    np.testing.assert_allclose(low_NKK, -high_NKK.transpose(0, 2, 1))
    np.testing.assert_allclose(found.sd_NKK, found.sd_NKK.transpose(0, 2, 1))
    diagonal = np.einsum("nkk->nk", found.sd_NKK)
    np.testing.assert_allclose(diagonal, 0, atol=1e-12)
    assert (low_NKK <= found.difference_NKK).all()
    assert (found.difference_NKK <= high_NKK).all()


def test_an_interval_widens_with_its_level_with_doubt_and_with_disagreement(fitted: tuple[Blend, CrossFitted]) -> None:
    zero_NKK, some_NKK = np.zeros((N, K, K)), np.broadcast_to(0.5 * np.eye(K), (N, K, K))
    sure_NKK, unsure_NKK = (fitted[0].spread(OOF, c) for c in (zero_NKK, some_NKK))
    assert (unsure_NKK[:, 0, 1] > sure_NKK[:, 0, 1]).all()
    found = Effects(outcome_NK=np.zeros((1, 2)), sd_NKK=np.array([[[0.0, 1.0], [1.0, 0.0]]]), overlap_NK=np.ones((1, 2)))
    assert found.interval(0.95)[1][0, 0, 1] == pytest.approx(1.96, abs=0.001)
    assert found.interval(0.90)[1][0, 0, 1] == pytest.approx(1.645, abs=0.001)
    half = Blend(
        members=("a", "b"), level_J=np.array([0.5, 0.5]), effect_J=np.array([0.5, 0.5, 0.0]), constant_K=np.zeros(2), residual_Q=np.zeros(0)
    )
    agree = {"a": np.array([[1.0, 0.0]]), "b": np.array([[1.0, 0.0]])}
    differ = {"a": np.array([[2.0, 0.0]]), "b": np.array([[0.0, 0.0]])}
    assert half.target(agree) == pytest.approx(half.target(differ))
    assert half.spread(agree, np.zeros((1, 2, 2)))[0, 0, 1] == 0
    assert half.spread(differ, np.zeros((1, 2, 2)))[0, 0, 1] == pytest.approx(1)


def test_a_covariance_that_rounding_made_negative_gives_no_nan(fitted: tuple[Blend, CrossFitted]) -> None:
    slightly = np.broadcast_to(-1e-9 * np.eye(K), (N, K, K))
    assert np.isfinite(fitted[0].spread(OOF, slightly)).all()


def test_a_variance_of_a_dose_that_rounding_made_negative_gives_no_nan() -> None:
    one = Blend(members=("a",), level_J=np.ones(1), effect_J=np.zeros(0), constant_K=np.zeros(0), residual_Q=np.zeros(1))
    assert np.isfinite(one.spread({"a": np.full((1, 1), 6.0)}, np.full((1, 1, 1), -1e-12))).all()


# ---------------------------------------------------------------------------------------------------------------------------- dose finding


def test_the_band_nearest_to_the_predicted_dose_has_the_smallest_expected_distance() -> None:
    dose_N = np.array([5.0, 14.0, 30.0, 35.0, 40.0, 60.0, 80.0])
    found = effects.dose_effects(WARFARIN, np.sqrt(dose_N), np.full(7, 0.1), np.zeros(1))
    option_K = np.array([17.5, 35.0, 56.0])
    np.testing.assert_allclose(found.outcome_NK, np.abs(option_K - dose_N[:, None]))
    assert found.outcome_NK.argmin(1).tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert found.dose_N == pytest.approx(dose_N)
    assert (found.overlap_NK == 1).all()


def test_what_the_model_leaves_open_is_part_of_the_expected_distance() -> None:
    sure, unsure = (
        effects.dose_effects(WARFARIN, np.sqrt([35.0]), np.array([0.1]), residual_Q)
        for residual_Q in (np.zeros(40), np.linspace(-1, 1, 40))
    )
    assert sure.outcome_NK[0, 1] == pytest.approx(0)
    assert unsure.outcome_NK[0, 1] > 4
    assert unsure.outcome_NK[0].argmin() == 1


def test_a_less_sure_dose_has_wider_differences_and_no_negative_ones() -> None:
    narrow, wide = (effects.dose_effects(WARFARIN, np.sqrt([25.0]), np.array([sd]), np.zeros(1)) for sd in (0.1, 0.8))
    assert (wide.sd_NKK >= narrow.sd_NKK).all()
    assert wide.sd_NKK[0, 0, 2] > narrow.sd_NKK[0, 0, 2]
    assert (narrow.sd_NKK >= 0).all()


def test_a_dose_is_blended_by_shares_and_saved_without_a_propensity(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    target_N = 6 + TRAINING.x_NF[:, 0]
    training = replace(TRAINING, targets=1, target_N=target_N)
    oof = {"good": target_N[:, None] + 0.2 * rng.normal(size=(N, 1)), "poor": 6 + rng.normal(size=(N, 1))}
    blend, crossfit = effects.fit(training, oof)
    assert blend.level_J.sum() == pytest.approx(1)
    assert blend.level_J[0] > 0.9
    assert blend.overlap is None
    blend.save(tmp_path)
    again = Blend.load(tmp_path)
    covariance = np.full((N, 1, 1), 0.01)
    one, other = (b.effects(WARFARIN, oof, covariance, TRAINING.x_NF) for b in (blend, again))
    np.testing.assert_array_equal(one.outcome_NK, other.outcome_NK)
    np.testing.assert_array_equal(one.dose_N, other.dose_N)
    assert np.mean((crossfit.target_NT[:, 0] - target_N) ** 2) < 0.1


def test_a_dose_that_is_only_compared_is_the_same_dose_without_the_members_that_have_no_weight() -> None:
    level_J = np.array([0.6, 0.0, 0.4])
    whole = Blend(members=("a", "b", "c"), level_J=level_J, effect_J=np.zeros(0), constant_K=np.zeros(0), residual_Q=np.linspace(-1, 1, 5))
    lean, given = whole.compared(), {"a": np.array([[6.0]]), "b": np.array([[9.0]]), "c": np.array([[5.0]])}
    assert lean.members == ("a", "c")
    one, other = (blend.differences(WARFARIN, given, np.full((1, 1, 1), 0.3)) for blend in (whole, lean))
    for name in ("outcome_NK", "sd_NKK", "dose_N"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name))
