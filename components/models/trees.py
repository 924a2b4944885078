"""XGBoost member: one model of the outcome with the option as an input, so that options share what they have in common.

Axis suffixes: N rows, F features, K options, T targets, E folds.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from components.models.forest import Forest
from components.tensors import FOLDS, Training
from features.feature import Floats

ROUNDS = 250
SETTINGS = {
    "objective": "reg:squarederror",
    "max_depth": 4,
    "eta": 0.05,
    "subsample": 0.7,
    "colsample_bytree": 0.6,
    "min_child_weight": 10,
    "lambda": 5.0,
    "tree_method": "hist",
    "seed": 0,
}


@dataclass(kw_only=True)
class Trees:
    """A booster a fold; the prediction is their mean, N by T. A missing value stays missing: the trees have a branch for it."""

    names: tuple[str, ...]
    options: int
    targets: int
    boosters: list[Any]
    oof_NT: Floats | None = None

    @cached_property
    def merged(self) -> Any:
        """The mean of the boosters as one booster without base score, for XGBoost's own explanations."""
        import xgboost

        merged = xgboost.Booster({"nthread": 1})
        merged.load_model(bytearray(json.dumps(_mean(self.boosters)[0]).encode()))
        return merged

    @cached_property
    def _forest(self) -> tuple[Forest, float]:
        """All trees and the base score: a call into XGBoost costs one patient ten times as much."""
        whole, base = _mean(self.boosters)
        trees = whole["learner"]["gradient_booster"]["model"]["trees"]
        return Forest.of(trees, len(self.names), 0 if self.targets == 1 else self.options), base

    def predict(self, x_NF: Floats) -> Floats:
        """Expected target under each option, mean of the folds' boosters."""
        forest, base = self._forest
        return forest.predict(x_NF) + base

    def compared(self, x_NF: Floats) -> Floats:
        """The same up to what options have in common, for less; of one target the same."""
        return self._forest[0].compared(x_NF) if self.targets > 1 else self.predict(x_NF)

    def save(self, folder: Path) -> None:
        """`trees_<fold>.ubj`."""
        for fold, booster in enumerate(self.boosters):
            booster.save_model(folder / f"trees_{fold}.ubj")

    @classmethod
    def load(cls, folder: Path, names: tuple[str, ...], options: int, targets: int) -> "Trees":
        """The member that `save` wrote. Raises ValueError where its features are not those that the caller has."""
        import xgboost

        boosters = []
        for path in sorted(folder.glob("trees_*.ubj")):
            booster = xgboost.Booster({"nthread": 1})
            booster.load_model(path)
            if tuple(booster.feature_names or ()) != _columns(names, options, targets):
                raise ValueError(f"{path.name} was trained on other features than this decision has. Train again.")
            boosters.append(booster)
        model = cls(names=names, options=options, targets=targets, boosters=boosters)
        assert model._forest  # made when it is loaded, not while the first patient waits
        return model


def fit(training: Training, *, threads: int = 1) -> Trees:
    """A booster for every fold, each fitted without it, and its predictions for it."""
    import xgboost

    names = _columns(training.names, training.options, training.targets)
    given_NX = _inputs(training.x_NF, training.option_N, training.options, training.targets)
    boosters, oof_NT = [], np.zeros((len(training), training.targets))
    for fold in range(FOLDS):
        rows = (training.fold_N != fold) & training.observed_N
        data = xgboost.DMatrix(given_NX[rows], training.target_N[rows], feature_names=list(names))
        booster = xgboost.train(SETTINGS | {"nthread": threads}, data, ROUNDS)
        held = training.fold_N == fold
        oof_NT[held] = _predict(booster, training.x_NF[held], training.options, training.targets)
        boosters.append(booster)
    return Trees(names=training.names, options=training.options, targets=training.targets, boosters=boosters, oof_NT=oof_NT)


def _mean(boosters: list[Any]) -> tuple[dict[str, Any], float]:
    """All trees as one model, their leaves divided by the number of boosters, and the mean base score.

    XGBoost adds in single precision, so the base is added afterwards. Raises ValueError where a value is not a finite number.
    """
    told = [json.loads(bytes(booster.save_raw("json")), parse_constant=_not_finite) for booster in boosters]
    whole, trees = told[0], list[dict[str, Any]]()
    for model in told:
        for tree in model["learner"]["gradient_booster"]["model"]["trees"]:
            leaf = [left == -1 for left in tree["left_children"]]
            values = zip(tree["split_conditions"], leaf, strict=True)
            tree["split_conditions"] = [value / len(told) if ends else value for value, ends in values]
            tree["base_weights"] = [value / len(told) for value in tree["base_weights"]]
            trees.append(tree | {"id": len(trees)})
    model = whole["learner"]["gradient_booster"]["model"]
    model |= {"trees": trees, "tree_info": [0] * len(trees), "iteration_indptr": list(range(len(trees) + 1))}
    model["gbtree_model_param"]["num_trees"] = str(len(trees))
    base = [json.loads(part["learner"]["learner_model_param"]["base_score"])[0] for part in told]
    whole["learner"]["learner_model_param"]["base_score"] = "[0E0]"
    return whole, sum(base) / len(base)


def _not_finite(_: str) -> float:
    raise ValueError("A tree holds a value that is not a finite number. Train again.")


def _columns(names: tuple[str, ...], options: int, targets: int) -> tuple[str, ...]:
    return names if targets == 1 else names + tuple(f"option_{k}" for k in range(options))


def _inputs(x_NF: Floats, option_N: Any, options: int, targets: int) -> Floats:
    return x_NF if targets == 1 else np.concatenate([x_NF, np.eye(options)[option_N]], axis=1)


def _predict(booster: Any, x_NF: Floats, options: int, targets: int) -> Floats:
    """In place, without a DMatrix: all options of all rows in one call."""
    if targets == 1:
        return np.asarray(booster.inplace_predict(x_NF, validate_features=False), np.float64)[:, None]
    rows, option_N = np.repeat(x_NF, options, axis=0), np.tile(np.arange(options), len(x_NF))
    flat = booster.inplace_predict(_inputs(rows, option_N, options, targets), validate_features=False)
    return np.asarray(flat, np.float64).reshape(len(x_NF), options)
