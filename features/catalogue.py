"""Every feature, declared once. Feast's schema, the tensors' order, request validation and the generated table are derived from here."""

import hashlib
import json
from collections.abc import Sequence
from difflib import get_close_matches

from features import genomics, history, lifestyle, sequence
from features.concepts import concepts
from features.feature import Feature

FEATURES: dict[str, Feature] = {feature.name: feature for feature in (*history.FEATURES, *genomics.FEATURES, *lifestyle.FEATURES)}
_COLUMNS = FEATURES | {feature.name: feature for feature in sequence.COLUMNS}

_FINITE = 1e12  # beyond it, infinities included, nothing is measured
_PLAUSIBLE = {"flag": (0.0, 1.0), "copies": (0.0, 4.0), "a": (0.0, 130.0), "10 a": (0.0, 13.0)}  # a gene can be there twice on a chromosome


class UnknownFeature(KeyError):
    """A name that the catalogue does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])


def select(names: Sequence[str]) -> tuple[Feature, ...]:
    """Features by name, in the order given. Raises UnknownFeature."""
    missing = [name for name in names if name not in _COLUMNS]
    if missing:
        near = get_close_matches(missing[0], FEATURES, n=5, cutoff=0.3) or sorted(FEATURES)[:5]
        all_of = f"features/README.md lists all {len(FEATURES)}"
        raise UnknownFeature(f"Unknown feature {missing[0]!r}. The catalogue has: {', '.join(near)}; {all_of}.")
    return tuple(_COLUMNS[name] for name in names)


def digest(features: Sequence[Feature]) -> str:
    """Digest of names, order, units and windows: a row written under one digest is not read under another."""
    told: list[object] = [(f.name, f.modality, f.unit, f.concepts, f.valid_days) for f in features]
    if any(f.modality == "sequence" for f in features):
        told.append(sequence.meaning())
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


RESOURCES = {  # which FHIR resource a concept is told by
    "takes": "MedicationRequest, MedicationStatement",
    "start": "MedicationRequest",
    "dose": "MedicationRequest",
    "supply": "MedicationRequest",
    "condition": "Condition",
    "record:condition": "Condition",
    "record:encounter": "Encounter",
    "birth_date": "Patient",
    "female": "Patient",
    "race": "Patient",
}


def resources(feature: Feature) -> tuple[str, ...]:
    """FHIR resource types that a feature comes from."""
    told = (RESOURCES.get(concept) or RESOURCES.get(concept.partition(":")[0], "Observation") for concept in feature.concepts)
    return tuple(dict.fromkeys(kind for kinds in told for kind in kinds.split(", ")))


def codes(feature: Feature) -> tuple[str, ...]:
    """Codes of the records that a feature reads, as `loinc 4548-4`; for a variant its dbSNP id, for a gene its HGNC id."""
    table, found = concepts(), []
    symbols = {symbol: hgnc for hgnc, symbol in table.genes.items()}
    by_name: dict[str, list[str]] = {}
    for (kind, code), name in table.by_code.items():
        by_name.setdefault(f"{kind.split('/')[0]}/{name}", []).append(f"{kind.split('/')[1]} {code}")
    for system, prefix, name in table.prefixes:
        by_name.setdefault(f"condition/{name}", []).append(f"{system} {prefix}*")
    kinds = {"takes": "drug", "start": "drug", "dose": "drug", "supply": "drug", "condition": "condition"}
    for concept in feature.concepts:
        prefix, _, name = concept.partition(":")
        if prefix == "variant":
            found.append(f"dbsnp {name}")
        elif prefix == "diplotype":
            found.append(symbols[name])
        else:
            keys = [f"{kinds[prefix]}/{name}"] if prefix in kinds else [f"measurement/{concept}", f"answer/{concept}"]
            found += [code for key in keys for code in by_name.get(key, ())]
    return tuple(dict.fromkeys(found))


def _days(days: float | None) -> str:
    return "-" if days is None else f"{days:g} d"


def plausible(feature: Feature) -> tuple[float, float]:
    """What a value can be, in the feature's unit: from its measurement's range where it has the same unit, else from its unit.

    A name in _change or _deviation says that the value is a difference of two measured ones.
    """
    measured = concepts().measurements.get(feature.concepts[0]) if len(feature.concepts) == 1 else None
    if measured is not None and measured.unit == feature.unit:
        span = measured.high - measured.low
        return (-span, span) if feature.name.endswith(("_change", "_deviation")) else (measured.low, measured.high)
    return _PLAUSIBLE.get(feature.unit, (-_FINITE, _FINITE))


def table() -> str:
    """The catalogue as a Markdown table, for `features/README.md`; of many codes the first three."""
    rows = ["| feature | modality | unit | meaning | window | valid for | codes | from |", "| --- " * 8 + "|"]
    for feature in FEATURES.values():
        told = codes(feature)
        listed = ", ".join(told[:3]) + (f" and {len(told) - 3} more" if len(told) > 3 else "") or "-"
        source = ", ".join(resources(feature)) + (f"; {feature.source}" if feature.source else "")
        days = f"{_days(feature.window_days)} | {_days(feature.valid_days)}"
        rows.append(f"| `{feature.name}` | {feature.modality} | {feature.unit} | {feature.meaning} | {days} | {listed} | {source} |")
    return "\n".join(rows)
