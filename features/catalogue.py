"""Every feature, declared once. Feast's schema, the tensors' order, request validation and the generated table are derived from here."""

import hashlib
import json
from collections.abc import Sequence

from features import genomics, history, lifestyle
from features.feature import Feature

FEATURES: dict[str, Feature] = {feature.name: feature for feature in (*history.FEATURES, *genomics.FEATURES, *lifestyle.FEATURES)}


class UnknownFeature(KeyError):
    """A name that the catalogue does not hold."""

    def __str__(self) -> str:
        return str(self.args[0])


def select(names: Sequence[str]) -> tuple[Feature, ...]:
    """Features by name, in the order given. Raises UnknownFeature."""
    missing = [name for name in names if name not in FEATURES]
    if missing:
        raise UnknownFeature(f"Unknown feature {missing[0]!r}. The catalogue has: {', '.join(sorted(FEATURES))}.")
    return tuple(FEATURES[name] for name in names)


def digest(features: Sequence[Feature]) -> str:
    """Digest of names, order, units and windows: a row written under one digest is not read under another."""
    told = [(f.name, f.modality, f.unit, f.concepts, f.valid_days) for f in features]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


def table() -> str:
    """The catalogue as a Markdown table, for `features/README.md`."""
    rows = ["| feature | modality | unit | meaning | valid for |", "| --- | --- | --- | --- | --- |"]
    for feature in FEATURES.values():
        valid = "-" if feature.valid_days is None else f"{feature.valid_days:g} d"
        rows.append(f"| `{feature.name}` | {feature.modality} | {feature.unit} | {feature.meaning} | {valid} |")
    return "\n".join(rows)
