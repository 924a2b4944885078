"""What safety takes away: whole options, and single drugs of options that stay; each with the words of the rule and its source."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from components.decision import Decision
from components.safety import Finding, OptionSafety, Safety


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """An option that is not offered, and why: BLOCKED by a rule, or the code of what keeps it from being cleared or compared."""

    option: str
    label: str
    code: str
    reason: str
    source: str | None = None


@dataclass(frozen=True, kw_only=True)
class RuledOut:
    """A drug, by its name in `concepts.yaml`, that is worse off than its option: the option may be given, this drug may not, or not yet."""

    option: str
    drug: str
    code: str
    reason: str
    source: str | None = None


class _Why(NamedTuple):
    code: str
    reason: str
    source: str


def exclusion(decision: Decision, entry: OptionSafety) -> Excluded:
    """An option of which no drug is permitted."""
    why = _blocked(entry.said("block")) if entry.state == "blocked" else _open(entry.said("abstain"))
    return Excluded(option=entry.option, label=decision.options[entry.option].label, **why._asdict())


def ruled_out(safety: Safety, *, blocked_only: bool = False) -> tuple[RuledOut, ...]:
    """Drugs that their option's own state does not tell of. `blocked_only`: without those that wait for an input."""
    found = []
    for entry in safety.options:
        if entry.state != "blocked":
            found += [(entry.option, drug, _blocked(_about(drug, entry.said("block")))) for drug in entry.blocked]
        if entry.state == "permitted" and not blocked_only:
            found += [(entry.option, drug, _open(_about(drug, entry.said("abstain")))) for drug in entry.unresolved]
    return tuple(RuledOut(option=option, drug=drug, **why._asdict()) for option, drug, why in found)


def _about(drug: str, told: Sequence[Finding]) -> list[Finding]:
    return [finding for finding in told if drug in finding.drugs]


def _blocked(told: Sequence[Finding]) -> _Why:
    source = "; ".join(dict.fromkeys(finding.rule.source.title for finding in told))
    return _Why("BLOCKED", " ".join(finding.rule.text for finding in told), source)


def _open(told: Sequence[Finding]) -> _Why:
    reason = " ".join(dict.fromkeys(gap.text for finding in told for gap in finding.missing))
    return _Why(told[0].code or "MISSING_REQUIRED", reason, told[0].rule.source.title)
