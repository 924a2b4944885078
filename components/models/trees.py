"""XGBoost member: one model of the outcome with the option as an input, so that options share what they have in common.

Axis suffixes: N rows, F features, K options, T targets, E folds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

    def predict(self, x_NF: Floats) -> Floats:
        """Expected target under each option, mean of the folds' boosters."""
        return np.mean([_predict(b, x_NF, self.options, self.targets) for b in self.boosters], axis=0)

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
        return cls(names=names, options=options, targets=targets, boosters=boosters)


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
