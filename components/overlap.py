"""Who was given what: the propensity that weights are made of, and whether the records can tell about an option at all.

Axis suffixes: N rows, D columns, K options.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from components.models.forest import Votes, softmax
from components.tensors import Scaler, Training
from features.feature import Floats

SMALLEST_OVERLAP = 0.02  # an option that fewer than 2 in 100 such patients were given is outside what the records can tell
SMOOTH, SHARP = 0.05, 1.0  # inverse of the ridge penalty: a weight wants a steady propensity, the edge of the records a faithful one
ENOUGH = 800  # rows below which the second opinions would see gaps that are chance
ROUNDS = 60
SETTINGS = {
    "objective": "multi:softprob",
    "max_depth": 2,
    "eta": 0.2,
    "min_child_weight": 2,
    "lambda": 0.3,
    "tree_method": "hist",
    "seed": 0,
}

Mask = np.typing.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Propensity:
    """Probability of being given each option: multinomial logistic regression on scaled values and masks."""

    scaler: Scaler
    coef_KD: Floats
    intercept_K: Floats

    @classmethod
    def fit(cls, training: Training, rows: Mask, strength: float = SMOOTH) -> "Propensity":
        """Learned from the rows of a mask. An option that none of them was given has no support."""
        from sklearn.linear_model import LogisticRegression

        scaler = Scaler.fit(training.x_NF, training.modality_F)
        model = LogisticRegression(C=strength, max_iter=400).fit(_columns(scaler, training.x_NF[rows]), training.option_N[rows])
        coef, intercept = (model.coef_, model.intercept_) if len(model.classes_) > 2 else _binary(model)
        coef_KD = np.zeros((training.options, model.coef_.shape[1]))
        intercept_K = np.full(training.options, -30.0)
        coef_KD[model.classes_], intercept_K[model.classes_] = coef, intercept
        return cls(scaler=scaler, coef_KD=coef_KD, intercept_K=intercept_K)

    def predict(self, x_NF: Floats) -> Floats:
        """N by K, rows sum to 1."""
        return self._of_columns(_columns(self.scaler, x_NF))

    def _of_columns(self, columns_ND: Floats) -> Floats:
        return softmax(columns_ND @ self.coef_KD.T + self.intercept_K)


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The share of comparable patients who were given each option, and a second and third opinion on whether there are any.

    The smooth propensity alone takes a group that was only ever given one drug for a group that was mostly given it: in the simulator it
    saw 7 to 77 % of such patients. A sharp one sees groups that are named by a feature, shallow trees those beyond a threshold.
    """

    smooth: Propensity
    sharp: Propensity
    trees: Any = None  # xgboost.Booster; None where there were too few rows for second opinions

    @classmethod
    def fit(cls, training: Training, rows: Mask) -> "Overlap":
        """Learned from the rows of a mask."""
        import xgboost

        if rows.sum() < ENOUGH:
            smooth = Propensity.fit(training, rows)
            return cls(smooth=smooth, sharp=smooth)
        known = xgboost.DMatrix(training.x_NF[rows], label=training.option_N[rows], nthread=1)
        trees = xgboost.train(SETTINGS | {"num_class": training.options, "nthread": 1}, known, ROUNDS)
        return cls(smooth=Propensity.fit(training, rows), sharp=Propensity.fit(training, rows, SHARP), trees=trees)

    def predict(self, x_NF: Floats) -> Floats:
        """N by K: the smooth propensity, or, where any of the others finds fewer than `SMALLEST_OVERLAP`, what the lowest finds."""
        columns_ND = _columns(self.smooth.scaler, x_NF)  # the sharp one has the same scaler
        smooth_NK = self.smooth._of_columns(columns_ND)
        if self._votes is None or not len(x_NF):
            return smooth_NK
        lowest_NK = np.minimum(self.sharp._of_columns(columns_ND), self._votes.predict(x_NF))
        return np.where(lowest_NK < SMALLEST_OVERLAP, np.minimum(lowest_NK, smooth_NK), smooth_NK)

    @cached_property
    def _votes(self) -> Votes | None:
        return None if self.trees is None else Votes.of(self.trees)

    def save(self, folder: Path) -> None:
        """`overlap.safetensors` and `overlap.ubj`."""
        arrays = {f"{name}_{part}": getattr(each, part) for name, each in self._both().items() for part in ("coef_KD", "intercept_K")}
        arrays |= {"center_F": self.smooth.scaler.center_F, "spread_F": self.smooth.scaler.spread_F}
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "overlap.safetensors")
        if self.trees is not None:
            self.trees.save_model(folder / "overlap.ubj")

    @classmethod
    def load(cls, folder: Path, modality_F: tuple[str, ...]) -> "Overlap":
        """What `save` wrote."""
        import xgboost

        a = load_file(folder / "overlap.safetensors")
        scaler = Scaler(center_F=a["center_F"], spread_F=a["spread_F"], modality_F=modality_F)  # type: ignore[arg-type]
        smooth, sharp = (
            Propensity(scaler=scaler, coef_KD=a[f"{name}_coef_KD"], intercept_K=a[f"{name}_intercept_K"]) for name in ("smooth", "sharp")
        )
        trees = None
        if (folder / "overlap.ubj").is_file():
            trees = xgboost.Booster({"nthread": 1})
            trees.load_model(folder / "overlap.ubj")
        found = cls(smooth=smooth, sharp=sharp, trees=trees)
        assert trees is None or found._votes  # made when it is loaded, not while the first patient waits
        return found

    def _both(self) -> dict[str, Propensity]:
        return {"smooth": self.smooth, "sharp": self.sharp}


def _columns(scaler: Scaler, x_NF: Floats) -> Floats:
    batch = scaler.batch(x_NF)
    return np.concatenate([batch.scaled_NF, ~batch.seen_NF], axis=1)


def _binary(model: Any) -> tuple[Floats, Floats]:
    """Two rows of logits from sklearn's single one."""
    coef, intercept = model.coef_[0], model.intercept_[0]
    return np.stack([np.zeros_like(coef), coef]), np.array([0.0, intercept])
