"""Cohort and feature rows of some groups of patients, and all of them joined: the same bytes as `study.build` makes of everybody at once.

Axis suffixes: N rows.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from components.cohort import Cohort, enough, found
from components.decision import Decision, parse
from components.study import rows_at
from features import events
from features.feature import AsOf, Events, Ints, compute
from features.store import Rows


def build(decision: Decision, table: Path, shard: int, shards: int, folder: Path) -> tuple[int, int]:
    """Cohort, training and serving rows of every n-th group of the patients in an events folder; returns how many rows of each.

    Nothing here depends on other patients: a decision may leave some shards without anybody.
    """
    told = events.read(table, shard, shards)
    known = Events(told)
    cohort = found(known, decision)
    cohort.write(folder)
    training = rows_at(decision, known, cohort.patient_ids, cohort.time_N)
    everybody = tuple(known.patients)
    serving = rows_at(decision, known, everybody, np.full(len(everybody), events.newest_in(table)), record=True)
    training.write(folder / "training.parquet")
    serving.write(folder / "serving.parquet")
    extra_NF = compute(decision.extra_columns, AsOf(known, cohort.patient_ids, cohort.time_N))
    ordinal_of = dict(zip(told["patient_id"].to_pylist(), told["ordinal"].to_pylist(), strict=True))
    ordinals = {
        name: np.array([ordinal_of[p] for p in ids], np.int64) for name, ids in (("cohort", cohort.patient_ids), ("all", everybody))
    }
    save_file({"extra_NF": np.ascontiguousarray(extra_NF), **ordinals}, folder / "extra.safetensors")
    return len(training), len(serving)


def join_cohorts(decision: Decision, pieces: Sequence[Path], folder: Path) -> Cohort:
    """The cohort of all shards, in the order of the source. Raises EmptyCohort."""
    order_N = np.argsort(np.concatenate([_beside(piece)["cohort"] for piece in pieces]))
    parts = [Cohort.read(piece) for piece in pieces]
    flow = tuple((step, sum(part.flow[n][1] for part in parts)) for n, (step, _) in enumerate(parts[0].flow))
    harms = [part.harm_N for part in parts if part.harm_N is not None]  # of all parts, or of none
    cohort = Cohort(
        patient_ids=_taken([part.patient_ids for part in parts], order_N),
        time_N=np.concatenate([part.time_N for part in parts])[order_N],
        option_N=np.concatenate([part.option_N for part in parts])[order_N],
        target_N=np.concatenate([part.target_N for part in parts])[order_N],
        site_N=_taken([part.site_N for part in parts], order_N),
        flow=flow,
        harm_N=np.concatenate(harms)[order_N] if harms else None,
        controls={name: np.concatenate([part.controls[name] for part in parts])[order_N] for name in parts[0].controls},
    )
    enough(cohort, decision).write(folder)
    return cohort


def join_features(pieces: Sequence[Path], folder: Path) -> tuple[Rows, Rows]:
    """Training and serving rows of all shards, in the order of the source."""
    beside = [_beside(piece) for piece in pieces]
    cohort_N, all_N = (np.argsort(np.concatenate([each[name] for each in beside])) for name in ("cohort", "all"))
    training, serving = _rows(pieces, "training", cohort_N), _rows(pieces, "serving", all_N)
    training.write(folder / "training.parquet")
    serving.write(folder / "serving.parquet")
    extra_NF = np.concatenate([each["extra_NF"] for each in beside])[cohort_N]
    save_file({"extra_NF": np.ascontiguousarray(extra_NF)}, folder / "extra.safetensors")
    return training, serving


def _rows(pieces: Sequence[Path], name: str, order_N: Ints) -> Rows:
    parts = [Rows.read(piece / f"{name}.parquet") for piece in pieces]
    return Rows(
        patient_ids=_taken([part.patient_ids for part in parts], order_N),
        time_N=np.concatenate([part.time_N for part in parts])[order_N],
        x_NF=np.concatenate([part.x_NF for part in parts])[order_N],
        fact_NF=np.concatenate([part.fact_NF for part in parts])[order_N],
        outside=_taken([part.outside for part in parts], order_N),
        record=_taken([part.record for part in parts], order_N),
    )


def _beside(piece: Path) -> dict[str, Any]:
    """What lies beside a piece's rows: the extra columns, and the ordinals of its patients in the source."""
    return load_file(piece / "extra.safetensors")


def _taken(columns: Sequence[tuple[str, ...]], order_N: Ints) -> tuple[str, ...]:
    whole = [word for column in columns for word in column]
    return tuple(whole[n] for n in order_N)


def joined_cohort(decision: str, pieces: Sequence[str], folder: Path) -> str:
    """`join_cohorts` as a step says it."""
    cohort = join_cohorts(parse(decision), [Path(piece) for piece in pieces], folder)
    return f"{len(cohort):,} of {cohort.flow[0][1]:,} patients, {int(cohort.observed_N.sum()):,} with an outcome"


def joined_features(pieces: Sequence[str], folder: Path) -> str:
    """`join_features` as a step says it."""
    training, serving = join_features([Path(piece) for piece in pieces], folder)
    return f"{len(training):,} training rows, {len(serving):,} serving rows of {training.x_NF.shape[1]} features"
