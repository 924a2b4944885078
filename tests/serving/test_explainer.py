"""Contributions add up to the numbers that are served, and follow what the members themselves say."""

import numpy as np
import pytest

from components.bundle import Bundle
from components.models.trees import _predict
from features.store import Rows
from serving.explainer import explain, shares

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]


def test_base_and_contributions_add_up_to_the_outcome_that_is_served(served_bundle: Bundle, stored: Rows) -> None:
    x_NF = stored.x_NF[:20]
    outcome_NK = served_bundle.effects(x_NF).outcome_NK
    for told, outcome_K in zip(explain(served_bundle, x_NF, ["2026"] * 20, "0"), outcome_NK, strict=True):
        for name, outcome in zip(served_bundle.decision.option_names, outcome_K, strict=True):
            total = told.base[name] + sum(entry.by_option[name] for entry in told.contributions)
            assert total == pytest.approx(outcome, abs=1e-6) and told.outcome[name] == pytest.approx(outcome, abs=1e-9)
            assert sum(part[name] for part in told.by_modality.values()) == pytest.approx(total - told.base[name], abs=1e-9)


def test_a_feature_that_moves_nothing_has_no_contribution(served_bundle: Bundle, stored: Rows) -> None:
    """The feature that is told first moves the answer, when it is set to the mean, more than the one that is told last.

    Not when it is taken away: that a value is missing tells of the outcome too, and is a contribution of its own.
    """
    x_NF, mean_F = stored.x_NF[:10], served_bundle.ridge.scaler.center_F
    share_NTF, _ = shares(served_bundle, x_NF)
    seen = ~np.isnan(x_NF)
    for n in range(10):
        order = [f for f in np.argsort(-np.abs(share_NTF[n]).max(0)) if seen[n, f]]
        without = np.repeat(x_NF[n : n + 1], 2, axis=0)
        without[0, order[0]], without[1, order[-1]] = mean_F[order[0]], mean_F[order[-1]]
        moved = np.abs(served_bundle.effects(without).outcome_NK - served_bundle.effects(x_NF[n : n + 1]).outcome_NK).max(1)
        assert moved[0] > moved[1]


def test_all_trees_together_give_the_mean_of_the_folds(served_bundle: Bundle, stored: Rows) -> None:
    """Within 1e-5 of the outcome: XGBoost sums in single precision. So does the merged booster that is explained."""
    trees, x_NF = served_bundle.trees, stored.x_NF[:500]
    apart = np.mean([_predict(booster, x_NF, trees.options, trees.targets) for booster in trees.boosters], axis=0)
    assert np.allclose(trees.predict(x_NF), apart, rtol=1e-5, atol=1e-5 * np.abs(apart).max())
    merged = _predict(trees.merged, x_NF, trees.options, trees.targets)
    assert np.ptp(trees.predict(x_NF) - merged) < 1e-5 * np.abs(apart).max()  # it has no base score
