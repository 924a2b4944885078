"""Cards: within the limits of CDS Hooks 2.0, free of mark-up from data, and never an order."""

import re
from typing import Any

import numpy as np
import pytest
from answers import ANSWER, answers
from conftest import examples
from hypothesis import HealthCheck, given, settings

from components import decision, rules, safety
from components.bundle import Bundle
from components.effects import Effects
from components.policy import Inputs, recommend
from components.safety import Facts, Measured
from serving.cards import cards, cards_for_orders
from serving.schema import FeatureRow, Remark, Response, response

UUID = re.compile(r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")


@pytest.mark.deep
@settings(max_examples=examples(200, 10_000), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answers())
def test_a_card_keeps_to_the_specification(answer: Response) -> None:
    for card in cards(answer, "Patient/x") + cards_for_orders(answer, "Patient/x", {"4821", "1488564", "4815"}):
        assert 0 < len(card["summary"]) < 140
        assert card["indicator"] in ("info", "warning", "critical")
        assert card["source"]["label"] and UUID.match(card["uuid"])
        assert all(reason["display"] and reason["code"] and reason["system"] for reason in card["overrideReasons"])
        assert "<" not in card["detail"] and not re.search(r"(?<!\\)!\[", card["detail"])
        if "suggestions" in card:
            assert card["selectionBehavior"] == "at-most-one"
        for suggestion in card.get("suggestions", ()):
            assert suggestion["label"] and UUID.match(suggestion["uuid"])
            assert suggestion["isRecommended"] == (answer.recommended is not None)
            for action in suggestion["actions"]:
                assert action["type"] == "create"
                assert (action["resource"]["status"], action["resource"]["intent"]) == ("draft", "proposal")
        assert "systemActions" not in card


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(answers())
def test_only_options_that_are_not_behind_are_suggested(answer: Response) -> None:
    for card in cards(answer, "Patient/x"):
        labels = [suggestion["label"] for suggestion in card.get("suggestions", ())]
        wanted = [f"Propose {entry.label}" for entry in answer.ranked if entry.option in answer.equivalent]
        assert labels == ([] if answer.abstained == "LOW_OVERLAP" else wanted)  # one button would name a best where there is none


def _whole(facts: Facts, stale: tuple[str, ...] = ()) -> Response:
    """The answer of the shipped rules, where sulfonylureas and DPP-4 inhibitors are expected to do alike and better than the others."""
    glucose, ruleset = decision.load("glucose_lowering"), rules.load()
    parts: dict[str, Any] = dict.fromkeys(("blend", "ridge", "trees", "fusion"))
    bundle = Bundle(decision=glucose, rules=ruleset, version="0" * 16, metrics={}, typical_QF=np.zeros((0, 0)), **parts)
    outcome_NK = np.array([[-30.0 if name in ("sulfonylurea", "dpp4_inhibitor") else -5.0 for name in glucose.option_names]])
    size = len(glucose.option_names)
    effects = Effects(outcome_NK=outcome_NK, sd_NKK=np.full((1, size, size), 0.1), overlap_NK=np.full((1, size), 0.2))
    told = safety.evaluate(ruleset, facts, glucose, ruleset.rules[0].effective_from)
    (found,) = recommend(glucose, effects, [Inputs(stale=stale)], [told])
    return response(bundle, found, FeatureRow(features={}, as_of="2026-11-23T00:00:00Z", stale=stale))


def _facts(**changed: Any) -> Facts:
    egfr, alt = Measured(changed.pop("egfr", 85.0), "mL/min/1.73m2", 10.0), Measured(25.0, "U/L", 10.0)
    well: dict[str, Any] = {"measurements": {"egfr": egfr, "alt": alt}, "problem_list": True, "drugs": frozenset({"metformin"})}
    return Facts(**(well | {"allergies": (), "age_years": 60.0, "female": False} | changed))


@pytest.mark.parametrize("stale", [(), ("hba1c_mmol_mol",)])
@pytest.mark.parametrize(
    ("changed", "code", "drug", "others"),
    [
        ({"drugs": frozenset({"metformin", "bosentan"})}, "4815", "Glyburide", {"4821", "4815"}),
        ({"conditions": {"heart_failure": True}, "days_since": {"heart_failure": 100.0}}, "857974", "Saxagliptin", {"593411", "857974"}),
        ({"egfr": 10.0, "conditions": {"dialysis": True}}, "1545653", "SGLT2", {"1545653"}),
    ],
)
def test_a_draft_order_of_a_drug_that_a_rule_blocks_is_a_critical_card_also_where_its_option_stays_or_no_score_is_allowed(
    changed: dict[str, Any], code: str, drug: str, others: set[str], stale: tuple[str, ...]
) -> None:
    answer = _whole(_facts(**changed), stale)
    assert (answer.abstained == "STALE_INPUT") == bool(stale)
    (card,) = cards_for_orders(answer, "Patient/x", {code})
    assert card["indicator"] == "critical" and card["summary"].startswith(drug) and "ruled out" in card["summary"]
    assert "**BLOCKED**: " in card["detail"] and "Source: " in card["detail"]
    assert [card["indicator"] for card in cards_for_orders(answer, "Patient/x", others)].count("critical") == 1
    assert all(code not in entry.rxnorm for entry in answer.ranked)


def test_a_drug_that_nothing_is_said_against_gets_no_card_beside_one_that_is_blocked() -> None:
    answer = _whole(_facts(drugs=frozenset({"metformin", "bosentan"})))
    assert "sulfonylurea" in answer.equivalent
    assert cards_for_orders(answer, "Patient/x", {"4821"}) == []


def test_a_card_tells_what_rules_say_of_the_options_that_it_shows() -> None:
    said = {"kind": "monitor", "text": "Watch the weight.", "rule_id": "a.b", "source": "Label", "reviewed": True}
    notes = [{"option": "sulfonylurea", **said}, {"option": "thiazolidinedione", **said, "text": "Not shown."}]
    (card,) = cards(_answer(notes=tuple(Remark(**note) for note in notes)), "Patient/x")
    assert "- Sulfonylurea, monitor: Watch the weight. (Label)" in card["detail"] and "Not shown." not in card["detail"]


def _answer(**changed: object) -> Response:
    return Response.model_validate(dict(ANSWER) | changed)


def test_a_draft_order_of_a_blocked_option_is_a_critical_card_with_its_source() -> None:
    (card,) = cards_for_orders(_answer(), "Patient/x", {"33738"})
    assert card["indicator"] == "critical" and "Thiazolidinedione" in card["summary"]
    assert "Heart failure NYHA III-IV." in card["detail"] and "Source: Label" in card["detail"]
    assert "suggestions" not in card


def test_a_draft_order_of_an_option_that_is_behind_is_told_what_is_ahead() -> None:
    (card,) = cards_for_orders(_answer(), "Patient/x", {"4821"})
    assert card["indicator"] == "warning" and "SGLT2 inhibitor" in card["summary"]
    assert [s["label"] for s in card["suggestions"]] == ["Propose SGLT2 inhibitor"]


def test_a_draft_order_of_the_best_option_or_of_another_drug_gets_no_card() -> None:
    assert cards_for_orders(_answer(), "Patient/x", {"1488564"}) == []
    assert cards_for_orders(_answer(), "Patient/x", {"161"}) == []


def test_a_patient_whom_the_question_is_not_about_gets_no_card() -> None:
    nobody = _answer(recommended=None, ranked=(), equivalent=(), abstained="OUT_OF_POPULATION")
    assert cards(nobody, "Patient/x") == [] and cards_for_orders(nobody, "Patient/x", {"33738"}) == []
