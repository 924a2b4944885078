"""The feature store: named columns for analysts, one packed row a patient for serving, both from the same computed numbers.

Feast's own joins drop patients and its TTL is not applied online, so rows are computed by `feature.compute` as of a time, and a stored
row carries the date of the newest fact behind every value: whoever reads it can tell what is stale.

Axis suffixes: N rows, F features.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from features import catalogue
from features.errors import ConcordantError
from features.feature import DAY_US, MODALITIES, Feature, Floats, Ints
from features.moment import BEGIN_US

PACKED = "serving_row"
_STAMP = pa.timestamp("us", tz="UTC")


class StoreError(ConcordantError):
    """The store can't be trusted or read; it is never recreated empty in silence."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Computed rows: `x_NF` raw values, `fact_NF` when the newest fact behind each was true (microseconds since 1970 UTC).

    `outside` is why a decision is not about the patient at that time, "" where it is. `record` is the coded record that safety rules
    look at, as JSON, "" where it was not asked for.
    """

    patient_ids: tuple[str, ...]
    time_N: Ints
    x_NF: Floats
    fact_NF: Ints
    outside: tuple[str, ...]
    record: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.record:
            object.__setattr__(self, "record", ("",) * len(self.patient_ids))

    def __len__(self) -> int:
        return len(self.patient_ids)

    def write(self, path: Path) -> None:
        """One Parquet file."""
        columns: dict[str, Any] = {
            "patient_id": list(self.patient_ids),
            "event_timestamp": pa.array(self.time_N, _STAMP),
            "outside": list(self.outside),
            "record": list(self.record),
        }
        columns |= {"values": _lists(self.x_NF, pa.float64()), "fact_times": _lists(self.fact_NF, pa.int64())}
        columns |= {"time_us": pa.array(self.time_N), "created": columns["event_timestamp"]}
        pq.write_table(pa.table(columns).replace_schema_metadata({"features": str(self.x_NF.shape[1])}), path)

    @classmethod
    def read(cls, path: Path) -> "Rows":
        """The rows that `write` wrote."""
        table = pq.read_table(path)
        width = int(table.schema.metadata[b"features"])
        flat = [np.asarray(table[name].combine_chunks().flatten()).reshape(-1, width) for name in ("values", "fact_times")]
        time_N = np.asarray(table["event_timestamp"].cast(pa.int64()))
        ids, outside, record = (tuple(table[name].to_pylist()) for name in ("patient_id", "outside", "record"))
        return cls(patient_ids=ids, time_N=time_N, x_NF=flat[0], fact_NF=flat[1], outside=outside, record=record)


def _lists(array: Any, kind: pa.DataType) -> pa.ListArray:
    offsets = np.arange(0, array.size + 1, array.shape[1]) if array.size else np.zeros(len(array) + 1, np.int64)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(np.ascontiguousarray(array).ravel(), kind))


def aged(features: Sequence[Feature], x_NF: Floats, fact_NF: Ints, now_N: Ints) -> tuple[Floats, list[tuple[str, ...]]]:
    """Rows as they may be used at `now_N`: a value whose newest fact is older than the feature allows becomes NaN.

    Returns the rows and, for each, the names of the features that were stale. A value that was never there is missing, not stale.
    """
    limit_F = np.array([math.inf if f.valid_days is None else f.valid_days for f in features])
    stale_NF = (fact_NF > BEGIN_US) & ((now_N[:, None] - fact_NF) / DAY_US > limit_F)
    names = [tuple(f.name for f, old in zip(features, row, strict=True) if old) for row in stale_NF]
    return np.where(stale_NF, np.nan, x_NF), names


# --------------------------------------------------------------------------------------------------------------------- what Feast sees


def fill(folder: Path, decision: str, features: Sequence[Feature], training: Rows, serving: Rows, home: Path | None = None) -> None:
    """Make a store: offline files by modality, the registry, and the online rows of `serving`.

    `home` is where the folder will lie in the end, because Feast's registry holds absolute paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("registry.db", "online.db"):  # whoever is no longer in the records is no longer in the store
        (folder / name).unlink(missing_ok=True)
    told = {"decision": decision, "columns": [f.name for f in features], "catalogue": catalogue.digest(features)}
    for modality in MODALITIES:
        _write_modality(folder / f"{modality}.parquet", modality, features, (training, serving))
    serving.write(folder / f"{PACKED}.parquet")
    (folder / "store.json").write_text(json.dumps(told), encoding="utf-8")
    store = register(folder, home)
    if len(serving):
        store.write_to_online_store(PACKED, _frame(serving))


def register(folder: Path, home: Path | None = None) -> Any:
    """Write Feast's registry of a store for the place where it lies, or will lie: to be called again after a store was moved."""
    store = _feast(folder)
    store.apply(list(definitions(folder, home)))
    return store


def _write_modality(path: Path, modality: str, features: Sequence[Feature], parts: Sequence[Rows]) -> None:
    ids = [patient for part in parts for patient in part.patient_ids]
    time = pa.array(np.concatenate([part.time_N for part in parts]), _STAMP)
    x_NF = np.concatenate([part.x_NF for part in parts])
    columns: dict[str, Any] = {"patient_id": pa.array(ids, pa.string()), "event_timestamp": time, "created": time}
    columns |= {f.name: x_NF[:, n] for n, f in enumerate(features) if f.modality == modality}
    pq.write_table(pa.table(columns), path)


def _frame(rows: Rows) -> Any:
    import pandas as pd

    stamp = pd.to_datetime(pd.Series(rows.time_N), unit="us", utc=True).dt.as_unit("us")
    columns = {"patient_id": list(rows.patient_ids), "event_timestamp": stamp, "created": stamp, "values": list(rows.x_NF)}
    return pd.DataFrame(
        columns | {"fact_times": list(rows.fact_NF), "outside": list(rows.outside), "record": list(rows.record), "time_us": rows.time_N}
    )


def definitions(folder: Path, home: Path | None = None) -> tuple[Any, ...]:
    """Feast's objects, derived from the catalogue: entity, a view a modality, the packed view, the decision's service."""
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.types import Array, Float64, Int64, String

    told = json.loads((folder / "store.json").read_text(encoding="utf-8"))
    columns = catalogue.select(told["columns"])
    patient = Entity(name="patient", join_keys=["patient_id"], value_type=ValueType.STRING, description="Keyed pseudonym of a patient")

    def view(name: str, schema: list[Any], description: str, online: bool) -> Any:
        source = FileSource(
            name=f"{name}_file",
            path=str((home or folder).resolve() / f"{name}.parquet"),
            timestamp_field="event_timestamp",
            created_timestamp_column="created",
        )
        return FeatureView(
            name=name,
            entities=[patient],
            ttl=timedelta(0),
            source=source,
            schema=schema,
            online=online,
            description=description,
            tags={"phi": "pseudonymous"},
        )

    def field(f: Feature) -> Any:
        tags = {"unit": f.unit, "concepts": ", ".join(f.concepts), "valid_days": "" if f.valid_days is None else f"{f.valid_days:g}"}
        return Field(name=f.name, dtype=Float64, description=f"{f.meaning} [{f.unit}]", tags=tags)

    views = [
        view(m, [field(f) for f in columns if f.modality == m], f"{m.capitalize()} of a patient as it was known at a time", online=False)
        for m in MODALITIES
    ]
    packed = [Field(name="values", dtype=Array(Float64)), Field(name="fact_times", dtype=Array(Int64))]
    packed += [Field(name="outside", dtype=String), Field(name="record", dtype=String), Field(name="time_us", dtype=Int64)]
    row = view(PACKED, packed, f"All {len(columns)} features of {told['decision']} in one array, in the order of the decision", online=True)
    service = FeatureService(name=told["decision"], features=views, description=f"Features of the decision {told['decision']}")
    return (patient, *views, row, service)


def _feast(folder: Path) -> Any:
    """Feast on a store folder; its configuration is the one of `features/repo`."""
    from feast import FeatureStore, RepoConfig

    text = Path(__file__).with_name("repo").joinpath("feature_store.yaml").read_text(encoding="utf-8")
    raw = yaml.safe_load(text.replace("${CONCORDANT_STORE}", str(folder.resolve())))
    return FeatureStore(config=RepoConfig(**raw, repo_path=folder.resolve()))


class OnlineRows:
    """Reads packed rows by pseudonym. Raises StoreError where the store is missing or was written under another catalogue."""

    def __init__(self, folder: Path) -> None:
        for name in ("registry.db", "online.db", "store.json"):
            if not (folder / name).is_file() or (folder / name).stat().st_size == 0:
                raise StoreError(f"The feature store {folder} has no {name}. Run the pipeline again: an empty store is never made up.")
        try:
            told = json.loads((folder / "store.json").read_text(encoding="utf-8"))
            names, written = [str(name) for name in told["columns"]], told["catalogue"]
        except (ValueError, TypeError, KeyError):
            raise StoreError(f"The feature store {folder} has an unreadable store.json. Run the pipeline again.") from None
        known = all(name in catalogue.FEATURES for name in names)
        if not known or written != catalogue.digest(catalogue.select(names)):
            raise StoreError("The feature store was written with another feature catalogue. Run the pipeline again.")
        self.features = catalogue.select(names)
        self._folder = folder

    @cached_property
    def _store(self) -> Any:
        return _feast(self._folder)

    @cached_property
    def _view(self) -> list[Any]:
        return [f"{PACKED}:{name}" for name in ("values", "fact_times", "outside", "record", "time_us")]

    def read(self, patient_ids: Sequence[str]) -> tuple[Rows, tuple[bool, ...]]:
        """Rows of some patients and which of them were found; a row that was not found is all NaN. Rows in = rows out, in order."""
        if not patient_ids:
            nothing = np.zeros((0, len(self.features)))
            return Rows(
                patient_ids=(), time_N=np.zeros(0, np.int64), x_NF=nothing, fact_NF=nothing.astype(np.int64), outside=(), record=()
            ), ()
        entities = [{"patient_id": patient} for patient in patient_ids]
        found = self._store.get_online_features(features=self._view, entity_rows=entities, full_feature_names=False)
        columns = found.to_dict()
        width, present = len(self.features), tuple(values is not None for values in columns["values"])
        x_NF, fact_NF = np.full((len(patient_ids), width), np.nan), np.full((len(patient_ids), width), BEGIN_US, np.int64)
        for n, here in enumerate(present):
            if here:
                x_NF[n], fact_NF[n] = columns["values"][n], columns["fact_times"][n]
        time_N = np.array([time if time is not None else BEGIN_US for time in columns["time_us"]], np.int64)
        outside, record = (tuple(text or "" for text in columns[name]) for name in ("outside", "record"))
        return Rows(patient_ids=tuple(patient_ids), time_N=time_N, x_NF=x_NF, fact_NF=fact_NF, outside=outside, record=record), present
