"""Cohort and features by groups of patients: the bytes that one process makes of everybody."""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from components import sharded, study
from components.cohort import EmptyCohort, select
from components.decision import load
from features import events
from features.events import PseudonymKey

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DECISION = load("glucose_lowering")


@dataclass(frozen=True)
class Alone:
    """What one process made."""

    events: Path
    cohort: Path
    features: Path


@pytest.fixture(scope="module")
def alone(small_export: Path, key: PseudonymKey, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    home = tmp_path_factory.mktemp("alone")
    made = Alone(home / "events", home / "cohort", home / "features")
    events.ingest(str(small_export), made.events, key, now=NOW)
    table = events.read(made.events)
    cohort = select(table, DECISION)
    made.cohort.mkdir()
    made.features.mkdir()
    cohort.write(made.cohort)
    study.build(DECISION, table, cohort, made.features)
    return made


def pieces(alone: Alone, place: Path, count: int) -> list[Path]:
    found = [place / str(shard) for shard in range(count)]
    for shard, folder in enumerate(found):
        folder.mkdir()
        sharded.build(DECISION, alone.events, shard, count, folder)
    return found


def same(one: Path, other: Path) -> None:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.mark.parametrize("count", [1, 3, 20])  # 16 groups: with 20 shards some have nobody
def test_any_number_of_shards_makes_the_same_bytes(alone: Alone, tmp_path: Path, count: int) -> None:
    found = pieces(alone, tmp_path, count)
    for name in ("cohort", "features"):
        (tmp_path / name).mkdir()
    cohort = sharded.join_cohorts(DECISION, found, tmp_path / "cohort")
    sharded.join_features(found[::-1], tmp_path / "features")
    same(alone.cohort, tmp_path / "cohort")
    same(alone.features, tmp_path / "features")
    assert len(cohort) == cohort.flow[-2][1]


def test_too_few_patients_are_told_of_all_shards_together(alone: Alone, tmp_path: Path) -> None:
    found = pieces(alone, tmp_path, 8)
    with pytest.raises(EmptyCohort, match="patients on record"):
        sharded.join_cohorts(DECISION, found[:1], tmp_path)  # an eighth of 300 patients is fewer than are needed


def test_every_patient_is_in_one_shard(alone: Alone) -> None:
    parts = [set(events.read(alone.events, shard, 5)["patient_id"].to_pylist()) for shard in range(5)]
    assert sum(map(len, parts)) == len(set().union(*parts)) == len(set(events.read(alone.events)["patient_id"].to_pylist()))
    assert events.newest_in(alone.events) == events.newest_us(events.read(alone.events))
