"""Boosted trees for a few rows on one core: which leaf of every tree a row reaches, without walking any of them.

Every split rules out the leaves on the side that a row does not take; the one leaf that no split rules out is the one that it reaches
(Lucchese et al., QuickScorer, SIGIR 2015). What a feature's value leaves of every tree is the same everywhere between two thresholds, so it
is worked out once for each such interval and once for a missing value, and splits on the option are answered beforehand. Leaves are
XGBoost's; they are summed in double precision. Axis suffixes: N rows, F features, K options, T trees, D table rows, L leaves.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from features.feature import Floats, Ints

Leaves = npt.NDArray[np.uint16]  # a bit for every leaf of a tree
Tree = dict[str, Any]  # as XGBoost's JSON has it
MOST_LEAVES = 16
BIAS = 127
AT_ONCE = 64  # rows: what lies between them and their sum then fits into the cache
MISSING = 0xFF800001  # as an ordered number: just beyond infinity, where NaN stands


@dataclass(frozen=True)
class _Split:
    """One split of one tree: rows whose value is below `at` go left, and what is missing goes where `missing_left` says."""

    tree: int
    feature: int
    at: int  # threshold as an ordered number
    left: int  # leaves on the left side, a bit each
    right: int
    missing_left: bool


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Trees that ask which option is given, and trees that do not: these tell no two options apart."""

    asking: "_Grove"
    others: "_Grove"

    @classmethod
    def of(cls, trees: Sequence[Tree], features: int, options: int) -> "Forest":
        """From XGBoost's trees over `features` columns and then `options` columns, one-hot. Raises ValueError where one can't be read."""
        asks = [any(split.feature >= features for split in _splits(0, tree)) for tree in trees]
        apart = [[tree for tree, asking in zip(trees, asks, strict=True) if asking is wanted] for wanted in (True, False)]
        return cls(asking=_Grove.of(apart[0], features, options), others=_Grove.of(apart[1], features, 0))

    def predict(self, x_NF: Floats) -> Floats:
        """Sum of all trees under each option, N by K; N by 1 without options."""
        return self.asking(x_NF) + self.others(x_NF)

    def compared(self, x_NF: Floats) -> Floats:
        """The same less what no option changes, N by K: all differences between options are the same."""
        return self.asking(x_NF)


@dataclass(frozen=True, kw_only=True)
class Votes:
    """Trees that each speak for one class: how probable each class is, as XGBoost's `multi:softprob` says."""

    trees: "_Grove"  # of one class after the other
    base_K: Floats

    @classmethod
    def of(cls, booster: Any) -> "Votes":
        """From an XGBoost booster. Raises ValueError where a tree can't be read."""
        told = json.loads(bytes(booster.save_raw("json")))["learner"]
        model, whole = told["gradient_booster"]["model"], told["learner_model_param"]
        places = np.argsort(model["tree_info"], kind="stable")
        trees = [model["trees"][place] for place in places]
        base_K = np.broadcast_to(json.loads(whole["base_score"]), int(whole["num_class"]))
        return cls(trees=_Grove.of(trees, int(whole["num_feature"]), 0), base_K=base_K)

    def predict(self, x_NF: Floats) -> Floats:
        """N by K, rows sum to 1."""
        return softmax(self.base_K + self.trees(x_NF, len(self.base_K)))


def softmax(score_NK: Floats) -> Floats:
    """Rows that sum to 1: bit for bit scipy's (1.17), which takes twice as long on one row of five options (6.3 us, here 2.9)."""
    power_NK = np.exp(score_NK - score_NK.max(1, keepdims=True))
    return np.asarray(power_NK / power_NK.sum(1, keepdims=True))


@dataclass(frozen=True, kw_only=True)
class _Grove:
    """What each interval of each feature leaves of some trees, what each option leaves, and the values of their leaves."""

    threshold_D: Ints  # feature, then threshold, in one ordered number
    left_DT: Leaves
    option_KT: Leaves
    value_TL: Floats

    @classmethod
    def of(cls, trees: Sequence[Tree], features: int, options: int) -> "_Grove":
        """As `Forest.of`."""
        splits = [split for t, tree in enumerate(trees) for split in _splits(t, tree)]
        value_TL = np.zeros((len(trees), MOST_LEAVES))
        for t, tree in enumerate(trees):
            found = [tree["split_conditions"][node] for node in _leaves(tree)]
            value_TL[t, : len(found)] = found
        every_T = np.array([(1 << len(_leaves(tree))) - 1 for tree in trees], np.uint16)
        threshold_D, left_DT = _table(splits, every_T, features + options)
        grove = cls(threshold_D=threshold_D, left_DT=left_DT, option_KT=every_T[None], value_TL=value_TL)
        if not options:
            return grove
        rows_KF = grove._rows(np.eye(options), features)
        option_KT = np.bitwise_and.reduce(left_DT[rows_KF], axis=1)
        return cls(threshold_D=threshold_D, left_DT=left_DT, option_KT=option_KT, value_TL=value_TL)

    @cached_property
    def _first_T(self) -> Ints:
        """Where the leaves of each tree begin, less BIAS."""
        return np.arange(0, self.value_TL.size, MOST_LEAVES) - BIAS

    def _rows(self, x_NF: Floats, first: int = 0) -> Ints:
        """Row of the table for the values of consecutive features."""
        feature_F = np.arange(first, first + x_NF.shape[1])
        return np.searchsorted(self.threshold_D, (feature_F << 32) + _ordered(x_NF), side="right") + feature_F

    def __call__(self, x_NF: Floats, parts: int = 1) -> Floats:
        """Sum of the trees under each option, or, without options, of each of some equal parts of them: N by K.

        The sum of a row does not depend on the others.
        """
        starts = range(0, max(len(x_NF), 1), AT_ONCE)
        return np.concatenate([self._sum(x_NF[first : first + AT_ONCE], parts) for first in starts])

    def _sum(self, x_NF: Floats, parts: int) -> Floats:
        place_NKT = _place(self._left(x_NF)[:, None, :] & self.option_KT)
        leaf_NKT = np.add(place_NKT, self._first_T, dtype=np.int64)
        shape = (len(x_NF), parts * len(self.option_KT), len(self.value_TL) // parts)
        return np.asarray(self.value_TL.ravel().take(leaf_NKT, mode="clip").reshape(shape).sum(2))

    def _left(self, x_NF: Floats) -> Leaves:
        """What all features leave of every tree, N by T. Features that are alike in all rows, as in tried rows, are looked at once."""
        rows_NF = self._rows(x_NF)
        alike_F = (rows_NF == rows_NF[:1]).all(0)
        left_NT: Leaves = np.bitwise_and.reduce(self.left_DT[rows_NF[:1, alike_F]], axis=1)
        if alike_F.all():
            return np.repeat(left_NT, len(x_NF), axis=0)
        return left_NT & np.bitwise_and.reduce(self.left_DT[rows_NF[:, ~alike_F]], axis=1)


def _table(splits: Sequence[_Split], every_T: Leaves, features: int) -> tuple[Ints, Leaves]:
    """Thresholds of every feature, each feature's followed by MISSING, and what the intervals between them leave of every tree.

    A feature of d thresholds has d + 2 intervals: below the first, from each to the next, and missing. So the row of a value is the number
    of thresholds of all features that are not beyond it, and one more for each feature before its own.
    """
    ends = [(f << 32) + MISSING for f in range(features)]
    threshold_D = np.unique(np.array(ends + [(split.feature << 32) + split.at for split in splits], np.int64))
    first_F = [0, *(int(found) + f + 2 for f, found in enumerate(np.searchsorted(threshold_D, ends)))]
    left_TD = np.repeat(every_T[:, None], len(threshold_D) + features, axis=1)
    turns = np.searchsorted(threshold_D, [(split.feature << 32) + split.at for split in splits])
    spans = list(pairwise(first_F))
    for split, found in zip(splits, turns.tolist(), strict=True):
        (first, end), left_D = spans[split.feature], left_TD[split.tree]
        turn = found + split.feature + 1  # here and beyond a row goes right
        left_D[first:turn] &= 0xFFFF ^ split.right
        left_D[turn : end - 1] &= 0xFFFF ^ split.left
        left_D[end - 1] &= 0xFFFF ^ (split.right if split.missing_left else split.left)
    return threshold_D, np.ascontiguousarray(left_TD.T)


def _place(bit: Leaves) -> npt.NDArray[np.int32]:
    """Number of the one bit that is set, and BIAS: the exponent of a power of two as single precision holds it."""
    found = bit.astype(np.float32).view(np.int32)
    found >>= 23
    return found


def _ordered(x: npt.ArrayLike) -> Ints:
    """Numbers in single precision, as XGBoost compares them, as whole numbers in the same order, none below 0."""
    single = np.asarray(x, np.float32) + np.float32(0)  # one zero, not two
    bits = single.view(np.int32).astype(np.int64)
    return np.where(np.isnan(single), MISSING, np.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + 0x80000000)


def _leaves(tree: Tree) -> list[int]:
    return [node for node, child in enumerate(tree["left_children"]) if child == -1]


def _splits(t: int, tree: Tree) -> Iterator[_Split]:
    """Every split of a tree. Raises ValueError where it has too many leaves, or splits by category."""
    left, right, leaves = tree["left_children"], tree["right_children"], _leaves(tree)
    if len(leaves) > MOST_LEAVES or any(tree["split_type"]):
        raise ValueError(f"A tree has {len(leaves)} leaves or splits by category; at most {MOST_LEAVES} and numbers are read. Train again.")
    below = {node: 1 << place for place, node in enumerate(leaves)}
    for node in reversed(range(len(left))):  # children have higher numbers than their parents
        if left[node] != -1:
            below[node] = below[left[node]] | below[right[node]]
            at, missing_left = int(_ordered(tree["split_conditions"][node])), bool(tree["default_left"][node])
            yield _Split(t, tree["split_indices"][node], at, below[left[node]], below[right[node]], missing_left)
