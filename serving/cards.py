"""CDS Hooks 2.0 cards from an answer: what a clinician reads beside the record, and suggestions that draft a proposal, never an order."""

import re
from typing import Any
from uuid import uuid4

from serving.fhir_output import expected, proposal
from serving.schema import Exclusion, OptionAnswer, Remark, Response, RuledOutDrug

Card = dict[str, Any]
SUMMARY = 139  # characters; the specification wants fewer than 140
SILENT = frozenset({"OUT_OF_POPULATION"})  # the question is not about this patient: no card
URGENT = frozenset({"BLOCKED"})
OVERRIDES = {
    "patient-preference": "The patient prefers otherwise",
    "not-tolerated": "Not tolerated before",
    "cost-or-access": "Cost or access",
    "clinical-judgement": "Clinical judgement: other reasons weigh more",
    "data-wrong": "The record that this rests on is wrong",
}
SYSTEM = "urn:concordant:override"


def cards(answer: Response, subject: str) -> list[Card]:
    """Cards for an opened record: one with the options, or none where the question is not about this patient."""
    return [] if answer.abstained in SILENT else [_options(answer, subject)]


def cards_for_orders(answer: Response, subject: str, selected: set[str]) -> list[Card]:
    """Cards for draft orders with these RxNorm codes: a warning for what is excluded, advice for what is behind, else none."""
    if answer.abstained in SILENT:
        return []
    out = [entry for entry in answer.ruled_out if selected & set(entry.rxnorm)]
    refused = [entry for entry in answer.excluded if selected & set(entry.rxnorm)]
    chosen = [entry for entry in answer.ranked if selected & set(entry.rxnorm)]
    behind = [entry for entry in chosen if entry.option not in answer.equivalent]
    told = [_refused(answer, entry, entry.drug.replace("_", " ").capitalize()) for entry in out]
    told += [_refused(answer, entry, entry.label) for entry in refused]
    return [*told, _options(answer, subject, behind[0])] if behind else told


def _options(answer: Response, subject: str, behind: OptionAnswer | None = None) -> Card:
    shown = _card(answer, _summary(answer, behind), "warning" if behind else "info", _detail(answer))
    if answer.ranked and answer.abstained != "LOW_OVERLAP":  # one button would name a best where there is none
        named = [entry for entry in answer.ranked if entry.option in answer.equivalent]
        shown["suggestions"] = [_suggestion(answer, entry, subject) for entry in named]
        shown["selectionBehavior"] = "at-most-one"
    return shown


def _refused(answer: Response, entry: Exclusion | RuledOutDrug, label: str) -> Card:
    why = "is ruled out for this patient" if entry.code in URGENT else "can't be cleared yet"
    source = f"\n\nSource: {_plain(entry.source)}" if entry.source else ""
    return _card(
        answer,
        f"{label} {why}",
        "critical" if entry.code in URGENT else "warning",
        f"**{entry.code}**: {_plain(entry.reason)}{source}",
    )


def _card(answer: Response, summary: str, indicator: str, detail: str) -> Card:
    topic = {"system": "urn:concordant:decision", "code": answer.decision, "display": answer.title}
    return {
        "uuid": str(uuid4()),
        "summary": summary if len(summary) <= SUMMARY else summary[: SUMMARY - 3] + "...",
        "indicator": indicator,
        "detail": detail,
        "source": {"label": f"Concordant {answer.decision} {answer.decision_version}, model {answer.model_version}", "topic": topic},
        "overrideReasons": [{"code": code, "system": SYSTEM, "display": text} for code, text in OVERRIDES.items()],
    }


def _summary(answer: Response, behind: OptionAnswer | None) -> str:
    if behind:
        return f"{behind.label} is expected to do less well than {answer.ranked[0].label}"
    if answer.recommended:
        return f"{answer.ranked[0].label} is expected to do best for this patient"
    if answer.abstained == "EQUIPOISE":
        named = [entry.label for entry in answer.ranked if entry.option in answer.equivalent]
        return f"No clear choice: {len(named)} options can't be told apart"
    return f"No recommendation ({answer.abstained}): {answer.reasons[0] if answer.reasons else answer.title}"


def _detail(answer: Response) -> str:
    """GitHub-flavoured Markdown; text from rules and decisions is escaped, so that no mark-up comes from data."""
    lines = [f"**{_plain(answer.title)}**", ""]
    lines += [f"- **{_plain(entry.label)}**: {_plain(expected(answer, entry))}" for entry in answer.ranked]
    lines += _notes(answer)
    if answer.changes:
        lines += ["", "What would change this answer:", *(f"- {_plain(change)}" for change in answer.changes)]
    if answer.excluded:
        lines += ["", "Not offered:", *(f"- {_plain(entry.label)} ({entry.code}): {_plain(entry.reason)}" for entry in answer.excluded)]
    if answer.dose_mg_week is not None:
        lines += ["", f"Expected dose: {answer.dose_mg_week:.1f} mg a week"]
    lines += ["", *(f"- {_plain(reason)}" for reason in answer.reasons)]
    missing = [*answer.not_known[:8], *answer.stale[:8]] if answer.abstained else []
    if missing:
        lines += ["", f"Not known or too old: {_plain(', '.join(missing))}"]
    return "\n".join([*lines, "", f"_{_plain(answer.note)}_"])


def _notes(answer: Response) -> list[str]:
    """What rules say of the options that are shown, and of drugs taken now; what could not be checked is no rule's word."""
    labels = {entry.option: f"{entry.label}, " for entry in answer.ranked} | {None: ""}
    told = [note for note in answer.notes if note.rule_id and note.option in labels]
    lines = [f"- {_plain(labels[note.option] + note.kind)}: {_plain(note.text)}{_by(note)}" for note in told]
    return ["", "What the rules say:", *lines] if lines else []


def _by(note: Remark) -> str:
    review = "" if note.reviewed else "; threshold not yet compared with it"
    return f" ({_plain(note.source)}{review})" if note.source else ""


def _plain(text: str | None) -> str:
    """Text without Markdown or HTML meaning."""
    flat = " ".join((text or "").split())
    escaped = re.sub(r"([\\`*_\[\]#!|~])", r"\\\1", flat)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _suggestion(answer: Response, entry: OptionAnswer, subject: str) -> dict[str, Any]:
    told = {"label": f"Propose {entry.label}", "uuid": str(uuid4()), "isRecommended": answer.recommended == entry.option}
    return told | {
        "actions": [{"type": "create", "description": f"Draft a proposal: {entry.label}", "resource": proposal(answer, entry, subject)}]
    }
