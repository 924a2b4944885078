"""The ridge member: it recovers effects that differ between people, out of fold, and knows how unsure it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from components.models import ridge
from components.models.ridge import Ridge
from components.tensors import Training, folds
from features.feature import Floats

N, F, K = 600, 6, 3


def world(seed: int = 0) -> tuple[Training, Floats]:
    """Three options given by lot, effects that cross over in the first feature and grow in a gene; and every row's true outcomes."""
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(N, F))
    effect_NK = np.stack([2 * x_NF[:, 0], -2 * x_NF[:, 0], 1.5 * x_NF[:, 3]], axis=1)
    truth_NK = 3 * x_NF[:, [1]] + effect_NK + np.array([0.0, 0.5, 0.2])
    option_N = rng.integers(0, K, N)
    target_N = truth_NK[np.arange(N), option_N] + rng.normal(size=N)
    x_NF[rng.random((N, F)) < 0.05] = np.nan
    target_N[rng.random(N) < 0.05] = np.nan
    training = Training(
        x_NF=x_NF,
        names=tuple(f"f{f}" for f in range(F)),
        modality_F=("history", "history", "history", "genomics", "genomics", "lifestyle"),
        options=K,
        targets=K,
        option_N=option_N,
        target_N=target_N,
        fold_N=folds(N),
    )
    return training, truth_NK


TRAINING, TRUTH_NK = world()


@pytest.fixture(scope="module")
def member() -> Ridge:
    return ridge.fit(TRAINING)


def effect_error(outcome_NK: Floats) -> float:
    """Root mean square error of each option's effect about the mean of the options."""
    off_NK = (outcome_NK - outcome_NK.mean(1, keepdims=True)) - (TRUTH_NK - TRUTH_NK.mean(1, keepdims=True))
    return float(np.sqrt(np.mean(off_NK**2)))


def dose_world() -> Training:
    x_NF = TRAINING.x_NF
    target_N = 6 + np.nan_to_num(x_NF[:, 0]) - 0.5 * np.nan_to_num(x_NF[:, 3]) + 0.1 * np.random.default_rng(9).normal(size=N)
    return replace(TRAINING, target_N=target_N, targets=1)


def test_it_recovers_far_more_than_a_constant_effect(member: Ridge) -> None:
    assert member.oof_NT is not None
    constant = effect_error(np.broadcast_to(TRUTH_NK.mean(0), TRUTH_NK.shape))
    assert effect_error(member.oof_NT) < 0.5 * constant


def test_a_modality_that_means_nothing_is_shrunk_below_those_that_do(member: Ridge) -> None:
    assert member.scales["lifestyle"] < min(member.scales["history"], member.scales["genomics"])


def test_the_whole_fit_is_at_least_as_good_as_the_cross_fitted_one_where_it_was_fitted(member: Ridge) -> None:
    assert member.oof_NT is not None
    assert effect_error(member.predict(TRAINING.x_NF)) < effect_error(member.oof_NT) + 0.05


def test_a_rows_own_outcome_does_not_steer_its_out_of_fold_prediction(member: Ridge) -> None:
    """Through the pooled intercept, and through the scales that all rows choose together, a trace may pass: below a 100,000th."""
    assert member.oof_NT is not None
    row = int(np.flatnonzero(TRAINING.observed_N)[7])
    target_N = TRAINING.target_N.copy()
    target_N[row] += 5
    again = ridge.fit(replace(TRAINING, target_N=target_N))
    assert again.oof_NT is not None
    assert again.scales == member.scales
    assert np.abs(again.oof_NT[row] - member.oof_NT[row]).max() < 5e-5
    assert np.abs(again.predict(TRAINING.x_NF[[row]]) - member.predict(TRAINING.x_NF[[row]])).max() > 1e-3  # the whole fit did learn it


def test_with_scales_and_penalty_held_out_of_fold_predictions_never_saw_their_fold(member: Ridge) -> None:
    held = TRAINING.fold_N == 2
    target_N = np.where(held, -TRAINING.target_N, TRAINING.target_N)
    batch = member.scaler.batch(TRAINING.x_NF)
    phi_NP = member.expansion.apply(batch) - member.mean_P
    predicted = []
    for y_N in (TRAINING.target_N, target_N):
        seen = TRAINING.observed_N
        search = ridge._Search(
            ridge._design(phi_NP, TRAINING)[seen], y_N[seen], TRAINING.fold_N[seen], ridge._groups(member.expansion, TRAINING)
        )
        weight_D = search.fold_weights(member.scales, member.penalty)[2]
        predicted.append(ridge._predict(phi_NP[held], weight_D, 0.0, K))
    np.testing.assert_allclose(predicted[0], predicted[1], rtol=1e-7, atol=1e-9)


def test_a_saved_member_predicts_the_same(member: Ridge, tmp_path: Path) -> None:
    member.save(tmp_path)
    again = Ridge.load(tmp_path)
    np.testing.assert_array_equal(again.predict(TRAINING.x_NF), member.predict(TRAINING.x_NF))
    np.testing.assert_allclose(again.covariance(TRAINING.x_NF), member.covariance(TRAINING.x_NF), rtol=1e-3, atol=1e-5)
    assert again.oof_NT is None  # cross-fitted predictions are of patients: they are not part of a member's files


def test_the_same_rows_give_the_same_bytes(member: Ridge, tmp_path: Path) -> None:
    for name, made in (("a", member), ("b", ridge.fit(TRAINING))):
        (tmp_path / name).mkdir()
        made.save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize("columns", [[3, 4], [5], [0, 1, 2], [0, 1, 2, 3, 4, 5]], ids=["genomics", "lifestyle", "history", "everything"])
def test_a_missing_modality_at_prediction_still_has_an_answer(member: Ridge, columns: list[int]) -> None:
    x_NF = TRAINING.x_NF.copy()
    x_NF[:, columns] = np.nan
    predicted_NK = member.predict(x_NF)
    assert np.isfinite(predicted_NK).all()
    assert np.isfinite(member.covariance(x_NF)).all()
    assert predicted_NK.min() > np.nanmin(TRAINING.target_N) - 5
    assert predicted_NK.max() < np.nanmax(TRAINING.target_N) + 5


def test_one_row_alone_is_predicted_as_among_others(member: Ridge) -> None:
    together = member.predict(TRAINING.x_NF)
    np.testing.assert_allclose(member.predict(TRAINING.x_NF[[5]])[0], together[5], rtol=1e-12)


def test_covariance_is_symmetric_and_positive_semi_definite(member: Ridge, tmp_path: Path) -> None:
    member.save(tmp_path)
    far_NF = np.concatenate([TRAINING.x_NF, 100 * TRAINING.x_NF, np.full((1, F), np.nan)])
    for made in (member, Ridge.load(tmp_path)):
        covariance_NKK = made.covariance(far_NF)
        np.testing.assert_array_equal(covariance_NKK, covariance_NKK.transpose(0, 2, 1))
        smallest_N = np.linalg.eigvalsh(covariance_NKK)[:, 0]
        assert smallest_N.min() > -1e-6 * np.abs(covariance_NKK).max()


def test_a_difference_is_less_sure_far_from_the_training_rows(member: Ridge) -> None:
    center, far = member.covariance(np.zeros((1, F)))[0], member.covariance(np.full((1, F), 4.0))[0]
    assert far[0, 0] + far[1, 1] - 2 * far[0, 1] > 2 * (center[0, 0] + center[1, 1] - 2 * center[0, 1])


def test_more_rows_make_a_difference_surer(member: Ridge) -> None:
    half = replace(
        TRAINING, x_NF=TRAINING.x_NF[:200], option_N=TRAINING.option_N[:200], target_N=TRAINING.target_N[:200], fold_N=TRAINING.fold_N[:200]
    )
    wide, narrow = (np.einsum("nkk->n", m.covariance(TRAINING.x_NF)).mean() for m in (ridge.fit(half), member))
    assert narrow < wide


def test_a_dose_is_one_target_with_pairs_of_features(tmp_path: Path) -> None:
    training = dose_world()
    member = ridge.fit(training)
    assert member.oof_NT is not None
    assert member.oof_NT.shape == (N, 1)
    assert member.expansion.pairs
    assert np.mean((member.oof_NT[:, 0] - training.target_N) ** 2) < 0.3 * np.var(training.target_N)
    assert member.covariance(TRAINING.x_NF).shape == (N, 1, 1)
    assert (member.covariance(100 * TRAINING.x_NF) >= 0).all()
    member.save(tmp_path)
    np.testing.assert_array_equal(Ridge.load(tmp_path).predict(TRAINING.x_NF), member.predict(TRAINING.x_NF))


def test_two_options_work_as_well_as_three() -> None:
    two = replace(TRAINING, options=2, targets=2, option_N=TRAINING.option_N % 2)
    member = ridge.fit(two)
    assert member.predict(TRAINING.x_NF).shape == (N, 2)
    assert member.covariance(TRAINING.x_NF).shape == (N, 2, 2)
