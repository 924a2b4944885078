"""Why this answer: taking a fact away moves the difference by exactly what was told; an input's worth is what the model's interval says."""

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from conftest import WholeRun

from components import bundle, decision
from components.bundle import Bundle
from components.decision import Decision
from components.effects import Blend, Effects
from components.policy import Inputs, Part, Recommendation, recommend
from components.reasons import PANELS, TOLD, Reasons, groups
from features import store
from features.feature import Floats
from features.sequence import COLUMNS, code
from features.store import aged

GLUCOSE, WARFARIN = decision.load("glucose_lowering"), decision.load("warfarin")
NAMES = [feature.name for feature in GLUCOSE.columns]
AGE, BMI, HBA1C, ASCVD = (NAMES.index(name) for name in ("age_years", "bmi_kg_m2", "hba1c_mmol_mol", "ascvd"))
K = len(GLUCOSE.options)


def linear(x_NF: Floats) -> Effects:
    """A world that can be checked by hand: SGLT2 inhibitors better by age, GLP-1 receptor agonists by body mass index; blurred unless
    HbA1c is known."""
    known_NF = np.nan_to_num(x_NF, nan=0.0)
    outcome_NK = np.tile(np.array([-4.0, -3.0, -9.0, -5.0, -9.0]), (len(x_NF), 1))
    outcome_NK[:, 2] -= 0.05 * known_NF[:, AGE]
    outcome_NK[:, 4] -= 0.1 * known_NF[:, BMI] + 2 * known_NF[:, ASCVD]
    sd_N = np.where(np.isnan(x_NF[:, HBA1C]), 4.0, 2.0)
    return Effects(outcome_NK=outcome_NK, sd_NKK=sd_N[:, None, None] * (1 - np.eye(K)), overlap_NK=np.full((len(x_NF), K), 0.2))


def asked(**known: float) -> Floats:
    return np.array([[known.get(name, np.nan) for name in NAMES]])


def explained(x_NF: Floats, typical_QF: Floats | None = None, which: Decision = GLUCOSE) -> Recommendation:
    effects = linear(x_NF)
    answers = recommend(which, effects, [Inputs()])
    typical = np.zeros((0, x_NF.shape[1])) if typical_QF is None else typical_QF
    (found,) = Reasons.of(which, typical).explain(answers, x_NF, effects, lambda rows: linear(rows).outcome_NK, linear)
    assert [(e.option, e.outcome, e.low, e.high) for e in found.ranked] == [(e.option, e.outcome, e.low, e.high) for e in answers[0].ranked]
    return found


def parts(found: Recommendation, option: str) -> dict[str, float]:
    (entry,) = [entry for entry in found.ranked if entry.option == option]
    return {part.text: round(part.shift, 6) for part in entry.parts}


# ----------------------------------------------------------------------------------------------------------------------- facts on record


def test_each_option_is_told_the_facts_that_move_it_with_value_and_unit() -> None:
    found = explained(asked(age_years=60, bmi_kg_m2=35, ascvd=1, sleep_hours=7))
    assert [entry.option for entry in found.ranked[:2]] == ["glp1_receptor_agonist", "sglt2_inhibitor"]
    told = {"body mass index 35 kg/m2": 3.5, "age 60 years": -3.0, "atherosclerotic cardiovascular disease: yes": 2.0}
    assert parts(found, "sglt2_inhibitor") == told
    assert parts(found, "glp1_receptor_agonist") == {text: -shift for text, shift in told.items()}  # against the second
    assert parts(found, "sulfonylurea") == {text: shift for text, shift in told.items() if shift > 0}
    assert "Mainly: body mass index 35 kg/m2 (+3.5 mmol/mol), age 60 years (-3.0 mmol/mol)" in found.ranked[1].reason
    assert found.ranked[1].reason.startswith("Expected outcome -12.0 mmol/mol, +2.5 against GLP-1 receptor agonist (95% interval ")


def test_what_one_fact_of_the_record_became_is_taken_away_together() -> None:
    by_label = {group.label: [feature.name for feature in group.features] for group in groups(GLUCOSE)}
    assert by_label["race or ethnicity recorded as white"] == [name for name in NAMES if name.startswith("race_")]
    assert by_label["copies of CYP2C9*2 (decreased function)"] == ["cyp2c9_star2", "cyp2c9_star3"]
    single = [name for label, names in by_label.items() if label not in PANELS.values() for name in names]
    assert sorted(single) == sorted(NAMES)


def test_facts_are_told_in_plain_words() -> None:
    def words(**known: float) -> list[str]:
        x_NF = asked(age_years=60, **known)
        return [part.text for part in explained(x_NF).ranked[0].parts]

    assert words(ascvd=0) == ["age 60 years"]  # what moves nothing is not told
    assert "atherosclerotic cardiovascular disease: yes" in words(ascvd=1)


def test_where_nothing_is_compared_nothing_is_explained() -> None:
    x_NF = asked(age_years=60)
    effects = linear(x_NF)
    refused = recommend(GLUCOSE, effects, [Inputs(missing=("hba1c_mmol_mol",))])
    reasons = Reasons.of(GLUCOSE, np.zeros((0, len(NAMES))))
    assert reasons.explain(refused, x_NF, effects, lambda rows: linear(rows).outcome_NK, linear) == refused


def test_a_fact_is_taken_away_among_the_newest_facts_too() -> None:
    """Else a model that reads them would still see it, and the shift would tell of half of it."""
    longer = decision.parse(decision.path_of("glucose_lowering").read_text(encoding="utf-8") + "\nnewest_events: 3\n")
    assert len(longer.columns) == len(NAMES) + len(COLUMNS)
    newest = [[code("bmi"), 35.0, 1.0], [code("hba1c"), 60.0, 2.0], [code("bmi"), 34.0, 90.0]]
    x_NF = np.concatenate([asked(age_years=60, bmi_kg_m2=35), np.reshape(newest, (1, 9)), np.full((1, len(COLUMNS) - 9), np.nan)], axis=1)

    def reading(rows: Floats) -> Effects:
        effects, (_, events_NLC) = linear(rows), longer.split(rows)
        assert events_NLC is not None
        effects.outcome_NK[:, 2] += 0.7 * (events_NLC[:, :, 0] == code("bmi")).sum(1)
        return effects

    effects = reading(x_NF)
    answers = recommend(longer, effects, [Inputs()])
    reasons = Reasons.of(longer, np.zeros((0, x_NF.shape[1])))
    (found,) = reasons.explain(answers, x_NF, effects, lambda rows: reading(rows).outcome_NK, reading)
    assert parts(found, "sglt2_inhibitor")["body mass index 35 kg/m2"] == pytest.approx(3.5 + 2 * 0.7)
    assert {group.label for group in groups(longer)} == {group.label for group in groups(GLUCOSE)}


# ------------------------------------------------------------------------------------------------------------------------ missing inputs


def test_a_missing_input_that_would_narrow_the_interval_is_told_with_both_widths() -> None:
    typical_QF = np.array([[50.0 if name == "hba1c_mmol_mol" else 30.0 for name in NAMES]] * 3)
    (told,) = [text for text in explained(asked(age_years=70, bmi_kg_m2=33), typical_QF).changes if text.startswith("HbA1c")]
    assert "would narrow the 95% interval between SGLT2 inhibitor and GLP-1 receptor agonist from 15.7 to 7.8 mmol/mol" in told


def test_a_missing_input_that_could_change_which_is_first_says_which() -> None:
    typical_QF = np.array([[20.0] * len(NAMES), [33.0] * len(NAMES), [40.0] * len(NAMES)])
    found = explained(asked(age_years=60, hba1c_mmol_mol=60), typical_QF)
    assert found.ranked[0].option == "sglt2_inhibitor"
    assert "Body mass index not on record: typical values could put GLP-1 receptor agonist first." in found.changes


def test_an_input_on_record_is_not_asked_for() -> None:
    typical_QF = np.full((3, len(NAMES)), 30.0)
    assert not any(text.startswith("HbA1c") for text in explained(asked(age_years=60, hba1c_mmol_mol=60), typical_QF).changes)


# ----------------------------------------------------------------------------------------------------------------------- the real bundle


@cache
def real(run: WholeRun) -> tuple[Bundle, store.Rows, Floats, list[tuple[str, ...]]]:
    """The published bundle with the blend that chooses by patient: of so few patients the gate publishes one option for all."""
    (effects,) = run.folder.glob("kfp/*/estimate-effects/effects")
    found = replace(bundle.load(run.folder), blend=Blend.load(effects))
    rows = store.Rows.read(next(run.workspace.rglob("serving.parquet")))
    x_NF, stale = aged(found.decision.columns, rows.x_NF, rows.fact_NF, rows.time_N)
    return found, rows, x_NF, stale


def answered(run: WholeRun, most: int) -> tuple[Bundle, list[int], Floats, Effects, list[Recommendation]]:
    found, rows, x_NF, stale = real(run)
    _, answers = found.answer(x_NF, stale, rows.outside, rows.record, rows.time_N)
    chosen = [n for n, answer in enumerate(answers) if len(answer.ranked) > 1][:most]
    records, outside = [rows.record[n] for n in chosen], [rows.outside[n] for n in chosen]
    effects, told = found.answer(x_NF[chosen], [stale[n] for n in chosen], outside, records, rows.time_N[chosen], explained=True)
    return found, chosen, x_NF[chosen], effects, told


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
def test_taking_a_fact_away_moves_the_difference_by_what_was_told(whole_run: WholeRun) -> None:
    """Faithful to the whole blend, on the real bundle: every part of every option of 60 patients, tried again by itself."""
    found, _, x_NF, effects, told = answered(whole_run, 60)
    index, tried = {name: k for k, name in enumerate(found.decision.option_names)}, 0
    columns = [feature.name for feature in found.decision.columns]
    for n, answer in enumerate(told):
        best, second = (index[entry.option] for entry in answer.ranked[:2])
        for entry in answer.ranked:
            k, other = index[entry.option], second if index[entry.option] == best else best
            assert len(entry.parts) <= TOLD
            for part in entry.parts:
                without_F = x_NF[n].copy()
                without_F[[columns.index(name) for name in part.features]] = np.nan
                again_K = found.effects(without_F[None]).outcome_NK[0]
                now_K = effects.outcome_NK[n]
                assert part.shift == pytest.approx((now_K[k] - now_K[other]) - (again_K[k] - again_K[other]), abs=1e-5)
                assert isinstance(part, Part) and part.text in entry.reason
                tried += 1
    assert tried > 200


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
def test_reasons_cost_about_as_much_as_an_answer(whole_run: WholeRun) -> None:
    found, rows, x_NF, stale = real(whole_run)
    _, (one, *_), *_ = answered(whole_run, 1)

    def seconds(explained: bool) -> float:
        took = []
        for _ in range(15):
            began = time.process_time()
            found.answer(x_NF[[one]], [stale[one]], [""], [rows.record[one]], rows.time_N[[one]], explained=explained)
            took.append(time.process_time() - began)
        return min(took)

    assert seconds(True) < 5 * seconds(False)


def test_a_dose_is_explained_on_the_dose() -> None:
    x_NF = np.array([[60.0 if feature.name == "age_years" else np.nan for feature in WARFARIN.columns]])

    def whole(rows: Floats) -> Effects:
        dose_N = 40 - 0.1 * np.nan_to_num(rows[:, 0])
        outcome_NK = np.abs(np.array([17.5, 35, 56]) - dose_N[:, None])
        return Effects(outcome_NK=outcome_NK, sd_NKK=np.ones((len(rows), 3, 3)), overlap_NK=np.ones((len(rows), 3)), dose_N=dose_N)

    effects = whole(x_NF)
    answers = recommend(WARFARIN, effects, [Inputs()])
    empty_QF = np.zeros((0, x_NF.shape[1]))
    (found,) = Reasons.of(WARFARIN, empty_QF).explain(answers, x_NF, effects, lambda rows: whole(rows).outcome_NK[:, :1], whole)
    assert [part.shift for part in found.ranked[0].parts] == pytest.approx([-6.0])
    assert found.reasons[-1] == "The expected dose rests mainly on: age 60 years (-6.0 mg/wk)."
