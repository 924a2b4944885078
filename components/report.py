"""The report of a run: one HTML file that fetches nothing, for people who look rather than read."""

from html import escape
from typing import Any

import numpy as np

from components.decision import untransform
from components.evaluation import Evidence

STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2733}
h1{font-size:1.6rem}h2{font-size:1.15rem;margin-top:2.2rem}table{border-collapse:collapse}td,th{padding:.25rem .8rem;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}tr:nth-child(even){background:#f3f6f9}.bar{fill:#2f6f9f}.off{fill:#c3ced8}
.note{background:#fff6df;padding:.6rem 1rem;border-left:4px solid #d99a00}
svg{max-width:100%;height:auto}text{font-size:13px;fill:#1c2733}"""


def render(evidence: Evidence, metrics: dict[str, Any]) -> str:
    """HTML of a run."""
    decision = evidence.decision
    parts = [
        f"<h1>{escape(decision.title)}</h1><p>{escape(decision.question)}</p>",
        '<p class="note">Research software, not a medical device. No figure here is evidence for care without local validation.</p>',
        f"<p>Verdict of the gate: <b>{escape(str(metrics['verdict']))}</b></p>",
        "<h2>Who was asked</h2>" + _bars([(step, count) for step, count in evidence.cohort.flow]),
        "<h2>What it is worth</h2>" + _worth(evidence, metrics),
        "<h2>Observed against predicted</h2>" + _calibration(evidence),
        "<h2>All figures</h2>" + _table(metrics),
    ]
    body = "\n".join(parts)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(decision.title)}</title><style>{STYLE}</style>{body}</html>'
    )


def _worth(evidence: Evidence, metrics: dict[str, Any]) -> str:
    if evidence.decision.outcome.kind == "dose":
        names = {"mae_mg_week": "Concordant", "mae_mg_week_without_genomics": "the same without genomics"}
        names |= {f"mae_mg_week_{name}": name.replace("_", " ") for name in evidence.decision.references}
        shown = [(label, metrics[key]) for key, label in names.items() if key in metrics]
        return "<p>Mean absolute error, mg a week, on the same folds (shorter is better).</p>" + _bars(shown)
    if "policy_regret" in metrics:
        names = {"policy_regret": "Concordant", "best_fixed_regret": "best single option for all", "prescriber_regret": "as prescribed"}
        shown = [(label, metrics[key]) for key, label in names.items()]
        return (
            f"<p>Mean loss against the best option for each patient, {escape(evidence.decision.outcome.unit)} (shorter is better).</p>"
            + _bars(shown)
        )
    gain = next(key for key in metrics if key.startswith("gain_over_best_fixed"))
    low, high = metrics[gain + "_low"], metrics[gain + "_high"]
    unit = escape(evidence.decision.outcome.unit)
    return f"<p>Doubly robust gain over the best single option: {metrics[gain]:.2f} {unit} (95 % interval {low:.2f} to {high:.2f}).</p>"


def _bars(rows: list[tuple[str, float]]) -> str:
    top, height = max((abs(value) for _, value in rows), default=1) or 1, 24
    drawn = []
    for n, (label, value) in enumerate(rows):
        y, width = n * height, 300 * abs(value) / top
        number = f"{value:,}" if isinstance(value, int) else f"{value:,.2f}"
        drawn.append(f'<text x="0" y="{y + 16}">{escape(label)}</text>')
        drawn.append(f'<rect class="bar" x="420" y="{y + 4}" width="{width:.1f}" height="15"/>')
        drawn.append(f'<text x="{428 + width:.1f}" y="{y + 16}">{number}</text>')
    return f'<svg viewBox="0 0 800 {height * len(rows)}" role="img">{"".join(drawn)}</svg>'


def _calibration(evidence: Evidence) -> str:
    """Mean observed against mean predicted outcome in ten equal groups of the predicted."""
    training, target_NT = evidence.training, evidence.crossfit.target_NT
    column = np.zeros(len(training), np.int64) if training.targets == 1 else training.option_N
    predicted_N = np.take_along_axis(target_NT, column[:, None], 1)[:, 0]
    seen = training.observed_N
    predicted_N, observed_N = (np.asarray(untransform(evidence.decision, a[seen])) for a in (predicted_N, training.target_N))
    groups = np.array_split(np.argsort(predicted_N, kind="stable"), 10)
    points = [(float(predicted_N[g].mean()), float(observed_N[g].mean())) for g in groups]
    return _scatter(points, evidence.decision.outcome.unit)


def _scatter(points: list[tuple[float, float]], unit: str) -> str:
    values = np.array(points)
    low, high = float(values.min()), float(values.max())
    span = (high - low) or 1.0

    def place(value: float) -> float:
        return 60 + 300 * (value - low) / span

    dots = "".join(f'<circle class="bar" cx="{place(x):.1f}" cy="{420 - place(y):.1f}" r="5"/>' for x, y in points)
    labels = [(60, 395, f"{low:.1f}"), (330, 395, f"{high:.1f} {escape(unit)}, predicted"), (0, 50, "observed")]
    axis = "".join(f'<text x="{x}" y="{y}">{text}</text>' for x, y, text in labels)
    line = '<line x1="60" y1="360" x2="360" y2="60" stroke="#9aa7b3"/>'
    return f'<svg viewBox="0 0 520 400" width="520" role="img">{line}{dots}{axis}</svg>'


def _table(metrics: dict[str, Any]) -> str:
    rows = "".join(f'<tr><td>{escape(name)}</td><td class="n">{escape(_plain(value))}</td></tr>' for name, value in metrics.items())
    return f"<table>{rows}</table>"


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3f}"
    return ", ".join(_plain(v) for v in value) if isinstance(value, list) else str(value)
