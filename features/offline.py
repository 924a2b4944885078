"""Feast's offline store, with the join its users believe they have: `get_historical_features` keeps every row, in order, and never sees
what was recorded later. Everything else is Feast's DuckDB store. Feast finds the class by its name in `repo/feature_store.yaml`.
"""

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, FileSource
from feast.infra.offline_stores.duckdb import DuckDBOfflineStore, DuckDBOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.infra.offline_stores.offline_utils import infer_event_timestamp_from_entity_df

from features.asof import in_numpy, micros, renamed, values_at
from features.rows import StoreError


class AsOfOfflineStoreConfig(DuckDBOfflineStoreConfig):  # type: ignore[misc]  # feast has no types
    """Settings of the DuckDB store, under our name."""

    type: Literal["features.offline.AsOfOfflineStore"] = "features.offline.AsOfOfflineStore"


class AsOfOfflineStore(DuckDBOfflineStore):  # type: ignore[misc]
    """Feast's DuckDB store with our join."""

    @staticmethod
    def get_historical_features(
        config: Any,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame | str | None,
        registry: Any,
        project: str,
        full_feature_names: bool = False,
        **options: Any,
    ) -> RetrievalJob:
        """Values of some features as they were known to each row of `entity_df`. Raises StoreError for what it can't join."""
        del registry, project
        if not isinstance(entity_df, pd.DataFrame):
            raise StoreError(
                "Give the asks as a data frame with patient_id and event_timestamp: a query or a range of dates is not joined."
            )
        del options  # Feast's `filter_by_created_timestamp`: what was recorded later is never seen, asked for or not
        return AsOfJob(entity_df, feature_views, feature_refs, full_feature_names, Path(config.repo_path))


class AsOfJob(RetrievalJob):  # type: ignore[misc]
    """One join, done when its result is asked for."""

    def __init__(self, asked: pd.DataFrame, views: list[FeatureView], refs: list[str], full_names: bool, repo: Path) -> None:
        self._asked, self._views, self._refs, self._full_names, self._repo = asked, views, refs, full_names, repo
        self._stamp = infer_event_timestamp_from_entity_df(dict(asked.dtypes))

    @property
    def full_feature_names(self) -> bool:
        """Whether a feature is told as view__feature."""
        return self._full_names

    @property
    def on_demand_feature_views(self) -> list[Any]:
        """None: a function out of a shared registry is not run."""
        return []

    @property
    def metadata(self) -> RetrievalMetadata:
        """What was asked."""
        when = self._asked[self._stamp]
        keys = [str(name) for name in self._asked.columns if name != self._stamp]
        return RetrievalMetadata(self._refs, keys, when.min(), when.max())

    def to_df(self, validation_reference: Any = None, timeout: int | None = None) -> pd.DataFrame:
        """The same as a data frame: what was asked as it was given, times in UTC, and a column a feature, none of them copied."""
        table = self.to_arrow(validation_reference=validation_reference, timeout=timeout)
        given = self._asked.assign(**{self._stamp: pd.to_datetime(self._asked[self._stamp], utc=True)}).reset_index(drop=True)
        columns = {name: given[name] if name in given else in_numpy(table[name].chunk(0)) for name in table.column_names}
        return pd.DataFrame(columns, copy=False)

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        asked = self._asked.assign(**{self._stamp: pd.to_datetime(self._asked[self._stamp], utc=True)})
        table = pa.Table.from_pandas(asked, preserve_index=False)
        time_N = micros(table[self._stamp])
        for view in self._views:
            for name, column in self._values(view, table, time_N).items():
                table = table.append_column(name, column)
        return table

    def _values(self, view: FeatureView, table: pa.Table, time_N: Any) -> dict[str, Any]:
        source, keys = view.batch_source, view.projection.join_key_map or {e.name: e.name for e in view.entity_columns}
        if len(keys) != 1 or not isinstance(source, FileSource):
            raise StoreError(f"The view {view.name} is not joined: it needs one entity and a Parquet file.")
        ((stored, given),) = keys.items()
        names = [ref.split(":")[1] for ref in self._refs if ref.split(":")[0] == view.projection.name_to_use()]
        back = {told: inside for inside, told in source.field_mapping.items()}
        words = table[given].cast(pa.string())
        found = values_at(
            FileSource.get_uri_for_file_path(repo_path=str(self._repo), uri=source.file_options.uri).removeprefix("file://"),
            [back.get(name, name) for name in names],
            words,
            time_N,
            keys=(stored, source.timestamp_field, source.created_timestamp_column or None),
            valid_us=int((view.ttl or timedelta(0)) / timedelta(microseconds=1)),
        )
        found = renamed(found, {inside: told for told, inside in back.items()})
        prefix = f"{view.projection.name_alias or view.name}__" if self._full_names else ""
        return {prefix + name: found[name] for name in names}

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()

    def persist(self, storage: Any, allow_overwrite: bool = False, timeout: int | None = None) -> None:
        """Write the result as a Parquet file. Raises StoreError where there is one already."""
        path = Path(storage.file_options.uri.removeprefix("file://"))
        if path.exists() and not allow_overwrite:
            raise StoreError("The saved data set exists already. Give another path, or allow_overwrite=True.")
        pq.write_table(self._to_arrow_internal(timeout), path)
