"""Why this answer, asked of the model itself: which facts move a difference between options, and what would be known better with an input.

What a fact does is measured on the whole blend: the answer with it against the answer without it, so that removing the fact changes the
difference by exactly what was told. The linear member, which costs nearly nothing, only chooses which facts are tried.

Axis suffixes: N patients, F features, K options, R tried rows, Q typical values of each feature.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np

from components.decision import Decision
from components.effects import LEVEL, Effects
from components.policy import Expected, Mask, Part, Recommendation
from features.feature import Feature, Floats, Ints
from features.sequence import COLUMNS_A_FACT, code

TRIED, TOLD = 6, 3  # facts on record that are measured, and told of each option
TRIED_MISSING = 4  # inputs that are not on record and whose worth is measured
WORTH_TELLING = 0.02  # of the interval's width that an input must take away
WIDTH = 2 * NormalDist().inv_cdf(0.5 + LEVEL / 2)  # of an interval, in standard deviations
PANELS = {"genomics": "genetic test results", "lifestyle": "lifestyle and device data"}
WORDS = {
    "a": "years", "1/a": "a year", "mmol/mol/a": "mmol/mol a year", "{sd}": "SD", "{unit}/wk": "units a week", "d/wk": "days a week",
    "h": "hours", "{steps}/d": "steps a day", "/min": "a minute", "mm[Hg]": "mmHg", "{score}": "", "1": "",
}  # fmt: skip

Screen = Callable[[Floats], Floats]  # rows -> targets by the linear member, R by T
Whole = Callable[[Floats], Effects]  # rows -> effects by the blend, of which only differences between options, or the dose, are looked at


@dataclass(frozen=True)
class Group:
    """Columns that come from one fact of the record, such as a diplotype or a reported race; or those of a whole modality."""

    label: str
    columns: Ints
    features: tuple[Feature, ...]
    named: tuple[str, ...]  # each feature as it stands in a sentence

    @property
    def panel(self) -> bool:
        """Whether it is a whole modality: only its absence is told."""
        return self.label in PANELS.values()


def groups(decision: Decision) -> tuple[Group, ...]:
    """Columns by the first fact that they are made of, then the modalities that may be absent as a whole."""
    columns = decision.tabular
    keys = dict.fromkeys(feature.concepts[0] for feature in columns)
    found = [_group(columns, lambda f, key=key: f.concepts[0] == key, "") for key in keys]  # type: ignore[misc]
    found += [_group(columns, lambda f, name=name: f.modality == name, label) for name, label in PANELS.items()]  # type: ignore[misc]
    return tuple(group for group in found if len(group.columns))


def _group(columns: Sequence[Feature], belongs: Callable[[Feature], bool], label: str) -> Group:
    index = np.array([f for f, feature in enumerate(columns) if belongs(feature)], np.int64)
    features = tuple(columns[f] for f in index)
    return Group(label or (_name(features[0]) if features else ""), index, features, tuple(map(_name, features)))


@dataclass(frozen=True)
class Reasons:
    """What a decision's answers are explained with, worked out once: the groups of its columns, and typical values to fill in."""

    decision: Decision
    groups: tuple[Group, ...]
    belongs_GF: Mask
    typical_QF: Floats
    codes_G: tuple[Floats, ...]  # of each group, as the newest facts name them

    @classmethod
    def of(cls, decision: Decision, typical_QF: Floats) -> "Reasons":
        """For one decision; without typical values nothing is said about what is missing."""
        found = groups(decision)
        belongs_GF = np.zeros((len(found), len(decision.columns)), bool)
        for g, group in enumerate(found):
            belongs_GF[g, group.columns] = True
        codes = [{code(concept) for feature in group.features for concept in feature.concepts} for group in found]
        return cls(decision, found, belongs_GF, typical_QF, tuple(np.array(sorted(each)) for each in codes))

    def without(self, seen: Sequence[int], x_F: Floats) -> Floats:
        """A row for each of some groups, as if its facts had never been told, among the newest ones too."""
        gone_RF = self.belongs_GF[seen]
        if self.decision.newest_events and seen:
            width = len(self.decision.tabular)
            told_RL = np.stack([np.isin(x_F[width::COLUMNS_A_FACT], self.codes_G[g]) for g in seen])
            gone_RF[:, width:] = np.repeat(told_RL, COLUMNS_A_FACT, axis=1)
        return np.where(gone_RF, np.nan, x_F)

    def explain(
        self, answers: Sequence[Recommendation], x_NF: Floats, effects: Effects, screen: Screen, whole: Whole
    ) -> list[Recommendation]:
        """The answers with `parts` and reasons of every ranked option, and with what missing inputs would change. Numbers stay as they are.

        Where one option stands for all, no fact moves anything, so nothing is tried.
        """
        asked = [] if effects.for_all else [n for n, answer in enumerate(answers) if len(answer.ranked) > 1]
        trials = [_Trial(self, answers[n], x_NF[n], n) for n in asked]
        if not trials:
            return list(answers)
        screened_RT = screen(np.concatenate([x_NF[asked], *(trial.rows for trial in trials)]))
        start = len(asked)
        for place, trial in enumerate(trials):
            trial.choose(screened_RT[place], screened_RT[start : start + len(trial.rows)])
            start += len(trial.rows)
        rows_RF = np.concatenate([trial.chosen_rows for trial in trials])
        found, start, told = whole(rows_RF) if len(rows_RF) else effects, 0, list(answers)
        for trial in trials:
            rows = slice(start, start + len(trial.chosen_rows))
            told[trial.number] = trial.tell(effects, found, rows)
            start = rows.stop
        return told


class _Trial:
    """The rows that are tried for one patient: each group on record taken away, each missing one filled with typical values."""

    def __init__(self, known: Reasons, answer: Recommendation, x_F: Floats, number: int) -> None:
        self.decision, self.answer, self.x_F, self.number, self.size = known.decision, answer, x_F, number, len(known.typical_QF)
        names = known.decision.option_names
        self.place = [names.index(entry.option) for entry in answer.ranked]
        self.against = [1, *[0] * (len(self.place) - 1)]
        seen_G: Mask = np.asarray((known.belongs_GF & ~np.isnan(x_F)).any(1))
        seen = [g for g, group in enumerate(known.groups) if seen_G[g] and not group.panel]
        missing = np.flatnonzero(~seen_G) if self.size else np.zeros(0, np.int64)
        self.seen, self.missing = [known.groups[g] for g in seen], [known.groups[g] for g in missing]
        filled = np.where(known.belongs_GF[missing][:, None, :], known.typical_QF, x_F).reshape(-1, len(x_F))
        self.rows = np.concatenate([known.without(seen, x_F), filled])
        self.chosen_seen, self.chosen_missing, self.chosen_rows = [*range(0)], [*range(0)], self.rows[:0]
        self.texts: dict[int, str] = {}

    def _measured(self, outcome_RK: Floats) -> Floats:
        """What is explained: the difference of each ranked option to the best, and of the best to the second; or the one target."""
        if outcome_RK.shape[1] == 1:
            return outcome_RK
        ranked_RK = outcome_RK[:, self.place]
        return ranked_RK - ranked_RK[:, self.against]

    def choose(self, now_T: Floats, tried_RT: Floats) -> None:
        """Keep the rows that the linear member moves most."""
        split = len(self.seen)
        moved_R = np.abs(self._measured(tried_RT[:split]) - self._measured(now_T[None])).max(1, initial=0)
        self.chosen_seen = [int(r) for r in np.argsort(-moved_R, kind="stable")[:TRIED]]
        moves_R = self._measured(tried_RT[split:])
        range_R = np.ptp(moves_R.reshape(len(self.missing), max(self.size, 1), moves_R.shape[1]), axis=1).max(1, initial=0)
        self.chosen_missing = [int(r) for r in np.argsort(-range_R, kind="stable")[:TRIED_MISSING]]
        rows = [*self.chosen_seen, *(split + r * self.size + q for r in self.chosen_missing for q in range(self.size))]
        self.chosen_rows = self.rows[rows]

    def tell(self, now: Effects, tried: Effects, rows: slice) -> Recommendation:
        """The answer with its reasons; `tried` holds the effects of the chosen rows at `rows`."""
        split = rows.start + len(self.chosen_seen)
        dose = now.dose_N is not None
        explained_NK = now.dose_N[:, None] if now.dose_N is not None else now.outcome_NK
        tried_RK = tried.dose_N[:, None] if tried.dose_N is not None else tried.outcome_NK
        shift_RK = self._measured(explained_NK[self.number][None]) - self._measured(tried_RK[rows.start : split])
        if dose:
            parts = self._parts(shift_RK[:, 0])
            ranked = (replace(self.answer.ranked[0], parts=parts), *self.answer.ranked[1:])
            reasons = (
                (*self.answer.reasons, f"The expected dose rests mainly on: {_listed(parts, 'mg/wk')}.") if parts else self.answer.reasons
            )
        else:
            told = [(entry, self._parts(shift_RK[:, k])) for k, entry in enumerate(self.answer.ranked)]
            ranked, reasons = tuple(_reasoned(entry, parts, self.decision.outcome.unit) for entry, parts in told), self.answer.reasons
        return replace(self.answer, ranked=ranked, reasons=reasons, changes=(*self.answer.changes, *self._worth(now, tried, split)))

    def _parts(self, shift_R: Floats) -> tuple[Part, ...]:
        told = [(r, float(shift)) for r, shift in zip(self.chosen_seen, shift_R, strict=True) if abs(shift) >= 0.05]
        told = sorted(told, key=lambda part: -abs(part[1]))[:TOLD]
        return tuple(Part(text=self._text(r), features=tuple(f.name for f in self.seen[r].features), shift=shift) for r, shift in told)

    def _text(self, r: int) -> str:
        """The words of a fact: the same for every option that it moves."""
        if r not in self.texts:
            self.texts[r] = _words(self.seen[r], self.x_F)
        return self.texts[r]

    def _worth(self, now: Effects, tried: Effects, start: int) -> list[str]:
        """What each missing input would do to the interval between the first two, and whether it could change which is first."""
        first, second = self.place[:2]
        width = WIDTH * float(now.sd_NKK[self.number, first, second])
        equal = [k for k, entry in zip(self.place, self.answer.ranked, strict=True) if entry.option in self.answer.equivalent]
        sign = 1.0 if self.decision.outcome.better == "lower" else -1.0
        labels = [option.label for option in self.decision.options.values()]
        found: list[tuple[float, str]] = []
        for place, r in enumerate(self.chosen_missing):
            rows = slice(start + place * self.size, start + (place + 1) * self.size)
            wide = WIDTH * float(tried.sd_NKK[rows, first, second].mean())
            tops = {equal[int(k)] for k in (sign * tried.outcome_NK[rows][:, equal]).argmin(1)} if len(equal) > 1 else set()
            others = " or ".join(labels[k] for k in sorted(tops - {first}))
            narrower = width - wide >= WORTH_TELLING * width
            if narrower or others:
                what = f"narrow the {LEVEL:.0%} interval between {labels[first]} and {labels[second]} from {width:.1f} to {wide:.1f}"
                what = f"{what} {self.decision.outcome.unit}" if narrower else ""
                also = f"could put {others} first" if others else ""
                text = f"{self.missing[r].label} not on record: typical values would {what}{' and ' if what and also else ''}{also}."
                found.append((wide - width, text.replace("would could", "could")))
        return [text[0].upper() + text[1:] for _, text in sorted(found)[:TOLD]]


def _reasoned(entry: Expected, parts: tuple[Part, ...], unit: str) -> Expected:
    return replace(entry, parts=parts, reason=f"{entry.reason} Mainly: {_listed(parts, unit)}.") if parts else entry


def _listed(parts: Sequence[Part], unit: str) -> str:
    return ", ".join(f"{part.text} ({part.shift:+.1f} {unit})" for part in parts)


def _name(feature: Feature) -> str:
    """The first words of a feature's meaning, as they stand in a sentence."""
    text = feature.meaning.split(";")[0].split(":")[0].split(", ")[0].removeprefix("Newest ")
    return text[0].lower() + text[1:] if text.split()[0][1:].islower() else text


def _words(group: Group, x_F: Floats) -> str:
    """A fact in plain words: value and unit, or yes and no; of several flags only those that hold."""
    told, flags = [], []
    for feature, name, value in zip(group.features, group.named, x_F[group.columns].tolist(), strict=True):
        if value != value:  # NaN: not known
            continue
        if feature.unit == "flag":
            flags.append((value == 1, f"{name}: {'yes' if value == 1 else 'no'}"))
        elif feature.unit == "copies":
            told.append(f"{name.removeprefix('copies of ')}, {value:g} {'copy' if value == 1 else 'copies'}")
        else:
            number = f"{value:,.1f}".removesuffix(".0")
            told.append(f"{name} {number} {WORDS.get(feature.unit, feature.unit)}".rstrip())
    held = [text for holds, text in flags if holds] or [text for _, text in flags]
    return " and ".join(told + held)
