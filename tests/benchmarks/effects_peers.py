"""The peers of the effects benchmark; runs in an environment of its own.

`python effects_peers.py METHOD IN.npz OUT.npz`. In: x_NF (NaN where missing), option_N, target_N (complete), test_NF, history_F.
Out: effect_NK (any level: only differences between options count), low_NKK and high_NKK (95 %, NaN where the library has none),
cpu_s, and peak_mb of this process.

What the libraries can't take is done for them, the same for all: missing values become the mean of the column, with a flag a column
where more than 1 in 100 is missing. Not by the libraries' defaults: outcome models are XGBoost with the settings of our own tree member,
propensities multinomial logistic regression. Whether that is better or worse for them than their defaults was not measured; final stages
and everything else are the defaults.

Axis suffixes: N rows, F features, K options.
"""

import resource
import sys
import time
import warnings
from typing import Any

import numpy as np

TREES = {"n_estimators": 250, "max_depth": 4, "learning_rate": 0.05, "subsample": 0.7, "colsample_bytree": 0.6, "min_child_weight": 10}
Answer = tuple[Any, Any, Any]


def columns(x_NF: Any, test_NF: Any) -> tuple[Any, Any]:
    """Imputed, flagged and standardised."""
    missing_F = np.isnan(x_NF).mean(0)
    mean_F = np.nan_to_num(np.nanmean(x_NF, 0))

    def whole(values_NF: Any) -> Any:
        gone_NF = np.isnan(values_NF)
        return np.concatenate([np.where(gone_NF, mean_F, values_NF), gone_NF[:, (missing_F > 0.01) & (missing_F < 1)]], axis=1)

    learn, ask = whole(x_NF), whole(test_NF)
    spread = learn.std(0) + 1e-9
    kept = learn.std(0) > 1e-9
    return ((learn - learn.mean(0)) / spread)[:, kept], ((ask - learn.mean(0)) / spread)[:, kept]


def regressor() -> Any:
    from xgboost import XGBRegressor

    return XGBRegressor(**TREES, n_jobs=1, random_state=0)


def classifier() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.05, max_iter=400)


def nothing(n: int, k: int) -> Any:
    return np.full((n, k, k), np.nan)


def causal_forest(x: Any, a: Any, y: Any, ask: Any) -> Answer:
    from econml.dml import CausalForestDML

    model = CausalForestDML(model_y=regressor(), model_t=classifier(), discrete_treatment=True, random_state=0, n_jobs=1)
    model.fit(y, a, X=x)
    return econml(model, ask, len(np.unique(a)))


def dr_learner(x: Any, a: Any, y: Any, ask: Any) -> Answer:
    from econml.dr import DRLearner

    model = DRLearner(model_propensity=classifier(), model_regression=regressor(), random_state=0)
    model.fit(y, a, X=x)
    return econml(model, ask, len(np.unique(a)))


def econml(model: Any, ask: Any, k: int) -> Answer:
    """Effects against the first option; intervals exist for those alone."""
    n = len(ask)
    effect, low, high = np.zeros((n, k)), nothing(n, k), nothing(n, k)
    for option in range(1, k):
        effect[:, option] = np.asarray(model.effect(ask, T0=0, T1=option)).ravel()
        bounds = model.effect_interval(ask, T0=0, T1=option, alpha=0.05)
        low[:, option, 0], high[:, option, 0] = (np.asarray(bound).ravel() for bound in bounds)
        low[:, 0, option], high[:, 0, option] = -high[:, option, 0], -low[:, option, 0]
    return effect, low, high


def x_learner(x: Any, a: Any, y: Any, ask: Any) -> Answer:
    from causalml.inference.meta import BaseXRegressor

    k = len(np.unique(a))
    model, chance = BaseXRegressor(learner=regressor(), control_name=0), classifier().fit(x, a)

    def given(rows: Any) -> dict[int, Any]:  # of an option against the control, among those two
        p = np.clip(chance.predict_proba(rows), 1e-3, 1)
        return {option: p[:, option] / (p[:, option] + p[:, 0]) for option in range(1, k)}

    model.fit(X=x, treatment=a, y=y, p=given(x))
    found = model.predict(X=ask, p=given(ask))
    return np.concatenate([np.zeros((len(ask), 1)), found], axis=1), nothing(len(ask), k), nothing(len(ask), k)


def t_learner(x: Any, a: Any, y: Any, ask: Any) -> Answer:
    k = len(np.unique(a))
    effect = np.stack([regressor().fit(x[a == option], y[a == option]).predict(ask) for option in range(k)], axis=1)
    return effect, nothing(len(ask), k), nothing(len(ask), k)


def ridge_s(x: Any, a: Any, y: Any, ask: Any) -> Answer:
    """One ridge of features, options and their products; the penalty by cross-validation."""
    from sklearn.linear_model import RidgeCV

    k = len(np.unique(a))

    def design(rows: Any, option: Any) -> Any:
        given = np.eye(k)[option]
        return np.concatenate([rows, given, (given[:, :, None] * rows[:, None, :]).reshape(len(rows), -1)], axis=1)

    model = RidgeCV(alphas=np.logspace(0, 4, 13), cv=5).fit(design(x, a), y)
    effect = np.stack([model.predict(design(ask, np.full(len(ask), option))) for option in range(k)], axis=1)
    return effect, nothing(len(ask), k), nothing(len(ask), k)


METHODS = {
    "CausalForestDML (EconML)": causal_forest,
    "DRLearner (EconML)": dr_learner,
    "X-learner (CausalML)": x_learner,
    "T-learner (XGBoost)": t_learner,
    "ridge S-learner, history": ridge_s,
    "ridge S-learner, all": ridge_s,
}


def main() -> None:
    """Fit and predict in this process, measured."""
    warnings.simplefilter("ignore")
    method, source, out = sys.argv[1:]
    with np.load(source) as arrays:
        a = dict(arrays)
    kept = a["history_F"] if method.endswith("history") else np.ones(a["x_NF"].shape[1], bool)
    x, ask = columns(a["x_NF"][:, kept], a["test_NF"][:, kept])
    began, clock = time.process_time(), time.perf_counter()
    effect, low, high = METHODS[method](x, a["option_N"], a["target_N"], ask)
    told = {"cpu_s": time.process_time() - began, "wall_s": time.perf_counter() - clock}
    told["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    np.savez(out, effect_NK=effect, low_NKK=low, high_NKK=high, **told)


if __name__ == "__main__":
    main()
