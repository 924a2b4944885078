"""What a rule set asks, worked out once: each question that many rules share as one object, each condition as a function of its answers.

The language and its logic are those of `rules.py` (`truth` is the plain form of `verdict`); here is only what makes them quick to ask of
one patient after another. A plan belongs to one rule set and keeps no value of a patient: what stays, by case, is which rules apply to
which drugs on which day.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from functools import cached_property, lru_cache
from typing import Any

from components.rules import UNITS, Atom, Expression, Freshness, Rule, RuleSet, Truth

Answers = Callable[["Question"], Truth]
Case = tuple[tuple[str, ...], str, str, str | None, date]  # drugs, scope, decision, option, day
MOST_KEPT = 2_000


@dataclass(frozen=True, eq=False)
class Question:
    """One atom of a condition and how old its input may be. The same object wherever the same is asked, so that it is answered once.

    `of_the_drug`: the answer depends on which drug is judged.
    """

    atom: Atom
    fresh: Freshness | None
    of_the_drug: bool


@dataclass(frozen=True, eq=False)
class Asks:
    """One rule: its questions in order, its verdict from their answers, and whether that depends on which drug is judged.

    `needs`: a question without whose yes, or not known, the rule can't fire; None where no single one is needed.
    """

    rule: Rule
    questions: tuple[Question, ...]
    verdict: Callable[[Answers], Truth]
    of_the_drug: bool
    needs: Question | None


class Truths(dict[Question, Truth]):
    """Answers to questions, each found when it is first looked up: a verdict reads them without a call of ours from then on."""

    def __init__(self, find: Answers) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, question: Question) -> Truth:
        found = self[question] = self._find(question)
        return found


class Plan:
    """The questions of one rule set, and which rules are in force for some drugs."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        self._in_force: dict[Case, tuple[tuple[Asks, tuple[str, ...]], ...]] = {}
        self._compared: dict[Case, tuple[tuple[str, Rule], ...]] = {}

    @cached_property
    def _asks(self) -> dict[int, Asks]:
        shared: dict[tuple[Atom, Freshness | None], Question] = {}
        return {id(rule): _asks(rule, shared) for rule in self._rules.rules}

    def asks(self, rule: Rule) -> Asks:
        """What a rule asks."""
        return self._asks.get(id(rule)) or _asks(rule, {})

    def in_force(
        self, drugs: tuple[str, ...], scope: str, decision: str, option: str | None, today: date
    ) -> tuple[tuple[Asks, tuple[str, ...]], ...]:
        """What rules in force on a day ask about an option, or about what is taken, each with those of the drugs that it judges."""
        key = (drugs, scope, decision, option, today)
        known = self._in_force.get(key)  # read once: another thread may make room in between
        if known is None:
            found: dict[int, tuple[Rule, list[str]]] = {}
            for drug, rule in self._pairs(*key):
                found.setdefault(id(rule), (rule, []))[1].append(drug)
            known = _room(self._in_force)[key] = tuple((self.asks(rule), tuple(judged)) for rule, judged in found.values())
        return known

    def compared(self, drugs: tuple[str, ...], decision: str, option: str, today: date) -> tuple[tuple[str, Rule], ...]:
        """Drugs of an option and the rules in force that rule them out, or put them first, by a threshold."""
        key = (drugs, "option", decision, option, today)
        known = self._compared.get(key)
        if known is None:
            pairs = ((drug, rule) for drug, rule in self._pairs(*key) if rule.action in ("block", "prefer"))
            known = _room(self._compared)[key] = tuple((drug, rule) for drug, rule in pairs if any(atom.sign for atom in rule.atoms))
        return known

    def _pairs(self, drugs: tuple[str, ...], scope: str, decision: str, option: str | None, today: date) -> Iterable[tuple[str, Rule]]:
        for drug in drugs:
            for rule in self._rules.about.get(drug, ()):
                here = (not rule.decisions or decision in rule.decisions) and (not rule.options or option in rule.options)
                if here and rule.scope in (scope, "both") and rule.effective_from <= today:
                    yield drug, rule


def _room(kept: dict[Case, Any]) -> dict[Case, Any]:
    """The same, emptied where it has grown large: patients take drugs in many combinations."""
    if len(kept) >= MOST_KEPT:
        kept.clear()
    return kept


@lru_cache(maxsize=4)
def plan(rules: RuleSet) -> Plan:
    """The plan of a rule set, made once."""
    return Plan(rules)


def verdict(expression: Expression, questions: dict[Atom, Question]) -> Callable[[Answers], Truth]:
    """The condition as a function: Kleene's logic, asking no further where an answer decides."""
    if isinstance(expression, Atom):
        question = questions[expression]
        return lambda look: look(question)
    parts = [verdict(part, questions) for part in expression.parts]
    return _opposite(parts[0]) if expression.word == "not" else _joined(parts, decided=expression.word == "or")


def _opposite(part: Callable[[Answers], Truth]) -> Callable[[Answers], Truth]:
    def found(look: Answers) -> Truth:
        answer = part(look)
        return None if answer is None else not answer

    return found


def _joined(parts: Iterable[Callable[[Answers], Truth]], *, decided: bool) -> Callable[[Answers], Truth]:
    each = tuple(parts)

    def found(look: Answers) -> Truth:
        unknown = False
        for part in each:
            answer = part(look)
            if answer is decided:
                return decided
            unknown = unknown or answer is None
        return None if unknown else not decided

    return found


def _asks(rule: Rule, shared: dict[tuple[Atom, Freshness | None], Question]) -> Asks:
    questions: dict[Atom, Question] = {}
    for atom in rule.atoms:
        measured = atom.sign and atom.word not in UNITS
        fresh = next(entry for entry in rule.requires if entry.input == atom.word) if measured else None
        of_the_drug = atom.word in ("takes_drug", "interacts") or (atom.word.endswith("_allergy") and atom.names[0] == "this")
        questions[atom] = shared.setdefault((atom, fresh), Question(atom, fresh, of_the_drug))
    asked = tuple(questions[atom] for atom in rule.atoms)
    needs = next((questions[atom] for atom in needed(rule.expression)), None)
    return Asks(rule, asked, verdict(rule.expression, questions), any(question.of_the_drug for question in asked), needs)


def needed(expression: Expression) -> tuple[Atom, ...]:
    """Atoms of which each makes the whole condition false where it is false."""
    if isinstance(expression, Atom):
        return (expression,)
    return tuple(atom for part in expression.parts for atom in needed(part)) if expression.word == "and" else ()
