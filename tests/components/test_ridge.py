"""The ridge member: it recovers effects that differ between people, out of fold, and knows how unsure it is."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from worlds import F, N, effect_error, world

from components.models import ridge
from components.models.ridge import Ridge
from components.tensors import Training

TRAINING, TRUTH_NK = world()


@pytest.fixture(scope="module")
def member() -> Ridge:
    return ridge.fit(TRAINING)


def dose_world() -> Training:
    x_NF = TRAINING.x_NF
    target_N = 6 + np.nan_to_num(x_NF[:, 0]) - 0.5 * np.nan_to_num(x_NF[:, 3]) + 0.1 * np.random.default_rng(9).normal(size=N)
    return replace(TRAINING, target_N=target_N, targets=1)


def test_it_recovers_far_more_than_a_constant_effect(member: Ridge) -> None:
    assert member.oof_NT is not None
    constant = effect_error(np.broadcast_to(TRUTH_NK.mean(0), TRUTH_NK.shape), TRUTH_NK)
    assert effect_error(member.oof_NT, TRUTH_NK) < 0.5 * constant


def test_a_modality_that_means_nothing_is_shrunk_below_those_that_do(member: Ridge) -> None:
    assert member.scales["lifestyle"] < min(member.scales["history"], member.scales["genomics"])


def test_the_whole_fit_is_at_least_as_good_as_the_cross_fitted_one_where_it_was_fitted(member: Ridge) -> None:
    assert member.oof_NT is not None
    assert effect_error(member.predict(TRAINING.x_NF), TRUTH_NK) < effect_error(member.oof_NT, TRUTH_NK) + 0.05


def test_nothing_of_a_fold_steers_its_own_out_of_fold_predictions(member: Ridge) -> None:
    """How strongly to shrink is learned without it too: not even an outlier moves its own prediction."""
    assert member.oof_NT is not None
    held = TRAINING.fold_N == 2
    again = ridge.fit(replace(TRAINING, target_N=np.where(held, 50 - 3 * TRAINING.target_N, TRAINING.target_N)))
    assert again.oof_NT is not None
    np.testing.assert_allclose(again.oof_NT[held], member.oof_NT[held], rtol=1e-6, atol=1e-6)
    assert np.abs(again.oof_NT[~held] - member.oof_NT[~held]).max() > 0.1  # the others did learn from it


def test_a_dose_does_not_follow_its_own_outlier() -> None:
    """Penalty and scale are chosen by all rows together: through them alone a trace may pass."""
    training = dose_world()
    row = int(np.flatnonzero(training.observed_N)[7])
    target_N = training.target_N.copy()
    target_N[row] += 5
    before, after = ridge.fit(training), ridge.fit(replace(training, target_N=target_N))
    assert before.oof_NT is not None
    assert after.oof_NT is not None
    assert after.scales == before.scales
    assert abs(float(after.oof_NT[row, 0] - before.oof_NT[row, 0])) < 1e-6


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


def test_that_a_value_is_missing_does_not_itself_tell_options_apart(member: Ridge) -> None:
    flags = np.flatnonzero(~member.expansion.crossed_P)
    assert len(flags)  # else this world could not show it
    size = len(member.mean_P)
    for weight_SD in (member.weight_D[None], member.draws_SD):
        assert not weight_SD[:, size + member.options :].reshape(-1, member.options, size)[..., flags].any()
    assert member.weight_D[flags].any()  # of the outcome itself it may tell


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


def test_a_missing_feature_that_tells_options_apart_leaves_their_difference_open(member: Ridge) -> None:
    known_NF = np.zeros((1, F))
    sure = member.covariance(known_NF)[0]
    for column, tells in ((0, True), (5, False)):
        lost = member.covariance(np.where(np.arange(F) == column, np.nan, known_NF))[0]
        added = (lost[0, 0] + lost[1, 1] - 2 * lost[0, 1]) - (sure[0, 0] + sure[1, 1] - 2 * sure[0, 1])
        assert (added > 5) if tells else (added < 1)  # the first two options differ by 4 a spread of the first feature: variance 16


@pytest.mark.slow
@pytest.mark.parametrize("lost", [(), (3, 4)], ids=["all known", "genomics lost"])
def test_posterior_intervals_hold_the_true_difference_as_often_as_they_say(lost: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ridge, "UNSEEN", 0.0)  # in this world everything that modifies effects is recorded
    covered = []
    for seed in range(3):
        training, truth_NK = world(seed, strength=0.5)
        made = ridge.fit(training)
        x_NF = training.x_NF.copy()
        x_NF[:, list(lost)] = np.nan
        found_NK, covariance_NKK = made.predict(x_NF), made.covariance(x_NF)
        for a, b in ((0, 1), (0, 2), (1, 2)):
            sd_N = np.sqrt(covariance_NKK[:, a, a] + covariance_NKK[:, b, b] - 2 * covariance_NKK[:, a, b])
            error_N = (found_NK[:, a] - found_NK[:, b]) - (truth_NK[:, a] - truth_NK[:, b])
            covered.append(np.mean(np.abs(error_N) < 1.96 * sd_N))
    assert 0.91 < np.mean(covered) <= 0.995


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
