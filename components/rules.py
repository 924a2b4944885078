"""Safety rules as data: who they are about, when they hold, what they do, who says so. A rule file is parsed once into frozen `Rule`s.

A condition is a sentence of a small language without side effects: `egfr < 30 mL/min/1.73m2 and not has_condition(dialysis)`.

| form | holds where |
| --- | --- |
| `NAME < NUMBER UNIT` (also `<=`, `>`, `>=`) | the newest value of a measurement of concepts.yaml; the unit is part of the comparison |
| `age < 65 years`, `copies(rs123) >= 1 copies`, `days_since(CONDITION) <= 7 days` | age; called copies; age of the newest statement |
| `has_condition(NAME)`, `pregnant`, `female`, `always` | a condition on the problem list; facts of the patient |
| `takes_drug(NAME)`, `interacts(A, B)` | it is taken now beside the drug judged; one of these is of one side, one of the other |
| `has_allergy(NAME)`, `serious_allergy`, `severe_allergy` | any; not stated to be low; stated high. `this` is the drug judged |
| `phenotype(GENE) is "..."` | the CPIC phenotype of the reported diplotype |
| `and`, `or`, `not`, `( )` | three-valued: what is not known stays not known |
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from features.alleles import digest
from features.concepts import Concepts, concepts
from features.errors import ConcordantError

SHIPPED = Path(__file__).with_name("rules")
HELP = "Write it as in 'egfr < 30 mL/min/1.73m2' or 'has_condition(dialysis)'; components/rules.py has the table of forms."
LONGEST, DEEPEST = 1000, 20  # characters and nested parts of a condition: what the parser reads is bounded

Truth = bool | None  # None: not known
Action = Literal["block", "warn", "dose", "monitor", "prefer"]


class RuleError(ConcordantError):
    """A rule set that can't be read or isn't the one that was asked for; names file, line and rule."""


@dataclass(frozen=True)
class Atom:
    """One question, `has_condition(dialysis)`; with a `sign`, a comparison with a threshold in a unit, `egfr < 30 mL/min/1.73m2`."""

    word: str
    names: tuple[str, ...] = ()
    answer: str = ""  # the text after `is`
    sign: str = ""
    number: float = 0.0
    unit: str = ""

    def __str__(self) -> str:
        asked = self.word + (f"({', '.join(self.names)})" if self.names else "") + (f' is "{self.answer}"' if self.answer else "")
        return f"{asked} {self.sign} {self.number:g} {self.unit}" if self.sign else asked


@dataclass(frozen=True)
class Joined:
    """Parts joined by `and` or `or`, or the opposite of one part."""

    word: Literal["and", "or", "not"]
    parts: "tuple[Expression, ...]"


Expression = Atom | Joined

WORDS = {
    "has_condition": 1, "takes_drug": 1, "interacts": 2, "has_allergy": 1, "serious_allergy": 1, "severe_allergy": 1, "phenotype": 1,
    "pregnant": 0, "female": 0, "always": 0,
}  # fmt: skip
# Lists whose absence is common, and told by a notice of its own: drugs taken now, allergies, genotypes.
OFTEN_ABSENT = ("takes_drug", "interacts", "has_allergy", "serious_allergy", "severe_allergy", "phenotype", "copies", "always")
UNITS = {"age": "years", "copies": "copies", "days_since": "days"}  # of the quantities that are no measurements
_COMPARE = re.compile(r"([a-z]\w*)(?:\((\w+)\))?\s*(<=|>=|<|>)\s*(\d+(?:\.\d+)?)\s+(?!(?:and|or|not)\b)([^\s()]+)")
_ASK = re.compile(r'([a-z]\w*)(?:\(\s*(\w+(?:\s*,\s*\w+)*)\s*\))?(?:\s+is\s+"([^"]+)")?')


class _Reader:
    """Recursive descent over the text of one condition; an atom is matched as a whole."""

    def __init__(self, text: str) -> None:
        if len(text) > LONGEST:
            raise ValueError(f"the condition has {len(text)} characters, at most {LONGEST} are read. Split the rule.")
        self.left, self.depth = text.strip(), 0

    def skip(self, word: str) -> bool:
        """Is this word or mark next? If so, go past it."""
        found = re.match(rf"{re.escape(word)}(?!\w)" if word.isalpha() else re.escape(word), self.left)
        if found:
            self.left = self.left[found.end() :].lstrip()
        return found is not None

    def joined(self, word: Literal["or", "and"] = "or") -> Expression:
        below = self.part if word == "and" else lambda: self.joined("and")
        parts = [below()]
        while self.skip(word):
            parts.append(below())
        return parts[0] if len(parts) == 1 else Joined(word, tuple(parts))

    def part(self) -> Expression:
        self.depth += 1
        if self.depth > DEEPEST:
            raise ValueError(f"the condition is nested more than {DEEPEST} deep. Split the rule.")
        if self.skip("not"):
            found: Expression = Joined("not", (self.part(),))
        elif self.skip("("):
            found = self.joined()
            if not self.skip(")"):
                raise ValueError(f"a parenthesis is not closed before '{self.left[:30] or 'the end'}'.")
        else:
            found = self.atom()
        self.depth -= 1
        return found

    def atom(self) -> Atom:
        compare, ask = _COMPARE.match(self.left), _ASK.match(self.left)
        if compare and (compare[1] in ("copies", "days_since")) == (compare[2] is not None):
            self.left = self.left[compare.end() :].lstrip()
            return Atom(compare[1], (compare[2],) if compare[2] else (), "", compare[3], float(compare[4]), compare[5])
        names = tuple(name.strip() for name in ask[2].split(",")) if ask and ask[2] else ()
        if ask is None or WORDS.get(ask[1]) != len(names) or (ask[1] == "phenotype") != bool(ask[3]):
            raise ValueError(f"'{self.left[:40] or 'the end'}' is no question and no comparison with number and unit. {HELP}")
        self.left = self.left[ask.end() :].lstrip()
        return Atom(ask[1], names, ask[3] or "")


def read(text: str) -> Expression:
    """Condition from its text. Raises ValueError that says what was found and what is expected; never anything else."""
    reader = _Reader(text)
    found = reader.joined()
    if reader.left:
        raise ValueError(f"'{reader.left[:40]}' follows a complete condition. Join the two with 'and' or 'or'.")
    return found


def truth(expression: Expression, look: Callable[[Atom], Truth]) -> Truth:
    """Kleene's three-valued logic: `and` is false where one part is, else not known where one part is; `or` the other way round."""
    if isinstance(expression, Atom):
        return look(expression)
    parts = [truth(part, look) for part in expression.parts]
    if expression.word == "not":
        return None if parts[0] is None else not parts[0]
    decided = expression.word == "or"
    return decided if decided in parts else None if None in parts else not decided


def atoms(expression: Expression) -> tuple[Atom, ...]:
    """The comparisons and questions of a condition, in order, each once."""
    if isinstance(expression, Atom):
        return (expression,)
    return tuple(dict.fromkeys(atom for part in expression.parts for atom in atoms(part)))


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(_Record):
    """Who says so. `label_id` is the SPL set id of a label; what is not known stays empty."""

    title: str = Field(min_length=1)
    licence: str = Field(min_length=1)
    url: str = ""
    label_id: str = ""
    label_date: str = ""


class Freshness(_Record):
    """How old an input may be, in days; with `below`, how old while the value lies under that threshold (in the unit of concepts.yaml)."""

    input: str
    max_age_days: float = Field(gt=0)
    below: float | None = None
    max_age_days_below: float | None = Field(default=None, gt=0)

    def limit(self, value: float) -> float:
        """Greatest age in days at which a value counts."""
        stricter = self.max_age_days_below if self.below is not None and value < self.below else None
        return stricter or self.max_age_days


class Given(_Record):
    """Facts of a test case. `measured`: value, unit and age in days; null is an absent list, or a no-call."""

    measured: dict[str, tuple[float, str, float]] = Field(default_factory=dict)
    conditions: tuple[str, ...] | None = ()
    days_since: dict[str, float] = Field(default_factory=dict)
    drugs: tuple[str, ...] | None = ()
    allergies: dict[str, Literal["high", "low", "unknown"]] | None = Field(default_factory=dict)
    diplotypes: dict[str, str | None] = Field(default_factory=dict)
    variants: dict[str, float | None] = Field(default_factory=dict)
    age: float | None = 60
    female: bool | None = False
    pregnant: bool | None = None


class Case(_Record):
    """One test case: does the rule fire for this drug (the first of the rule's where none is named)?"""

    case: Literal["inside", "outside", "boundary"]
    given: Given = Given()
    fires: bool | Literal["unknown"]
    drug: str | None = None


class Rule(_Record):
    """One safety rule.

    `drugs`: what is judged, by names of drugs or classes, RxNorm codes, or `any`. `options`: only these options of the decision.
    `scope`: an option that could be started, a drug that is taken now, or both. `on_missing`: what an unknown condition means.
    `reviewed`: the threshold was compared with the cited text; it is no clinical sign-off.
    """

    rule_id: str = Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z0-9_]+)+$")
    version: str = Field(pattern=r"^\d+\.\d+\.\d+$")
    effective_from: date
    expires: date
    jurisdiction: str = Field(pattern=r"^(any|[A-Z]{2})$")
    decisions: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    drugs: tuple[str, ...] = Field(min_length=1)
    scope: Literal["option", "current", "both"] = "option"
    condition: str
    requires: tuple[Freshness, ...] = ()
    action: Action
    severity: Literal["high", "moderate", "low"]
    on_missing: Literal["block", "abstain", "warn"]
    text: str = Field(min_length=1)
    source: Source
    reviewed: bool
    test_cases: tuple[Case, ...] = Field(min_length=3)

    @cached_property
    def expression(self) -> Expression:
        """The condition, parsed."""
        return read(self.condition)

    @cached_property
    def atoms(self) -> tuple[Atom, ...]:
        """Its comparisons and questions."""
        return atoms(self.expression)

    def limit(self, quantity: str, value: float) -> float:
        """Greatest age in days at which a measured value counts."""
        return next(entry.limit(value) for entry in self.requires if entry.input == quantity)

    @model_validator(mode="after")
    def _coherent(self) -> "Rule":
        for problem in _problems(self):
            raise ValueError(problem)
        return self


def _problems(rule: Rule) -> list[str]:
    """What the types alone can't see. Each begins with the key to mend, then a bar."""
    try:
        measured = {atom.word for atom in rule.atoms if atom.sign and atom.word not in UNITS}
    except ValueError as error:
        return [f"condition|{error}"]
    differing = sorted(measured ^ {entry.input for entry in rule.requires})
    found = [f"requires|'{name}' must stand in the condition and, with max_age_days, under requires." for name in differing]
    if rule.expires <= rule.effective_from:
        found.append("expires|a rule expires after it takes effect.")
    if rule.action == "block" and rule.on_missing == "warn" and not all(atom.word in OFTEN_ABSENT for atom in rule.atoms):
        found.append("on_missing|a rule that blocks can't let a missing value pass: on_missing must be 'block' or 'abstain'.")
    if rule.action == "prefer" and rule.on_missing != "warn":
        found.append("on_missing|what is not known can't take a preference further than 'warn'.")
    lacking = sorted({"inside", "outside", "boundary"} - {case.case for case in rule.test_cases})
    return found + [
        f"test_cases|there is no case '{kind}'. A rule needs one inside, one outside and one at the boundary." for kind in lacking
    ]


@dataclass(frozen=True, eq=False)
class RuleSet:
    """Rules in the order of their ids, what their names mean, and a version that changes with every character of the files.

    Two sets are the same only where they are one object: what was worked out for one is never used for another.
    """

    rules: tuple[Rule, ...]
    version: str
    table: Concepts

    @cached_property
    def members(self) -> dict[str, frozenset[str]]:
        """Drugs that a name of a drug or class, an RxNorm code or `any` stands for."""
        found = {name: frozenset({name}) for name in self.table.drugs}
        found |= {name: frozenset(drugs) for name, drugs in self.table.classes.items()}
        found |= {code: frozenset({name}) for (kind, code), name in self.table.by_code.items() if kind == "drug/rxnorm"}
        return found | {"any": frozenset(self.table.drugs)}

    @cached_property
    def about(self) -> dict[str, tuple[Rule, ...]]:
        """Rules that judge each drug."""
        by_rule = [(rule, frozenset().union(*(self.members[name] for name in rule.drugs))) for rule in self.rules]
        return {drug: tuple(rule for rule, drugs in by_rule if drug in drugs) for drug in self.table.drugs}

    def expired(self, today: date) -> tuple[str, ...]:
        """Ids of rules that are no longer valid."""
        return tuple(rule.rule_id for rule in self.rules if rule.expires <= today)


def load(jurisdiction: str = "US", *, folder: Path = SHIPPED, table: Concepts | None = None, expected: str | None = None) -> RuleSet:
    """Rules of a folder that hold anywhere or in one jurisdiction.

    `table` says what the names mean, concepts.yaml if None; `expected` is the version that must be found. Raises RuleError.
    """
    texts = {path.name: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.yaml"))}
    told = "".join(f"{name}\n{text}\n" for name, text in texts.items()) + digest()  # what an allele means is part of what the rules say
    version = sha256(told.encode()).hexdigest()[:12]
    if expected is not None and version != expected:
        raise RuleError(f"The rules in {folder.name} have version {version}, expected {expected}. Restore them or build the bundle again.")
    names = table or concepts()
    rules = [rule for file, text in texts.items() for rule in parse(text, names, file)]
    if not rules:
        raise RuleError(f"There is no rule in {folder.name}: nothing would be checked. Give a folder that holds rule files.")
    for rule_id, times in Counter(rule.rule_id for rule in rules).items():
        if times > 1:
            raise RuleError(f"Rule '{rule_id}' stands {times} times in {folder.name}. Rename the others.")
    kept = sorted((rule for rule in rules if rule.jurisdiction in ("any", jurisdiction)), key=lambda rule: rule.rule_id)
    return RuleSet(tuple(kept), version, names)


def parse(text: str, table: Concepts, file: str = "rules") -> list[Rule]:
    """Rules of one file: `defaults` that each rule may override, `sources` by name, `rules`. Raises RuleError with file, line and rule."""
    try:
        root, raw = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        where = f"{file}, line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else file
        raise RuleError(f"{where}: this is not YAML: {getattr(error, 'problem', error)}.") from error
    entries = raw.get("rules") if isinstance(raw, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise RuleError(f"{file}, line 1: a rule file is a mapping with a list of rules under 'rules'.")
    found, defaults, sources = [], raw.get("defaults") or {}, raw.get("sources") or {}
    if not isinstance(defaults, dict) or not isinstance(sources, dict):
        raise RuleError(f"{file}, line 1: 'defaults' and 'sources' of a rule file are mappings.")
    for number, entry in enumerate(entries):
        place, message = "", ""
        try:
            named = entry.get("source")
            source = sources.get(named, named) if isinstance(named, str) else named
            rule = Rule.model_validate({**defaults, **entry, "source": source})
            place, message = next(iter(_unknown(rule, table)), ("", ""))
        except ValidationError as error:
            place, message = _first(error)
        if message:
            line = _line(root, number, place.split(".")[0])
            raise RuleError(f"{file}, line {line}: rule '{entry.get('rule_id', number + 1)}': {message}")
        found.append(rule)
    return found


def _first(error: ValidationError) -> tuple[str, str]:
    first = error.errors(include_url=False)[0]
    place, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error" and "|" in message:
        place, _, message = message.partition("|")
    elif first["type"] == "extra_forbidden":
        message = f"'{place}' is not a key of a rule. Remove it or correct its spelling."
    elif place == "source":
        message = "its source is not under 'sources' of the file. Add it there with title and licence."
    else:
        message = f"'{place}': {message[0].lower()}{message[1:]}."
    return place, message


def _unknown(rule: Rule, table: Concepts) -> list[tuple[str, str]]:
    """Names and units that concepts.yaml doesn't have: the key to mend, and a message."""
    drugs = {*table.drugs, *table.classes, *(code for kind, code in table.by_code if kind == "drug/rxnorm")}
    kinds = {kind: {name for (of, _), name in table.by_code.items() if of.startswith(kind)} for kind in ("condition/", "allergen/")}
    conditions = kinds["condition/"] | {name for _, _, name in table.prefixes}
    known = {"has_condition": conditions, "days_since": conditions, "phenotype": {*table.genes.values()}}
    known |= {word: drugs | kinds["allergen/"] | {"this"} for word in WORDS if word.endswith("_allergy")}
    asked = [("drugs", name, drugs | {"any"}) for name in rule.drugs]
    asked += [("condition", name, known.get(atom.word, drugs)) for atom in rule.atoms if atom.word != "copies" for name in atom.names]
    problems = [(key, f"'{name}' is not in concepts.yaml. Add it there with its codes.") for key, name, names in asked if name not in names]
    for atom in rule.atoms:
        if atom.sign and atom.unit not in (units := units_of(atom.word, table)):
            there = ", ".join(units) or "none, for concepts.yaml has no such measurement"
            problems.append(("condition", f"'{atom}': '{atom.unit}' is not a unit of {atom.word}. Known: {there}."))
    return problems


def units_of(quantity: str, table: Concepts) -> dict[str, tuple[float, float]]:
    """Units in which a quantity may be compared, each with factor and offset into ours; empty for an unknown quantity."""
    own = {UNITS[quantity]: (1.0, 0.0)} if quantity in UNITS else {}
    return own or (table.measurements[quantity].units if quantity in table.measurements else {})


def _line(root: Any, number: int, key: str) -> int:
    """Line of a key of the rule with this number, or of the rule where it has no such key."""
    rule = next(value for name, value in root.value if name.value == "rules").value[number]
    return int(next((name.start_mark.line for name, _ in rule.value if name.value == key), rule.start_mark.line)) + 1
