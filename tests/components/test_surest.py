"""Who knows how sure it is answers its surest patients best; the doubt is the one that the policy bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components import decision
from components.calibration import Scores
from components.effects import Effects
from components.policy import Inputs, recommend
from components.surest import SHARES, doubt, of_truth, surest
from features.feature import Floats, Ints

GLUCOSE = decision.load("glucose_lowering")
N, K = 4000, 5


def made(honest: bool, seed: int = 0) -> tuple[Effects, Floats]:
    """Estimates with errors of two sizes; the honest model knows which patient has which."""
    dice = np.random.default_rng(seed)
    truth_NK, spread_N = dice.normal(0, 2, (N, K)), np.where(dice.random(N) < 0.5, 0.3, 4.0)
    outcome_NK = truth_NK + spread_N[:, None] * dice.normal(size=(N, K))
    told_N = spread_N if honest else np.full(N, 2.0)
    sd_NKK = np.sqrt(2) * told_N[:, None, None] * (1 - np.eye(K))
    return Effects(outcome_NK=outcome_NK, sd_NKK=sd_NKK, overlap_NK=np.full((N, K), 1 / K)), truth_NK


def doubting(effects: Effects, choice_N: Ints, sign: int = 1) -> Floats:
    return doubt(effects.outcome_NK, effects.sd_NKK, choice_N, sign)


def scores_of(effects: Effects, truth_NK: Floats) -> Scores:
    option_N, rows = np.arange(N) % K, np.arange(N)
    outcome_N = truth_NK[rows, option_N] + np.random.default_rng(1).normal(size=N)
    given_NK = np.eye(K)[option_N]
    score_NK = effects.outcome_NK + given_NK * K * (outcome_N[:, None] - effects.outcome_NK)
    return Scores(
        predicted_NK=effects.outcome_NK, score_NK=score_NK, propensity_NK=effects.overlap_NK, option_N=option_N, outcome_N=outcome_N
    )


def test_the_surest_are_answered_best_by_a_model_that_knows_its_errors() -> None:
    effects, truth_NK = made(honest=True)
    told = of_truth(doubting(effects, effects.outcome_NK.argmin(1)), effects.outcome_NK.argmin(1), truth_NK, 1)
    right, lost = ([told[f"{kind}_of_surest_{share}"] for share in SHARES] for kind in ("accuracy", "regret"))
    assert right == sorted(right, reverse=True) and lost == sorted(lost)
    assert right[0] > 0.95 > 0.7 > right[-1]
    loss_N = truth_NK[np.arange(N), effects.outcome_NK.argmin(1)] - truth_NK.min(1)
    assert lost[-1] == pytest.approx(loss_N.mean()) and right[-1] == pytest.approx((loss_N == 0).mean())
    blind, _ = made(honest=False)
    assert (
        of_truth(doubting(blind, blind.outcome_NK.argmin(1)), blind.outcome_NK.argmin(1), truth_NK, 1)["accuracy_of_surest_20"]
        < right[0] - 0.05
    )


def test_the_gain_of_the_surest_is_the_true_one_within_its_interval() -> None:
    effects, truth_NK = made(honest=True)
    choice_N, fixed_N = effects.outcome_NK.argmin(1), np.zeros(N, np.int64)
    told = surest(doubting(effects, choice_N), scores_of(effects, truth_NK), (choice_N, fixed_N), 1, "u")
    gain_N = truth_NK[:, 0] - truth_NK[np.arange(N), choice_N]
    order = np.argsort(doubting(effects, choice_N), kind="stable")
    for share in SHARES:
        true = gain_N[order[: N * share // 100]].mean()
        assert told[f"gain_of_surest_{share}_u_low"] - 0.1 < true < told[f"gain_of_surest_{share}_u_high"] + 0.1
    assert told["gain_of_surest_20_u_low"] > told["gain_of_surest_100_u_high"]


def test_where_higher_is_better_everything_is_mirrored() -> None:
    effects, truth_NK = made(honest=True)
    mirror = Effects(outcome_NK=-effects.outcome_NK, sd_NKK=effects.sd_NKK, overlap_NK=effects.overlap_NK)
    choice_N = effects.outcome_NK.argmin(1)
    assert of_truth(doubting(mirror, choice_N, -1), choice_N, -truth_NK, -1) == of_truth(doubting(effects, choice_N), choice_N, truth_NK, 1)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(outcome_K=st.lists(st.floats(-20, 20), min_size=K, max_size=K), sd=st.floats(0.1, 4), bound=st.floats(0.001, 0.49))
def test_it_is_the_doubt_that_the_policy_bounds(outcome_K: list[float], sd: float, bound: float) -> None:
    """Where nobody is nearer than what matters, one option is named exactly where the doubt is at most the bound."""
    sd_NKK = sd * (1 - np.eye(K))[None]
    effects = Effects(outcome_NK=np.array([outcome_K]), sd_NKK=sd_NKK, overlap_NK=np.full((1, K), 0.2))
    (found,) = recommend(GLUCOSE.model_copy(update={"largest_doubt": bound, "minimal_important_difference": 1e-9}), effects, [Inputs()])
    told = float(doubting(effects, effects.outcome_NK.argmin(1))[0])
    if abs(told - bound) > 1e-9 and len(set(outcome_K)) == K and np.diff(np.sort(outcome_K))[0] > 1e-6:
        assert (found.recommended is not None) == (told <= bound)
