"""Parquet files joined without reading their rows: the bytes of one writer."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features.footer import Joined


def table(rows: int, seed: int) -> pa.Table:
    """Columns of every kind that a footer tells about in a way of its own."""
    draw = np.random.default_rng(seed)
    words = pa.array([f"word {n % 7}" for n in range(rows)], pa.string()).dictionary_encode()
    return pa.table(
        {
            "word": words,
            "long": pa.array([f"{n}" * 40 for n in range(rows)], pa.string()),
            "time": pa.array(draw.integers(-(10**15), 10**15, rows), pa.timestamp("us", tz="UTC")),
            "value": pa.array(np.where(draw.random(rows) < 0.3, np.nan, draw.normal(size=rows))),
            "flag": pa.array(draw.random(rows) < 0.5, pa.bool_(), mask=draw.random(rows) < 0.2),
            "lists": pa.array([[n, -n] for n in range(rows)], pa.list_(pa.int64())),
        }
    )


def written(sink: io.BytesIO, tables: list[pa.Table], **settings: object) -> bytes:
    with pq.ParquetWriter(sink, tables[0].schema, compression="zstd", **settings) as file:
        for one in tables:
            file.write_table(one, row_group_size=400)
        file.add_key_value_metadata({"groups": "16"})
    return sink.getvalue()


@pytest.mark.parametrize("settings", [{}, {"use_dictionary": False}, {"data_page_size": 512}, {"write_statistics": False}])
def test_files_joined_are_the_bytes_of_one_writer(settings: dict[str, object]) -> None:
    tables = [table(rows, seed) for seed, rows in enumerate((300, 0, 1, 1000, *range(20)))]  # some empty, one of several row groups
    sink = io.BytesIO()
    joined = Joined(sink)
    for one in tables:
        joined.take(written(io.BytesIO(), [one], **settings))
    joined.finish()
    assert joined.rows == sum(one.num_rows for one in tables)
    assert sink.getvalue() == written(io.BytesIO(), tables, **settings)
    sink.seek(0)
    assert pq.read_table(sink).num_rows == joined.rows


def test_a_file_of_more_than_two_gigabytes_keeps_its_places(tmp_path: Path) -> None:
    """The file is sparse: what lies between is never written."""
    one = table(300, 1).drop_columns(["value"])  # NaN is not equal to itself
    with (tmp_path / "far.parquet").open("wb") as file:
        joined = Joined(file)
        joined._place = file.seek(5 << 30)
        joined.take(written(io.BytesIO(), [one]))
        joined.finish()
    assert pq.read_table(tmp_path / "far.parquet").equals(one)
