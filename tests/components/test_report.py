"""The report: one file that fetches nothing, shows the flow and the figures, and quotes its texts safely."""

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from components import decision, effects, report
from components.cohort import Cohort, band
from components.effects import CrossFitted, Effects
from components.evaluation import Evidence, evaluate
from components.tensors import training

N = 60
FLOW = (("patients on record", 4321), ("with <b>both</b> & more", N))


def evidence(name: str, truth: bool = False) -> Evidence:
    """Rows of made-up patients whose outcome is predicted with some error."""
    which, rng = decision.load(name), np.random.default_rng(0)
    k, dose = len(which.options), which.outcome.kind == "dose"
    value_NK = rng.normal(size=(N, 1)) + 0.3 * rng.normal(size=(N, k))
    option_N = np.arange(N) % k
    target_N = rng.uniform(10, 70, N) if dose else value_NK[np.arange(N), option_N]
    who = Cohort(
        patient_ids=tuple(f"pseudonym{n}" for n in range(N)),
        time_N=np.zeros(N, np.int64),
        option_N=band(which, target_N) if dose else option_N,
        target_N=target_N,
        site_N=("",) * N,
        flow=FLOW,
    )
    x_NF = np.zeros((N, len(which.columns) + len(which.extra_columns)))
    data = training(which, who, x_NF[:, : len(which.columns)])
    target_NT = np.sqrt(target_N + 2)[:, None] if dose else value_NK + 0.1
    overlap_NK = np.full((N, k), 1 / k)
    found = (
        effects.dose_effects(which, target_NT[:, 0], np.full(N, 0.2), np.zeros(1))
        if dose
        else Effects(outcome_NK=target_NT, sd_NKK=np.full((N, k, k), 0.1), overlap_NK=overlap_NK)
    )
    return Evidence(
        decision=which,
        cohort=who,
        training=data,
        crossfit=CrossFitted(target_NT=target_NT, propensity_NK=overlap_NK, aipw_NK=target_NT),
        effects=found,
        members={},
        x_NF=x_NF,
        names=data.names + tuple(c.name for c in which.extra_columns),
        without_genomics_NT=target_NT + 0.1 if dose else None,
        truth_NK=value_NK if truth else None,
    )


KINDS = [("warfarin", False), ("glucose_lowering", False), ("glucose_lowering", True)]


def rendered(name: str, truth: bool) -> str:
    found = evidence(name, truth)
    return report.render(found, evaluate(found))


@pytest.mark.parametrize(("name", "truth"), KINDS)
def test_a_report_fetches_nothing_from_outside(name: str, truth: bool) -> None:
    class Fetches(HTMLParser):
        found: list[tuple[str, str | None]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in ("script", "link", "iframe", "img", "object", "embed")
            self.found += [(tag, value) for key, value in attrs if key in ("src", "href", "xlink:href", "action", "data", "poster")]

    text = rendered(name, truth)
    reader = Fetches()
    reader.feed(text)
    assert reader.found == []
    assert "@import" not in text
    assert not re.search(r"url\s*\(", text)


@pytest.mark.parametrize(("name", "truth"), KINDS)
def test_every_drawing_is_well_formed_and_inside_its_frame(name: str, truth: bool) -> None:
    drawings = re.findall(r"<svg.*?</svg>", rendered(name, truth), re.DOTALL)
    assert len(drawings) >= 2
    for drawing in drawings:
        root = ET.fromstring(drawing)
        width, height = (float(size) for size in root.attrib["viewBox"].split()[2:])
        for part in root.iter():
            x, y = (float(part.attrib.get(a, part.attrib.get(f"c{a}", 0))) for a in "xy")
            assert 0 <= x <= width
            assert 0 <= y <= height


def test_the_flow_and_every_figure_are_shown() -> None:
    found = evidence("warfarin")
    metrics = evaluate(found)
    text = report.render(found, metrics)
    assert "4,321" in text
    for name in metrics:
        assert f"<td>{name}</td>" in text
    assert f"{metrics['mae_mg_week']:,.3f}" in text
    assert "published pharmacogenetic" in text


def test_the_verdict_and_what_it_is_not_stand_on_top() -> None:
    text = rendered("warfarin", False)
    assert text.index("not a medical device") < text.index("Who was asked")
    assert "Verdict of the gate: <b>pass</b>" in text


def test_with_a_truth_regret_is_shown_and_without_the_doubly_robust_gain() -> None:
    assert "Mean loss against the best option" in rendered("glucose_lowering", True)
    plain = rendered("glucose_lowering", False)
    assert "Doubly robust gain over the best single option" in plain
    assert "Mean loss against" not in plain


def test_texts_are_quoted() -> None:
    found = evidence("warfarin")
    evil = found.decision.model_copy(update={"title": '<script src="https://example.org/x.js">', "question": "a < b & c"})
    text = report.render(replace(found, decision=evil), evaluate(found))
    assert "<script" not in text
    assert "a &lt; b &amp; c" in text
    assert "&lt;b&gt;both&lt;/b&gt; &amp; more" in text


def test_no_pseudonym_is_in_a_report() -> None:
    assert "pseudonym" not in rendered("glucose_lowering", True)


def test_a_blocked_model_still_has_a_report() -> None:
    found = evidence("glucose_lowering")
    metrics = evaluate(found) | {"verdict": "blocked", "outcome_rmse_mmol_mol": math.nan}
    assert "Verdict of the gate: <b>blocked</b>" in report.render(found, metrics)
