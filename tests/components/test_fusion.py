"""The multimodal network: members that never learn from their own fold, every subset of modalities answered, the same bytes twice."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import F, K, N, effect_error, world

from components.models import fusion, fusion_training
from components.models.fusion import Fusion, Settings
from components.tensors import FOLDS, Scaler, Training
from features.errors import ConcordantError

pytestmark = pytest.mark.usefixtures("one_torch_thread")
QUICK = Settings(epochs=3)
TRAINING, TRUTH_NK = world()


@pytest.fixture(scope="module")
def member() -> Fusion:
    return fusion_training.fit(TRAINING)


@pytest.fixture(scope="module")
def quick() -> Fusion:
    return fusion_training.fit(TRAINING, QUICK)


def test_it_recovers_more_than_a_constant_effect(member: Fusion) -> None:
    assert member.oof_NT is not None
    constant = effect_error(np.broadcast_to(TRUTH_NK.mean(0), TRUTH_NK.shape), TRUTH_NK)
    assert effect_error(member.oof_NT, TRUTH_NK) < 0.8 * constant


def test_the_out_of_fold_prediction_of_a_row_is_of_the_member_that_left_its_fold_out(quick: Fusion) -> None:
    members_ENK = quick.members(TRAINING.x_NF)
    assert quick.oof_NT is not None
    assert members_ENK.shape == (FOLDS, N, K)
    for fold in range(FOLDS):
        held = TRAINING.fold_N == fold
        np.testing.assert_array_equal(quick.oof_NT[held], members_ENK[fold, held])


def test_a_member_never_learns_from_its_own_fold(quick: Fusion) -> None:
    """Outcomes are exchanged within a fold, so that mean and spread of all stay: the member of that fold must not notice."""
    fold = 0
    rows = np.flatnonzero((TRAINING.fold_N == fold) & TRAINING.observed_N)
    target_N = TRAINING.target_N.copy()
    target_N[rows] = target_N[rows][::-1]
    again = fusion_training.fit(replace(TRAINING, target_N=target_N), QUICK)
    before_ENK, after_ENK = quick.members(TRAINING.x_NF), again.members(TRAINING.x_NF)
    assert np.abs(after_ENK[1:] - before_ENK[1:]).max() > 0.01  # the others did learn from it
    np.testing.assert_allclose(after_ENK[fold], before_ENK[fold], rtol=0, atol=1e-9)


def test_a_wild_outcome_of_a_fold_does_not_reach_the_member_that_leaves_it_out(quick: Fusion) -> None:
    row = int(np.flatnonzero(TRAINING.observed_N)[0])
    target_N = TRAINING.target_N.copy()
    target_N[row] += 50
    again = fusion_training.fit(replace(TRAINING, target_N=target_N), QUICK)
    assert again.oof_NT is not None
    assert quick.oof_NT is not None
    np.testing.assert_allclose(again.oof_NT[row], quick.oof_NT[row], rtol=0, atol=1e-6)


def test_outcomes_that_were_not_seen_are_not_learned_from(quick: Fusion) -> None:
    assert not TRAINING.observed_N.all()
    assert np.isfinite(quick.members(TRAINING.x_NF)).all()


def test_a_saved_ensemble_predicts_the_same(quick: Fusion, tmp_path: Path) -> None:
    quick.save(tmp_path)
    again = Fusion.load(tmp_path)
    np.testing.assert_array_equal(again.members(TRAINING.x_NF), quick.members(TRAINING.x_NF))
    np.testing.assert_array_equal(again.predict(TRAINING.x_NF), quick.predict(TRAINING.x_NF))
    assert again.settings == QUICK


def test_the_same_seed_gives_the_same_bytes_and_leaves_the_callers_generator_alone(quick: Fusion, tmp_path: Path) -> None:
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    again = fusion_training.fit(TRAINING, QUICK)
    assert torch.equal(torch.random.get_rng_state(), state)
    for name, made in (("a", quick), ("b", again)):
        (tmp_path / name).mkdir()
        made.save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


class Interrupted(Exception):
    """A power cut."""


def interrupted_at(epoch: int, checkpoints: Path, settings: Settings = QUICK) -> None:
    """A training that ends as an epoch begins."""
    start = fusion_training._Task.on_train_epoch_start

    def cut(task: fusion_training._Task) -> None:
        if task.current_epoch == epoch:
            raise Interrupted
        start(task)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(fusion_training._Task, "on_train_epoch_start", cut)
        fusion_training.fit(TRAINING, settings, checkpoints=checkpoints)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The epoch of every step that is taken."""
    found: list[int] = []
    step = fusion_training._Task.training_step
    monkeypatch.setattr(fusion_training._Task, "training_step", lambda task, *a: (found.append(task.current_epoch), step(task, *a))[1])
    return found


@pytest.mark.parametrize(("epoch", "settings"), [(1, QUICK), (2, QUICK), (2, replace(QUICK, patience=3))])
def test_a_run_that_is_resumed_from_its_checkpoint_ends_in_the_same_weights(
    begun: list[int], tmp_path: Path, epoch: int, settings: Settings
) -> None:
    whole = fusion_training.fit(TRAINING, settings)
    interrupted_at(epoch, tmp_path, settings)
    begun.clear()
    again = fusion_training.fit(TRAINING, settings, checkpoints=tmp_path)
    assert min(begun) == epoch  # it did go on, and did not begin again
    np.testing.assert_array_equal(again.members(TRAINING.x_NF), whole.members(TRAINING.x_NF))
    assert not list(tmp_path.iterdir())


def test_with_patience_a_training_that_only_learns_noise_ends_early_and_is_not_spoilt(begun: list[int]) -> None:
    """Nothing can be learned here but means: whatever the network does beyond is error."""
    noise_N = np.random.default_rng(3).normal(size=N)
    nothing = replace(TRAINING, target_N=noise_N)
    error = {}
    for patience in (0, 5):
        begun.clear()
        found = fusion_training.fit(nothing, Settings(epochs=60, effect_penalty=0.0, decay=0.0, dropout=0.0, patience=patience))
        assert found.oof_NT is not None
        error[patience] = float(((found.oof_NT[np.arange(N), TRAINING.option_N] - noise_N) ** 2).mean())
        assert max(begun) == 59 if not patience else 5 <= max(begun) < 40
    assert error[5] < 1.1 * noise_N.var() < 1.2 * noise_N.var() < error[0]


def test_a_training_that_had_ended_early_is_not_gone_on_with(tmp_path: Path, begun: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    noise_N = np.random.default_rng(3).normal(size=N)
    settings = Settings(epochs=60, effect_penalty=0.0, decay=0.0, dropout=0.0, patience=2)
    data = replace(TRAINING, target_N=noise_N)

    def cut(_: object) -> None:
        raise Interrupted

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(fusion_training.shutil, "rmtree", cut)  # a power cut before the checkpoints are taken away
        fusion_training.fit(data, settings, checkpoints=tmp_path)
    last = max(begun)
    begun.clear()
    again = fusion_training.fit(data, settings, checkpoints=tmp_path)
    assert last < 59 and not begun
    whole = fusion_training.fit(data, settings)
    np.testing.assert_array_equal(again.members(TRAINING.x_NF), whole.members(TRAINING.x_NF))


def test_rows_that_are_held_back_are_learned_by_nobody() -> None:
    """Of their outcomes two are left, to judge by, and moved by a hair: whoever learned from them would show it."""
    settings = replace(QUICK, patience=3)
    held = np.random.default_rng([settings.seed, FOLDS]).random(N) < fusion_training.HELD_BACK
    alike_N = TRAINING.target_N.copy()
    alike_N[held] = np.nan
    one = np.flatnonzero(held & TRAINING.observed_N)
    kept = [int(one[TRAINING.fold_N[one] == fold][0]) for fold in (0, 1)]  # something to judge every member by
    alike_N[kept] = TRAINING.target_N[kept]
    other_N = alike_N.copy()
    other_N[kept] += 1e-4  # too little to change which epoch was best, enough to be seen by whoever learned from it
    found, again = (fusion_training.fit(replace(TRAINING, target_N=y_N), settings).members(TRAINING.x_NF) for y_N in (alike_N, other_N))
    np.testing.assert_array_equal(found, again)


def test_too_few_rows_to_hold_some_back_are_told() -> None:
    few = Training(**{**vars(TRAINING), **{name: getattr(TRAINING, name)[:8] for name in ("x_NF", "option_N", "target_N", "fold_N")}})
    with pytest.raises(ConcordantError, match="8 rows are too few"):
        fusion_training.fit(few, replace(QUICK, patience=2))


def test_a_run_of_other_rows_does_not_go_on_from_the_checkpoint(tmp_path: Path) -> None:
    interrupted_at(1, tmp_path)
    other = replace(TRAINING, target_N=-TRAINING.target_N)
    found, alone = fusion_training.fit(other, QUICK, checkpoints=tmp_path), fusion_training.fit(other, QUICK)
    np.testing.assert_array_equal(found.members(TRAINING.x_NF), alone.members(TRAINING.x_NF))


def test_another_seed_gives_other_weights(quick: Fusion) -> None:
    other = fusion_training.fit(TRAINING, replace(QUICK, seed=1))
    assert not np.allclose(other.predict(TRAINING.x_NF), quick.predict(TRAINING.x_NF))


@pytest.mark.parametrize("columns", [[3, 4], [5], [0, 1, 2], list(range(F))], ids=["genomics", "lifestyle", "history", "everything"])
def test_a_missing_modality_at_prediction_still_has_an_answer(member: Fusion, columns: list[int]) -> None:
    x_NF = TRAINING.x_NF.copy()
    x_NF[:, columns] = np.nan
    predicted_NK = member.predict(x_NF)
    assert np.isfinite(predicted_NK).all()
    assert predicted_NK.min() > np.nanmin(TRAINING.target_N) - 5
    assert predicted_NK.max() < np.nanmax(TRAINING.target_N) + 5


def test_the_values_of_an_absent_modality_cannot_matter(member: Fusion) -> None:
    """Its learned token stands in: whatever lies behind the mask is not looked at."""
    scaler = member.scaler
    x_NF = TRAINING.x_NF[:5].copy()
    x_NF[:, 3:5] = np.nan
    given, present = fusion.inputs(scaler, x_NF)
    assert present.tolist() == [[True, False, bool(row)] for row in ~np.isnan(x_NF[:, 5])]
    with torch.inference_mode():
        plain, _, _ = member.network(given, present.T)
        given[1] = given[1] + 7
        moved, _, _ = member.network(given, present.T)
    assert torch.equal(plain, moved)


def test_one_row_alone_is_predicted_as_among_others(member: Fusion) -> None:
    np.testing.assert_allclose(member.predict(TRAINING.x_NF[[5]])[0], member.predict(TRAINING.x_NF)[5], rtol=1e-5, atol=1e-5)


def test_a_decision_with_one_modality_alone_trains() -> None:
    alone = TRAINING.without("genomics").without("lifestyle")
    made = fusion_training.fit(alone, replace(QUICK, epochs=1))
    assert np.isfinite(made.predict(alone.x_NF)).all()


def test_a_feature_that_nobody_has_does_no_harm() -> None:
    x_NF = TRAINING.x_NF.copy()
    x_NF[:, 5] = np.nan
    made = fusion_training.fit(replace(TRAINING, x_NF=x_NF), replace(QUICK, epochs=1))
    assert np.isfinite(made.predict(TRAINING.x_NF)).all()  # also where it is measured one day


def test_a_dose_is_one_target() -> None:
    target_N = 6 + 2 * np.nan_to_num(TRAINING.x_NF[:, 0])
    made = fusion_training.fit(replace(TRAINING, targets=1, target_N=target_N))
    assert made.oof_NT is not None
    assert made.oof_NT.shape == (N, 1)
    assert np.mean((made.oof_NT[:, 0] - target_N) ** 2) < 0.7 * np.var(target_N)


def test_widths_leave_out_a_modality_without_features() -> None:
    assert fusion.widths(Scaler.fit(np.zeros((3, 3)), ("history", "lifestyle", "lifestyle"))) == (1, 2)
