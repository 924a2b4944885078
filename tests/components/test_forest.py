"""The trees without walking them: every row reaches the leaves that XGBoost says it reaches, at thresholds and where values are missing."""

import json
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from components.models.forest import Forest, Tree, Votes
from features.feature import Floats

F, K, ROUNDS = 6, 3, 40


def told(booster: Any) -> list[Tree]:
    return list(json.loads(bytes(booster.save_raw("json")))["learner"]["gradient_booster"]["model"]["trees"])


def grown(options: int, seed: int = 0) -> tuple[Any, Floats]:
    """A booster of a world with missing values, counts, values below 0, and an option that matters; and its thresholds."""
    rng = np.random.default_rng(seed)
    x_NF = rng.normal(size=(800, F)) * np.array([1, 30, 1e-3, 1e5, 1, 1]) + np.array([0, 40, 0, -2e5, 0, 0])
    x_NF[:, 4] = rng.integers(0, 3, 800)
    x_NF[:, 5] = rng.integers(0, 2, 800)
    x_NF[rng.random(x_NF.shape) < 0.2] = np.nan
    option_N = rng.integers(0, max(options, 1), 800)
    known_NF = np.nan_to_num(x_NF / np.nanstd(x_NF, axis=0))
    y_N = known_NF[:, 0] + known_NF[:, 3] * known_NF[:, 4] + option_N * known_NF[:, 1] + rng.normal(size=800)
    data = xgboost.DMatrix(np.concatenate([x_NF, np.eye(options)[option_N]], axis=1) if options else x_NF, y_N)
    booster = xgboost.train({"max_depth": 4, "eta": 0.3, "colsample_bytree": 0.6, "base_score": 0.0}, data, ROUNDS)
    at = [
        (f, v)
        for t in told(booster)
        for f, v, c in zip(t["split_indices"], t["split_conditions"], t["left_children"], strict=True)
        if c > 0
    ]
    return booster, np.array([[f, v] for f, v in at if f < F])


BOOSTERS = {options: grown(options) for options in (0, K)}


def by_xgboost(booster: Any, x_NF: Floats, options: int) -> Floats:
    """The leaves that XGBoost says each row reaches under each option, summed in double precision."""
    value = [np.array(tree["split_conditions"]) for tree in told(booster)]
    columns = []
    for k in range(max(options, 1)):
        given_NX = np.concatenate([x_NF, np.tile(np.eye(options)[k], (len(x_NF), 1))], axis=1) if options else x_NF
        leaf_NT = booster.predict(xgboost.DMatrix(given_NX), pred_leaf=True).astype(int)
        columns.append(np.sum([leaves[leaf_NT[:, t]] for t, leaves in enumerate(value)], axis=0))
    return np.stack(columns, axis=1)


@st.composite
def rows(draw: st.DrawFn, options: int) -> Floats:
    """Rows of anything finite: exactly at thresholds, just beside them, zeros of either sign, missing."""
    _, threshold_S2 = BOOSTERS[options]

    def value(f: int) -> st.SearchStrategy[float]:
        at = threshold_S2[threshold_S2[:, 0] == f, 1].astype(np.float32)
        near = [float(v) for v in (*at, *np.nextafter(at, np.float32(-np.inf)), *np.nextafter(at, np.float32(np.inf)))]
        rest = [st.just(np.nan), st.sampled_from([0.0, -0.0, 1.0]), st.floats(-1e6, 1e6)]
        return st.one_of(*([st.sampled_from(near)] if near else []), *rest)

    return np.array(draw(st.lists(st.tuples(*map(value, range(F))), min_size=1, max_size=5)))


@pytest.mark.parametrize("options", [0, K], ids=["one target", "options"])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_row_reaches_the_leaves_that_xgboost_says(options: int, data: st.DataObject) -> None:
    booster, _ = BOOSTERS[options]
    x_NF = data.draw(rows(options))
    np.testing.assert_allclose(Forest.of(told(booster), F, options).predict(x_NF), by_xgboost(booster, x_NF, options), rtol=0, atol=1e-11)


def test_a_row_has_the_same_sum_alone_and_in_any_company() -> None:
    forest = Forest.of(told(BOOSTERS[K][0]), F, K)
    x_NF = np.random.default_rng(1).normal(size=(150, F)) * np.array([1, 30, 1e-3, 1e5, 1, 1])
    x_NF[::3, 2], x_NF[100:140] = np.nan, x_NF[100]
    whole = forest.predict(x_NF)
    np.testing.assert_array_equal(np.concatenate([forest.predict(row[None]) for row in x_NF]), whole)
    np.testing.assert_array_equal(forest.predict(x_NF[90:110]), whole[90:110])
    assert forest.predict(x_NF[:0]).shape == (0, K)


def test_what_is_left_out_of_a_comparison_is_the_same_for_every_option() -> None:
    forest = Forest.of(told(BOOSTERS[K][0]), F, K)
    x_NF = np.random.default_rng(2).normal(size=(50, F))
    whole, compared = forest.predict(x_NF), forest.compared(x_NF)
    np.testing.assert_allclose(whole - whole[:, :1], compared - compared[:, :1], rtol=0, atol=1e-11)
    assert np.ptp(whole - compared, axis=0).max() > 0.1  # something is left out


def test_classes_are_as_probable_as_xgboost_says() -> None:
    rng = np.random.default_rng(3)
    x_NF = np.where(rng.random((900, F)) < 0.1, np.nan, rng.normal(size=(900, F)))
    class_N = np.where(np.nan_to_num(x_NF[:, 0]) > 0.5, 3, rng.integers(0, 3, 900))
    setting = {"objective": "multi:softprob", "num_class": 4, "max_depth": 2}
    booster = xgboost.train(setting, xgboost.DMatrix(x_NF, class_N), 30)
    votes = Votes.of(booster)
    np.testing.assert_allclose(votes.predict(x_NF), booster.inplace_predict(x_NF), rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(votes.predict(x_NF[7:8])[0], votes.predict(x_NF)[7])


def test_a_tree_of_another_kind_is_refused() -> None:
    deep = xgboost.train({"max_depth": 6}, xgboost.DMatrix(np.arange(500.0)[:, None], np.random.default_rng(0).normal(size=500)), 1)
    with pytest.raises(ValueError, match=r"A tree has \d+ leaves .* at most 16 .* Train again\."):
        Forest.of(told(deep), 1, 0)
