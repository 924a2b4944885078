"""Feast's registry in a real PostgreSQL: definitions that several people look up, and the values that they lead to."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import psycopg
import pytest

from features import catalogue, shared, store
from features.events import PseudonymKey
from features.moment import DAY_US
from features.rows import Rows, StoreError

if TYPE_CHECKING:
    from pipelines.servers import LocalServer

FEATURES = catalogue.select(["age_years", "hba1c_mmol_mol", "prs_bmi", "sleep_hours"])
TIME = int(datetime(2025, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000


def filled(folder: Path, key: PseudonymKey) -> Rows:
    """A store of 50 patients."""
    ids = tuple(key.pseudonym(str(n)) for n in range(50))
    x_NF = np.arange(50.0)[:, None] + np.array([[0.0, 0.25, 0.5, 0.75]])
    rows = Rows(patient_ids=ids, time_N=np.full(50, TIME), x_NF=x_NF, fact_NF=np.full((50, 4), TIME - DAY_US), outside=("",) * 50)
    store.fill(folder, "glucose_lowering", FEATURES, rows, rows)
    return rows


@pytest.mark.slow
def test_definitions_are_looked_up_and_values_read_through_postgresql(
    servers: "dict[str, LocalServer]", tmp_path: Path, key: PseudonymKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = servers["postgresql"].url
    monkeypatch.setenv(shared.SETTING, url)
    rows = filled(tmp_path / "store", key)
    with shared.opened(tmp_path, "glucose_lowering") as analyst:
        described = {field.name: field.description for field in analyst.get_feature_view("history").schema}
        service = analyst.get_feature_service("glucose_lowering")
        asked = pd.DataFrame({"patient_id": rows.patient_ids, "event_timestamp": pd.Timestamp("2025-06-01", tz="UTC")})
        found = analyst.get_historical_features(asked, service).to_df().set_index("patient_id").loc[list(rows.patient_ids)]
    assert described["hba1c_mmol_mol"].endswith("[mmol/mol]")
    assert np.array_equal(found[[feature.name for feature in FEATURES]].to_numpy(), rows.x_NF)  # bit for bit
    with psycopg.connect(url) as connection:
        told = connection.execute("SELECT encode(feature_view_proto, 'escape') FROM feature_views").fetchall()
    assert len(told) == 4 and not any(rows.patient_ids[0] in text for (text,) in told)  # definitions alone: no patient
    shared.publish(tmp_path, "glucose_lowering", store.definitions(tmp_path / "store", tmp_path / "moved"))
    with shared.opened(tmp_path, "glucose_lowering") as again:
        assert "/moved/" in again.get_feature_view("history").batch_source.path  # the newest store's, in place of the former


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("redis://127.0.0.1:1/0", "names no PostgreSQL"),
        ("postgresql://user:ZQSECRET@127.0.0.1", "names no PostgreSQL"),
        ("postgresql://user:ZQSECRET@127.0.0.1:1/feast", "can't be written"),
    ],
)
def test_a_registry_that_can_not_be_written_is_told_without_the_password(
    tmp_path: Path, key: PseudonymKey, monkeypatch: pytest.MonkeyPatch, url: str, sentence: str
) -> None:
    monkeypatch.setenv(shared.SETTING, url)
    with pytest.raises(StoreError, match=sentence) as refused:
        filled(tmp_path / "store", key)
    assert "ZQSECRET" not in str(refused.value)
