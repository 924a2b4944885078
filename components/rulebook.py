"""The rules as whoever keeps them reads them: in words, and whether each does what its own cases say."""

from components.rules import Case, RuleError, RuleSet
from components.safety import Allergy, Facts, Measured, judge


def facts_of(case: Case, rules: RuleSet) -> Facts:
    """Facts of a rule's test case."""
    given = case.given
    codes = {name: key for key, name in reversed(rules.table.by_code.items()) if key[0].startswith(("allergen/", "drug/"))}
    allergies = None if given.allergies is None else [(codes[name], how) for name, how in given.allergies.items()]
    return Facts(
        measurements={name: Measured(*sent) for name, sent in given.measured.items()},
        conditions=dict.fromkeys([*(given.conditions or ()), *given.days_since], True),
        problem_list=given.conditions is not None,
        days_since=given.days_since,
        drugs=None if given.drugs is None else frozenset(given.drugs),
        allergies=None if allergies is None else tuple(Allergy(kind.split("/")[1], code, how) for (kind, code), how in allergies),
        diplotypes=given.diplotypes,
        variants={rsid: float("nan") if copies is None else copies for rsid, copies in given.variants.items()},
        age_years=given.age,
        female=given.female,
        pregnant=given.pregnant,
    )


def check(rules: RuleSet) -> list[str]:
    """Test cases that don't come out as their rule says: a rule set is used only where there is none."""
    wrong = []
    for rule in rules.rules:
        first = next(drug for drug in rules.table.drugs if drug in rules.members[rule.drugs[0]])
        for case in rule.test_cases:
            found = judge(rules, rule, case.drug or first, facts_of(case, rules))[0]
            if found != {True: True, False: False, "unknown": None}[case.fires]:
                wrong.append(f"{rule.rule_id}: case '{case.case}' should give {case.fires}, gives {'unknown' if found is None else found}")
    return wrong


def listing(rules: RuleSet) -> list[dict[str, str]]:
    """One row a rule for `concordant rules`, all in words."""
    plain = ("rule_id", "version", "action", "severity", "condition", "jurisdiction", "expires")
    return [
        {name: str(getattr(rule, name)) for name in plain}
        | {"drugs": ", ".join(rule.drugs), "source": rule.source.title, "reviewed": "yes" if rule.reviewed else "no"}
        for rule in rules.rules
    ]


def explain(rules: RuleSet, rule_id: str) -> str:
    """One rule with its cases as Markdown, for `concordant explain-rule ID`. Raises RuleError for an id that is not in the set."""
    rule = next((rule for rule in rules.rules if rule.rule_id == rule_id), None)
    if rule is None:
        near = ", ".join(r.rule_id for r in rules.rules if r.rule_id.split(".")[0] == rule_id.split(".")[0])
        raise RuleError(f"There is no rule '{rule_id}'. {'Near it: ' + near if near else 'concordant rules lists all'}.")
    drugs = [drug for drug in rules.table.drugs if any(drug in rules.members[name] for name in rule.drugs)]
    codes = "any drug" if "any" in rule.drugs else ", ".join(f"{drug} (RxNorm {rules.table.drugs[drug][0]})" for drug in drugs)
    source = ", ".join(part for part in (rule.source.title, rule.source.url, rule.source.label_id, rule.source.label_date) if part)
    fresh = ", ".join(f"{entry.input} at most {entry.max_age_days:g} days old" for entry in rule.requires) or "nothing measured"
    lines = [
        f"# {rule.rule_id} {rule.version}\n\n{rule.text}\n",
        f"- {rule.action} ({rule.severity}) where `{rule.condition}`; where that is not known: {rule.on_missing}",
        f"- judges {codes} as {rule.scope}; needs {fresh}",
        f"- holds in {rule.jurisdiction}, {rule.effective_from} to {rule.expires}",
        f"- source: {source}; {rule.source.licence}; {'compared' if rule.reviewed else 'NOT YET COMPARED'} with it\n\n## Cases\n",
    ]
    return "\n".join([*lines, *(f"- {c.case}: {c.given.model_dump(exclude_unset=True)} -> fires: {c.fires}" for c in rule.test_cases)])
