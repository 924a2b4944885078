"""The feature store: named columns for analysts, one packed row a patient for serving, both from the same computed numbers.

Feast's own joins drop patients and its TTL is not applied online, so rows are computed by `feature.compute` as of a time, and a stored
row carries the date of the newest fact behind every value: whoever reads it can tell what is stale.

Axis suffixes: N rows, F features.
"""

import json
import os
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from features import catalogue, online, shared
from features.feature import MODALITIES, Feature
from features.moment import BEGIN_US
from features.online import PACKED, Online, Server
from features.rows import STAMP, Rows, StoreError, Usable, aged, usable

__all__ = [
    "MODALITIES",
    "PACKED",
    "OnlineRows",
    "Rows",
    "Server",
    "StoreError",
    "Usable",
    "aged",
    "definitions",
    "fill",
    "register",
    "usable",
]

# --------------------------------------------------------------------------------------------------------------------- what Feast sees


def fill(
    folder: Path,
    decision: str,
    features: Sequence[Feature],
    training: Rows,
    serving: Rows,
    home: Path | None = None,
    server: Server | None = None,
) -> None:
    """Make a store: offline files by modality, the registry, and the online rows of `serving` in SQLite or on a server.

    `home` is where the folder will lie in the end, because Feast's registry holds absolute paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("registry.db", "online.db"):  # whoever is no longer in the records is no longer in the store
        (folder / name).unlink(missing_ok=True)
    for modality in _modalities(features):
        _write_modality(folder / f"{modality}.parquet", modality, features, (training, serving))
    serving.write(folder / f"{PACKED}.parquet")
    digest = catalogue.digest(features)
    told: dict[str, Any] = {"decision": decision, "columns": [f.name for f in features], "catalogue": digest}
    told["online"] = online.fill(folder, server or Server.chosen(), decision, digest, serving)
    (folder / "store.json").write_text(json.dumps(told), encoding="utf-8")
    register(folder, home)


def register(folder: Path, home: Path | None = None) -> Any:
    """Write Feast's registry of a store for the place where it lies, or will lie: to be called again after a store was moved."""
    store, objects = _feast(folder), definitions(folder, home)
    store.apply(list(objects))
    online.release(store._get_provider().online_store)
    shared.publish(folder, objects[-1].name, objects)
    return store


def _modalities(features: Sequence[Feature]) -> tuple[str, ...]:
    """One view each: those of a table always, a sequence where there is one."""
    return tuple(dict.fromkeys([*MODALITIES, *(f.modality for f in features)]))


def _write_modality(path: Path, modality: str, features: Sequence[Feature], parts: Sequence[Rows]) -> None:
    ids = [patient for part in parts for patient in part.patient_ids]
    time = pa.array(np.concatenate([part.time_N for part in parts]), STAMP)
    x_NF = np.concatenate([part.x_NF for part in parts])
    columns: dict[str, Any] = {"patient_id": pa.array(ids, pa.string()), "event_timestamp": time, "created": time}
    columns |= {f.name: x_NF[:, n] for n, f in enumerate(features) if f.modality == modality}
    pq.write_table(pa.table(columns), path)


def definitions(folder: Path, home: Path | None = None) -> tuple[Any, ...]:
    """Feast's objects, derived from the catalogue: entity, a view a modality, the packed view, the decision's service."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Float64

    told = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    columns = catalogue.select(told["columns"])
    owner = os.environ.get("CONCORDANT_OWNER", "")  # who answers for the features of this installation, as Feast's UI shows it
    patient = Entity(name="patient", join_keys=["patient_id"], value_type=ValueType.STRING, description="Keyed pseudonym of a patient")

    def source(name: str, columns: Sequence[Feature]) -> Any:
        path = str((home or folder).resolve() / f"{name}.parquet")
        kinds = dict.fromkeys(kind for f in columns for kind in catalogue.resources(f))
        return FileSource(
            name=f"{name}_file",
            path=path,
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
            description=f"From FHIR R4 {', '.join(kinds)} by concordant ingest and features/{name}.py" if kinds else "",
            owner=owner,
        )

    def view(modality: str) -> Any:
        mine = [f for f in columns if f.modality == modality]
        schema = [Field(name=f.name, dtype=Float64, description=f"{f.meaning} [{f.unit}]", tags=_tags(f)) for f in mine]
        return FeatureView(
            name=modality,
            entities=[patient],
            ttl=timedelta(0),
            source=source(modality, mine),
            schema=schema,
            online=False,
            description=f"{modality.capitalize()} of a patient as it was known at a time",
            tags={"phi": "pseudonymous"},
            owner=owner,
        )

    views = [view(modality) for modality in _modalities(columns)]
    service = FeatureService(name=told["decision"], features=views, description=f"Features of the decision {told['decision']}", owner=owner)
    return (patient, *views, online.packed_view(source(PACKED, ())), service)


def _tags(feature: Feature) -> dict[str, str]:
    """What the UI shows beside a feature: unit, from which FHIR resources and codes, how long it counts."""
    valid = "" if feature.valid_days is None else f"{feature.valid_days:g}"
    told = {"unit": feature.unit, "concepts": ", ".join(feature.concepts), "valid_days": valid}
    return told | {"fhir": ", ".join(catalogue.resources(feature)), "codes": ", ".join(catalogue.codes(feature)), "source": feature.source}


def _feast(folder: Path) -> Any:
    """Feast on a store folder, for analysts."""
    from feast import FeatureStore

    told = json.loads((folder / "store.json").read_text(encoding="utf-8"))["online"]
    chosen = Server.chosen()
    server = chosen if chosen.kind == told["kind"] else Server("sqlite")
    return FeatureStore(config=online.config(folder, server, told["project"]))


class OnlineRows:
    """Reads packed rows by pseudonym. Raises StoreError where the store is missing, not whole, or was written under another catalogue."""

    def __init__(self, folder: Path, server: Server | None = None) -> None:
        told = _told(folder, ("registry.db", "store.json"))
        try:
            names, written, self._fill = [str(name) for name in told["columns"]], told["catalogue"], told["online"]
            kind, project = self._fill["kind"], self._fill["project"]
        except (TypeError, KeyError):
            raise StoreError(f"The feature store {folder} has an unreadable store.json. Run the pipeline again.") from None
        try:
            self.features = catalogue.select(names)
            current = written == catalogue.digest(self.features)
        except catalogue.UnknownFeature:
            current = False
        if not current:
            raise StoreError("The feature store was written with another feature catalogue. Run the pipeline again.")
        if kind == "sqlite":
            _told(folder, ("online.db",))
        server = Server("sqlite") if kind == "sqlite" else server or Server.chosen()
        if server.kind != kind:
            raise StoreError(f"The rows of this store lie on a {kind} server. Give its address in {online.SETTING}.")
        self._online = Online(folder, server, project)
        self.check()

    def check(self) -> None:
        """Read the row that was written last. Raises StoreError where the store can't be reached or does not hold this fill."""
        (whole,) = self._online.read([online.WHOLE])
        if whole is None or json.loads(whole) != self._fill:
            raise StoreError("The online store does not hold the rows of this run, or not all of them. Run the pipeline again.")

    def read(self, patient_ids: Sequence[str]) -> tuple[Rows, tuple[bool, ...]]:
        """Rows of some patients and which of them were found; a row that was not found is all NaN. Rows in = rows out, in order."""
        count, width = len(patient_ids), len(self.features)
        x_NF, fact_NF = np.full((count, width), np.nan), np.full((count, width), BEGIN_US, np.int64)
        time_N, outside, record = np.full(count, BEGIN_US, np.int64), [""] * count, [""] * count
        packed = self._online.read(patient_ids) if count else []
        for n, row in enumerate(packed):
            if row is not None and patient_ids[n] != online.WHOLE:
                time_N[n], x_NF[n], fact_NF[n], outside[n], record[n] = online.unpack(row, width)
        present = tuple(row is not None and name != online.WHOLE for row, name in zip(packed, patient_ids, strict=True))
        told = Rows(patient_ids=tuple(patient_ids), time_N=time_N, x_NF=x_NF, fact_NF=fact_NF, outside=tuple(outside), record=tuple(record))
        return told, present


def _told(folder: Path, needed: Sequence[str]) -> Any:
    """What store.json says. Raises StoreError where it or another file is missing or empty."""
    for name in needed:
        if not (folder / name).is_file() or (folder / name).stat().st_size == 0:
            raise StoreError(f"The feature store {folder} has no {name}. Run the pipeline again: an empty store is never made up.")
    try:
        return json.loads((folder / "store.json").read_text(encoding="utf-8"))
    except ValueError:
        raise StoreError(f"The feature store {folder} has an unreadable store.json. Run the pipeline again.") from None
