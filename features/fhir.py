"""FHIR R4 at the door: the dated facts that one resource states.

The same `state` reads a line of a bulk export and a resource of a request. Whatever is not on the allow-list of `resources.py` (names,
addresses, identifiers, narrative) never became an object: nothing after the gate has seen it.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from features import resources
from features.concepts import concepts
from features.moment import BEGIN_US, NEVER_US, UNDATED_US, instant, readable
from features.observed import values
from features.resources import AllergyIntolerance, Condition, Encounter, MedicationRequest, MedicationStatement, Observation, Patient
from features.statement import FINAL, NAN, Fact, Flat, Pair, Part, Refused, number, pairs, status, when

__all__ = ["BEGIN_US", "NEVER_US", "UNDATED_US", "Fact", "Flat", "MedicationUnread", "drug", "facts", "instant", "reference_id", "state"]


class MedicationUnread(Exception):
    """The Medication that a resource refers to has not been read yet."""


Medications = Mapping[str, str | None]  # id of a Medication -> the drug that it is, None for one that means nothing to us
Statement = tuple[list[Fact], tuple[Part, ...]]


def facts(resource: dict[str, Any], medications: Medications | None = None) -> Flat:
    """The dated facts of a parsed resource: as `state`, with the gate before it. A Medication that is not given is missing."""
    found = resources.gate(resources.encoded(resource))
    if isinstance(found, resources.Resource):
        try:
            return state(found, medications or {})
        except MedicationUnread:
            return Flat(None, [], "medication_missing")
    return Flat(None, [], found.problem if isinstance(found, resources.Broken) else None)


def state(resource: resources.Resource, medications: Medications) -> Flat:
    """The dated facts that one resource states.

    A resource whose codes mean nothing to us is accepted and states none. Never raises for what a record holds: its problem is a code
    from a closed list. Raises MedicationUnread where it refers to a Medication that is not among `medications`.
    """
    patient: str | None = None
    try:
        if resource.__class__ is resources.Medication:
            return Flat(None, [])
        patient = whose(resource)
        if patient is None:
            raise Refused("no_patient")
        found, parts = READERS[type(resource)](resource, medications)
        updated, version = _written(resource.meta)
        if found:
            recorded = found[0].recorded_us if len(found) == 1 else max([fact.recorded_us for fact in found])
        else:
            recorded = _version_time(resource, updated)
        return Flat(patient, found, None, recorded, updated, version, False, parts)
    except Refused as reason:
        code = str(reason)
        updated, version = _written(resource.meta)
        withdrawn = code in ("status_entered_in_error", "status_cancelled")
        return Flat(patient, [], code, _version_time(resource, updated), updated, version, withdrawn)
    except (AttributeError, KeyError, TypeError, ValueError, IndexError, ArithmeticError):
        return Flat(patient, [], "structure")


def drug(medication: resources.Medication) -> str | None:
    """The drug that a Medication is, None for one that means nothing to us."""
    try:
        return concepts().find("drug", pairs(medication.code))
    except TypeError:
        return None


def reference_id(reference: str) -> str:
    """Id in a reference of any legal form: `Patient/x`, `urn:uuid:x`, `https://server/fhir/Patient/x/_history/2`."""
    plain = reference.split("/_history/")[0] if "/_history/" in reference else reference
    return plain.rsplit("/", 1)[-1].removeprefix("urn:uuid:").removeprefix("urn:oid:")


def whose(resource: resources.Resource) -> str | None:
    """Id of the patient that a resource is about, None where it is about none or several."""
    if isinstance(resource, (Patient, resources.Medication)):
        return resource.id if isinstance(resource.id, str) and resource.id else None
    whom = resource.subject or resource.patient
    return patient_of(whom.reference) if whom is not None else None


def patient_of(reference: Any) -> str | None:
    """Id of the patient that a reference names, None where it names none."""
    if not isinstance(reference, str) or reference.startswith("#"):
        return None
    if reference.startswith("Patient/") and reference.count("/") == 1:  # nearly all of them
        return reference[8:] or None
    place = reference.split("/_history/")[0].rpartition("/")[0]
    if place and place.rpartition("/")[2] != "Patient":  # a group, a device, a location
        return None
    return reference_id(reference) or None


def _version_time(resource: resources.Resource, updated: int) -> int:
    """When a version that states no fact was made: the later of its issue and its last update; NEVER_US where it does not say."""
    made = max(readable(getattr(resource, "issued", None), BEGIN_US), updated)
    return made if made > BEGIN_US else NEVER_US


def _written(meta: resources.Meta | None) -> tuple[int, int]:
    """When the server last wrote a version, and its count of them (any other kind of version id says nothing of an order)."""
    if meta is None:
        return BEGIN_US, 0
    return readable(meta.lastUpdated, BEGIN_US), counted(meta.versionId)


def counted(version: Any) -> int:
    """A server's own count of versions, 0 where it counts in no way that says an order."""
    return int(version) if isinstance(version, str) and version.isascii() and version.isdecimal() and len(version) < 18 else 0


# Patient: facts of birth ------------------------------------------------------------------------------------------------------------

_RACE = {  # OMB categories, two details of the Asian category, and the ethnicity
    "2106-3": "white",
    "2028-9": "asian",
    "2054-5": "black",
    "1002-5": "native_american",
    "2076-8": "pacific",
    "2131-1": "other",
    "2029-7": "south_asian",
    "2034-7": "east_asian",
    "2135-2": "hispanic",
}


def _read_patient(resource: Patient, _: Medications) -> Statement:
    def fact(concept: str, value: float, code: str = "") -> Fact:
        return Fact(concept, BEGIN_US, BEGIN_US, value, code, "")

    found = []
    born = resource.birthDate
    if isinstance(born, str):
        middle = {4: born + "-07-01", 7: born + "-15"}.get(len(born), born)  # a partial date of birth: the middle of what it leaves open
        found.append(fact("birth_date", instant(middle) / 86_400e6))
    if resource.gender in ("female", "male"):
        found.append(fact("female", float(resource.gender == "female")))
    for extension in resource.extension or []:
        if str(extension.url).endswith(("us-core-race", "us-core-ethnicity")):
            codes = [part.valueCoding.code for part in extension.extension or [] if part.valueCoding is not None]
            found += [fact("race", NAN, _RACE[str(code)]) for code in codes if str(code) in _RACE]
    site = resource.managingOrganization.reference if resource.managingOrganization is not None else None
    if isinstance(site, str):
        found.append(fact("site", NAN, reference_id(site)))
    return found, ()


# Observation ------------------------------------------------------------------------------------------------------------------------


def _read_observation(resource: Observation, _: Medications) -> Statement:
    found = values(resource)
    if not (found.values or found.problem):
        return [], ()
    status(resource.status, FINAL)
    if found.problem:
        raise Refused(found.problem)
    dates = (resource.effectiveDateTime, resource.effectivePeriod, resource.effectiveInstant, resource.effectiveTiming, resource.issued)
    undated = found.values[0].unit in ("diplotype", "copies") and not any(dates)  # laboratories often leave it out
    time_us = UNDATED_US if undated else when(*dates)
    recorded_us = max(time_us, instant(resource.issued)) if isinstance(resource.issued, str) else time_us
    return [Fact(value.concept, time_us, recorded_us, *value[1:]) for value in found.values], found.parts


# Condition, medication, encounter, allergy ------------------------------------------------------------------------------------------

_NOT_AFFIRMED = frozenset({"unconfirmed", "provisional", "differential"})


def _read_condition(resource: Condition, _: Medications) -> Statement:
    """A problem list entry; a diagnosis that is only suspected is kept as `unconfirmed:` and never counts as `condition:`."""
    verification = {code for _, code in pairs(resource.verificationStatus)}
    if "entered-in-error" in verification:
        raise Refused("status_entered_in_error")
    dated = any((resource.onsetDateTime, resource.onsetPeriod, resource.recordedDate))
    time_us = when(resource.onsetDateTime, resource.onsetPeriod, resource.recordedDate) if dated else UNDATED_US
    recorded_us = max(time_us, instant(resource.recordedDate)) if isinstance(resource.recordedDate, str) else time_us
    found = [Fact("record:condition", time_us, recorded_us, 1.0, "", "")]
    kind, value = ("unconfirmed", 1.0) if verification & _NOT_AFFIRMED else ("condition", float("refuted" not in verification))
    names = concepts().conditions(pairs(resource.code))
    return found + [Fact(f"{kind}:{name}", time_us, recorded_us, value, "", "") for name in names], ()


_REQUESTED = frozenset({"active", "completed", "stopped", "on-hold", "ended"})
_ORDERED = frozenset({"order", "original-order", "reflex-order", "filler-order", "instance-order"})
_STATED = frozenset({"active", "completed", "intended", "stopped", "on-hold", "not-taken"})
_MOST_MG_WEEK = 100_000.0  # of any drug that we name; metformin reaches 21,000
_MOST_DAYS = 3653.0
_UNIT_DAYS = {"d": 1.0, "wk": 7.0, "mo": 30.4375}
_WEEKS = {"wk": 1.0, "d": 1 / 7, "mo": 30.4375 / 7, "h": 1 / 168}


def _read_request(resource: MedicationRequest, medications: Medications) -> Statement:
    status(resource.status, _REQUESTED)
    if resource.intent not in _ORDERED or resource.doNotPerform is True:
        raise Refused("not_an_order")
    name = _drug(resource, medications)
    if name is None:
        return [], ()
    time_us = when(resource.authoredOn)
    found = [Fact(f"takes:{name}", time_us, time_us, 1.0, "", ""), Fact(f"start:{name}", time_us, time_us, 1.0, "", "")]
    dose = _weekly_mg(resource.dosageInstruction or [])
    if dose is not None:
        found.append(Fact(f"dose:{name}", time_us, time_us, dose, "", "mg/wk"))
    days = _days(resource.dispenseRequest.expectedSupplyDuration) if resource.dispenseRequest is not None else None
    if days is not None:
        found.append(Fact(f"supply:{name}", time_us, time_us, days, "", "d"))
    return found, ()


def _read_statement(resource: MedicationStatement, medications: Medications) -> Statement:
    status(resource.status, _STATED)
    name = _drug(resource, medications)
    if name is None:
        return [], ()
    time_us = when(resource.effectiveDateTime, resource.effectivePeriod, resource.dateAsserted)
    recorded_us = max(time_us, readable(resource.dateAsserted, time_us))
    return [Fact(f"takes:{name}", time_us, recorded_us, float(resource.status in ("active", "completed")), "", "")], ()


def _drug(resource: MedicationRequest | MedicationStatement, medications: Medications) -> str | None:
    """The drug by its code, by a contained Medication, or by one that stands elsewhere in the source."""
    reference = resource.medicationReference.reference if resource.medicationReference is not None else None
    if resource.medicationCodeableConcept is not None or not isinstance(reference, str):
        return concepts().find("drug", pairs(resource.medicationCodeableConcept))
    if not reference.startswith("#"):
        try:
            return medications[reference_id(reference)]
        except KeyError:
            raise MedicationUnread from None
    for raw in resource.contained or []:
        inside = resources.gate(bytes(raw))
        if isinstance(inside, resources.Medication) and inside.id == reference[1:]:
            return drug(inside)
    return None


def _days(duration: resources.Quantity | None) -> float | None:
    """Days of a Duration, None where it has no unit that we know or is not positive."""
    if duration is None:
        return None
    value, unit = number(duration.value), _UNIT_DAYS.get(str(duration.code))
    days = value * unit if value is not None and unit is not None else None
    return days if days is not None and 0 < days <= _MOST_DAYS else None


def _weekly_mg(instructions: list[resources.Dosage]) -> float | None:
    """Weekly dose in mg where the only dosage instruction states an amount in mg and how often, on every day alike."""
    if len(instructions) != 1:
        return None
    rates, timing = instructions[0].doseAndRate, instructions[0].timing
    dose, repeat = rates[0].doseQuantity if rates else None, timing.repeat if timing is not None else None
    if dose is None or repeat is None or repeat.dayOfWeek or (dose.code or dose.unit) != "mg":
        return None
    weeks = _WEEKS.get(str(repeat.periodUnit))
    value, period, frequency = number(dose.value), number(repeat.period), number(repeat.frequency)
    if not weeks or not value or not period or not frequency:
        return None
    mg_week = value * frequency / (period * weeks)
    return mg_week if 0 < mg_week <= _MOST_MG_WEEK else None


_HAPPENED = frozenset({"finished", "in-progress", "arrived", "triaged", "onleave"})


def _read_encounter(resource: Encounter, _: Medications) -> Statement:
    status(resource.status, _HAPPENED)
    start = resource.period.start if resource.period is not None else None
    if not isinstance(start, str):
        raise Refused("undated")
    time_us = instant(start)
    sent = resource.class_.get("code") if isinstance(resource.class_, dict) else None
    kind = {"EMER": "emergency", "IMP": "inpatient", "ACUTE": "inpatient", "NONAC": "inpatient"}.get(str(sent), "")
    return [Fact("record:encounter", time_us, time_us, 1.0, kind, "")], ()


def _read_allergy(resource: AllergyIntolerance, _: Medications) -> Statement:
    """An active allergy as `system|code|criticality`; a code of a system that we do not read is kept as such and told by the rules."""
    states = {code for concept in (resource.verificationStatus, resource.clinicalStatus) for _, code in pairs(concept)}
    if "entered-in-error" in states:
        raise Refused("status_entered_in_error")
    dated = any((resource.recordedDate, resource.onsetDateTime))
    time_us = when(resource.recordedDate, resource.onsetDateTime) if dated else UNDATED_US
    codings = pairs(resource.code)
    if states & {"refuted", "inactive", "resolved"} or not codings:
        return [], ()
    known: Iterable[Pair] = ((concepts().system(url), code) for url, code in codings)
    system, code = next(((s, c) for s, c in known if s), ("unknown", "unknown"))
    criticality = {"high": "high", "low": "low"}.get(str(resource.criticality), "unknown")
    return [Fact("allergy", time_us, time_us, 1.0, f"{system}|{code}|{criticality}", "")], ()


READERS: dict[type, Callable[[Any, Medications], Statement]] = {
    Patient: _read_patient,
    Observation: _read_observation,
    Condition: _read_condition,
    MedicationRequest: _read_request,
    MedicationStatement: _read_statement,
    Encounter: _read_encounter,
    AllergyIntolerance: _read_allergy,
}
