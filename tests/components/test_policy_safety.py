"""The rules have the last word: whatever a score says, a blocked option is not shown, and a guideline's choice stands first."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from conftest import examples

from components import decision, rules, safety
from components.bundle import Bundle
from components.decision import Decision
from components.effects import Effects
from components.overlap import SMALLEST_OVERLAP
from components.policy import Abstain, Inputs, Recommendation, recommend
from components.preferences import MATTERS
from components.safety import Allergy, Facts, Measured, Safety
from features.concepts import concepts
from serving.schema import FeatureRow, response

GLUCOSE, WARFARIN = decision.load("glucose_lowering"), decision.load("warfarin")
NAMES = GLUCOSE.option_names
TODAY = rules.load().rules[0].effective_from
CASES = 100_000


@cache
def shipped() -> rules.RuleSet:
    return rules.load()


def judged(facts: Facts) -> Safety:
    return safety.evaluate(shipped(), facts, GLUCOSE, TODAY)


def well(**changes: object) -> Facts:
    """A man of 60 with a full record and nothing wrong."""
    egfr = Measured(85.0, "mL/min/1.73m2", 10.0)
    whole: dict[str, object] = {"measurements": {"egfr": egfr, "alt": Measured(25.0, "U/L", 10.0)}, "problem_list": True}
    whole |= {"drugs": frozenset({"metformin"}), "allergies": (), "age_years": 60.0, "female": False}
    return Facts(**(whole | changes))  # type: ignore[arg-type]


def scores(outcome_NK: np.ndarray, overlap: float = 0.2) -> Effects:
    size = len(NAMES)
    return Effects(outcome_NK=outcome_NK, sd_NKK=np.full((len(outcome_NK), size, size), 0.1), overlap_NK=np.full(outcome_NK.shape, overlap))


def answer(facts: Facts, best: str) -> Recommendation:
    """The answer where one option has by far the best score."""
    outcome_NK = np.array([[-30.0 if name == best else -5.0 for name in NAMES]])
    return recommend(GLUCOSE, scores(outcome_NK), [Inputs()], [judged(facts)])[0]


def test_a_clear_best_that_is_safe_is_recommended() -> None:
    found = answer(well(), "sglt2_inhibitor")
    assert found.recommended == "sglt2_inhibitor" and found.ruleset == shipped().version


def test_no_score_unblocks_an_option() -> None:
    found = answer(well(conditions={"type_1_diabetes": True}), "sglt2_inhibitor")
    assert "sglt2_inhibitor" not in [entry.option for entry in found.ranked]
    (why,) = [entry for entry in found.excluded if entry.option == "sglt2_inhibitor"]
    assert why.code == "BLOCKED" and why.source and "type 1" in why.reason


def test_a_guideline_stands_before_every_score() -> None:
    found = answer(well(conditions={"heart_failure": True}), "sulfonylurea")
    assert found.ranked[0].option == "sglt2_inhibitor"
    assert "sulfonylurea" not in found.equivalent
    assert any("eart failure" in reason for reason in found.reasons)


def test_one_option_for_all_gives_way_to_the_next_best_where_a_rule_blocks_it() -> None:
    order = ("thiazolidinedione", "sulfonylurea", "glp1_receptor_agonist", "dpp4_inhibitor", "sglt2_inhibitor")
    outcome_NK = np.array([[float(order.index(name)) for name in NAMES]])
    for_all = replace(scores(outcome_NK), sd_NKK=np.full((1, 5, 5), 9.0), for_all=True)  # too unsure to name one, were it not for all

    def recommended(facts: Facts) -> Recommendation:
        return recommend(GLUCOSE, for_all, [Inputs()], [judged(facts)])[0]

    assert recommended(well()).recommended == "thiazolidinedione"
    assert "best on average" in recommended(well()).reasons[0]
    blocked = recommended(well(conditions={"bladder_cancer": True}))
    assert blocked.recommended == "sulfonylurea"
    assert [entry.code for entry in blocked.excluded if entry.option == "thiazolidinedione"] == ["BLOCKED"]


def test_type_1_diabetes_is_outside_what_the_options_are_for() -> None:
    found = answer(well(conditions={"type_1_diabetes": True}), "glp1_receptor_agonist")
    assert found.abstained is Abstain.NO_PERMITTED_OPTION and not found.ranked and len(found.excluded) == 5


def test_the_only_option_that_can_be_cleared_so_far_is_not_the_best() -> None:
    found = answer(Facts(problem_list=True, age_years=30.0, female=True), "sglt2_inhibitor")
    assert found.recommended is None


def test_an_expired_rule_set_answers_nothing() -> None:
    late = safety.evaluate(shipped(), well(), GLUCOSE, max(rule.expires for rule in shipped().rules).replace(year=2040))
    (found,) = recommend(GLUCOSE, scores(np.zeros((1, 5))), [Inputs()], [late])
    assert found.abstained is Abstain.RULESET_EXPIRED and not found.ranked


DIALYSIS = well(
    measurements={"egfr": Measured(10.0, "mL/min/1.73m2", 10.0), "alt": Measured(25.0, "U/L", 10.0)}, conditions={"dialysis": True}
)


@pytest.mark.parametrize(
    "state", [{"stale": ("hba1c_mmol_mol",)}, {"missing": ("age_years",)}, {"implausible": ("hba1c_mmol_mol",)}, {"unlike": True}]
)
def test_what_a_rule_blocks_is_told_also_where_an_input_allows_no_score(state: dict[str, Any]) -> None:
    (found,) = recommend(GLUCOSE, scores(np.zeros((1, 5))), [Inputs(**state)], [judged(DIALYSIS)])
    assert found.abstained is not None and not found.scored and not found.ranked
    (why,) = [entry for entry in found.excluded if entry.option == "sglt2_inhibitor"]
    assert why.code == "BLOCKED" and why.reason and why.source


def test_no_rule_speaks_of_a_patient_whom_the_question_is_not_about_or_from_an_expired_set() -> None:
    (outside,) = recommend(GLUCOSE, scores(np.zeros((1, 5))), [Inputs(outside="no metformin on record")], [judged(DIALYSIS)])
    late = safety.evaluate(shipped(), DIALYSIS, GLUCOSE, max(rule.expires for rule in shipped().rules).replace(year=2040))
    (expired,) = recommend(GLUCOSE, scores(np.zeros((1, 5))), [Inputs(stale=("hba1c_mmol_mol",))], [late])
    assert (outside.abstained, expired.abstained) == (Abstain.OUT_OF_POPULATION, Abstain.RULESET_EXPIRED)
    assert outside.excluded == expired.excluded == outside.ruled_out == expired.ruled_out == ()


def test_a_drug_that_a_rule_blocks_is_told_and_its_option_stays() -> None:
    facts = well(drugs=frozenset({"metformin", "bosentan"}))
    found = answer(facts, "sulfonylurea")
    assert found.recommended == "sulfonylurea"
    (out,) = [entry for entry in found.ruled_out if entry.drug == "glyburide"]
    assert (out.option, out.code) == ("sulfonylurea", "BLOCKED") and "bosentan" in out.reason and out.source
    (refused,) = recommend(GLUCOSE, scores(np.zeros((1, 5))), [Inputs(stale=("hba1c_mmol_mol",))], [judged(facts)])
    assert out in refused.ruled_out


def test_a_patient_unlike_the_training_rows_gets_no_score_whatever_the_score_is() -> None:
    (found,) = recommend(GLUCOSE, scores(np.array([[-30.0, 0, 0, 0, 0]])), [Inputs(unlike=True)], [judged(well())])
    assert found.abstained is Abstain.OOD and not found.ranked and not found.scored


def test_an_empty_record_clears_nothing_that_needs_one() -> None:
    found = answer(Facts(), "sglt2_inhibitor")
    assert "sglt2_inhibitor" not in [entry.option for entry in found.ranked]
    assert found.notes


def _patients(seed: int, count: int) -> Iterator[Facts]:
    """Random records: any conditions, drugs, allergies, ages, laboratory values, any part of them missing."""
    dice = np.random.default_rng(seed)
    conditions = sorted({name for (kind, _), name in concepts().by_code.items() if kind.startswith("condition/")})
    drugs = sorted(concepts().drugs)
    codes = [(kind.partition("/")[2], code) for kind, code in concepts().by_code if kind.startswith("drug/")]
    for _ in range(count):
        chosen = dice.choice(conditions, dice.integers(0, 4), replace=False)
        egfr = Measured(
            float(dice.uniform(5, 120)), str(dice.choice(["mL/min/1.73m2", "furlong"], p=[0.95, 0.05])), float(dice.uniform(0, 200))
        )
        measured = {"egfr": egfr, "alt": Measured(float(dice.uniform(5, 400)), "U/L", float(dice.uniform(0, 400)))}
        substance = codes[dice.integers(len(codes))]
        yield Facts(
            measurements={name: value for name, value in measured.items() if dice.random() < 0.85},
            conditions={str(name): bool(dice.random() < 0.8) for name in chosen},
            problem_list=bool(dice.random() < 0.9),
            days_since={str(name): float(dice.uniform(0, 400)) for name in chosen},
            drugs=frozenset(map(str, dice.choice(drugs, dice.integers(0, 5)))) if dice.random() < 0.9 else None,
            allergies=None if dice.random() < 0.2 else (Allergy(*substance, "high"),) if dice.random() < 0.3 else (),
            age_years=float(dice.uniform(16, 95)) if dice.random() < 0.97 else None,
            female=bool(dice.random() < 0.5) if dice.random() < 0.97 else None,
            pregnant=None if dice.random() < 0.5 else bool(dice.random() < 0.3),
        )


def _inputs(dice: np.random.Generator) -> Inputs:
    """Mostly complete; else any of what keeps a patient from being scored."""
    return Inputs(
        missing=("hba1c_mmol_mol",) if dice.random() < 0.05 else (),
        stale=("age_years",) if dice.random() < 0.05 else (),
        outside="no metformin on record" if dice.random() < 0.03 else None,
        unlike=bool(dice.random() < 0.05),
    )


def _effects(dice: np.random.Generator, which: Decision, count: int) -> Effects:
    """Scores of any kind: clear or not, with or without overlap, families that agree or not; a dose beside the bands."""
    size = len(which.options)
    outcome_NK = dice.normal(0, 10, (count, size))
    dose = which.outcome.kind == "dose"
    return Effects(
        outcome_NK=np.abs(outcome_NK) if dose else outcome_NK,
        sd_NKK=np.full((count, size, size), dice.uniform(0.1, 5)) * (1 - np.eye(size)),
        overlap_NK=np.ones((count, size)) if dose else dice.uniform(0, 0.4, (count, size)),
        dose_N=dice.uniform(5, 80, count) if dose else None,
        families={name: outcome_NK + dice.normal(0, 3, (count, size)) for name in ("ridge", "trees")} if dice.random() < 0.5 else None,
    )


def _bundle(which: Decision) -> Bundle:
    """Of a bundle an answer on its way out needs only the question and the version."""
    parts: dict[str, Any] = dict.fromkeys(("blend", "ridge", "trees", "fusion"))
    return Bundle(decision=which, rules=shipped(), version="0" * 16, metrics={}, typical_QF=np.zeros((0, 0)), **parts)


def _check(which: Decision, found: Recommendation, told: Safety, state: Inputs) -> None:
    names = set(which.option_names)
    blocked = {entry.option for entry in told.options if entry.state != "permitted"}
    shown, excluded = {entry.option for entry in found.ranked}, {entry.option for entry in found.excluded}
    assert not blocked & {*shown, *found.equivalent, found.recommended, *(entry.option for entry in found.preferred)}
    assert (found.recommended is None) == (found.abstained is not None)
    assert found.abstained is None or isinstance(found.abstained, Abstain)  # exactly one code, of the closed list
    assert found.reasons and all(found.reasons)
    for entry in found.ranked:
        assert np.isfinite([entry.outcome, entry.difference_to_best, entry.low, entry.high, entry.overlap]).all()
        assert entry.low <= entry.difference_to_best <= entry.high and entry.overlap >= SMALLEST_OVERLAP
        assert entry.reason.endswith(".") and (len(found.ranked) == 1 or "interval" in entry.reason)
    assert all(entry.code and entry.reason and (entry.source or entry.code == Abstain.LOW_OVERLAP) for entry in found.excluded)
    assert not shown & excluded and set(found.equivalent) <= shown
    if state == Inputs():
        assert shown | excluded == names or found.abstained is Abstain.LOW_OVERLAP
    else:
        silent = found.abstained in (Abstain.OUT_OF_POPULATION, Abstain.RULESET_EXPIRED)
        assert not shown and found.abstained is not None and not found.scored
        assert excluded == (set() if silent else {entry.option for entry in told.options if entry.state == "blocked"})
        assert {entry.code for entry in (*found.excluded, *found.ruled_out)} <= {"BLOCKED"}
    if found.scored:
        out = {(entry.option, entry.drug) for entry in found.ruled_out}
        may = {(entry.option, drug) for entry in told.options for drug in entry.permitted}
        never = {(entry.option, drug) for entry in told.options for drug in entry.blocked}
        assert not out & may and never <= out | {(option, drug) for option, drug in never if option in excluded}
    assert all(entry.code and entry.reason and entry.source for entry in found.ruled_out)
    assert found.ruleset == told.ruleset


def _words(value: Any) -> Iterator[tuple[str, Any]]:
    """Every key of what leaves the house with its value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield key, inner
            yield from _words(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _words(inner)


def _check_sent(bundle: Bundle, found: Recommendation) -> None:
    """What an app receives is a proposal, and holds nothing that it could take for an order."""
    row = FeatureRow(features={}, as_of="2026-11-23T00:00:00Z")
    sent = json.loads(response(bundle, found, row).model_dump_json())
    assert sent["intent"] == "proposal" and (sent["abstained"] is None) == (sent["recommended"] is not None)
    for key, value in _words(sent):
        assert key not in ("resourceType", "status", "authoredOn", "dispenseRequest", "dosageInstruction")
        assert key != "intent" or value == "proposal"


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_no_random_patient_is_shown_a_blocked_option_or_sent_an_order() -> None:
    """Every random record is scored at random twenty times, as random inputs allow, with random preferences: 100,000 answers at depth."""
    dice, scored, made = np.random.default_rng(1), 20, 0
    codes: Counter[str] = Counter()
    for facts in _patients(0, examples(10_000, CASES) // scored):
        which = GLUCOSE if dice.random() < 0.8 else WARFARIN
        told = safety.evaluate(shipped(), facts, which, TODAY)
        states = [_inputs(dice) for _ in range(scored)]
        weights = [{matter: float(dice.random()) for matter in MATTERS if dice.random() < 0.3} for _ in range(scored)]
        bundle = _bundle(which)
        for found, state in zip(recommend(which, _effects(dice, which, scored), states, [told] * scored, weights), states, strict=True):
            _check(which, found, told, state)
            _check_sent(bundle, found)
            codes[str(found.abstained)] += 1
            made += 1
    assert made == examples(10_000, CASES)
    common = {"None", "EQUIPOISE", "OOD", "MISSING_REQUIRED", "STALE_INPUT", "OUT_OF_POPULATION", "LOW_OVERLAP", "NO_PERMITTED_OPTION"}
    assert common <= set(codes)  # the cases reach them
