"""The join of stored feature values: rows in = rows out, nothing recorded later, nothing expired; told against plain Python."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from features import store
from features.asof import in_numpy, known_rows, values_at
from features.rows import Rows, StoreError

US = 1_000_000
row = st.tuples(st.integers(0, 4), st.integers(0, 12), st.integers(0, 8))
ask = st.tuples(st.integers(-1, 5), st.integers(0, 14))


def plainly(rows: list[tuple[int, int, int]], patient: int, time: int, valid: int) -> tuple[int, int, int] | None:
    """The same in one line: newest by time then by recorded time, of those known; none where that one is expired."""
    known = [entry for entry in rows if entry[0] == patient and entry[1] <= time and entry[1] + entry[2] <= time]
    best = max(known, key=lambda entry: (entry[1], entry[1] + entry[2]), default=None)
    return None if best is None or (valid and best[1] < time - valid) else best


@settings(max_examples=examples(200, 5000), deadline=None)
@given(st.lists(row, max_size=25), st.lists(ask, max_size=15), st.sampled_from([0, 3]))
def test_the_row_of_an_ask_is_the_newest_known_one(rows: list[tuple[int, int, int]], asks: list[tuple[int, int]], valid: int) -> None:
    table = np.array(rows, np.int64).reshape(-1, 3)
    asked = np.array(asks, np.int64).reshape(-1, 2)
    found = known_rows(table[:, 0], table[:, 1], table[:, 1] + table[:, 2], asked[:, 0], asked[:, 1], valid)
    assert len(found) == len(asks)
    for n, (patient, time) in enumerate(asks):
        expected = None if patient < 0 else plainly(rows, patient, time, valid)
        assert (None if found[n] < 0 else rows[found[n]]) == expected


def stored(path: Path) -> Path:
    """Four patients: one as it should be, one recorded late, one expired, one known only later."""
    days = lambda *numbers: pd.to_datetime(list(numbers), unit="D", utc=True).as_unit("us")  # noqa: E731
    pd.DataFrame(
        {
            "patient_id": ["plain", "plain", "late", "late", "expired", "later"],
            "event_timestamp": days(100, 110, 100, 110, 1, 200),
            "created": days(100, 110, 100, 150, 1, 200),
            "egfr": [60.0, 61.0, 70.0, 71.0, 80.0, 90.0],
        }
    ).to_parquet(path)
    return path


def test_late_expired_later_and_unknown_rows_are_kept_and_empty_in_the_order_asked(tmp_path: Path) -> None:
    path = stored(tmp_path / "values.parquet")
    asked = pa.array(["unknown", "later", "late", "expired", "plain", "late"])
    time_N = np.array([120, 120, 120, 120, 120, 160]) * 86_400 * US
    told = values_at(path, ["egfr"], asked, time_N, valid_us=90 * 86_400 * US)
    assert told["egfr"].to_pylist() == [None, None, 70.0, None, 61.0, 71.0]


def test_the_result_does_not_depend_on_the_order_of_the_stored_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame(
        {
            "patient_id": [f"p{n}" for n in rng.integers(0, 50, 400)],
            "event_timestamp": pd.to_datetime(rng.permutation(400), unit="h", utc=True).as_unit("us"),
            "x": rng.normal(size=400),
        }
    )
    frame["created"] = frame["event_timestamp"] + pd.to_timedelta(rng.integers(0, 40, 400), unit="h")
    asked, time_N = pa.array([f"p{n}" for n in rng.integers(0, 60, 300)]), rng.integers(0, 400, 300) * 3600 * US
    told = []
    for shuffled in (frame, frame.sample(frac=1, random_state=1), frame.sort_values(["patient_id", "event_timestamp"])):
        shuffled.to_parquet(tmp_path / "x.parquet", row_group_size=37)
        told.append(values_at(tmp_path / "x.parquet", ["x"], asked, time_N)["x"].to_pylist())
    assert told[0] == told[1] == told[2]
    assert 20 < sum(value is not None for value in told[0]) < 300


@pytest.fixture
def feast(tmp_path: Path) -> "object":
    """Feast on one view with a ttl of 90 days, with the offline store of our repository."""
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64

    source = FileSource(
        path=str(stored(tmp_path / "values.parquet")), timestamp_field="event_timestamp", created_timestamp_column="created"
    )
    patient = Entity(name="patient", join_keys=["patient_id"], value_type=ValueType.STRING)
    view = FeatureView(name="labs", entities=[patient], ttl=timedelta(days=90), source=source, schema=[Field(name="egfr", dtype=Float64)])
    config = RepoConfig(
        project="joins",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        offline_store={"type": "features.offline.AsOfOfflineStore"},
        online_store={"type": "sqlite", "path": str(tmp_path / "online.db")},
        entity_key_serialization_version=3,
        repo_path=tmp_path,
    )
    opened = FeatureStore(config=config)
    opened.apply([patient, view])
    return opened


def asks() -> pd.DataFrame:
    days = pd.to_datetime([120, 120, 120, 120, 120, 160], unit="D", utc=True)
    return pd.DataFrame(
        {"note": list("abcdef"), "patient_id": ["unknown", "later", "late", "expired", "plain", "late"], "event_timestamp": days}
    )


def test_feasts_get_historical_features_has_our_semantics(feast: "store.Any", tmp_path: Path) -> None:
    from feast.infra.offline_stores.file_source import SavedDatasetFileStorage

    job = feast.get_historical_features(asks(), features=["labs:egfr"])
    frame = job.to_df()
    assert frame["note"].tolist() == list("abcdef") and frame["patient_id"].tolist() == asks()["patient_id"].tolist()
    assert frame["egfr"].fillna(-1).tolist() == [-1, -1, 70.0, -1, 61.0, 71.0]
    assert job.metadata.features == ["labs:egfr"]
    full = feast.get_historical_features(asks(), features=["labs:egfr"], full_feature_names=True).to_arrow()
    assert full.column_names == ["note", "patient_id", "event_timestamp", "labs__egfr"]
    job.persist(SavedDatasetFileStorage(str(tmp_path / "saved.parquet")))
    assert pq.read_table(tmp_path / "saved.parquet")["egfr"].to_pylist() == [None, None, 70.0, None, 61.0, 71.0]
    with pytest.raises(StoreError, match="exists already"):
        job.persist(SavedDatasetFileStorage(str(tmp_path / "saved.parquet")))


def test_what_can_not_be_joined_is_told(feast: "store.Any") -> None:
    with pytest.raises(StoreError, match="data frame"):
        feast.get_historical_features("select * from asks", features=["labs:egfr"]).to_df()


def test_a_runs_store_answers_analysts_by_the_same_join(tmp_path: Path) -> None:
    from features import catalogue

    features = catalogue.select(["hba1c_mmol_mol", "smoker_current", "cyp2c9_star2"])
    time_N = np.array([100, 120]) * 86_400 * US
    rows = Rows(
        patient_ids=("a", "a"),
        time_N=time_N,
        x_NF=np.array([[50.0, 1.0, 0.0], [60.0, 0.0, 1.0]]),
        fact_NF=np.zeros((2, 3), np.int64),
        outside=("", ""),
    )
    store.fill(tmp_path / "store", "glucose_lowering", features, rows, rows)
    opened = store._feast(tmp_path / "store")
    days = pd.to_datetime([121, 119, 99], unit="D", utc=True)
    asked = pd.DataFrame({"patient_id": ["a", "a", "a"], "event_timestamp": days})
    told = opened.get_historical_features(asked, features=opened.get_feature_service("glucose_lowering")).to_df()
    assert told["hba1c_mmol_mol"].fillna(-1).tolist() == [60.0, 50.0, -1]


@pytest.mark.parametrize("ids", [["a" * 32, "b" * 32, "c" * 32], ["a", "bb", "a longer one"]])
def test_every_kind_of_column_is_picked_as_arrow_would_pick_it(tmp_path: Path, ids: list[str]) -> None:
    table = pa.table(
        {
            "patient_id": pa.array([*ids, None]),
            "event_timestamp": pa.array([1, 2, 3, 4], pa.timestamp("us", tz="UTC")),
            "whole": pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()),
            "holes": pa.array([1.0, None, float("nan"), 4.0]),
            "word": ["x", None, "z", "w"],
            "count": pa.array([1, 2, None, 4], pa.int32()),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=2)
    asked = pa.array([ids[2], None, ids[0], "d" * 32, ids[1], ids[2]])
    names = ["whole", "holes", "word", "count"]
    told = values_at(tmp_path / "x.parquet", names, asked, np.full(6, 10), keys=("patient_id", "event_timestamp", None))
    expected = table.select(names).take(pa.array([2, None, 0, None, 1, 2]))
    assert str(told.to_pydict()) == str(expected.to_pydict())  # as text: a NaN is none other
    frame = pd.DataFrame({name: in_numpy(told[name].chunk(0)) for name in names}, copy=False)
    pd.testing.assert_frame_equal(frame, expected.to_pandas())
    frame.loc[0, "whole"] = 5.0  # whoever asked may write
    nobody = values_at(
        tmp_path / "x.parquet", names, pa.array([], pa.string()), np.zeros(0, np.int64), keys=("patient_id", "event_timestamp", None)
    )
    assert nobody.num_rows == 0 and nobody.column_names == names
