"""Our effects beside those of EconML, CausalML, XGBoost and ridge regression: same rows, same test patients, one command.

`python tests/benchmarks/effects.py` measures what its cache does not hold yet (every result is kept as it comes, under a digest of our
code, so that an interrupted run goes on) and writes the section `effects` of RESULTS.md. The peers get an environment of their own, made
here: their pins would disturb ours. `--only WORDS` measures the jobs whose name holds WORDS; `--table` only writes the section.

Axis suffixes: N rows, F features, K options.
"""

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from effects_peers import METHODS
from effects_scores import answered, scores
from effects_worlds import Split, ihdp, simulated
from results import table, write

import components
from components import decision as decisions
from components.effects import Effects

HERE = Path(__file__).parent
SHARED = Path(os.environ.get("CONCORDANT_SHARED_DATA", HERE.parents[2] / "shared" / "data"))
CACHE = Path(os.environ.get("CONCORDANT_BENCHMARK_CACHE", Path(tempfile.gettempdir()) / "concordant-effects"))
PINS = ("econml==0.17.0", "causalml==0.18.0")
SEEDS = {2_000: range(10), 8_000: range(5), 40_000: range(5)}
OURS = ("Concordant", "Concordant, without genomics", "Concordant, history alone")
REALISATIONS = range(1, 11)


def jobs() -> Iterator[tuple[str, str]]:
    """Split and method of every measurement, the cheap ones first."""
    for rows, seeds in SEEDS.items():
        yield from ((f"simulated {rows} {seed}", method) for seed in seeds for method in (*OURS, *METHODS))
        if rows == 2_000:
            yield from (
                (f"ihdp {n}", method) for n in REALISATIONS for method in ("Concordant", *METHODS) if not method.endswith("history")
            )


@cache
def split(name: str) -> Split:
    """The rows of a measurement."""
    kind, *numbers = name.split()
    if kind == "ihdp":
        return ihdp(int(numbers[0]), SHARED)
    return simulated(int(numbers[1]), int(numbers[0]), CACHE)


def peers() -> Path:
    """Python of the environment of the peers, made where it is absent."""
    python = Path(os.environ.get("CONCORDANT_PEERS", CACHE / "peers")) / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", python.parents[1]], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
    return python


def measure(name: str, method: str, out: Path) -> None:
    """What one method says of the test patients of one split, from a process of its own with its CPU time and its peak memory."""
    if method in OURS:
        subprocess.run([sys.executable, __file__, "--one", f"{name}|{method}", "--out", out], check=True)
        return
    data = split(name)
    seen_N = ~np.isnan(data.target_N)
    given = {"x_NF": data.x_NF[seen_N], "option_N": data.option_N[seen_N], "target_N": data.target_N[seen_N]}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "in.npz"
        np.savez(source, **given, test_NF=data.test_NF, history_F=np.array([m == "history" for m in data.modality_F]))
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        subprocess.run([peers(), HERE / "effects_peers.py", method, source, out], check=True, env=environment)


def scored(name: str, method: str, found: Path) -> dict[str, float]:
    """Scores of one result."""
    truth_NK = split(name).truth_NK
    with np.load(found) as arrays:
        a = dict(arrays)
    told = {key: float(value) for key, value in a.items() if value.ndim == 0}
    if method not in OURS:
        return told | scores(truth_NK, a["effect_NK"], a["low_NKK"], a["high_NKK"])
    families = {name.removeprefix("family_"): value for name, value in a.items() if name.startswith("family_")}
    effects = Effects(outcome_NK=a["outcome_NK"], sd_NKK=a["sd_NKK"], overlap_NK=a["overlap_NK"], families=families)
    if name.startswith("simulated"):
        told |= answered(decisions.load("glucose_lowering"), effects, truth_NK)
    if "lost_NK" in a:
        told["lost_regret"] = float((np.take_along_axis(truth_NK, a["lost_NK"].argmin(1)[:, None], 1)[:, 0] - truth_NK.min(1)).mean())
    return told | scores(truth_NK, effects.outcome_NK, *effects.interval())


def one(name: str, method: str, out: Path) -> None:
    """Our estimator in this process: fitted on the training rows, asked about the test patients."""
    from components import effects
    from components.models import fusion_training, ridge, trees

    data = split(name)
    history_F, genomics_F = (np.array([m == modality for m in data.modality_F]) for modality in ("history", "genomics"))
    kept_F = {OURS[1]: ~genomics_F, OURS[2]: history_F}.get(method, np.ones(len(history_F), bool))
    began, clock = time.process_time(), time.perf_counter()
    training = data.training(kept_F)
    models: dict[str, Any] = {"ridge": ridge.fit(training), "trees": trees.fit(training), "fusion": fusion_training.fit(training)}
    blend, _ = effects.fit(training, {member: model.oof_NT for member, model in models.items()})
    assert blend.overlap is not None
    asked_NF = data.test_NF[:, kept_F]
    predictions = {member: model.predict(asked_NF) for member, model in models.items()}
    answer = {"sd_NKK": blend.spread(predictions, models["ridge"].covariance(asked_NF)), "overlap_NK": blend.overlap.predict(asked_NF)}
    told = {"cpu_s": time.process_time() - began, "wall_s": time.perf_counter() - clock}
    told["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    answer |= {f"family_{member}": predicted for member, predicted in predictions.items()}
    if method == OURS[0] and genomics_F.any():  # the same model asked about the same patients, their genomics lost
        lost_NF = np.where(genomics_F, np.nan, data.test_NF)
        answer["lost_NK"] = blend.target({member: model.predict(lost_NF) for member, model in models.items()})
    np.savez(out, outcome_NK=blend.target(predictions), **answer, **told)


def digest(method: str) -> str:
    """Of the code that a result depends on."""
    ours = Path(components.__file__).parent
    files = [HERE / "effects_worlds.py"]
    files += [ours / "effects.py", *sorted((ours / "models").glob("*.py"))] if method in OURS else [HERE / "effects_peers.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]


def kept(name: str, method: str) -> Path:
    """File of one result."""
    return CACHE / "results" / f"{hashlib.sha256(f'{name}|{method}'.encode()).hexdigest()[:16]}-{digest(method)}.npz"


def known() -> dict[tuple[str, str], dict[str, float]]:
    """Every result that is there and current."""
    return {job: scored(*job, kept(*job)) for job in dict.fromkeys(jobs()) if kept(*job).is_file()}


def mean(found: list[dict[str, float]], key: str, digits: int = 2, spread: bool = False) -> str:
    """Mean of a score over splits, with its standard error."""
    values = np.array([result.get(key, np.nan) for result in found])
    if not len(values) or np.isnan(values).all():
        return "-"
    told = f"{np.nanmean(values):,.{digits}f}"
    return told + (f" ± {np.nanstd(values, ddof=1) / np.sqrt(len(values)):.{digits}f}" if spread and len(values) > 1 else "")


def of_simulator(results: dict[tuple[str, str], dict[str, float]]) -> str:
    """One table a training size."""
    columns = ("method", "regret", "pairwise PEHE", "coverage", "top choice right", "CPU s", "MB", "seeds")
    text = []
    for rows, seeds in SEEDS.items():
        told = []
        for method in (*OURS, *METHODS):
            found = [results[job] for seed in seeds if (job := (f"simulated {rows} {seed}", method)) in results]
            if found:
                cells = [mean(found, "regret", spread=True), mean(found, "pehe"), mean(found, "coverage", 3), mean(found, "top_choice", 3)]
                told.append((method, *cells, mean(found, "cpu_s", 0), mean(found, "peak_mb", 0), str(len(found))))
        fixed = [result for (name, _), result in results.items() if name.startswith(f"simulated {rows} ")]
        told.append(("best fixed option", mean(fixed, "best_fixed_regret"), "-", "-", "-", "-", "-", "-"))
        text.append(table(f"### Simulated, 5 options, {rows:,} patients to learn from", columns, told))
    return "\n".join(text)


def of_answers(results: dict[tuple[str, str], dict[str, float]]) -> str:
    """When a single option is named, and a modality that is lost."""
    columns = ("patients to learn from", "95 % intervals that hold the truth", "one option named", "and truly the best", "its mean regret")
    told = []
    for rows, seeds in SEEDS.items():
        found = [results[job] for seed in seeds if (job := (f"simulated {rows} {seed}", OURS[0])) in results]
        if found:
            named = sum(result["named"] for result in found)
            right = sum(result["named"] * result["named_right"] for result in found if result["named"]) / named if named else float("nan")
            cells = [f"{rows:,}", mean(found, "coverage", 3), f"{np.mean([r['share_named'] for r in found]):.1%} ({named:,.0f})"]
            told.append((*cells, f"{right:.1%}" if named else "-", mean(found, "named_regret")))
    return table("### One option named alone, over the seeds", columns, told)


def of_modalities(results: dict[tuple[str, str], dict[str, float]]) -> str:
    """What a modality is worth, and what its loss costs: the same seeds and test patients, with and without."""
    columns = ("patients to learn from", "against", "regret with all minus that, paired", "seeds")
    told = []
    for rows, seeds in SEEDS.items():
        for method in OURS[1:]:
            told.append((f"{rows:,}", method.removeprefix("Concordant, "), *paired(results, rows, seeds, method, "regret")))
        told.append((f"{rows:,}", "without genomics; all had it, lost at the test", *paired(results, rows, seeds, OURS[1], "lost_regret")))
    text = table("### Modalities: what they add, and one that is lost (below 0 is better)", columns, [row for row in told if row[3] != "0"])
    return (
        text
        + "\nA standard error stands behind ±. The first two kinds of row ask whether more modalities harm, the third whether a model\n"
        + ("that was trained with genomics is worse without them than one that never had them.\n")
    )


def paired(results: dict[tuple[str, str], dict[str, float]], rows: int, seeds: range, method: str, key: str) -> tuple[str, str]:
    """Mean difference of the whole model from `method` over the seeds that both have, and their number."""
    names = [name for seed in seeds if {(name := f"simulated {rows} {seed}", OURS[0]), (name, method)} <= results.keys()]
    gain = np.array([results[name, OURS[0]][key] - results[name, method]["regret"] for name in names])
    error = f" ± {gain.std(ddof=1) / np.sqrt(len(gain)):.3f}" if len(gain) > 1 else ""
    return (f"{gain.mean():+.3f}{error}" if len(gain) else "-"), str(len(gain))


def of_ihdp(results: dict[tuple[str, str], dict[str, float]]) -> str:
    """Two options, real covariates, simulated outcomes."""
    columns = ("method", "sqrt-PEHE, median", "mean", "error of the mean effect", "coverage", "CPU s a fit")
    told = []
    for method in ("Concordant", *METHODS):
        found = [results[job] for n in REALISATIONS if (job := (f"ihdp {n}", method)) in results]
        if found:
            median = f"{np.median([result['pehe'] for result in found]):.2f}"
            told.append((method, median, *(mean(found, key) for key in ("pehe", "ate_error", "coverage")), mean(found, "cpu_s", 1)))
    return table(f"### IHDP, realisations 1 to {REALISATIONS[-1]}, 9 in 10 rows to learn from", columns, told)


def main() -> None:
    """Measure what is not known yet, then write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--one", default="")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="")
    parser.add_argument("--table", action="store_true")
    told = parser.parse_args()
    warnings.simplefilter("ignore")
    if told.one:
        return one(*told.one.split("|"), out=told.out)
    (CACHE / "results").mkdir(parents=True, exist_ok=True)
    wanted = [] if told.table else [job for job in dict.fromkeys(jobs()) if all(word in "|".join(job) for word in told.only.split(","))]
    for job in wanted:
        if not kept(*job).is_file():
            part = kept(*job).with_suffix(f".{os.getpid()}.npz")
            measure(*job, part)
            part.replace(kept(*job))
            print(*job, {key: round(value, 3) for key, value in scored(*job, kept(*job)).items()}, flush=True)
    if told.only:
        return None  # a part is measured; the section is written by the whole run or by --table
    results = known()
    write(
        "effects",
        "Effects",
        "python tests/benchmarks/effects.py",
        "\n".join([of_simulator(results), of_answers(results), of_modalities(results), of_ihdp(results)]),
    )


if __name__ == "__main__":
    main()
