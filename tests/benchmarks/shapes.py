"""Effects of many shapes on plain tables of two options, ours beside the peers of `effects.py`: where an additive estimator wins and loses.

`python tests/benchmarks/shapes.py` writes its section of RESULTS.md. Ours is what `concordant effects` runs. Who is given the second option
depends on two features. Axis suffixes: N rows, F features.
"""

import os
import subprocess
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from effects import HERE, peers
from results import table, write

from components.table import estimate
from features.feature import Floats

METHODS = ("CausalForestDML (EconML)", "X-learner (CausalML)", "T-learner (XGBoost)", "ridge S-learner, all")
ROWS, SEEDS, TEST, FEATURES, NOISE = (500, 2_000), range(3), 2_000, 10, 1.5


def logistic(x: Floats) -> Floats:
    """From 0 to 1."""
    return np.asarray(1 / (1 + np.exp(-x)))


SHAPES: dict[str, Any] = {
    "none": lambda x: np.zeros(len(x)),
    "the same for all": lambda x: np.ones(len(x)),
    "straight in two features": lambda x: x[:, 0] - 0.5 * x[:, 5],
    "a square": lambda x: x[:, 0] ** 2 - 1,
    "a wave": lambda x: 2 * np.sin(2 * x[:, 1]),
    "a product of two smooth steps": lambda x: (1 + logistic(6 * x[:, 0])) * (1 + logistic(6 * x[:, 1])) - 2.25,
    "a step": lambda x: 2.0 * (x[:, 0] > 0) - 1,
    "a step in one quarter": lambda x: 3.0 * ((x[:, 0] > 0) & (x[:, 1] > 0)),
    "steps that cross over (exclusive or)": lambda x: np.where((x[:, 0] > 0) ^ (x[:, 1] > 0), 1.5, -1.5),
}


def drawn(shape: str, rows: int, seed: int) -> tuple[Floats, Any, Floats, Floats]:
    """Features of training and test rows, option and outcome of the training rows, and the true effect of the test rows."""
    dice = np.random.default_rng(seed)
    x_NF = dice.normal(size=(rows + TEST, FEATURES))
    effect_N = SHAPES[shape](x_NF)
    option_N = (dice.random(len(x_NF)) < logistic(0.8 * x_NF[:, 0] + 0.5 * x_NF[:, 2])).astype(np.int64)
    level_N = x_NF[:, 0] + 0.5 * x_NF[:, 3] ** 2 + np.sin(2 * x_NF[:, 4])
    outcome_N = level_N + option_N * effect_N + NOISE * dice.normal(size=len(x_NF))
    return x_NF, option_N[:rows], outcome_N[:rows], effect_N[rows:]


def ours(x_NF: Floats, option_N: Any, outcome_N: Floats) -> Floats:
    """Effect of the test rows as `concordant effects --apply` gives it."""
    columns = [f"x{f}" for f in range(x_NF.shape[1])]
    learn, ask = (pd.DataFrame(part, columns=columns) for part in np.split(x_NF, [len(option_N)]))
    learn["option"], learn["outcome"] = np.where(option_N == 1, "second", "first"), outcome_N
    found = estimate(learn, "option", "outcome", lower_is_better=True, apply=ask)
    return np.asarray(found.effects.difference_NKK[:, 1, 0])


def peer(method: str, x_NF: Floats, option_N: Any, outcome_N: Floats) -> Floats:
    """Effect of the test rows as a peer gives it."""
    learn_NF, test_NF = np.split(x_NF, [len(option_N)])
    history_F = np.ones(x_NF.shape[1], bool)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder) / "in.npz", Path(folder) / "out.npz"
        np.savez(source, x_NF=learn_NF, option_N=option_N, target_N=outcome_N, test_NF=test_NF, history_F=history_F)
        subprocess.run([peers(), HERE / "effects_peers.py", method, source, out], check=True, env=environment)
        with np.load(out) as arrays:
            effect_NK = arrays["effect_NK"]
    return np.asarray(effect_NK[:, 1] - effect_NK[:, 0])


def main() -> None:
    """Measure and write."""
    warnings.simplefilter("ignore")
    text = []
    for rows in ROWS:
        lines, won = [], 0
        for shape in SHAPES:
            errors: dict[str, list[float]] = {}
            for seed in SEEDS:
                x_NF, option_N, outcome_N, effect_N = drawn(shape, rows, seed)
                found = {"Concordant": ours(x_NF, option_N, outcome_N)} | {m: peer(m, x_NF, option_N, outcome_N) for m in METHODS}
                for name, predicted_N in found.items():
                    errors.setdefault(name, []).append(float(np.sqrt(np.mean((predicted_N - effect_N) ** 2))))
            mean = {name: float(np.mean(values)) for name, values in errors.items()}
            best = min(value for name, value in mean.items() if name != "Concordant")
            won += mean["Concordant"] <= best
            ratio = "-" if best < 1e-9 else f"{mean['Concordant'] / best:.2f}"
            lines.append((shape, f"{effect_N.std():.2f}", *(f"{value:.2f}" for value in mean.values()), ratio))
            print(rows, *lines[-1], flush=True)
        columns = ("effect", "its spread", "Concordant", *METHODS, "ours over the best peer")
        text.append(table(f"### {rows:,} rows: lowest error of all in {won} of {len(SHAPES)}", columns, lines))
    note = f"Root mean square error of the effect on {TEST:,} new rows, mean of {len(SEEDS)} draws; {FEATURES} features, noise {NOISE}.\n"
    write("shapes", "Effects of other shapes", "python tests/benchmarks/shapes.py", "\n".join([note, *text]))


if __name__ == "__main__":
    main()
