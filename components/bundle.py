"""The bundle: everything that an answer needs, and nothing else, with a manifest that is checked before anything is loaded.

safetensors and XGBoost UBJ only. Axis suffixes: N patients, F features, K options, T targets.
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from components import decision as decisions
from components.artifact import BundleError, bundle_in, seal, verify
from components.decision import Decision
from components.effects import Blend, Effects
from components.models.fusion import Fusion
from components.models.recent import Words
from components.models.ridge import Ridge
from components.models.trees import Trees
from components.policy import Abstain, Mask, Recommendation, inputs, recommend, refused
from components.preferences import Weights
from components.reasons import Reasons
from components.record import read
from components.rulebook import check
from components.rules import RuleSet
from components.rules import load as load_rules
from components.safety import Facts, Safety, evaluate
from components.thresholds import nearest
from features import catalogue
from features.feature import Floats, Ints
from features.sequence import COLUMNS_A_FACT
from features.store import Rows, usable

FORMAT = 4
QUARTILES = (0.25, 0.5, 0.75)
NOT_PUBLISHED = ("manifest.json", "message.txt", "crossfit.safetensors")  # cross-fitted predictions are of patients: they stay with the run


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A loaded and verified bundle."""

    decision: Decision
    blend: Blend
    ridge: Ridge
    trees: Trees
    fusion: Fusion
    rules: RuleSet  # ships with the installation, not with the model: a new label must not wait for a new training
    version: str
    metrics: dict[str, Any]
    typical_QF: Floats  # quartiles of every feature by itself

    def effects(self, x_NF: Floats) -> Effects:
        """Effects of raw rows, in the decision's order of columns; NaN where missing."""
        x_NF, events_NLC = self.decision.split(x_NF)
        ridge_NT, covariance_NTT = self.ridge.both(x_NF)
        predictions = {"ridge": ridge_NT, "trees": self.trees.predict(x_NF), "fusion": self.fusion.predict(x_NF, events_NLC)}
        return self.blend.effects(self.decision, predictions, covariance_NTT, x_NF)

    def compared(self, x_NF: Floats) -> Effects:
        """Effects of raw rows of which only differences between options, or the dose, will be looked at: the same ones, for less."""
        x_NF, events_NLC = self.decision.split(x_NF)
        ridge_NT, covariance_NTT = self.ridge.both(x_NF)
        predictions = {"ridge": ridge_NT}
        if "trees" in self._lean.members:
            predictions["trees"] = self.trees.compared(x_NF)
        if "fusion" in self._lean.members:
            predictions["fusion"] = self.fusion.predict(x_NF, events_NLC)
        return self._lean.differences(self.decision, predictions, covariance_NTT)

    def screened(self, x_NF: Floats) -> Floats:
        """Targets of raw rows by the linear member alone, N by T."""
        return self.ridge.predict(self.decision.split(x_NF)[0])

    @cached_property
    def _lean(self) -> Blend:
        return self.blend.compared()

    @cached_property
    def _reasons(self) -> Reasons:
        return Reasons.of(self.decision, self.typical_QF)

    def advise(self, rows: Rows, now_N: Ints) -> tuple[Effects, list[Recommendation]]:
        """Effects and recommendations of rows as they may be used at `now_N`: what is stale or implausible does not reach the model."""
        use = usable(self.decision.columns, rows.x_NF, rows.fact_NF, now_N)
        return self.answer(use.x_NF, use.stale, rows.outside, rows.record, now_N, use.implausible)

    def answer(
        self,
        x_NF: Floats,
        stale: Sequence[tuple[str, ...]],
        outside: Sequence[str],
        records: Sequence[str],
        now_N: Ints,
        implausible: Sequence[tuple[str, ...]] | None = None,
        *,
        weights: Sequence[Weights] | None = None,
        explained: bool = False,
    ) -> tuple[Effects, list[Recommendation]]:
        """Effects and recommendations of aged rows: state of the inputs, rules, scores, preferences. Both doors answer through here.

        `weights`: what matters to each patient. `explained`: with what moves the differences and what would change the answer. Then the
        models run only for those whose inputs and rules allow a score, and effects of the others are NaN.
        """
        known = inputs(self.decision, x_NF, stale, outside, self.unlike(x_NF), implausible)
        told = self.facts(records, now_N)
        safety = self.safety(told)
        if not explained:
            effects = self.effects(x_NF)
            return effects, recommend(self.decision, effects, known, safety, weights)
        effects = self._scored(x_NF, ~refused(self.decision, known, safety))
        answers = recommend(self.decision, effects, known, safety, weights)
        return effects, self._explained(answers, x_NF, effects, told, safety)

    def _scored(self, x_NF: Floats, rows_N: Mask) -> Effects:
        if rows_N.all():
            return self.effects(x_NF)
        if rows_N.any():
            return self.effects(x_NF[rows_N]).among(rows_N)
        nothing_NK = np.full((len(x_NF), len(self.decision.options)), np.nan)
        return Effects(outcome_NK=nothing_NK, sd_NKK=np.repeat(nothing_NK[:, :, None], nothing_NK.shape[1], 2), overlap_NK=nothing_NK)

    def _explained(
        self, answers: list[Recommendation], x_NF: Floats, effects: Effects, told: Sequence[Facts], safety: Sequence[Safety]
    ) -> list[Recommendation]:
        today, found = datetime.now(UTC).date(), []
        for answer, known, judged in zip(answers, told, safety, strict=True):
            unknown = {entry.option for entry in answer.excluded if entry.code == Abstain.LOW_OVERLAP}  # no rule would bring these back
            options = [name for name in self.decision.option_names if name not in unknown] if answer.scored else []
            found.append(replace(answer, changes=nearest(self.rules, known, self.decision, judged, today, options)))
        return self._reasons.explain(found, x_NF, effects, self.screened, self.compared)

    def unlike(self, x_NF: Floats) -> Mask:
        """Rows that are unlike the training rows."""
        return np.zeros(len(x_NF), bool) if self.blend.support is None else self.blend.support.outside(self.decision.split(x_NF)[0])

    def facts(self, records: Sequence[str], now_N: Ints) -> list[Facts]:
        """Facts of each record (JSON of a snapshot) at its time. Nothing on record is nothing known, never "nothing wrong".

        Raises RecordError for a text that is no snapshot.
        """
        return [read(record, int(now)) if record else Facts() for record, now in zip(records, now_N, strict=True)]

    def safety(self, told: Sequence[Facts]) -> list[Safety]:
        """What the rules in force today say of each patient."""
        today = datetime.now(UTC).date()
        return [evaluate(self.rules, each, self.decision, today) for each in told]


def write(folder: Path, decision_text: str, models: dict[str, Path], blend: Blend, x_NF: Floats, metrics: dict[str, Any]) -> str:
    """Write a bundle of the members' folders and the blend; returns its version, the digest of its manifest.

    `x_NF` are rows whose answers become the self-test: made-up rows of quantiles, never those of a patient.
    """
    folder.mkdir(parents=True, exist_ok=True)
    decision = decisions.parse(decision_text)
    (folder / "decision.yaml").write_text(decision_text, encoding="utf-8")
    for name, source in models.items():
        (folder / name).mkdir()
        for path in sorted(source.iterdir()):
            if path.name not in NOT_PUBLISHED:
                shutil.copyfile(path, folder / name / path.name)
    blend.save(folder)
    told = {"format": FORMAT, "columns": [f.name for f in decision.columns], "catalogue": catalogue.digest(decision.columns)}
    _write_json(folder / "features.json", told)
    _write_json(folder / "metrics.json", metrics)
    selftest = _made_up_rows(x_NF[:, : len(decision.tabular)], len(decision.columns), Fusion.load(folder / "fusion").words)
    bundle = _load(folder, "unsealed", selftest)
    _write_json(folder / "selftest.json", {"x_NF": _plain(selftest)} | _numbers(bundle.effects(selftest)))
    return seal(folder)


def load(folder: Path) -> Bundle:
    """Verify a bundle, load it, and check that it gives the numbers it gave when it was made. Raises BundleError."""
    folder = bundle_in(folder)
    version = verify(folder)
    told = json.loads((folder / "features.json").read_text(encoding="utf-8"))
    if told["format"] != FORMAT:
        known = f"{told['format']}, this installation reads {FORMAT}"
        raise BundleError(f"The bundle {folder.name} has format {known}. Install the version that made it, or train again.")
    selftest = json.loads((folder / "selftest.json").read_text(encoding="utf-8"))
    try:
        bundle = _load(folder, version, _array(selftest["x_NF"]))
    except ValueError as error:
        raise BundleError(f"The bundle {folder.name} can't be loaded: its parts do not fit together. Train again.") from error
    if told["catalogue"] != catalogue.digest(bundle.decision.columns):
        raise BundleError(f"The bundle {folder.name} was made with another feature catalogue than this installation has. Train again.")
    found = _numbers(bundle.effects(_array(selftest["x_NF"])))
    if not all(np.allclose(_array(found[name]), _array(selftest[name]), rtol=1e-4, atol=1e-4) for name in found):
        raise BundleError(
            f"The bundle {folder.name} fails its self-test: this installation gives other numbers. Train again with these versions."
        )
    return bundle


def _load(folder: Path, version: str, selftest_RF: Floats) -> Bundle:
    decision = decisions.parse((folder / "decision.yaml").read_text(encoding="utf-8"), "decision.yaml")
    names = tuple(feature.name for feature in decision.tabular)
    _check_finite(folder)
    return Bundle(
        decision=decision,
        blend=Blend.load(folder),
        ridge=Ridge.load(folder / "ridge"),
        trees=Trees.load(folder / "trees", names, len(decision.options), decision.targets),
        fusion=Fusion.load(folder / "fusion"),
        rules=_rules(),
        version=version,
        metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
        typical_QF=selftest_RF[: len(QUARTILES)],
    )


def _check_finite(folder: Path) -> None:
    """Raises ValueError where a weight is not a finite number: rows of the self-test need not touch it."""
    for path in folder.rglob("*.safetensors"):
        if not all(np.isfinite(array).all() for array in load_file(path).values()):
            raise ValueError(f"{path.name} holds a weight that is not a finite number.")


@cache
def _rules() -> RuleSet:
    """The safety rules of this installation, read once. Raises BundleError where a rule does not do what its own cases say."""
    rules = load_rules()
    wrong = check(rules)
    if wrong:
        raise BundleError(
            f"The safety rules fail {len(wrong)} of their own cases, first: {wrong[0]}. Mend the rule before anything is served."
        )
    return rules


def _made_up_rows(x_NF: Floats, width: int, words: Words | None) -> Floats:
    """Rows that belong to nobody: quantiles of each feature by itself, and a row with everything missing.

    Behind the tabular features stand facts that nobody told: the concepts that the network knows in turn, with their mean values.
    """
    known = [column[~np.isnan(column)] for column in x_NF.T]
    rows = [[float(np.quantile(c, q)) if len(c) else math.nan for c in known] for q in QUARTILES]
    told = np.full((len(QUARTILES) + 1, width), math.nan)
    told[:-1, : x_NF.shape[1]] = rows
    if words is not None:
        for q in range(len(QUARTILES)):
            of_L = np.arange(q, q + (width - x_NF.shape[1]) // COLUMNS_A_FACT) % len(words)
            facts_LC = np.stack([words.code_V[of_L], words.center_V[of_L], 30.0 * np.arange(1, len(of_L) + 1)], axis=1)
            told[q, x_NF.shape[1] :] = facts_LC.ravel()
    return told


def _numbers(effects: Effects) -> dict[str, list[list[float | None]]]:
    """Everything that a recommendation is made of: outcomes, uncertainty of their differences, overlap."""
    return {
        "outcome_NK": _plain(effects.outcome_NK),
        "sd_NKK": _plain(effects.sd_NKK.reshape(len(effects.sd_NKK), -1)),
        "overlap_NK": _plain(effects.overlap_NK),
    }


def _plain(array: Floats) -> list[list[float | None]]:
    return [[None if math.isnan(value) else float(value) for value in row] for row in array]


def _array(rows: list[list[float | None]]) -> Floats:
    return np.array([[math.nan if value is None else value for value in row] for row in rows], np.float64)


def _write_json(path: Path, told: Any) -> None:
    path.write_text(json.dumps(told, indent=1, sort_keys=True), encoding="utf-8")
