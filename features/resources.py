"""The FHIR R4 fields that we read, as types. Decoding a line into them is the structural gate and the allow-list at once: a field that
is not named here (a name, an address, narrative, a note) is skipped by the parser and never becomes an object.

Containers are typed: a string where R4 has a list is `structure`. Leaves are not: what a reader makes of a wrong leaf (a value that
is no number) has a reason of its own, which says more.
"""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Raw, Struct

NULL = Raw(b"null")


class Coding(Struct, gc=False):
    """A code and the system it is from."""

    system: Any = None
    code: Any = None


class Concept(Struct, gc=False):
    """A CodeableConcept without its text."""

    coding: list[Coding] | None = None


class Quantity(Struct, gc=False):
    """A Quantity, Duration or Age."""

    value: Any = None
    code: Any = None
    unit: Any = None
    comparator: Any = None


class Reference(Struct, gc=False):
    """A reference without its display."""

    reference: Any = None


class Period(Struct, gc=False):
    """A Period."""

    start: Any = None
    end: Any = None


class Timing(Struct, gc=False):
    """The dates of a Timing."""

    event: list[Any] | None = None


class Meta(Struct, gc=False):
    """When the server wrote this version."""

    lastUpdated: Any = None
    versionId: Any = None


class Extension(Struct, gc=False):
    """An extension with a coded value, or parts that have one."""

    url: Any = None
    valueCoding: Coding | None = None
    extension: list["Extension"] | None = None


class _Resource(Struct, tag_field="resourceType", tag=True, gc=False, kw_only=True):
    id: Any = None
    meta: Meta | None = None


class Patient(_Resource, tag=True, kw_only=True):
    """Facts of birth and the site."""

    birthDate: Any = None
    gender: Any = None
    extension: list[Extension] | None = None
    managingOrganization: Reference | None = None


class _Subject(_Resource, tag=True, kw_only=True):
    subject: Reference | None = None
    patient: Reference | None = None
    issued: Any = None
    status: Any = None


class Component(Struct, gc=False):
    """One part of a panel."""

    code: Concept | None = None
    valueQuantity: Quantity | None = None
    valueInteger: Any = None
    valueCodeableConcept: Concept | None = None


class Part(Struct, gc=False):
    """One number of a panel, with its code as it stands there; the other kinds of value only have to be of their shape."""

    code: Raw = NULL
    valueQuantity: Quantity | None = None
    valueCodeableConcept: Concept | None = None


class Observation(_Subject, tag=True, kw_only=True):
    """A measurement, an answer, a genotype. What repeats from one to the next is kept as it stands: it is understood once."""

    code: Raw = NULL
    effectiveDateTime: Any = None
    effectivePeriod: Period | None = None
    effectiveInstant: Any = None
    effectiveTiming: Timing | None = None
    valueQuantity: Quantity | None = None
    valueInteger: Any = None
    valueCodeableConcept: Raw = NULL
    component: Raw = NULL


class Condition(_Subject, tag=True, kw_only=True):
    """A problem or diagnosis."""

    code: Concept | None = None
    verificationStatus: Concept | None = None
    onsetDateTime: Any = None
    onsetPeriod: Period | None = None
    recordedDate: Any = None


class Repeat(Struct, gc=False):
    """How often."""

    frequency: Any = 1
    period: Any = None
    periodUnit: Any = None
    dayOfWeek: Any = None


class Schedule(Struct, gc=False):
    """The timing of a dosage."""

    repeat: Repeat | None = None


class Rate(Struct, gc=False):
    """The amount of a dosage."""

    doseQuantity: Quantity | None = None


class Dosage(Struct, gc=False):
    """One dosage instruction, without its text."""

    timing: Schedule | None = None
    doseAndRate: list[Rate] | None = None


class Dispense(Struct, gc=False):
    """What was to be dispensed."""

    expectedSupplyDuration: Quantity | None = None


class _Medicated(_Subject, tag=True, kw_only=True):
    medicationCodeableConcept: Concept | None = None
    medicationReference: Reference | None = None
    contained: list[Raw] | None = None


class MedicationRequest(_Medicated, tag=True, kw_only=True):
    """An order."""

    intent: Any = None
    doNotPerform: Any = None
    authoredOn: Any = None
    dosageInstruction: list[Dosage] | None = None
    dispenseRequest: Dispense | None = None


class MedicationStatement(_Medicated, tag=True, kw_only=True):
    """What is said to be taken."""

    effectiveDateTime: Any = None
    effectivePeriod: Period | None = None
    dateAsserted: Any = None


class Encounter(_Subject, tag=True, kw_only=True):
    """A visit."""

    period: Period | None = None
    class_: Any = msgspec.field(default=None, name="class")


class AllergyIntolerance(_Subject, tag=True, kw_only=True):
    """An allergy, or that none is known."""

    code: Concept | None = None
    verificationStatus: Concept | None = None
    clinicalStatus: Concept | None = None
    criticality: Any = None
    recordedDate: Any = None
    onsetDateTime: Any = None


class Medication(_Resource, tag=True, kw_only=True):
    """What a request or statement may refer to."""

    code: Concept | None = None


class Bundle(_Resource, tag=True, kw_only=True):
    """Resources, or deletions, that came together."""

    entry: Raw = Raw(b"")
    timestamp: Any = None


class Other(Struct, gc=False):
    """A resource of a type that states nothing that we read."""

    resourceType: str
    id: Any = None


class Deletion(Struct, gc=False, frozen=True):
    """Word of a server that a resource, named by type and id, is no more."""

    whom: str
    when: Any = None


class Broken(Struct, gc=False, frozen=True):
    """A line that is no resource of the shape that its type has: its type where it names one, and the reason."""

    kind: str
    problem: str


Subjected = Observation | Condition | MedicationRequest | MedicationStatement | Encounter | AllergyIntolerance
Resource = Patient | Subjected | Medication
Received = Resource | Bundle | Other | Deletion | Broken
READ = frozenset(kind.__name__ for kind in Resource.__args__)

_decoder = msgspec.json.Decoder(Resource | Bundle)
_known, _all_known = _decoder.decode, _decoder.decode_lines
_other = msgspec.json.Decoder(Other).decode
concept = msgspec.json.Decoder(Concept | None).decode
components = msgspec.json.Decoder(list[Component] | None).decode
panel = msgspec.json.Decoder(list[Part]).decode
_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def gate(raw: bytes) -> Received:
    """What one line is. Never raises.

    All of the line has to be UTF-8 and well-formed JSON; of the fields that nobody reads no more is asked.
    """
    if not raw.isascii():  # the parser skips the bytes of what it does not read
        try:
            raw.decode()
        except UnicodeDecodeError:
            return Broken("unreadable", "not_json")
    try:
        return _known(raw)
    except _ERRORS:
        pass
    try:
        found = _other(raw)
    except msgspec.ValidationError:
        return Broken("unreadable", "not_a_resource")
    except _ERRORS:
        return Broken("unreadable", "not_json")
    return Broken(found.resourceType, "structure") if found.resourceType in READ or found.resourceType == "Bundle" else found


def gate_all(text: bytes, count: int) -> list[Any] | None:
    """What each of `count` lines is, at once; None where one of them is blank, broken or of a type that we don't read: see `gate`.

    Where every line ends with a brace and the next begins with one, no value reaches over two lines: JSON has a comma between the two,
    and no line break in a text. Then as many values as lines are one a line.
    """
    if text.count(b"}\n{") != count - 1:
        return None
    try:
        if not text.isascii():  # the parser skips the bytes of what it does not read
            text.decode()
        found = _all_known(text)
    except _ERRORS:
        return None
    return found if len(found) == count else None


def encoded(resource: dict[str, Any]) -> bytes:
    """A parsed resource as the line that it would be in an export; b"" for what JSON can't hold."""
    try:
        return msgspec.json.encode(resource)
    except (TypeError, ValueError, RecursionError):
        return b""


class _Entry(Struct, gc=False):
    fullUrl: Any = None
    resource: Raw = Raw(b"")
    request: Any = None


_items = msgspec.json.Decoder(list[Raw]).decode
_entry = msgspec.json.Decoder(_Entry).decode


def entries(bundle: Bundle) -> list[bytes]:
    """The entries of a Bundle as they stand there. What is no list is one entry, which will be told as broken."""
    if bytes(bundle.entry) in (b"", b"null"):
        return []
    try:
        return [bytes(raw) for raw in _items(bundle.entry)]
    except _ERRORS:
        return [bytes(bundle.entry)]


def unpacked(bundle: Bundle) -> Iterator[Received]:
    """What came in a Bundle: a resource an entry, a Deletion for each that says DELETE, and Broken for what should be one and is not.

    A resource without an id takes it from its entry's fullUrl; a reference by fullUrl becomes one by type and id.
    """
    found = [_entry_of(raw) for raw in entries(bundle)]
    received = [gate(raw) if entry is not None and (raw := bytes(entry.resource)) else None for entry in found]
    named: dict[str, str] = {}
    for entry, resource in zip(found, received, strict=True):
        if entry is None or not isinstance(entry.fullUrl, str) or not isinstance(resource, Resource | Other):
            continue
        if resource.id is None:
            resource.id = entry.fullUrl.split("/_history/")[0].rsplit("/", 1)[-1].removeprefix("urn:uuid:").removeprefix("urn:oid:")
        if isinstance(resource.id, str):
            kind = resource.resourceType if isinstance(resource, Other) else type(resource).__name__
            named[entry.fullUrl] = f"{kind}/{resource.id}"
    when = bundle.meta.lastUpdated if bundle.meta is not None and bundle.meta.lastUpdated else bundle.timestamp
    for entry, resource in zip(found, received, strict=True):
        if entry is None:
            yield Broken("unreadable", "not_a_resource")
        elif resource is not None:
            yield _renamed(resource, named)
        elif isinstance(entry.request, dict) and entry.request.get("method") == "DELETE":
            url = entry.request.get("url")
            yield (
                Deletion("/".join(url.rsplit("/", 2)[-2:]), when)
                if isinstance(url, str) and "/" in url
                else Broken("deletion", "structure")
            )


def _entry_of(raw: bytes) -> _Entry | None:
    try:
        return _entry(raw)
    except _ERRORS:
        return None


def _renamed(resource: Received, named: dict[str, str]) -> Received:
    for field in ("subject", "patient", "medicationReference"):
        whom = getattr(resource, field, None)
        if whom is not None and isinstance(whom.reference, str) and whom.reference in named:
            whom.reference = named[whom.reference]
    return resource
