"""What is unsafe for one patient: rules over coded facts, before any score. A rule can only take options away; nothing gives one back.

The caller must deliver, as of the time of the question, under the names of `features/concepts.yaml`: every measurement of
`concepts.measurements` that a rule reads (`egfr`, `alt`, `inr`, `systolic_blood_pressure`) with unit and age; `condition:*`, the days
since its newest statement, and whether there is any `record:condition`; `takes:*` within its validity; the codes of active, not refuted
AllergyIntolerances with their criticality; `diplotype:*` of CYP2C9, CYP2C19, SLCO1B1, G6PD; `variant:rs9923231` and `variant:rs2108622`;
age, sex, and pregnancy status of the last 30 days. `today` is the day of the answer, never the time of a record.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date
from math import isnan
from typing import Literal, NamedTuple

from components.decision import Decision
from components.questions import Asks, Question, Truths, plan
from components.rules import UNITS, Atom, Rule, RuleSet, Truth, units_of
from features.alleles import INDETERMINATE, called, phenotypes

NO_KNOWN_ALLERGY = frozenset({("snomed", "716186003"), ("snomed", "409137002")})  # no known allergy, no known drug allergy
FERTILE_YEARS = (12, 55)  # safety.md 2.4: outside of these an unknown pregnancy status is taken as not pregnant
LIVE_CODES = ("UNIT_UNKNOWN", "IMPLAUSIBLE_INPUT", "STALE_INPUT")  # abstention codes of their own; any other gap is MISSING_REQUIRED
Effect = Literal["block", "abstain", "prefer", "warn", "dose", "monitor", "unchecked"]
EFFECTS: tuple[Effect, ...] = ("block", "abstain", "prefer", "warn", "dose", "monitor", "unchecked")  # the order in which they are told
SEVERITIES = ("high", "moderate", "low")
_GAP: dict[str, Effect] = {"block": "block", "abstain": "abstain", "warn": "unchecked"}  # what on_missing makes of a gap


class Measured(NamedTuple):
    """A newest value as it was sent, the unit it came in, and its age in days."""

    value: float
    unit: str | None
    age_days: float


class Allergy(NamedTuple):
    """A substance that the patient is allergic to. Criticality not stated is `unknown`, which is not low."""

    system: str  # short name, as in concepts.yaml
    code: str
    criticality: Literal["high", "low", "unknown"] = "unknown"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What the rules may look at: one patient at one time. What is not in here is not known; an absent list (None) is not an empty one.

    `conditions`: stated true or false; others are false where there is a `problem_list`. `days_since`: of the newest statement of each.
    `diplotypes`: gene to `*1/*3`, None for a no-call. `variants`: rsid to copies, NaN for a no-call.
    """

    measurements: Mapping[str, Measured] = field(default_factory=dict)
    conditions: Mapping[str, bool] = field(default_factory=dict)
    problem_list: bool = False
    days_since: Mapping[str, float] = field(default_factory=dict)
    drugs: frozenset[str] | None = None
    allergies: tuple[Allergy, ...] | None = None
    diplotypes: Mapping[str, str | None] = field(default_factory=dict)
    variants: Mapping[str, float] = field(default_factory=dict)
    age_years: float | None = None
    female: bool | None = None
    pregnant: bool | None = None


@dataclass(frozen=True)
class Missing:
    """An input that could not be used, and why."""

    input: str
    code: str
    text: str


Judged = tuple[Truth, tuple[str, ...], tuple[Missing, ...]]  # a rule's verdict, what was used, what is missing


@dataclass(frozen=True)
class Finding:
    """What one rule says about some drugs. `effect` is the rule's action, or what a missing input makes of it: `abstain`, `unchecked`."""

    rule: Rule
    effect: Effect
    drugs: tuple[str, ...]
    used: tuple[str, ...]  # what held
    missing: tuple[Missing, ...]

    @property
    def code(self) -> str | None:
        """Abstention code of the first gap; None where the rule fired."""
        codes = [gap.code for gap in self.missing]
        return next((code for code in LIVE_CODES if code in codes), "MISSING_REQUIRED") if codes else None


@dataclass(frozen=True, kw_only=True)
class OptionSafety:
    """One option. It is permitted while any of its drugs is; `unresolved` drugs can't be cleared until an input is known."""

    option: str
    permitted: tuple[str, ...]
    unresolved: tuple[str, ...]
    blocked: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def state(self) -> Literal["permitted", "unresolved", "blocked"]:
        """Blocked only where each of its drugs is."""
        return "permitted" if self.permitted else "unresolved" if self.unresolved else "blocked"

    def said(self, effect: Effect) -> tuple[Finding, ...]:
        """Findings of one effect."""
        return tuple(finding for finding in self.findings if finding.effect == effect)


@dataclass(frozen=True, kw_only=True)
class Safety:
    """The layer's answer. `current`: findings about drugs taken now; `notices`: what could not be checked; `preferred`: by guideline."""

    options: tuple[OptionSafety, ...]
    current: tuple[Finding, ...]
    notices: tuple[Missing, ...]
    preferred: tuple[tuple[str, Finding], ...]
    ruleset: str
    expired: tuple[str, ...]

    @property
    def code(self) -> str | None:
        """RULESET_EXPIRED where any rule of the set is no longer valid: then nothing may be recommended."""
        return "RULESET_EXPIRED" if self.expired else None

    def of(self, option: str) -> OptionSafety:
        """Safety of one option by its name."""
        return next(entry for entry in self.options if entry.option == option)


def evaluate(rules: RuleSet, facts: Facts, decision: Decision, today: date) -> Safety:
    """Every rule in force against every drug of every option, and against the drugs taken now; in an order of its own."""

    asked, planned = Asked(rules, facts), plan(rules)

    def judged(drugs: tuple[str, ...], scope: str, option: str | None) -> tuple[Finding, ...]:
        return _findings(asked, planned.in_force(drugs, scope, decision.name, option, today))

    options = [_option(name, option.drugs, judged(option.drugs, "option", name)) for name, option in decision.options.items()]
    current = judged(tuple(sorted(facts.drugs or ())), "current", None)
    preferred = [(entry.option, f) for entry in options for f in entry.said("prefer") if set(f.drugs) & set(entry.permitted)]
    told = [finding for entry in options for finding in entry.findings] + list(current)
    gaps = {gap for finding in told for gap in finding.missing} | set(_not_read(rules, facts))
    return Safety(
        options=tuple(options),
        current=current,
        notices=tuple(sorted(gaps, key=lambda gap: (gap.code, gap.input, gap.text))),
        preferred=tuple(preferred),
        ruleset=rules.version,
        expired=rules.expired(today),
    )


def _option(name: str, drugs: tuple[str, ...], findings: tuple[Finding, ...]) -> OptionSafety:
    blocked = {drug for finding in findings if finding.effect == "block" for drug in finding.drugs}
    unresolved = {drug for finding in findings if finding.effect == "abstain" for drug in finding.drugs} - blocked
    return OptionSafety(
        option=name,
        permitted=tuple(drug for drug in drugs if drug not in blocked | unresolved),
        unresolved=tuple(drug for drug in drugs if drug in unresolved),
        blocked=tuple(drug for drug in drugs if drug in blocked),
        findings=findings,
    )


def _findings(asked: "Asked", judged: Iterable[tuple[Asks, tuple[str, ...]]]) -> tuple[Finding, ...]:
    """One finding a rule and effect, with the drugs that it is about."""
    found: dict[tuple[str, Effect], Finding] = {}
    alike = (  # most rules say nothing of most patients: one answer tells
        (asks, group)
        for asks, drugs in judged
        if asks.needs is None or asked.truth[asks.needs] is not False
        for group in ([(drug,) for drug in drugs] if asked.depends(asks) else (drugs,))
    )
    for asks, drugs in alike:
        verdict, used, missing = asked.told(asks, drugs[0])
        if verdict is not False:
            rule = asks.rule
            effect: Effect = rule.action if verdict else _GAP[rule.on_missing]
            so_far = found.get((rule.rule_id, effect), Finding(rule, effect, (), (), ()))
            used, missing = tuple(dict.fromkeys(so_far.used + used)), tuple(dict.fromkeys(so_far.missing + missing))
            found[rule.rule_id, effect] = Finding(rule, effect, (*so_far.drugs, *drugs), used, missing)
    return tuple(sorted(found.values(), key=lambda f: (EFFECTS.index(f.effect), SEVERITIES.index(f.rule.severity), f.rule.rule_id)))


def judge(rules: RuleSet, rule: Rule, drug: str, facts: Facts) -> Judged:
    """Does a rule fire for one drug: yes, no or not known; what was used, and, where it is not known, what is missing."""
    return Asked(rules, facts).judge(rule, drug)


class Asked:
    """One patient, and what was answered so far: what does not depend on the drug is asked once for all drugs and rules."""

    def __init__(self, rules: RuleSet, facts: Facts) -> None:
        self.rules, self.facts, self._plan = rules, facts, plan(rules)
        self._known: dict[Question, bool | Missing] = {}
        self.truth = Truths(self._for_all)
        self._told: dict[Asks, Judged] = {}
        self._depends: dict[Asks, bool] = {}

    def judge(self, rule: Rule, drug: str) -> Judged:
        """As `judge`."""
        return self.told(self._plan.asks(rule), drug)

    def told(self, asks: Asks, drug: str) -> Judged:
        """As `judge`, of what a rule asks."""
        told = self._told.get(asks)
        if told is None:
            told = self._judge(asks, drug)
            if not self.depends(asks):
                self._told[asks] = told
        return told

    def depends(self, asks: Asks) -> bool:
        """Whether the verdict may differ between drugs: only where an allergy, or a drug taken now, is one that the rule asks for."""
        if not asks.of_the_drug:
            return False
        found = self._depends.get(asks)
        if found is None:
            asked = [question.atom for question in asks.questions if question.of_the_drug]
            found = self._depends[asks] = any(self._matters(atom) for atom in asked)
        return found

    def _matters(self, atom: Atom) -> bool:
        if atom.word.endswith("_allergy"):
            return bool(self.facts.allergies)
        return any(not self.rules.members[name].isdisjoint(self.facts.drugs or ()) for name in atom.names)

    def _judge(self, asks: Asks, drug: str) -> Judged:
        look = (lambda question: _truth(self._answer(question, drug))) if asks.of_the_drug else self.truth.__getitem__
        verdict = asks.verdict(look)
        if verdict is False:
            return False, (), ()
        answers = [(question.atom, self._answer(question, drug)) for question in asks.questions]
        used = tuple(_told(atom, self.facts) for atom, answer in answers if answer is True)
        missing = tuple(dict.fromkeys(answer for _, answer in answers if isinstance(answer, Missing)))
        return verdict, used, missing if verdict is None else ()

    def _answer(self, question: Question, drug: str) -> bool | Missing:
        if question.of_the_drug:
            return _answer(question, self.rules, drug, self.facts)
        found = self._known.get(question)
        if found is None:
            found = self._known[question] = _answer(question, self.rules, drug, self.facts)
        return found

    def _for_all(self, question: Question) -> Truth:
        """The answer for every drug there is; None also where it depends on the drug."""
        return None if question.of_the_drug and self._matters(question.atom) else _truth(self._answer(question, ""))


def _truth(answer: bool | Missing) -> Truth:
    return None if isinstance(answer, Missing) else answer


def _told(atom: Atom, facts: Facts) -> str:
    """What held, in words: a value with its unit and age, or the question."""
    if atom.sign and atom.word not in UNITS:
        value = facts.measurements[atom.word]
        return f"{atom.word} {value.value:g} {value.unit}, {value.age_days:.0f} days old ({atom})"
    return str(atom)


# Each question gives True or False, or what is missing -----------------------------------------------------------------------------------


def _answer(question: Question, rules: RuleSet, drug: str, facts: Facts) -> bool | Missing:
    atom = question.atom
    if atom.sign:
        value = _value(question, rules, facts)
        return value if isinstance(value, Missing) else _holds(value, atom, rules)
    if atom.word == "has_condition":
        return _condition(atom.names[0], facts)
    if atom.word in ("takes_drug", "interacts"):
        return _takes(atom, rules, drug, facts)
    if atom.word == "phenotype":
        found = phenotype(atom.names[0], facts)
        return found if isinstance(found, Missing) else found == atom.answer
    if atom.word.endswith("_allergy"):
        return _allergy(atom, rules, drug, facts)
    return _flag(atom.word, facts)


def _holds(value: float, atom: Atom, rules: RuleSet) -> bool:
    """Both sides in our unit, rounded to 6 decimals: a threshold is met exactly however it was sent."""
    factor, offset = units_of(atom.word, rules.table)[atom.unit]
    left, right = round(value, 6), round(atom.number * factor + offset, 6)
    return {"<": left < right, "<=": left <= right, ">": left > right, ">=": left >= right}[atom.sign]


def _value(question: Question, rules: RuleSet, facts: Facts) -> float | Missing:
    """Value of a quantity in our unit; infinitely many days since a condition that is not there."""
    quantity, name = question.atom.word, "".join(question.atom.names)
    if quantity == "age":
        return _known(facts.age_years, "age", "MISSING_REQUIRED", "Age is not known.")
    if quantity == "copies":
        return _known(
            facts.variants.get(name), name, *_no_advice(name, "GENOTYPE_NO_CALL" if name in facts.variants else "GENOTYPE_UNKNOWN")
        )
    if quantity == "days_since":
        present = _condition(name, facts)
        if present is not True:
            return present if isinstance(present, Missing) else float("inf")
        return _known(facts.days_since.get(name), name, "MISSING_REQUIRED", f"It is not known when '{name}' was stated.")
    sent = facts.measurements.get(quantity)
    if sent is None or isnan(sent.value):
        return Missing(quantity, "MISSING_REQUIRED", f"{quantity} is not known.")
    reading = rules.table.read(quantity, sent.value, sent.unit)
    if reading.problem == "unit_unknown":
        return Missing(quantity, "UNIT_UNKNOWN", f"{quantity} came in a unit that can't be converted: it was not compared.")
    if reading.problem or sent.age_days < 0:
        return Missing(quantity, "IMPLAUSIBLE_INPUT", f"{quantity} or its date is not plausible: it was not compared.")
    assert question.fresh is not None  # a measurement stands under `requires`, which the rule's own check sees to
    limit = question.fresh.limit(reading.value)
    if not sent.age_days <= limit:  # also where the age is NaN
        return Missing(quantity, "STALE_INPUT", f"{quantity} is older than {limit:g} days: measure it again.")
    return reading.value


def _known(value: float | None, name: str, code: str, text: str) -> float | Missing:
    return Missing(name, code, text) if value is None or isnan(value) else value


_SILENT = {  # neither of the three is the normal result
    "GENOTYPE_UNKNOWN": "is not on record",
    "GENOTYPE_NO_CALL": "was not called",
    "GENOTYPE_INDETERMINATE": "was read and can't be interpreted",
}


def _no_advice(name: str, code: str) -> tuple[str, str]:
    return code, f"{name} {_SILENT[code]}: no pharmacogenomic advice. This is not a normal result."


def _condition(name: str, facts: Facts) -> bool | Missing:
    stated = facts.conditions.get(name)
    if stated is None and not facts.problem_list:
        return Missing("conditions", "CONDITION_UNKNOWN", "No problem list is on record: conditions could not be checked.")
    return bool(stated)


def _takes(atom: Atom, rules: RuleSet, drug: str, facts: Facts) -> bool | Missing:
    if facts.drugs is None:
        return Missing("drugs", "MEDICATION_UNKNOWN", "No medication list is on record: interactions could not be checked.")
    others = facts.drugs - {drug}
    if atom.word == "takes_drug":
        return bool(others & rules.members[atom.names[0]])
    one, two = (rules.members[name] for name in atom.names)
    return bool(drug in one and others & two) or bool(drug in two and others & one)


def _allergy(atom: Atom, rules: RuleSet, drug: str, facts: Facts) -> bool | Missing:
    if facts.allergies is None:
        text = "No allergy list is on record, which is not 'no known allergy'. Ask and record it."
        return Missing("allergies", "ALLERGY_UNKNOWN", text)
    if not facts.allergies:
        return False
    wanted = {drug} if atom.names[0] == "this" else rules.members.get(atom.names[0], frozenset()) | {atom.names[0]}
    counted = {"has_allergy": ("high", "unknown", "low"), "serious_allergy": ("high", "unknown"), "severe_allergy": ("high",)}[atom.word]
    return any(entry.criticality in counted and _substance(rules, entry) in wanted for entry in facts.allergies)


def _substance(rules: RuleSet, allergy: Allergy) -> str | None:
    codes = rules.table.by_code
    return codes.get((f"allergen/{allergy.system}", allergy.code)) or codes.get((f"drug/{allergy.system}", allergy.code))


def _not_read(rules: RuleSet, facts: Facts) -> list[Missing]:
    """Allergies whose code means nothing to us: counted, never taken as harmless in silence."""
    odd = [entry for entry in facts.allergies or () if entry[:2] not in NO_KNOWN_ALLERGY and _substance(rules, entry) is None]
    text = f"{len(odd)} recorded allergies carry codes that are not in concepts.yaml: they were not compared."
    return [Missing("allergies", "ALLERGY_NOT_READ", text)] if odd else []


def _flag(word: str, facts: Facts) -> bool | Missing:
    if word == "always":
        return True
    value = facts.female if word == "female" else facts.pregnant
    if value is None and word == "pregnant":
        age = facts.age_years
        barren = facts.female is False or (age is not None and not FERTILE_YEARS[0] <= age <= FERTILE_YEARS[1])
        return False if barren else Missing("pregnant", "PREGNANCY_UNKNOWN", "Pregnancy status of the last 30 days is not known.")
    return Missing(word, "MISSING_REQUIRED", "Sex is not known.") if value is None else value


def phenotype(gene: str, facts: Facts) -> str | Missing:
    """Phenotype of the reported diplotype. A no-call, an allele of unknown function or none at all is missing, never normal."""
    alleles = tuple((facts.diplotypes.get(gene) or "").split("/"))
    found = phenotypes().get(gene, {}).get(alleles)
    told = facts.diplotypes.get(gene) or ""
    read = told == INDETERMINATE or called(gene, told) is not None
    code = "GENOTYPE_INDETERMINATE" if read else "GENOTYPE_NO_CALL" if gene in facts.diplotypes else "GENOTYPE_UNKNOWN"
    return found or Missing(gene, *_no_advice(gene, code))
