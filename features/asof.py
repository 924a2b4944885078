"""Point-in-time join of feature values that were computed before: for each ask, the newest row that was known then.

A row is known from the later of its two times, when it was true and when it was recorded. Rows in = rows out, in the order asked; an ask
without a known row has no values. The cost is a sort of the rows and a few passes over the asks, whatever the number of columns.

Axis suffixes: N asks, M rows of values.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from features.feature import Ints

_FLOATS = (pa.float32(), pa.float64())


def known_rows(patient_M: Ints, time_M: Ints, recorded_M: Ints, patient_N: Ints, time_N: Ints, valid_us: int = 0) -> Ints:
    """Row of each ask, -1 where none was known: newest time, then newest recorded time, then later in the table.

    `patient_M` and `patient_N` number the same patients, -1 in `patient_N` for one without rows. A row older than `valid_us` is expired
    and counts as none (0: rows never expire), as Feast's ttl has it.
    """
    order_M = _order(patient_M, time_M, recorded_M)
    times_M, recordeds_M = time_M[order_M], recorded_M[order_M]
    count_P = np.bincount(patient_M, minlength=int(patient_N.max(initial=-1)) + 1)
    count_P = np.append(count_P, 0)  # what -1 stands for: nobody's rows
    begin_N = (np.cumsum(count_P) - count_P)[patient_N]
    low_N, high_N = begin_N.copy(), begin_N + count_P[patient_N]
    while (open_N := low_N < high_N).any():  # one binary search for all asks together
        middle_N = (low_N + high_N) // 2
        past_N = open_N & (times_M[np.minimum(middle_N, len(times_M) - 1)] <= time_N)
        low_N, high_N = np.where(past_N, middle_N + 1, low_N), np.where(open_N & ~past_N, middle_N, high_N)
    row_N = low_N - 1
    late = np.flatnonzero(row_N >= begin_N)
    while len(late := late[recordeds_M[row_N[late]] > time_N[late]]):  # recorded after the ask: the one before it
        row_N[late] -= 1
        late = late[row_N[late] >= begin_N[late]]
    found_N = row_N >= begin_N
    if valid_us:
        found_N[found_N] = times_M[row_N[found_N]] >= time_N[found_N] - valid_us
    return np.where(found_N, order_M[np.where(found_N, row_N, 0)] if len(order_M) else -1, -1)


def _order(patient_M: Ints, time_M: Ints, recorded_M: Ints) -> Ints:
    """Order by patient, time, recorded time, then place in the table; what already is in order is not sorted again."""
    step = np.diff(time_M)
    later = (step > 0) | ((step == 0) & (np.diff(recorded_M) >= 0))
    if later.all():
        return _by_patient(patient_M)
    step = np.diff(patient_M)
    if ((step > 0) | ((step == 0) & later)).all():
        return np.arange(len(patient_M))
    by_time_M = np.lexsort([recorded_M, time_M])
    return by_time_M[_by_patient(patient_M[by_time_M])]


def _by_patient(patient_M: Ints) -> Ints:
    """Stable order of small numbers: patient and place as one number, whose sort is several times as fast as a stable argsort."""
    places = len(patient_M).bit_length()
    if int(patient_M.max(initial=0)).bit_length() + places > 62:
        return np.argsort(patient_M, kind="stable")
    return np.sort((patient_M << places) | np.arange(len(patient_M))) & ((1 << places) - 1)


def values_at(
    path: Path | str,
    columns: Sequence[str],
    patients: pa.Array | pa.ChunkedArray,
    time_N: Ints,
    *,
    keys: tuple[str, str, str | None] = ("patient_id", "event_timestamp", "created"),
    valid_us: int = 0,
) -> pa.Table:
    """Columns of a Parquet file of feature values as they were known at each ask; null where no row was.

    `keys` names patient, time and recorded time (None: known when true) in the file. Behind a null of a floating column lies a NaN.
    """
    patient, time, recorded = keys
    stored = pq.read_table(path, columns=[name for name in keys if name], memory_map=True)
    number_M, number_N = _numbered(stored[patient], patients)
    mine = np.flatnonzero((number_M >= 0) & (number_M <= number_N.max(initial=-1)))  # rows of patients who are asked for
    time_M = micros(stored[time])[mine]
    row_N = known_rows(
        patient_M=number_M[mine],
        time_M=time_M,
        recorded_M=micros(stored[recorded])[mine] if recorded else time_M,
        patient_N=number_N,
        time_N=time_N,
        valid_us=valid_us,
    )
    row_N = np.where(row_N >= 0, mine[np.maximum(row_N, 0)] if len(mine) else -1, -1)
    del stored, number_M, number_N, time_M, mine
    with pq.ParquetFile(path, memory_map=True) as file:  # a column at a time: what is held beside the answer
        pick = _Pick(row_N)
        return pa.table({name: pick.of(file.read(columns=[name])[name]) for name in columns})


def _numbered(stored: pa.ChunkedArray, patients: pa.Array | pa.ChunkedArray) -> tuple[Ints, Ints]:
    """The same patients under the same numbers, those who are asked for first; -1 for null. One pass over one table of words."""
    asked = patients.chunks if isinstance(patients, pa.ChunkedArray) else [patients]
    both = pa.chunked_array([part.cast(pa.string()) for part in (*asked, *stored.chunks)], pa.string()).dictionary_encode()
    indices = pa.chunked_array([part.indices for part in both.chunks], pa.int32())
    numbers = np.asarray(pc.fill_null(indices, -1), np.int64)
    return numbers[len(patients) :], numbers[: len(patients)]


class _Pick:
    """The rows of one column after another, null where there is none."""

    def __init__(self, row_N: Ints) -> None:
        self.row_N, self.found_N = np.maximum(row_N, 0), row_N >= 0
        self.missing = np.flatnonzero(~self.found_N)
        self.places = pa.array(row_N, mask=~self.found_N)

    def of(self, column: pa.ChunkedArray) -> pa.Array:
        """Floating numbers are picked into memory that is allocated once, with a NaN behind each null; all else is left to Arrow."""
        if column.type not in _FLOATS or not len(column):
            return column.combine_chunks().take(self.places)
        values, valid_N = column, self.found_N
        if column.null_count:
            values = column.fill_null(np.nan)
            valid_N = valid_N & np.asarray(column.is_valid())[self.row_N]
        found = np.empty(len(self.row_N), column.type.to_pandas_dtype())
        np.take(values.to_numpy(), self.row_N, out=found, mode="clip")  # clip: the other modes go by way of a copy
        found[self.missing] = np.nan
        bits = pa.py_buffer(np.packbits(valid_N, bitorder="little"))
        return pa.Array.from_buffers(column.type, len(found), [bits, pa.py_buffer(found)])


def in_numpy(column: pa.Array) -> Any:
    """One column of `values_at` for a data frame: floating numbers are not copied."""
    if column.type not in _FLOATS or not len(column) or column.offset:
        return column.to_pandas()
    return np.frombuffer(column.buffers()[1], column.type.to_pandas_dtype(), len(column))


def micros(column: pa.ChunkedArray | pa.Array) -> Ints:
    """Timestamps of any resolution as microseconds since 1970 UTC; a time without zone is UTC."""
    zone = getattr(column.type, "tz", None)
    return np.asarray(column.cast(pa.timestamp("us", tz=zone), safe=False).cast(pa.int64()), np.int64)


def renamed(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    """The same table under other names."""
    return table.rename_columns([names.get(name, name) for name in table.column_names])
