"""What would change what the rules say: the thresholds nearest to this patient's values, on either side, and what lies beyond them."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal

from components.decision import Decision
from components.questions import plan
from components.rules import UNITS, Atom, Rule, RuleSet, units_of
from components.safety import Asked, Facts, Measured, OptionSafety, Safety

MOST = 6  # lines told of one patient
STEP = 0.001  # just past a threshold, in our unit
NAMES = {"egfr": "eGFR", "alt": "ALT", "inr": "INR", "hba1c": "HbA1c", "systolic_blood_pressure": "systolic blood pressure"}


@dataclass(frozen=True)
class Crossing:
    """A threshold that separates the present value of a quantity from another verdict of a rule, and the value just past it."""

    quantity: str
    side: Literal["below", "at most", "at least", "above"]
    threshold: float
    unit: str
    now: float
    beyond: float

    @property
    def upward(self) -> bool:
        """Whether the value would have to rise."""
        return self.beyond > self.now

    def __str__(self) -> str:
        number = f"{self.now:.1f}".removesuffix(".0")
        return f"If {NAMES.get(self.quantity, self.quantity)} were {self.side} {self.threshold:g} {self.unit} (now {number})"


@dataclass(frozen=True)
class Change:
    """What a rule would say of one drug of an option past a crossing that it does not say now."""

    crossing: Crossing
    option: str
    drug: str
    kind: Literal["ruled out", "offered", "first", "not first"]
    source: str


def nearest(
    rules: RuleSet, facts: Facts, decision: Decision, safety: Safety, today: date, options: Collection[str] | None = None
) -> tuple[str, ...]:
    """Sentences, the relatively nearest threshold first; of each option, quantity and direction only the nearest that changes anything.

    `options`: those that it may be about, all if None.
    """
    if options is not None and not options:
        return ()
    found: dict[tuple[str, str, bool, str], list[Change]] = {}
    for change in _changes(rules, facts, decision, safety, today):
        if options is not None and change.option not in options:
            continue
        key = (change.option, change.crossing.quantity, change.crossing.upward, change.kind)
        so_far = found.get(key, [change])
        gap, least = abs(change.crossing.beyond - change.crossing.now), abs(so_far[0].crossing.beyond - so_far[0].crossing.now)
        if gap < least:
            found[key] = [change]
        elif gap == least:
            found[key] = [*(so_far if key in found else ()), change]
    ordered = sorted(
        found.values(), key=lambda told: abs(told[0].crossing.beyond - told[0].crossing.now) / max(abs(told[0].crossing.now), 1)
    )
    return tuple(dict.fromkeys(_sentence(told, decision, safety.of(told[0].option)) for told in ordered))[:MOST]


def _changes(rules: RuleSet, facts: Facts, decision: Decision, safety: Safety, today: date) -> Iterator[Change]:
    beyond, planned = _Beyond(rules, facts), plan(rules)
    for name, option in decision.options.items():
        entry = safety.of(name)
        for drug, rule in planned.compared(option.drugs, decision.name, name, today):
            for crossing, fires in beyond.turns(rule, drug):
                if kind := _kind(rule, entry, drug, fires):  # "": something else keeps that drug as it is
                    yield Change(crossing, name, drug, kind, rule.source.title)


class _Beyond:
    """One patient, and the same patient past each threshold: what does not depend on the drug is worked out once."""

    def __init__(self, rules: RuleSet, facts: Facts) -> None:
        self._rules, self._facts, self._now, self._plan = rules, facts, Asked(rules, facts), plan(rules)
        self._past: dict[Crossing, Asked] = {}
        self._told: dict[int, tuple[tuple[Crossing, bool], ...]] = {}

    def turns(self, rule: Rule, drug: str) -> tuple[tuple[Crossing, bool], ...]:
        """Crossings at which the verdict of a rule on a drug turns, and whether it fires beyond."""
        told = self._told.get(id(rule))
        if told is None:
            told = tuple(self._turns(rule, drug))
            if not self._now.depends(self._plan.asks(rule)):
                self._told[id(rule)] = told
        return told

    def _turns(self, rule: Rule, drug: str) -> Iterator[tuple[Crossing, bool]]:
        for atom in rule.atoms:
            crossing = _crossing(self._rules, atom, self._facts) if atom.sign else None
            if crossing is not None:
                if crossing not in self._past:
                    self._past[crossing] = Asked(self._rules, _moved(self._rules, crossing, self._facts))
                now, past = (asked.judge(rule, drug)[0] for asked in (self._now, self._past[crossing]))
                if now is not None and past is not None and now != past:
                    yield crossing, past


def _kind(rule: Rule, entry: OptionSafety, drug: str, fires: bool) -> Literal["ruled out", "offered", "first", "not first", ""]:
    if rule.action == "prefer":
        others = any(drug in f.drugs and f.rule != rule for f in entry.said("prefer"))
        return "" if drug not in entry.permitted or others else "first" if fires else "not first"
    if fires:
        return "" if drug in entry.blocked else "ruled out"
    others = any(drug in f.drugs and f.rule != rule for f in (*entry.said("block"), *entry.said("abstain")))
    return "" if others else "offered"


def _crossing(rules: RuleSet, atom: Atom, facts: Facts) -> Crossing | None:
    """The other side of one comparison, seen from the present value; None where there is no value, or nothing that could change."""
    if not atom.sign or (atom.word in UNITS and atom.word != "age"):
        return None
    if atom.word == "age":
        now, unit = facts.age_years, "years"
    else:
        sent = facts.measurements.get(atom.word)
        now = None if sent is None else rules.table.read(atom.word, sent.value, sent.unit).value
        unit = rules.table.measurements[atom.word].unit
    if now is None or now != now:  # NaN: could not be read
        return None
    factor, offset = units_of(atom.word, rules.table)[atom.unit]
    at = round(atom.number * factor + offset, 6)
    below = now < at if atom.sign in ("<", ">=") else now <= at
    if atom.word == "age" and not below:
        return None  # nobody grows younger
    if atom.sign in ("<", ">="):
        return Crossing(atom.word, "at least" if below else "below", at, unit, now, at if below else at - STEP)
    return Crossing(atom.word, "above" if below else "at most", at, unit, now, at + STEP if below else at)


def _moved(rules: RuleSet, crossing: Crossing, facts: Facts) -> Facts:
    """The same patient with a new value, measured today."""
    if crossing.quantity == "age":
        return replace(facts, age_years=crossing.beyond)
    new = Measured(crossing.beyond, rules.table.measurements[crossing.quantity].unit, 0.0)
    return replace(facts, measurements={**facts.measurements, crossing.quantity: new})


def _sentence(told: list[Change], decision: Decision, entry: OptionSafety) -> str:
    """All drugs of one option that a crossing is about; the option itself where none other is left."""
    label, kind = decision.options[entry.option].label, told[0].kind
    drugs = tuple(dict.fromkeys(change.drug for change in told))
    what = {"ruled out": "would be ruled out", "offered": "could be offered", "first": "would come first by guideline"}.get(
        kind, "would no longer come first by guideline"
    )
    whole = kind in ("first", "not first") or (kind == "ruled out" and set(entry.permitted) <= set(drugs))
    who = label if whole else f"{label}: {', '.join(drugs)}"
    return f"{told[0].crossing}: {who} {what} ({'; '.join(dict.fromkeys(change.source for change in told))})."
