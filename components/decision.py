"""The question, as data: who is asked, between which options, by which outcome. A decision file is parsed once into a frozen `Decision`."""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from features import catalogue, sequence
from features.concepts import concepts
from features.errors import ConcordantError
from features.feature import MODALITIES, Feature, Floats, Modality

SHIPPED = Path(__file__).with_name("decisions")


class DecisionError(ConcordantError):
    """A decision that can't be found or read; names file and line."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class Indication(_Frozen):
    """Who is asked: any of the conditions and any of the drugs on record at time zero, age in years (from, to)."""

    conditions: tuple[str, ...] = ()
    drugs: tuple[str, ...] = ()
    age_years: tuple[float, float] = (0, 130)


class TimeZero(_Frozen):
    """When the question is asked. `washout_days`: how far the record must reach back without any option."""

    event: Literal["first_option"]
    washout_days: int = Field(default=0, ge=0)


Matter = Literal["weight_change", "hypoglycaemia", "injection", "cost", "adverse_effects"]  # what a patient may weigh, a closed list


class Burden(_Frozen):
    """What an option asks of the patient in one matter: 0 the least, 1 the most among the options, and in words."""

    level: float = Field(ge=0, le=1)
    text: str = Field(min_length=1)


class BurdenSource(_Frozen):
    """Who says so; `reviewed`: the levels were compared with the cited table."""

    title: str = Field(min_length=1)
    url: str
    reviewed: bool


class Option(_Frozen):
    """One thing that can be done: RxNorm codes; for dose finding its dose and band in mg a week."""

    label: str
    codes: tuple[str, ...] = ()
    dose_mg_week: float | None = None
    band_mg_week: tuple[float, float] | None = None
    burdens: dict[Matter, Burden] = Field(default_factory=dict)

    @cached_property
    def drugs(self) -> tuple[str, ...]:
        """Names of the drugs that the codes stand for, as `concepts.yaml` has them."""
        found = (concepts().by_code[("drug/rxnorm", code)] for code in self.codes)
        return tuple(dict.fromkeys(found))


class Harms(_Frozen):
    """Adverse events that count against an option: any of these conditions, new within the days after time zero, weighs this much."""

    conditions: tuple[str, ...]
    within_days: int = Field(gt=0)
    weight: float = Field(ge=0)


class Outcome(_Frozen):
    """What is compared. `change`: value in the window minus `baseline`. `dose`: distance from an option's dose to the right one."""

    name: str
    kind: Literal["change", "dose"]
    concept: str
    unit: str
    better: Literal["lower", "higher"]
    baseline: str | None = None
    window_days: tuple[int, int] | None = None
    target_day: int | None = None
    transform: Literal["none", "sqrt"] = "none"
    harms: Harms | None = None


class Term(_Frozen):
    """One term of a published equation: its coefficient, times a feature where one is named, where all of `when` holds."""

    coefficient: float
    feature: str | None = None
    when: dict[str, float | None] = Field(default_factory=dict)


class Reference(_Frozen):
    """A published equation for the transformed outcome, computed beside the model on the same folds."""

    source: str
    intercept: float
    terms: tuple[Term, ...]


class NegativeControl(_Frozen):
    """A measurement that no option can change (Lipsitch 2010): a difference between options in it, after adjustment, is confounding."""

    concept: str
    window_days: tuple[int, int]
    why: str


class Gate(_Frozen):
    """What must hold before a model may be published. The defaults are OHDSI's for balance and equipoise; a decision may be stricter."""

    required_known: float = Field(default=0.8, ge=0, le=1)  # share of the cohort of whom each required input is known
    weighted_smd: float = Field(default=0.1, gt=0)  # standardised mean difference, OHDSI's diagnostic (Schuemie 2020)
    equipoise: float = Field(default=0.2, ge=0, le=1)  # share with a preference score of 0.3 to 0.7 (Walker 2013)
    negative_control_p: float = Field(default=0.01, gt=0, lt=1)  # of the joint test that no option differs in a negative control
    calibration_level: float = Field(default=0.95, gt=0.5, lt=1)  # of the interval of the effect-calibration slope, which must hold 1
    coverage_points: float = Field(default=2.0, gt=0)  # percentage points that 95 % intervals may fall short of 95


class Decision(_Frozen):
    """A clinical question between K options, as its file states it."""

    name: str = Field(alias="decision", pattern=r"^[a-z][a-z0-9_]*$")
    version: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    title: str
    question: str
    indication: Indication
    time_zero: TimeZero
    options: dict[str, Option] = Field(min_length=2)
    outcome: Outcome
    minimal_important_difference: float = Field(gt=0)
    largest_doubt: float = Field(default=0.02, gt=0, lt=0.5)  # chance that an option left out of the set is truly better than its best
    required: tuple[str, ...]
    features: dict[Modality, tuple[str, ...]]
    newest_events: int = Field(default=0, ge=0, le=sequence.MOST)  # facts before a time that the network reads one after another
    references: dict[str, Reference] = Field(default_factory=dict)
    burden_source: BurdenSource | None = None
    negative_controls: tuple[NegativeControl, ...] = ()
    gate: Gate = Gate()
    held_out: Literal["patients", "sites", "time"] = "patients"  # what a fold leaves out: validation on patients, sites or years not seen

    @property
    def option_names(self) -> tuple[str, ...]:
        """The K options in the order in which every array holds them."""
        return tuple(self.options)

    @property
    def targets(self) -> int:
        """Columns that a model predicts: an outcome an option, or the one dose that decides them all."""
        return 1 if self.outcome.kind == "dose" else len(self.options)

    @cached_property
    def tabular(self) -> tuple[Feature, ...]:
        """The features that every model reads, in order: history, genomics, lifestyle."""
        return catalogue.select([name for modality in MODALITIES for name in self.features.get(modality, ())])

    @cached_property
    def columns(self) -> tuple[Feature, ...]:
        """What a row holds: the tabular features, and behind them the newest facts one after another."""
        return self.tabular + (sequence.COLUMNS if self.newest_events else ())

    def split(self, x_NF: Floats) -> tuple[Floats, Floats | None]:
        """Rows as the models read them: the tabular features, and the newest facts, N by L by code, value and days; None without any.

        Facts about the options themselves are left out, and older ones move up: who is prescribed one has it among the newest, whoever
        still waits has not. A row holds more places than are read, so that a few may go.
        """
        width = len(self.tabular)
        if not self.newest_events:
            return x_NF, None
        events_NLC = x_NF[:, width:].reshape(len(x_NF), -1, sequence.COLUMNS_A_FACT)
        gone_NL = np.isnan(events_NLC[:, :, 0]) | np.isin(events_NLC[:, :, 0], self._option_codes)
        events_NLC = np.where(gone_NL[:, :, None], np.nan, events_NLC)
        order_NL = np.argsort(gone_NL, axis=1, kind="stable")[:, : self.newest_events]
        return x_NF[:, :width], np.take_along_axis(events_NLC, order_NL[:, :, None], axis=1)

    @cached_property
    def _option_codes(self) -> list[float]:
        return [sequence.code(f"takes:{drug}") for option in self.options.values() for drug in option.drugs]

    @cached_property
    def extra_columns(self) -> tuple[Feature, ...]:
        """Features that only a published equation reads."""
        named = {f for r in self.references.values() for t in r.terms for f in (t.feature, *t.when) if f}
        return catalogue.select(sorted(named - {feature.name for feature in self.tabular}))

    @model_validator(mode="after")
    def _coherent(self) -> "Decision":
        for problem in _problems(self):
            raise ValueError(problem)
        return self


def _problems(decision: Decision) -> list[str]:
    """What the types alone can't see. Each begins with the place to mend, then a bar."""
    known, found = concepts(), _burden_problems(decision)
    for name, option in decision.options.items():
        if not option.codes:
            found.append(f"options.{name}|option '{name}' has no RxNorm code. Add one under options.{name}.codes.")
        for code in option.codes:
            if ("drug/rxnorm", code) not in known.by_code:
                found.append(
                    f"options.{name}.codes|RxNorm code {code} of option '{name}' is not in concepts.yaml. Add it there under its drug."
                )
        if decision.outcome.kind == "dose" and option.dose_mg_week is None:
            found.append(f"options.{name}|option '{name}' has no dose. A dose decision needs options.{name}.dose_mg_week.")
        if decision.outcome.kind == "dose" and option.band_mg_week is None:
            found.append(f"options.{name}|option '{name}' has no band. A dose decision needs options.{name}.band_mg_week.")
    for modality, names in decision.features.items():
        for feature in names:
            if feature not in catalogue.FEATURES:
                found.append(f"features.{modality}|feature '{feature}' is not in the catalogue. Declare it in features/{modality}.py.")
            elif catalogue.FEATURES[feature].modality != modality:
                actual = catalogue.FEATURES[feature].modality
                found.append(f"features.{modality}|feature '{feature}' belongs to {actual}. Move it under features.{actual}.")
    flat = {name for names in decision.features.values() for name in names}
    found += [
        f"required|required input '{name}' is not among the features. Add it there." for name in decision.required if name not in flat
    ]
    return found + _name_problems(decision)


def _burden_problems(decision: Decision) -> list[str]:
    """A matter is weighed between all options or none, and somebody says so."""
    matters = {matter for option in decision.options.values() for matter in option.burdens}
    found = [
        f"options.{name}.burdens|option '{name}' says nothing of {', '.join(sorted(lacking))}. Give every option the same matters."
        for name, option in decision.options.items()
        if (lacking := matters - set(option.burdens))
    ]
    if matters and decision.burden_source is None:
        found.append("options|burdens need a source. Add burden_source with title, url and reviewed.")
    return found


def _name_problems(decision: Decision) -> list[str]:
    """Names that nothing stands behind, and an outcome that lacks a part."""
    known, outcome, found = concepts(), decision.outcome, []
    flat = {name for names in decision.features.values() for name in names}
    if outcome.kind == "change" and (outcome.baseline not in flat or outcome.window_days is None or outcome.target_day is None):
        found.append("outcome|a change needs outcome.baseline (one of the features), outcome.window_days and outcome.target_day.")
    if outcome.kind == "dose" and outcome.better != "lower":
        found.append("outcome.better|the outcome of a dose is a distance: it must be 'lower'.")
    conditions = {n for (kind, _), n in known.by_code.items() if kind.startswith("condition/")} | {n for *_, n in known.prefixes}
    harms = outcome.harms.conditions if outcome.harms else ()
    for place, names in (("indication.conditions", decision.indication.conditions), ("outcome.harms.conditions", harms)):
        found += [f"{place}|condition '{n}' is not in concepts.yaml. Add it there with its codes." for n in names if n not in conditions]
    for name in decision.indication.drugs:
        if name not in known.drugs:
            found.append(f"indication.drugs|drug '{name}' is not in concepts.yaml. Add it there with its codes.")
    for n, control in enumerate(decision.negative_controls):
        if control.concept not in known.measurements:
            found.append(f"negative_controls.{n}|measurement '{control.concept}' is not in concepts.yaml. Add it there with its codes.")
    for title, reference in decision.references.items():
        for n, term in enumerate(reference.terms):
            for feature in (term.feature, *term.when):
                if feature and feature not in catalogue.FEATURES:
                    place = f"references.{title}.terms.{n}"
                    found.append(f"{place}|feature '{feature}' is not in the catalogue. Declare it in features/ or correct its spelling.")
    return found


def shipped() -> list[str]:
    """Names of the decisions that come with the package."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def path_of(name: str) -> Path:
    """File of a shipped decision's name or of a path to a YAML file. Raises DecisionError."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SHIPPED / f"{name}.yaml"
    if not path.is_file():
        raise DecisionError(f"There is no decision {name!r}. Shipped: {', '.join(shipped())}. Give one of these or a path to a YAML file.")
    return path


def load(name: str) -> Decision:
    """Decision by a shipped name or a path. Raises DecisionError, which names the file and the line to mend."""
    path = path_of(name)
    return parse(path.read_text(encoding="utf-8"), path.name)


def parse(text: str, file: str = "decision") -> Decision:
    """Decision from YAML text."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        raise DecisionError(f"{file}{where}: this is not YAML: {getattr(error, 'problem', 'unreadable')}.") from error
    if not isinstance(raw, dict):
        raise DecisionError(f"{file}, line 1: a decision is a mapping that begins with 'decision: NAME'; found {type(raw).__name__}.")
    try:
        return Decision.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place, message = ".".join(str(part) for part in first["loc"]), first["msg"].removeprefix("Value error, ")
        if "|" in message:
            place, message = message.split("|", 1)
        elif first["type"] == "extra_forbidden":
            message = f"'{place}' is not a key of a decision. Remove it or correct its spelling."
        else:
            message = f"'{place}': {message[0].lower()}{message[1:]}."
        raise DecisionError(f"{file}, line {_line(root, place.split('.'))}: decision '{raw.get('decision', '?')}': {message}") from None


def _line(node: Any, place: list[str]) -> int:
    """Line of the deepest part of a dotted place that exists in the file."""
    line = node.start_mark.line + 1
    for part in place:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == part), None)
            if pair is None:
                return line
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and part.isdigit() and int(part) < len(node.value):
            node = node.value[int(part)]
            line = node.start_mark.line + 1
    return line


def transform(decision: Decision, value: Any) -> Any:
    """Outcome on the scale on which it is modelled."""
    return np.sqrt(np.maximum(value, 0)) if decision.outcome.transform == "sqrt" else value


def untransform(decision: Decision, value: Any) -> Any:
    """Outcome in its own unit, from the scale on which it is modelled."""
    return np.square(np.maximum(value, 0)) if decision.outcome.transform == "sqrt" else value
