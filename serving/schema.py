"""What comes in and what goes out, as types. Unknown fields and non-finite numbers are refused; an error never quotes input."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.bundle import Bundle
from components.decision import Matter
from components.policy import Recommendation
from features.concepts import concepts

NOTE = "Research software, not a medical device. A recommendation informs a clinician's decision and never replaces it."
LARGEST_BATCH = 256
LARGEST = 1e12  # of any feature's value: beyond every unit, and far inside what single precision holds


Model = TypeVar("Model", bound=BaseModel)


class BadRequest(ValueError):
    """A request that can't be answered as it stands; the message names fields, never values."""


Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


Weight = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


WHO = ("patient_id", "pseudonym", "bundle")


def _one_of(schema: dict[str, Any]) -> None:
    """What the type can't say by itself: exactly one of the three, and a Bundle is one."""
    for name in WHO:
        told = schema["properties"][name]
        kind = next(entry for entry in told.pop("anyOf") if entry.get("type") != "null")
        schema["properties"][name] = {"title": told["title"]} | kind
    schema["properties"]["bundle"] |= {"properties": {"resourceType": {"const": "Bundle"}}, "required": ["resourceType"]}
    schema["oneOf"] = [{"required": [name]} for name in WHO]


class PatientQuery(_Strict):
    """One patient to ask for: the id as the source has it, the keyed pseudonym of the store, or a FHIR R4 Bundle with the record itself.

    `preferences`: what matters to the patient, 0 not at all, 1 most. They order options that can't be told apart, and nothing else.
    """

    patient_id: Annotated[str, Field(min_length=1, max_length=128)] | None = None
    pseudonym: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None
    bundle: dict[str, Any] | None = None
    preferences: dict[Matter, Weight] = Field(default_factory=dict)

    model_config = ConfigDict(json_schema_extra=_one_of)

    @model_validator(mode="after")
    def _one(self) -> "PatientQuery":
        if [self.patient_id, self.pseudonym, self.bundle].count(None) != 2:
            raise ValueError("give patient_id, pseudonym or bundle, one of them")
        return self


class FeatureRow(_Strict):
    """One patient's features by name as they may be used now: null is not known; `stale` and `implausible` say what may not be used."""

    features: dict[Annotated[str, Field(max_length=128)], Annotated[float, Field(allow_inf_nan=False, ge=-LARGEST, le=LARGEST)] | None]
    stale: tuple[str, ...] = ()
    implausible: tuple[str, ...] = ()
    outside: str = ""
    preferences: dict[Matter, Weight] = Field(default_factory=dict)
    record: str = ""  # coded record for the safety rules, JSON of a snapshot; without it nothing counts as known
    as_of: Annotated[str, Field(max_length=40)]
    ages: dict[str, Finite] = {}  # days since the newest fact behind each value that is used


class Contribution(_Strict):
    """A fact that moves an option's difference (of a dose decision: the dose), by how much in its unit, and the features it stands for."""

    text: str
    features: tuple[str, ...]
    shift: Finite


class OptionAnswer(_Strict):
    """What is expected of one option, in the outcome's unit; the difference to the best with its interval; why, in words and in parts."""

    option: str
    label: str
    outcome: Finite
    difference_to_best: Finite
    low: Finite
    high: Finite
    overlap: Finite
    reason: str = ""
    parts: tuple[Contribution, ...] = ()
    rxnorm: tuple[str, ...] = ()  # ingredients and products that the option stands for, without those of drugs that are ruled out


class PreferredOption(_Strict):
    """One of the options that can't be told apart, in the patient's order. `burden`: 0 the least, 1 the most."""

    option: str
    label: str
    burden: Finite
    reason: str


class Exclusion(_Strict):
    """An option that is not offered, why, and by which source."""

    option: str
    label: str
    code: str
    reason: str
    source: str | None
    rxnorm: tuple[str, ...] = ()


class RuledOutDrug(_Strict):
    """A drug that may not be given, or can't be cleared yet, although other drugs of its option are better off; why, by which source."""

    option: str
    drug: str
    code: str
    reason: str
    source: str | None
    rxnorm: tuple[str, ...] = ()


class Remark(_Strict):
    """What a rule says about an option that is offered or about the patient; `reviewed`: its threshold was compared with the source."""

    option: str | None
    kind: str
    text: str
    rule_id: str | None
    source: str | None
    reviewed: bool


class Response(_Strict):
    """The answer: a ranked set with intervals, or an abstention with its code, and the versions that made it. It is never an order."""

    schema_version: Literal["1"] = "1"
    intent: Literal["proposal"] = "proposal"
    decision: str
    decision_version: str
    model_version: str
    title: str
    unit: str
    better: Literal["lower", "higher"]
    as_of: str
    recommended: str | None
    ranked: tuple[OptionAnswer, ...]
    equivalent: tuple[str, ...]
    preferred: tuple[PreferredOption, ...] = ()
    excluded: tuple[Exclusion, ...]
    ruled_out: tuple[RuledOutDrug, ...] = ()
    abstained: str | None
    reasons: tuple[str, ...]
    changes: tuple[str, ...] = ()
    dose_mg_week: Finite | None
    notes: tuple[Remark, ...]
    ruleset_version: str | None
    not_known: tuple[str, ...]
    stale: tuple[str, ...]
    implausible: tuple[str, ...] = ()
    freshness: dict[str, Finite] = {}  # days since the newest fact behind each required input
    request_id: str = ""
    note: str = NOTE


class FeatureShare(_Strict):
    """What one feature adds to the expected outcome of every option, in the outcome's unit, against the base."""

    feature: str
    modality: str
    meaning: str
    value: Finite | None
    by_option: dict[str, Finite]


class Explanation(_Strict):
    """Where the expected outcomes of one answer come from: `base` and all contributions of an option add up to its `outcome`."""

    schema_version: Literal["1"] = "1"
    decision: str
    model_version: str
    as_of: str
    unit: str
    base: dict[str, Finite]
    outcome: dict[str, Finite]
    by_modality: dict[str, dict[str, Finite]]
    contributions: tuple[FeatureShare, ...]  # largest first
    request_id: str = ""
    note: str = NOTE


def response(bundle: Bundle, answer: Recommendation, row: FeatureRow, request_id: str = "") -> Response:
    """The answer for one patient as it leaves the house."""
    decision = bundle.decision
    drugs = concepts().drugs
    asked = {feature.name for feature in decision.tabular}.difference(row.stale, row.implausible)
    out = tuple(RuledOutDrug(**vars(entry), rxnorm=drugs[entry.drug]) for entry in answer.ruled_out)
    codes = {name: _without(option.codes, [entry for entry in out if entry.option == name]) for name, option in decision.options.items()}
    ranked = tuple(
        OptionAnswer(**(vars(entry) | {"parts": tuple(Contribution(**vars(part)) for part in entry.parts)}), rxnorm=codes[entry.option])
        for entry in answer.ranked
    )
    return Response(
        decision=decision.name,
        decision_version=decision.version,
        model_version=bundle.version,
        title=decision.title,
        unit=decision.outcome.unit,
        better=decision.outcome.better,
        as_of=row.as_of,
        recommended=answer.recommended,
        ranked=ranked,
        equivalent=answer.equivalent,
        preferred=tuple(PreferredOption(**vars(entry)) for entry in answer.preferred),
        excluded=tuple(Exclusion(**vars(entry), rxnorm=codes[entry.option]) for entry in answer.excluded),
        ruled_out=out,
        abstained=str(answer.abstained) if answer.abstained else None,
        reasons=answer.reasons,
        changes=answer.changes,
        dose_mg_week=answer.dose_mg_week,
        notes=tuple(Remark(**vars(note)) for note in answer.notes),
        ruleset_version=answer.ruleset,
        not_known=tuple(name for name, value in row.features.items() if value is None and name in asked),
        stale=row.stale,
        implausible=row.implausible,
        freshness={name: row.ages[name] for name in decision.required if name in row.ages},
        request_id=request_id,
    )


def _without(codes: tuple[str, ...], out: Sequence[RuledOutDrug]) -> tuple[str, ...]:
    gone = {code for entry in out for code in entry.rxnorm}
    return tuple(code for code in codes if code not in gone)


class Tensor(_Strict):
    """One input of an Open Inference Protocol request: strings, one a patient."""

    name: Annotated[str, Field(max_length=64)]
    shape: Annotated[list[int], Field(min_length=1, max_length=2)]
    datatype: Literal["BYTES"]
    data: Annotated[list[str], Field(min_length=1, max_length=LARGEST_BATCH)]
    parameters: dict[str, str | int | float | bool] | None = None

    @model_validator(mode="after")
    def _shaped(self) -> "Tensor":
        if self.shape not in ([len(self.data)], [len(self.data), 1]):
            raise ValueError("the shape must be that of the data: one string a patient")
        return self


class Wanted(_Strict):
    """An output by name."""

    name: Literal["recommended", "response"]
    parameters: dict[str, str | int | float | bool] | None = None


class InferBody(_Strict):
    """Open Inference Protocol request with JSON data."""

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")] | None = None
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[Wanted], Field(max_length=2)] | None = None
    parameters: dict[str, str | int | float | bool] | None = None


def instances(payload: Any, kind: type[Model]) -> list[Model]:
    """Parsed instances of a v1 request body. Raises BadRequest."""
    found = payload.get("instances") if isinstance(payload, dict) else None
    if not isinstance(found, list) or set(payload) != {"instances"}:
        raise BadRequest('The body must be {"instances": [...]} and nothing else.')
    if not 1 <= len(found) <= LARGEST_BATCH:
        raise BadRequest(f"Between 1 and {LARGEST_BATCH} instances are answered at once; found {len(found)}.")
    return [parsed(kind, entry) for entry in found]


def parsed(kind: type[Model], value: Any) -> Model:
    """A value as one of our types. Raises BadRequest, which names a field only where it is one of ours."""
    try:
        return kind.model_validate_json(orjson.dumps(value))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = next((part for part in first["loc"][:1] if part in kind.model_fields), None)
        if first["type"] == "extra_forbidden":
            raise BadRequest("There is a field that is not one of ours.") from None
        wrong = first["msg"].removeprefix("Value error, ")
        raise BadRequest(f"{place or 'instance'}: {wrong}.") from None


def iso(time_us: int) -> str:
    """A time in microseconds since 1970 UTC as people write it, whole: cut to the second, a fact of that second would lie after it."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)).isoformat()
