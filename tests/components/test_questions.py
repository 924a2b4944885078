"""What is worked out once for a rule set says the same as asking every rule of every drug anew."""

import dataclasses
import random
from datetime import date
from functools import cache
from itertools import product

from components import decision, rules, safety
from components.questions import plan
from components.rulebook import facts_of
from components.rules import RuleSet, truth
from components.safety import Asked, Facts, Measured, judge

TODAY = date(2026, 12, 1)
MEASURED = {"egfr": Measured(24.0, "mL/min/1.73m2", 5.0)}
KIDNEY = Facts(measurements=MEASURED, problem_list=True, drugs=frozenset(), allergies=(), age_years=71.0)


@cache
def shipped() -> RuleSet:
    return rules.load()


def test_a_verdict_is_that_of_the_plain_logic_for_every_rule_and_every_combination_of_answers() -> None:
    tried = 0
    for rule in shipped().rules:
        asks, questions = plan(shipped()).asks(rule), [question.atom for question in plan(shipped()).asks(rule).questions]
        assert questions == list(rule.atoms)
        for answers in product((True, False, None), repeat=min(len(questions), 7)):
            told = {atom: answers[number] if number < len(answers) else None for number, atom in enumerate(questions)}
            assert asks.verdict(lambda question, told=told: told[question.atom]) is truth(rule.expression, told.__getitem__)  # type: ignore[misc]
            needs = asks.needs
            assert needs is None or told[needs.atom] is not False or truth(rule.expression, told.__getitem__) is False
            tried += 1
    assert tried > 500
    assert sum(plan(shipped()).asks(rule).needs is not None for rule in shipped().rules) > 0.8 * len(shipped().rules)


def test_what_was_answered_before_changes_no_verdict() -> None:
    """Every rule and drug in any order, with answers kept, against each asked by itself."""
    table, dice = shipped(), random.Random(0)
    pairs = [(rule, drug) for drug, about in table.about.items() for rule in about]
    cases = [case for rule in table.rules for case in rule.test_cases]
    for facts in [KIDNEY, Facts(), *(facts_of(case, table) for case in dice.sample(cases, 60))]:
        asked = Asked(table, facts)
        for rule, drug in dice.sample(pairs, 200):
            assert asked.judge(rule, drug) == judge(table, rule, drug, facts)


def test_another_set_or_another_day_is_judged_by_its_own_rules() -> None:
    """Nothing worked out for one rule set, or for one day, is used for another."""
    known, facts, table = decision.load("glucose_lowering"), KIDNEY, shipped()
    before = safety.evaluate(table, facts, known, TODAY)
    fired = {finding.rule.rule_id for entry in before.options for finding in entry.findings}
    gone = dataclasses.replace(table, rules=tuple(rule for rule in table.rules if rule.rule_id not in fired))
    assert all(not entry.findings for entry in safety.evaluate(gone, facts, known, TODAY).options)
    early = min(rule.effective_from for rule in table.rules if rule.rule_id in fired).replace(year=1900)
    assert all(not entry.findings for entry in safety.evaluate(table, facts, known, early).options)
    assert safety.evaluate(table, facts, known, TODAY) == before


def test_an_interaction_is_asked_of_each_drug_whichever_was_asked_first() -> None:
    """Each drug that a rule asks for is taken: a drug does not interact with itself, and only one side of a pair meets the other."""
    table, told = shipped(), set()
    for rule in table.rules:
        wanted = sorted(
            {drug for atom in rule.atoms if atom.word in ("takes_drug", "interacts") for name in atom.names for drug in table.members[name]}
        )
        judged = sorted(drug for drug, about in table.about.items() if rule in about)
        for taken in wanted:
            facts = dataclasses.replace(KIDNEY, drugs=frozenset({taken}))
            alone = {drug: judge(table, rule, drug, facts) for drug in judged}
            for order in (judged, judged[::-1]):
                asked = Asked(table, facts)
                assert {drug: asked.judge(rule, drug) for drug in order} == alone
            told.add(len({verdict for verdict, _, _ in alone.values()}))
    assert told == {1, 2}


def test_a_rule_of_another_decision_or_option_is_not_asked() -> None:
    known, table = decision.load("glucose_lowering"), shipped()
    fired = next(entry for entry in safety.evaluate(table, KIDNEY, known, TODAY).options if entry.findings)
    rule = fired.findings[0].rule
    for narrowed in (
        {"decisions": ("warfarin",)},
        {"options": ("another",)},
        {"decisions": ("glucose_lowering",), "options": ("another",)},
    ):
        other = rule.model_copy(update=narrowed)
        narrow = dataclasses.replace(table, rules=tuple(other if each is rule else each for each in table.rules))
        found = {f.rule.rule_id for entry in safety.evaluate(narrow, KIDNEY, known, TODAY).options for f in entry.findings}
        assert rule.rule_id not in found
