"""The rule files and the language that they are written in. The boundary table is generated: a new rule is covered without a new test."""

import dataclasses
from datetime import date
from functools import cache
from itertools import product
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from components import rulebook, rules, safety
from components.rules import Atom, Joined, Rule, RuleError, RuleSet
from components.safety import Facts, Measured, Missing
from features import concepts


@cache
def table() -> concepts.Concepts:
    return concepts.concepts()


@cache
def shipped() -> RuleSet:
    return rules.load(table=table())


@cache
def every() -> dict[str, Rule]:
    """Rules of all jurisdictions by id."""
    texts = {path.name: path.read_text(encoding="utf-8") for path in rules.SHIPPED.glob("*.yaml")}
    return {rule.rule_id: rule for file, text in sorted(texts.items()) for rule in rules.parse(text, table(), file)}


def one(condition: str, **keys: object) -> Rule:
    """A rule with a condition of its own."""
    base = every()["glyburide.age_65"].model_dump()
    measured = sorted({a.word for a in rules.atoms(rules.read(condition)) if a.sign and a.word not in rules.UNITS})
    needs = [{"input": name, "max_age_days": 90} for name in measured]
    return Rule.model_validate({**base, "condition": condition, "requires": needs, **keys})


def holds(condition: str, facts: Facts, drug: str = "glyburide") -> bool | None:
    return safety.judge(shipped(), one(condition), drug, facts)[0]


# The language ----------------------------------------------------------------------------------------------------------------------------


def test_and_binds_tighter_than_or_and_not_tighter_than_and() -> None:
    found = rules.read("female or not pregnant and always")
    assert found == Joined("or", (Atom("female"), Joined("and", (Joined("not", (Atom("pregnant"),)), Atom("always")))))


def test_a_comparison_carries_its_unit() -> None:
    assert rules.read("egfr < 30 mL/min/1.73m2") == Atom("egfr", (), "", "<", 30.0, "mL/min/1.73m2")
    assert rules.read("(systolic_blood_pressure >= 180.5 mm[Hg])") == Atom("systolic_blood_pressure", (), "", ">=", 180.5, "mm[Hg]")
    assert rules.read("copies(rs9923231) > 1 copies") == Atom("copies", ("rs9923231",), "", ">", 1.0, "copies")
    assert rules.read("days_since(dialysis) <= 30 days") == Atom("days_since", ("dialysis",), "", "<=", 30.0, "days")


def test_a_question_may_take_two_names_and_an_answer() -> None:
    assert rules.read("interacts(a, b_c)") == Atom("interacts", ("a", "b_c"))
    assert rules.read('phenotype(CYP2C9) is "Poor Metabolizer"') == Atom("phenotype", ("CYP2C9",), "Poor Metabolizer")


@pytest.mark.parametrize(
    "text",
    ["", "egfr < 30", "egfr < 30 and always", "egfr = 30 mL", "egfr < x mL", "has_condition", "has_condition()", "has_condition(a, b)",
     "interacts(a)", "pregnant(x)", "phenotype(CYP2C9)", 'has_condition(x) is "y"', "copies < 1 copies", "egfr(x) < 1 mL", "always always",
     "(always", "always)", "not", "always and", "__import__(os)", "1 < egfr", "egfr < 30 ", "always or or always", "female is"],
)  # fmt: skip
def test_what_is_not_a_condition_is_refused_with_a_hint(text: str) -> None:
    with pytest.raises(ValueError, match="no question|follows a complete|not closed"):
        rules.read(text)


def test_length_and_depth_of_a_condition_are_bounded() -> None:
    assert rules.read("(" * 19 + "always" + ")" * 19) == Atom("always")
    with pytest.raises(ValueError, match="nested more than 20"):
        rules.read("(" * 20 + "always" + ")" * 20)
    with pytest.raises(ValueError, match="nested more than 20"):
        rules.read("not " * 20 + "always")
    assert rules.read(" " * 994 + "always") == Atom("always")
    with pytest.raises(ValueError, match="1001 characters, at most 1000"):
        rules.read(" " * 995 + "always")


_PIECES = [*rules.WORDS, "(", ")", ",", "and", "or", "not", "<", "30", "egfr", '"x"', "is"]


@settings(max_examples=1500, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(_PIECES)).map(" ".join)))
def test_the_reader_returns_a_condition_or_raises_a_value_error(text: str) -> None:
    try:
        found = rules.read(text)
    except ValueError:
        return
    assert rules.atoms(found)


_BITS = st.sampled_from([True, False, None])


@settings(max_examples=300, deadline=None)
@given(_BITS, _BITS)
def test_the_logic_is_kleenes(a: bool | None, b: bool | None) -> None:
    def value(text: str) -> bool | None:
        return rules.truth(rules.read(text), lambda atom: a if atom.word == "female" else b)

    worlds = [(x, y) for x in ([a] if a is not None else [True, False]) for y in ([b] if b is not None else [True, False])]
    for text, rule in (("female and pregnant", all), ("female or pregnant", any), ("not (female and pregnant)", lambda w: not all(w))):
        possible = {rule(world) for world in worlds}
        assert value(text) is (possible.pop() if len(possible) == 1 else None)
    assert value("not female") is (None if a is None else not a)


def test_a_condition_is_written_as_it_is_read() -> None:
    for rule in every().values():
        for atom in rule.atoms:
            assert rules.read(str(atom)) == atom


# The records -----------------------------------------------------------------------------------------------------------------------------

GOOD = yaml.safe_dump(
    {
        "defaults": {"version": "1.0.0", "effective_from": "2026-01-01", "expires": "2027-01-01", "jurisdiction": "any"},
        "sources": {"label": {"title": "A label", "licence": "public domain"}},
        "rules": [
            {
                "rule_id": "glyburide.test",
                "drugs": ["glyburide"],
                "condition": "egfr < 30 mL/min/1.73m2",
                "requires": [{"input": "egfr", "max_age_days": 90}],
                "action": "block",
                "severity": "high",
                "on_missing": "abstain",
                "text": "No.",
                "source": "label",
                "reviewed": False,
                "test_cases": [{"case": case, "fires": False} for case in ("inside", "outside", "boundary")],
            }
        ],
    },
    sort_keys=False,
)


def changed(**keys: object) -> str:
    raw = yaml.safe_load(GOOD)
    raw["rules"][0] |= keys
    return yaml.safe_dump(raw, sort_keys=False)


def test_a_rule_takes_defaults_and_source_from_its_file() -> None:
    (rule,) = rules.parse(GOOD, table())
    assert (rule.version, rule.expires, rule.source.title) == ("1.0.0", date(2027, 1, 1), "A label")
    with pytest.raises(ValueError, match="frozen"):
        rule.action = "warn"


@pytest.mark.parametrize(
    ("keys", "line", "message"),
    [
        ({"condition": "egfr < 30"}, 14, "no comparison with number and unit"),
        ({"condition": "egfr < 30 stone"}, 14, "'stone' is not a unit of egfr. Known: mL/min"),
        ({"condition": "humour < 3 mL", "requires": [{"input": "humour", "max_age_days": 1}]}, 14, "no such measurement"),
        ({"condition": "age < 3 days", "requires": []}, 14, "'days' is not a unit of age. Known: years"),
        ({"condition": "has_condition(gout)", "requires": []}, 14, "'gout' is not in concepts.yaml"),
        ({"condition": "days_since(gout) < 3 days", "requires": []}, 14, "'gout' is not in concepts.yaml"),
        ({"condition": "takes_drug(gout)", "requires": []}, 14, "'gout' is not in concepts.yaml"),
        ({"condition": "interacts(glyburide, gout)", "requires": []}, 14, "'gout' is not in concepts.yaml"),
        ({"condition": "severe_allergy(gout)", "requires": []}, 14, "'gout' is not in concepts.yaml"),
        ({"condition": 'phenotype(GOUT) is "x"', "requires": []}, 14, "'GOUT' is not in concepts.yaml"),
        ({"drugs": ["gout"]}, 12, "'gout' is not in concepts.yaml"),
        ({"drugs": []}, 12, "'drugs': "),
        ({"requires": []}, 15, "'egfr' must stand in the condition and, with max_age_days, under requires"),
        ({"requires": [{"input": "egfr", "max_age_days": 0}]}, 15, "requires.0.max_age_days"),
        ({"on_missing": "warn"}, 20, "on_missing must be 'block' or 'abstain'"),
        ({"action": "prefer"}, 20, "further than 'warn'"),
        ({"action": "order"}, 18, "'action': input should be 'block', 'warn', 'dose', 'monitor' or 'prefer'"),
        ({"source": "rumour"}, 22, "not under 'sources'"),
        ({"colour": "red"}, 31, "'colour' is not a key of a rule"),
        ({"expires": "2025-01-01"}, 31, "expires after it takes effect"),
        ({"jurisdiction": "Mars"}, 31, "'jurisdiction': string should match"),
        ({"test_cases": [{"case": "inside", "fires": True}] * 3}, 24, "there is no case 'boundary'"),
        ({"test_cases": [{"case": "inside", "fires": True}]}, 24, "'test_cases': tuple should have at least 3 items"),
        ({"rule_id": "Nameless"}, 11, "'rule_id': string should match"),
        ({"version": "one"}, 31, "'version': string should match"),
    ],
)
def test_an_error_names_file_line_and_rule_and_says_what_to_do(keys: dict[str, object], line: int, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        rules.parse(changed(**keys), table(), "mine.yaml")
    text = str(caught.value)
    assert text.startswith(f"mine.yaml, line {line}: rule '{keys.get('rule_id', 'glyburide.test')}': ")
    assert message in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "mine.yaml, line 1: this is not YAML"),
        ("a: 2026-99-99", "mine.yaml: this is not YAML"),
        ("rules: 3", "a list of rules under 'rules'"),
        ("[]", "a list of rules under 'rules'"),
        ("rules: [3]", "a list of rules under 'rules'"),
        ("{defaults: 3, rules: []}", "are mappings"),
        ("{sources: 3, rules: []}", "are mappings"),
        ("rules: [{}]", "rule '1': "),
    ],
)
def test_a_file_that_is_no_rule_file_is_refused(text: str, message: str) -> None:
    with pytest.raises(RuleError, match="mine.yaml") as caught:
        rules.parse(text, table(), "mine.yaml")
    assert message in str(caught.value)


def test_a_block_may_pass_without_the_lists_that_are_often_absent() -> None:
    assert one("takes_drug(insulin) or has_allergy(this)", action="block", on_missing="warn").action == "block"
    with pytest.raises(ValueError, match="can't let a missing value pass"):
        one("takes_drug(insulin) or pregnant", action="block", on_missing="warn")


# The rule set ----------------------------------------------------------------------------------------------------------------------------


def folder(where: Path, **files: str) -> Path:
    for name, text in files.items():
        (where / f"{name}.yaml").write_text(text, encoding="utf-8")
    return where


def test_the_version_changes_with_every_character(tmp_path: Path) -> None:
    first = rules.load(folder=folder(tmp_path, a=GOOD), table=table())
    assert rules.load(folder=tmp_path, table=table(), expected=first.version).rules == first.rules
    folder(tmp_path, a=GOOD + "\n")
    assert rules.load(folder=tmp_path, table=table()).version != first.version
    with pytest.raises(RuleError, match=f"expected {first.version}. Restore them"):
        rules.load(folder=tmp_path, table=table(), expected=first.version)


def test_an_empty_folder_is_no_rule_set(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="nothing would be checked"):
        rules.load(folder=tmp_path, table=table())


def test_an_id_stands_once(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="'glyburide.test' stands 2 times"):
        rules.load(folder=folder(tmp_path, a=GOOD, b=GOOD), table=table())


def test_a_jurisdiction_takes_its_own_rules_and_those_that_hold_anywhere() -> None:
    canada = {rule.rule_id for rule in rules.load("CA", table=table()).rules}
    assert canada - {rule.rule_id for rule in shipped().rules} == {"empagliflozin.egfr_20_canada"}
    assert canada == set(every())


def test_rules_stand_in_the_order_of_their_ids() -> None:
    ids = [rule.rule_id for rule in shipped().rules]
    assert ids == sorted(ids)


def test_a_name_is_a_drug_a_class_a_code_or_any() -> None:
    members = shipped().members
    assert members["glyburide"] == members["4815"] == {"glyburide"}
    assert members["glyburide"] < members["sulfonylurea"] < members["any"] == frozenset(table().drugs)


def test_every_rule_passes_its_own_cases() -> None:
    assert rulebook.check(rules.load("CA", table=table())) == []


def test_a_case_that_comes_out_otherwise_is_told() -> None:
    rule = one("always", test_cases=[{"case": case, "fires": False} for case in ("inside", "outside", "boundary")])
    told = rulebook.check(dataclasses.replace(shipped(), rules=(rule,)))
    assert told[0] == "glyburide.age_65: case 'inside' should give False, gives True"


def test_every_file_is_short_enough_to_be_read() -> None:
    for path in rules.SHIPPED.glob("*.yaml"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path.name


def test_the_listing_has_a_row_of_words_for_each_rule() -> None:
    rows = rulebook.listing(shipped())
    assert [row["rule_id"] for row in rows] == [rule.rule_id for rule in shipped().rules]
    row = next(row for row in rows if row["rule_id"] == "metformin.egfr_30")
    assert row["reviewed"] == "yes" and row["drugs"] == "metformin" and row["expires"] == "2027-11-23" and row["action"] == "block"
    assert next(row for row in rows if row["rule_id"] == "ertugliflozin.egfr_45")["reviewed"] == "no"


def test_a_rule_is_explained_with_codes_source_review_and_cases() -> None:
    text = rulebook.explain(shipped(), "metformin.egfr_30")
    for part in ("# metformin.egfr_30 1.0.0", "RxNorm 6809", "egfr at most 90 days old", "10.1681/ASN.2016121372", "; compared with it"):
        assert part in text
    assert text.count("-> fires: ") == 4 and text.endswith("fires: unknown")
    assert "NOT YET COMPARED with it" in rulebook.explain(shipped(), "ertugliflozin.egfr_45")
    assert "any drug" in rulebook.explain(shipped(), "allergy.ingredient")


def test_an_unknown_rule_is_met_with_its_neighbours() -> None:
    with pytest.raises(RuleError, match=r"no rule 'metformin.x'. Near it: metformin.acidosis, "):
        rulebook.explain(shipped(), "metformin.x")
    with pytest.raises(RuleError, match="'concordant rules' lists|concordant rules lists all"):
        rulebook.explain(shipped(), "gout.x")


# The boundary table, generated -----------------------------------------------------------------------------------------------------------


def comparisons() -> list[tuple[str, int]]:
    return [(rule_id, n) for rule_id, rule in every().items() for n, atom in enumerate(rule.atoms) if atom.sign]


def having(atom: Atom, value: float, *, age_days: float = 0.0, unit: str | None = None) -> Facts:
    """Facts in which a quantity has a value."""
    if atom.word == "age":
        return Facts(age_years=value)
    if atom.word == "copies":
        return Facts(variants={atom.names[0]: value})
    if atom.word == "days_since":
        return Facts(conditions={atom.names[0]: True}, days_since={atom.names[0]: value})
    return Facts(measurements={atom.word: Measured(value, unit or atom.unit, age_days)})


def answer(rule: Rule, atom: Atom, facts: Facts) -> tuple[bool | None, set[str]]:
    alone = one(str(atom), requires=[e.model_dump() for e in rule.requires if e.input == atom.word], action="warn", on_missing="warn")
    found, _, missing = safety.judge(shipped(), alone, "metformin", facts)
    return found, {gap.code for gap in missing}


@pytest.mark.parametrize(("rule_id", "number"), comparisons())
def test_each_threshold_one_step_below_at_it_and_one_step_above(rule_id: str, number: int) -> None:
    rule, atom = every()[rule_id], every()[rule_id].atoms[number]
    step = 1.0 if atom.number >= 10 or atom.word in rules.UNITS else 0.1
    expected = {"<": (True, False, False), "<=": (True, True, False), ">": (False, False, True), ">=": (False, True, True)}[atom.sign]
    for value, outcome in zip((atom.number - step, atom.number, atom.number + step), expected, strict=True):
        assert answer(rule, atom, having(atom, value)) == (outcome, set())
    others = [a for a in rule.atoms if a != atom]
    worlds = [dict(zip(others, bits, strict=True)) for bits in product([True, False], repeat=len(others))]
    decided = [{rules.truth(rule.expression, (world | {atom: side}).__getitem__) for side in (True, False)} for world in worlds]
    assert {True, False} in decided  # there are patients for whom this threshold alone decides


@pytest.mark.parametrize(("rule_id", "number"), comparisons())
def test_each_input_missing_stale_or_in_a_wrong_unit_is_not_compared(rule_id: str, number: int) -> None:
    rule, atom = every()[rule_id], every()[rule_id].atoms[number]
    nothing = {"copies": "GENOTYPE_UNKNOWN", "days_since": "CONDITION_UNKNOWN"}.get(atom.word, "MISSING_REQUIRED")
    assert answer(rule, atom, Facts()) == (None, {nothing})
    not_a_number = {"copies": "GENOTYPE_NO_CALL"}.get(atom.word, "MISSING_REQUIRED")
    assert answer(rule, atom, having(atom, float("nan"))) == (None, {not_a_number})
    if atom.word in rules.UNITS:
        return
    limit = rule.limit(atom.word, atom.number)
    assert answer(rule, atom, having(atom, atom.number, age_days=limit))[0] is not None
    assert answer(rule, atom, having(atom, atom.number, age_days=limit + 0.01)) == (None, {"STALE_INPUT"})
    assert answer(rule, atom, having(atom, atom.number, age_days=float("nan"))) == (None, {"STALE_INPUT"})
    assert answer(rule, atom, having(atom, atom.number, age_days=-1)) == (None, {"IMPLAUSIBLE_INPUT"})
    assert answer(rule, atom, having(atom, atom.number, unit="stone")) == (None, {"UNIT_UNKNOWN"})
    assert answer(rule, atom, Facts(measurements={atom.word: Measured(atom.number, None, 0)})) == (None, {"UNIT_UNKNOWN"})
    assert answer(rule, atom, having(atom, 1e6)) == (None, {"IMPLAUSIBLE_INPUT"})


@pytest.mark.parametrize("rule_id", sorted(every()))
def test_what_is_not_known_at_all_becomes_what_the_rule_says(rule_id: str) -> None:
    rule = every()[rule_id]
    drug = min(shipped().members[rule.drugs[0]])
    verdict, used, missing = safety.judge(shipped(), rule, drug, Facts())
    assert (verdict, bool(missing)) == ((True, False) if rule.condition == "always" else (None, True))
    assert all(isinstance(gap, Missing) and gap.text.endswith(".") for gap in missing)
