"""The newest facts, read one after another: what no table tells is learned from them, and nothing is learned from what was seldom told."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import K, N, effect_error, world

from components.models import fusion_training
from components.models.fusion import FEW, Fusion, Settings, inputs
from components.models.recent import INPUTS, SEEN, Words
from components.tensors import FOLDS, Training
from features.feature import Floats

pytestmark = pytest.mark.usefixtures("one_torch_thread")
PLACES, QUICK = 6, Settings(epochs=2, width=8)
GLUCOSE, WEIGHT, VISIT, RARE = 1001.0, 2002.0, 3003.0, 4004.0


def facts(seed: int = 0) -> tuple[Floats, Floats]:
    """Facts in any order, some rows without any; and for each row the value of its newest glucose, which no table tells."""
    dice = np.random.default_rng(seed)
    events_NLC = np.full((N, PLACES, 3), np.nan)
    newest_N = np.zeros(N)
    for n in range(N):
        count = int(dice.integers(0, PLACES + 1))
        days = np.sort(dice.exponential(200, count))
        code = dice.choice([GLUCOSE, WEIGHT, VISIT], count)
        value = np.where(
            code == GLUCOSE, 8 + 2 * dice.normal(size=count), np.where(code == WEIGHT, 80 + 9 * dice.normal(size=count), np.nan)
        )
        events_NLC[n, :count] = np.stack([code, value, days], axis=1)
        if (code == GLUCOSE).any():
            newest_N[n] = (value[code == GLUCOSE][0] - 8) / 2
    events_NLC[: SEEN - 1, 0] = [RARE, 1.0, 3.0]  # one patient too few
    return events_NLC, newest_N


def told() -> tuple[Training, Floats]:
    """The small world, with an effect that only the newest glucose tells: one option gains by it what another loses."""
    training, truth_NK = world()
    events_NLC, newest_N = facts()
    turn_NK = 4.0 * newest_N[:, None] * np.array([1.0, -1.0, 0.0])
    target_N = training.target_N + turn_NK[np.arange(N), training.option_N]
    return replace(training, target_N=target_N, events_NLC=events_NLC), truth_NK + turn_NK


TRAINING, TRUTH_NK = told()


@pytest.fixture(scope="module")
def member() -> Fusion:
    return fusion_training.fit(TRAINING, Settings(epochs=40))


@pytest.fixture(scope="module")
def quick() -> Fusion:
    return fusion_training.fit(TRAINING, QUICK)


def test_an_effect_that_only_the_newest_facts_tell_is_learned(member: Fusion) -> None:
    assert member.oof_NT is not None
    error = effect_error(member.oof_NT, TRUTH_NK)
    blind = fusion_training.fit(replace(TRAINING, events_NLC=None), Settings(epochs=40))
    assert blind.oof_NT is not None and blind.words is None
    assert error < 0.85 * effect_error(blind.oof_NT, TRUTH_NK)


def test_who_has_no_facts_is_answered_as_one_whose_facts_are_not_asked_for(member: Fusion) -> None:
    none_N = np.isnan(TRAINING.events_NLC[:, :, 0]).all(1) if TRAINING.events_NLC is not None else None
    assert none_N is not None and none_N.sum() > 20
    x_NF = TRAINING.x_NF[none_N]
    np.testing.assert_array_equal(member.predict(x_NF, np.full((len(x_NF), PLACES, 3), np.nan)), member.predict(x_NF))


def test_the_order_of_the_facts_does_not_matter_but_their_days_do(member: Fusion) -> None:
    assert TRAINING.events_NLC is not None
    events_NLC, x_NF = TRAINING.events_NLC[100:160], TRAINING.x_NF[100:160]
    usual = member.predict(x_NF, events_NLC)
    np.testing.assert_allclose(member.predict(x_NF, events_NLC[:, ::-1]), usual, rtol=0, atol=1e-4)
    older_NLC = events_NLC + np.array([0.0, 0.0, 1000.0])
    assert np.abs(member.predict(x_NF, older_NLC) - usual).max() > 0.1


def test_a_concept_that_few_patients_have_is_not_learned() -> None:
    assert TRAINING.events_NLC is not None
    words = Words.fit(TRAINING.events_NLC)
    assert words.code_V.tolist() == [GLUCOSE, WEIGHT, VISIT]
    one_more_NLC = TRAINING.events_NLC.copy()
    one_more_NLC[SEEN, 0] = [RARE, 1.0, 3.0]
    assert RARE in Words.fit(one_more_NLC).code_V
    often_by_one_NLC = np.full((N, 2 * SEEN, 3), np.nan)
    often_by_one_NLC[0] = [RARE, 1.0, 3.0]
    assert len(Words.fit(often_by_one_NLC)) == 0


def test_a_fact_that_was_not_learned_is_no_fact(quick: Fusion) -> None:
    assert TRAINING.events_NLC is not None
    x_NF, events_NLC = TRAINING.x_NF[50:60], TRAINING.events_NLC[50:60].copy()
    fewer_NLC = np.where(events_NLC[:, :, :1] == VISIT, np.nan, events_NLC)
    renamed_NLC = events_NLC.copy()
    renamed_NLC[events_NLC[:, :, 0] == VISIT, 0] = 5005.0  # a concept that a later installation knows
    np.testing.assert_array_equal(quick.predict(x_NF, renamed_NLC), quick.predict(x_NF, fewer_NLC))


def test_values_are_scaled_by_their_own_concept_and_a_wild_one_is_drawn_in() -> None:
    assert TRAINING.events_NLC is not None
    words = Words.fit(TRAINING.events_NLC)
    read = words.read(np.array([[[GLUCOSE, words.center_V[0], 0.0], [WEIGHT, 1e9, 7.0], [VISIT, np.nan, 30.0], [np.nan] * 3]]))
    assert read.shape == (1, 4, INPUTS)
    assert read[0, :, :3].tolist() == [[1, 0, 1], [2, 5, 1], [3, 0, 0], [0, 0, 0]]
    assert np.abs(words.read(np.array([[[GLUCOSE, 8.0, -1e9]]]))).max() <= 5  # a day that lies ahead counts as today
    assert read[0, 0, 3:].tolist() == [1.0] * 5 and read[0, 1, 3] == np.float32(np.exp(-1)) and not read[0, 3].any()


def test_few_rows_are_predicted_as_the_network_predicts_them(quick: Fusion) -> None:
    assert TRAINING.events_NLC is not None
    x_NF, events_NLC = TRAINING.x_NF[:FEW], TRAINING.events_NLC[:FEW]
    given, present = inputs(quick.scaler, x_NF, quick.words, events_NLC)
    with torch.inference_mode():
        wanted_ENT = quick.network(given, present.T)[0].double().numpy() * quick.spread_E[:, None, None] + quick.center_E[:, None, None]
    np.testing.assert_allclose(quick.members(x_NF, events_NLC), wanted_ENT, rtol=1e-5, atol=1e-5)
    for n in range(8):
        np.testing.assert_allclose(quick.members(x_NF[[n]], events_NLC[[n]]), wanted_ENT[:, [n]], rtol=1e-5, atol=1e-5)


def test_a_saved_ensemble_reads_the_facts_the_same(quick: Fusion, tmp_path: Path) -> None:
    quick.save(tmp_path)
    again = Fusion.load(tmp_path)
    np.testing.assert_array_equal(again.members(TRAINING.x_NF, TRAINING.events_NLC), quick.members(TRAINING.x_NF, TRAINING.events_NLC))


def test_the_same_seed_gives_the_same_bytes_and_a_member_never_learns_from_its_own_fold(quick: Fusion) -> None:
    again = fusion_training.fit(TRAINING, QUICK)
    weights = zip(quick.network.state_dict().items(), again.network.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for (_, one), other in weights)
    rows = np.flatnonzero((TRAINING.fold_N == 0) & TRAINING.observed_N)
    target_N = TRAINING.target_N.copy()
    target_N[rows] = target_N[rows][::-1]
    other = fusion_training.fit(replace(TRAINING, target_N=target_N), QUICK).members(TRAINING.x_NF, TRAINING.events_NLC)
    usual = quick.members(TRAINING.x_NF, TRAINING.events_NLC)
    np.testing.assert_allclose(other[0], usual[0], rtol=0, atol=1e-9)
    assert usual.shape == (FOLDS, N, K) and np.abs(other[1:] - usual[1:]).max() > 0.001


def test_without_a_fact_that_is_told_often_enough_the_network_is_the_one_without_facts() -> None:
    empty = fusion_training.fit(replace(TRAINING, events_NLC=np.full((N, PLACES, 3), np.nan)), QUICK)
    plain = fusion_training.fit(replace(TRAINING, events_NLC=None), QUICK)
    assert empty.words is None
    np.testing.assert_array_equal(empty.predict(TRAINING.x_NF), plain.predict(TRAINING.x_NF))
