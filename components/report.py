"""The report of a run: one HTML file that fetches nothing, for clinicians as for statisticians. It opens with the gate's verdict."""

from html import escape
from typing import Any

import numpy as np

from components import calibration, pictures
from components.balance import differences
from components.decision import Decision, untransform
from components.evaluation import Evidence
from components.gate import Verdict, judge
from components.groups import SMALLEST_GROUP
from components.overlap import SMALLEST_OVERLAP
from components.surest import SHARES
from components.value import supported
from features.feature import Floats

Metrics = dict[str, Any]
STYLE = """body{font:16px/1.55 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.6rem;margin-bottom:.2rem}h2{font-size:1.2rem;margin-top:2.4rem;border-bottom:1px solid #d5dde4}
table{border-collapse:collapse;font-size:.93rem}td,th{padding:.25rem .8rem;text-align:left;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums}tr:nth-child(even){background:#f3f6f9}
.bar{fill:#2f6f9f}.off{fill:#c3ced8}.ref{stroke:#9aa7b3;stroke-width:1}.span{stroke:#2f6f9f;stroke-width:1.6}.curve{fill:none;stroke:#2f6f9f;stroke-width:2}.band{fill:#dbe7f0}
.note{background:#fff6df;padding:.6rem 1rem;border-left:4px solid #d99a00}
.verdict{padding:.8rem 1rem;border-left:6px solid;font-size:1.08rem}.pass{background:#e7f4ea;border-color:#2c8a4b}
.fixed{background:#fff6df;border-color:#d99a00}.blocked{background:#fdeaea;border-color:#b3261e}
.yes{color:#2c8a4b}.no{color:#b3261e;font-weight:600}figure{margin:1.2rem 0}figcaption{font-size:.9rem;color:#475563}
svg{max-width:100%;height:auto}svg text{font-size:13px;fill:#1c2733}svg text.small{font-size:11.5px;fill:#475563}"""


def render(evidence: Evidence, metrics: Metrics) -> str:
    """HTML of a run."""
    decision, found = evidence.decision, judge(evidence.decision, metrics)
    choice = decision.outcome.kind == "change" and bool(np.isfinite(evidence.crossfit.target_NT).all())
    sections = [
        ("", _opening(decision, found)),
        ("What was asked", _protocol(decision)),
        ("Who was asked", _flow(evidence)),
        ("What is on record", _known(evidence)),
        ("Could they be compared?", _comparability(evidence, metrics) if choice else ""),
        ("Do predictions come true?", _calibration(evidence, metrics, choice)),
        ("What is it worth?", _worth(evidence, metrics)),
        ("For whom?", _fairness(evidence, metrics)),
        ("Examples", _examples(evidence) if choice else ""),
        ("All figures", _table(metrics)),
    ]
    body = "\n".join((f"<h2>{title}</h2>" if title else "") + text for title, text in sections if text)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(decision.title)}</title><style>{STYLE}</style></head><body>{body}</body></html>"
    )


def _opening(decision: Decision, found: Verdict) -> str:
    kind = "blocked" if found.word == "blocked" else "fixed" if "all" in found.advice else "pass"
    lines = "".join(
        f"<tr><td class={'yes' if line.passed else 'no'}>{'holds' if line.passed else 'fails'}</td><td>{escape(line.name)}</td>"
        f"<td>{escape(line.found)}</td><td>{escape(line.needed)}</td><td>{escape(line.whom.replace('_', ' '))}</td></tr>"
        for line in (*found.failed, *(line for line in found.lines if line.passed))
    )
    return (
        f"<h1>{escape(decision.title)}</h1><p>{escape(decision.question)}</p>"
        f'<p class="verdict {kind}">Verdict of the gate: <b>{found.word}</b>. {escape(found.sentence)}</p>'
        '<p class="note">Research software, not a medical device. No figure here is evidence for care without local validation.</p>'
        f"<table><tr><th></th><th>line of the gate</th><th>found</th><th>needed</th><th>whom or what</th></tr>{lines}</table>"
    )


def _protocol(decision: Decision) -> str:
    """The seven components of the target trial that the cohort emulates (Hernan and Robins 2016)."""
    outcome, low_high = decision.outcome, "{:g} to {:g}".format(*decision.indication.age_years)
    who = [*decision.indication.conditions, *(f"given {drug}" for drug in decision.indication.drugs), f"aged {low_high} years"]
    window = "" if outcome.window_days is None else f", measured {outcome.window_days[0]} to {outcome.window_days[1]} days after time zero"
    rows = {
        "Eligibility": ", ".join(who).replace("_", " "),
        "Strategies": "; ".join(option.label for option in decision.options.values()),
        "Assignment": "as prescribed; adjusted for all features below, by doubly robust scores and overlap weights",
        "Time zero": f"the first prescription of any option, none in the {decision.time_zero.washout_days} days before",
        "Outcome": f"{outcome.name.replace('_', ' ')} ({outcome.unit}, {outcome.better} is better){window}",
        "Contrast": "expected outcome under each option and their differences, as started (intention to treat)",
        "Analysis": f"five-fold cross-fitting; held out: {decision.held_out}",
    }
    return "<table>" + "".join(f"<tr><th>{name}</th><td>{escape(told)}</td></tr>" for name, told in rows.items()) + "</table>"


def _flow(evidence: Evidence) -> str:
    return pictures.bars("Flow of patients", "Patients left after each criterion.", evidence.cohort.flow)


def _known(evidence: Evidence) -> str:
    share_F = (~np.isnan(evidence.training.x_NF)).mean(0)
    rows = [(f"{name} ({kind})", float(share)) for name, kind, share in zip(*_named(evidence), share_F, strict=True)]
    caption = "Share of the cohort of whom each input was known at time zero. What is missing is told to the models as missing."
    return pictures.bars("Inputs on record", caption, sorted(rows, key=lambda row: -row[1]), top=1.0, percent=True)


def _named(evidence: Evidence) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return evidence.training.names, tuple(evidence.training.modality_F)


def _comparability(evidence: Evidence, metrics: Metrics) -> str:
    decision, training, e_NK = evidence.decision, evidence.training, evidence.crossfit.propensity_NK
    given = [(option.label, e_NK[training.option_N == k, k], e_NK[training.option_N != k, k]) for k, option in _numbered(decision)]
    caption = (
        "How probable each option was, for those who were given it (above) and the others (below). Without overlap nothing is compared."
    )
    parts = [pictures.spreads("Overlap", caption, given)]
    worst: dict[str, tuple[float, float]] = {}
    for found in differences(training, e_NK):
        before, after = worst.get(found.feature, (0.0, 0.0))
        worst[found.feature] = (max(before, found.before), max(after, found.after))
    rows = sorted(((name, *pair) for name, pair in worst.items()), key=lambda row: -row[1])[:20]
    if rows:
        caption = (
            "Largest standardised difference between two options in each feature, before (grey) and after weighting (blue); the line: 0.1."
        )
        parts.append(pictures.pairs("Balance", caption, rows, decision.gate.weighted_smd))
    open_to = [(name.removeprefix("equipoise_"), value) for name, value in metrics.items() if name.startswith("equipoise_")]
    if open_to:
        caption = "Share of patients of each pair of options for whom the choice was open (preference score of 0.3 to 0.7)."
        parts.append(pictures.bars("Equipoise", caption, open_to, top=1.0, percent=True))
    controls = [c.concept for c in decision.negative_controls if f"negative_control_{c.concept}_sd" in metrics]
    if controls:
        shown = [
            (f"{name}, {metrics[f'negative_control_{name}_between']}", *_three(metrics, f"negative_control_{name}_sd")) for name in controls
        ]
        caption = (
            "Largest adjusted difference between two options in what none can change, in its spreads: away from 0 there is confounding."
        )
        parts.append(pictures.forest("Negative controls", caption, shown, 0.0))
    return "".join(parts)


def _numbered(decision: Decision) -> list[tuple[int, Any]]:
    return list(enumerate(decision.options.values()))


def _three(metrics: Metrics, name: str) -> tuple[float, float, float]:
    return metrics[name], metrics[f"{name}_low"], metrics[f"{name}_high"]


def _calibration(evidence: Evidence, metrics: Metrics, choice: bool) -> str:
    unit = evidence.decision.outcome.unit
    caption = "Mean of the outcome that was seen against its prediction, in ten groups of equal size; on the line predictions come true."
    parts = [pictures.line_up("Calibration of the outcome", caption, _outcome_points(evidence), f"predicted, {unit}", "seen")]
    if choice:
        scores, everybody = evidence.scores, np.ones(len(evidence.scores), bool)
        names = [option.label for option in evidence.decision.options.values()]
        shown = calibration.comparable(scores, everybody)
        plots = [(f"{names[a]} - {names[b]}", calibration.of_pair(scores, a, b, everybody).points) for a, b in shown]
        if plots:
            caption = "Difference between two options as predicted and as found (doubly robust), in five groups of the predicted."
            parts.append(pictures.squares("Calibration of the effect", caption, plots, unit))
    slopes = [
        name for name in metrics if name.startswith("effect_calibration_slope") and f"{name}_low" in metrics and "_group_" not in name
    ]
    if slopes:
        rows = [
            (name.removeprefix("effect_calibration_slope").removeprefix("_pair_") or "all pairs", *_three(metrics, name)) for name in slopes
        ]
        caption = "Slope of what was found on what was predicted; 1: differences are as large as predicted, below 1: overdone."
        parts.append(pictures.forest("Slopes of the effect", caption, rows, 1.0))
    return "".join(parts)


def _outcome_points(evidence: Evidence) -> list[tuple[float, float, float, float]]:
    """Ten groups of the predicted outcome: predicted, seen, interval."""
    training, target_NT = evidence.training, evidence.crossfit.target_NT
    column = np.zeros(len(training), np.int64) if training.targets == 1 else training.option_N
    predicted_N = np.take_along_axis(target_NT, column[:, None], 1)[:, 0]
    seen = training.observed_N
    predicted_N, observed_N = (np.asarray(untransform(evidence.decision, a[seen])) for a in (predicted_N, training.target_N))
    points = []
    for group in np.array_split(np.argsort(predicted_N, kind="stable"), 10):
        mean, half = float(observed_N[group].mean()), 1.96 * float(observed_N[group].std()) / np.sqrt(max(len(group), 1))
        points.append((float(predicted_N[group].mean()), mean, mean - half, mean + half))
    return points


def _worth(evidence: Evidence, metrics: Metrics) -> str:
    decision, unit = evidence.decision, evidence.decision.outcome.unit
    if decision.outcome.kind == "dose":
        names = {"mae_mg_week": "Concordant", "mae_mg_week_without_genomics": "the same without genomics"}
        names |= {f"mae_mg_week_{name}": name for name in decision.references}
        errors = [(label, float(metrics[key])) for key, label in names.items() if key in metrics]
        parts = [pictures.bars("Mean absolute error, mg a week", "On the same folds; shorter is better.", errors)]
        gains = [n for n in metrics if n.startswith("gain_over_") and f"{n}_low" in metrics]
        rows = [(n.removeprefix("gain_over_").removesuffix("_mg_week"), *_three(metrics, n)) for n in gains]
        return parts[0] + pictures.forest(
            "Error spared", "Against each peer, patient by patient, with 95 % interval.", rows, 0.0, "mg/week"
        )
    parts = []
    if "policy_regret" in metrics:
        names = {"policy_regret": "Concordant", "best_fixed_regret": "best single option for all", "prescriber_regret": "as prescribed"}
        caption = f"Mean loss against the best option for each patient, {unit}; only a simulator knows it. Shorter is better."
        parts.append(pictures.bars("Regret", caption, [(label, float(metrics[key])) for key, label in names.items()]))
    gains = [n for n in metrics if n.startswith(("gain_over_", "concordant_benefit", "autoc", "qini")) and f"{n}_low" in metrics]
    rows = [(n.replace("gain_over_", "gain over ").replace(_suffix(decision), ""), *_three(metrics, n)) for n in gains]
    caption = f"Doubly robust gain over the best single option and over what was done, {unit}, by several estimators, with 95 % intervals."
    parts.append(pictures.forest("Value of choosing by patient", caption, rows, 0.0))
    parts.append(_surest(metrics, unit, _suffix(decision)))
    modalities = [n for n in metrics if n.startswith("value_of_") and f"{n}_low" in metrics]
    if modalities:
        rows = [(n.removeprefix("value_of_").replace(_suffix(decision), ""), *_three(metrics, n)) for n in modalities]
        caption = f"Error of the predicted outcome that each kind of input spares, {unit}: the model refitted without it."
        parts.append(pictures.forest("Value of each kind of input", caption, rows, 0.0))
    return "".join(parts)


def _surest(metrics: Metrics, unit: str, suffix: str) -> str:
    """What answering only the surest would bring; where a simulator tells the truth, how often it is right."""
    gains = [(share, f"gain_of_surest_{share}{suffix}") for share in SHARES]
    caption = f"Gain over the best single option, {unit}, among the surest, with 95 % interval; where both choose the same it is 0."
    points = [(share, *_three(metrics, name)) for share, name in gains if name in metrics]
    drawn = [pictures.curve("Gain where only the surest are answered", caption, points, "share answered, %", unit)] if points else []
    if "accuracy_of_surest_100" in metrics:
        found = [(float(share), float(metrics[f"accuracy_of_surest_{share}"])) for share in SHARES]
        right = [(share, accuracy, accuracy, accuracy) for share, accuracy in found]
        caption = "How often the chosen option is truly the best, among the surest; only a simulator knows it."
        drawn.append(pictures.curve("Accuracy where only the surest are answered", caption, right, "share answered, %", "share right"))
    return "".join(drawn)


def _suffix(decision: Decision) -> str:
    return "_" + "".join(c if c.isalnum() else "_" for c in decision.outcome.unit).strip("_")


def _fairness(evidence: Evidence, metrics: Metrics) -> str:
    parts = []
    if evidence.decision.outcome.kind == "dose":
        prefix = "mae_mg_week_group_"
        groups = [n for n in metrics if n.startswith(prefix) and n.removeprefix(prefix) in evidence.groups]
        errors = [(n.removeprefix(prefix), float(metrics[n])) for n in groups]
        if errors:
            parts.append(pictures.bars("Mean absolute error by group, mg a week", f"Groups of {SMALLEST_GROUP} or more.", errors))
    slopes = [n for n in metrics if n.startswith("effect_calibration_slope_group_") and not n.endswith(("_low", "_high"))]
    if slopes:
        rows = [(n.removeprefix("effect_calibration_slope_group_"), *_three(metrics, n)) for n in slopes]
        caption = "Do predicted differences come true in each group? The intervals hold jointly; each should hold 1."
        parts.append(pictures.forest("Calibration of the effect by group", caption, rows, 1.0))
    silent = [(n.removeprefix("abstained_"), float(metrics[n])) for n in metrics if n.startswith("abstained_") and "over_min" not in n]
    if silent:
        caption = "Share who get a set of options or none instead of a single one; unequal shares are a finding about fairness."
        parts.append(pictures.bars("No single recommendation, by group", caption, silent, top=1.0, percent=True))
    return "".join(parts) or "<p>No group of 50 or more is told apart in these records.</p>"


def _examples(evidence: Evidence) -> str:
    """The answers for three groups of like patients. Averages of 50 or more: nobody's record is shown."""
    decision, target_NK = evidence.decision, evidence.crossfit.target_NT
    sign = 1 if decision.outcome.better == "lower" else -1
    choice_N = supported(sign * target_NK, evidence.crossfit.propensity_NK, SMALLEST_OVERLAP)
    parts: list[str] = []
    for k, option in _numbered(decision):
        rows = choice_N == k
        if rows.sum() >= SMALLEST_GROUP and len(parts) < 3:
            parts.append(_example(evidence, option.label, rows, k))
    note = f"<p>Averages over {SMALLEST_GROUP} or more patients expected to gain most from the same option: nobody's record is shown.</p>"
    return note + "".join(parts) if parts else ""


def _example(evidence: Evidence, label: str, rows: Any, best: int) -> str:
    decision, target_NK = evidence.decision, evidence.crossfit.target_NT
    low_NKK, high_NKK = evidence.effects.interval()
    others = [(k, option.label) for k, option in _numbered(decision) if k != best]
    drawn = [
        (name, *_mean(target_NK[rows, k] - target_NK[rows, best], low_NKK[rows, k, best], high_NKK[rows, k, best])) for k, name in others
    ]
    caption = f"Expected difference of the other options to {label}, {decision.outcome.unit}; typical: {_typical(evidence, rows)}."
    return pictures.forest(f"{label}: expected best for {int(rows.sum()):,} patients", caption, drawn, 0.0)


def _mean(*columns: Floats) -> tuple[float, float, float]:
    value, low, high = (float(column.mean()) for column in columns)
    return value, low, high


def _typical(evidence: Evidence, rows: Any) -> str:
    """The three features in which a group differs most from all others, as means."""
    x_NF, names = evidence.training.x_NF, evidence.training.names
    told: list[tuple[float, str]] = []
    for f, name in enumerate(names):
        column, spread = x_NF[:, f], float(np.nanstd(x_NF[:, f])) if not np.isnan(x_NF[:, f]).all() else 0.0
        within = column[rows & ~np.isnan(column)]
        if spread > 1e-9 and len(within) >= SMALLEST_GROUP:
            gap = (float(within.mean()) - float(np.nanmean(column))) / spread
            told.append((abs(gap), f"{name.replace('_', ' ')} {within.mean():.2f} (all {np.nanmean(column):.2f})"))
    return ", ".join(words for _, words in sorted(told, reverse=True)[:3]) or "no feature stands out"


def _table(metrics: Metrics) -> str:
    rows = "".join(f'<tr><td>{escape(name)}</td><td class="n">{escape(_plain(value))}</td></tr>' for name, value in metrics.items())
    return f"<details><summary>{len(metrics)} figures, as in metrics.json</summary><table>{rows}</table></details>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return ", ".join(_plain(v) for v in value) if isinstance(value, list) else str(value)
