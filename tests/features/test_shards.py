"""Ingest by many at once: the bytes of one process, whatever the number of shards, the engine, and where the facts of a patient lie."""

import gzip
import json
import os
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from features import engines, events, shards
from features.errors import ConcordantError
from features.events import PseudonymKey
from features.parts import Place

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
KEY = PseudonymKey(b"0123456789abcdef0123456789abcdef")
FILES = ("events.parquet", "quarantine.parquet", "summary.json")
CANARY = "ZQCANARYSH"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"


def request(identity: str, medication: str) -> dict[str, Any]:
    told = {"resourceType": "MedicationRequest", "id": identity, "status": "active", "intent": "order", "authoredOn": "2020-01-01"}
    return told | {"subject": {"reference": f"Patient/{CANARY}"}, "medicationReference": {"reference": f"Medication/{medication}"}}


def medication(identity: str, code: str) -> dict[str, Any]:
    return {"resourceType": "Medication", "id": identity, "code": {"coding": [{"system": RXNORM, "code": code}]}}


def observation(identity: str, value: float, **fields: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": identity,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4"}]},
        "subject": {"reference": f"Patient/{CANARY}"},
        "effectiveDateTime": "2020-03-01T00:00:00Z",
        "valueQuantity": {"value": value, "code": "mmol/mol"},
    } | fields


def lines(resources: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(resource).encode() + b"\n" for resource in resources)


@pytest.fixture(scope="module")
def uneven(small_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export as they come: one file of nearly everything, files of a line, one cut off, facts that lean on each other across files."""
    folder = tmp_path_factory.mktemp("uneven")
    for path in small_export.glob("*.ndjson"):
        if path.name.split(".")[0] != "Observation":
            (folder / path.name).write_bytes(path.read_bytes())
    told = [line for path in sorted(small_export.glob("Observation*.ndjson")) for line in path.read_bytes().splitlines(keepends=True)]
    random.Random(5).shuffle(told)  # every file holds a bit of everybody
    cut = len(told) * 9 // 10
    (folder / "Observation.000.ndjson").write_bytes(b"".join(told[:cut]))
    (folder / "Observation.001.ndjson.gz").write_bytes(gzip.compress(b"".join(told[cut:]), mtime=0)[:-2000])
    (folder / "Observation.002.ndjson").write_bytes(b"".join(told[:40]) + b'{"resourceType": "Obs')  # a second time, and half a line
    (folder / "Patient.001.ndjson").write_bytes(lines([{"resourceType": "Patient", "id": CANARY, "birthDate": "1950-02-03"}]))
    (folder / "aa.ndjson").write_bytes(lines([observation("v", 40), request("r1", "late"), request("r2", "near"), request("r3", "no")]))
    (folder / "bb.ndjson").write_bytes(
        lines([medication("near", "11289"), request("r4", "near"), request("r5", "listed"), request("r1", "late")])
    )
    (folder / "cc.ndjson").write_bytes(
        lines([observation("v", 50, meta={"lastUpdated": "2021-01-01T00:00:00Z"}), medication("late", "6809")])
    )
    (folder / "dd.ndjson").write_bytes(lines([medication("late", "11289"), medication("near", "6809"), request("r6", "late")]))
    (folder / "Medication.ndjson").write_bytes(lines([medication("listed", "6809")]))
    gone = {"request": {"method": "DELETE", "url": "Observation/v"}}
    bundle = {"resourceType": "Bundle", "entry": [gone], "timestamp": "2022-01-01T00:00:00Z"}
    (folder / "history.json").write_text(json.dumps(bundle))
    (folder / "zz.ndjson").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def alone(uneven: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process makes of it."""
    out = tmp_path_factory.mktemp("alone")
    events.ingest(str(uneven), out, KEY, now=NOW)
    return out


def by_hand(source: Path, place: Path, out: Path, count: int, dates: events.Dates = "kept") -> dict[str, Any]:
    """All shards one after the other, the last first, in this process."""
    shards.plan(str(source), str(place), count, NOW_US, KEY)
    for share in reversed(range(count)):
        shards.read_share(str(place), share, KEY)
    shards.settle(str(place), KEY, dates)
    for shard in reversed(range(count)):
        shards.build(str(place), shard, KEY)
    return shards.join(str(place), out)


def same(one: Path, other: Path) -> None:
    for file in FILES:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert sorted(path.name for path in other.iterdir()) == list(FILES)


@pytest.mark.parametrize("count", [2, 5, 20])
def test_any_number_of_shards_makes_the_same_bytes(uneven: Path, alone: Path, tmp_path: Path, count: int) -> None:
    told = by_hand(uneven, tmp_path / "place", tmp_path / "out", count)
    same(alone, tmp_path / "out")
    assert told["accepted"] + told["quarantined"] == told["received"]
    shards.clear(str(tmp_path / "place"))
    assert not (tmp_path / "place").exists()


def test_the_source_holds_what_one_shard_alone_can_not_judge(alone: Path) -> None:
    told = json.loads((alone / "summary.json").read_text())
    reasons = {(entry["file"], entry["reason"]) for entry in told["reasons"]}
    assert {("aa.ndjson", "medication_missing"), ("Observation.001.ndjson.gz", "file_truncated")} <= reasons
    assert any(reason == "repeated" for _, reason in reasons)
    table = events.read(alone)
    mine = table.filter(np.asarray(table["patient_id"].to_pylist()) == KEY.pseudonym(CANARY)).to_pylist()
    taken = sorted(row["concept"] for row in mine if row["concept"].startswith("takes:"))
    assert taken == ["takes:metformin"] * 2 + ["takes:warfarin"] * 3  # r1 by the first `late`, r6 by that of its own file
    ended = sorted(row["superseded"].year for row in mine if row["concept"] == "hba1c")
    assert ended == [2021, 2022]


def test_processes_of_this_machine_make_the_same_bytes(uneven: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("features.source.PIECE", 100_000)
    shards.ingest(str(uneven), tmp_path / "out", KEY, shards=3, now=NOW)
    same(alone, tmp_path / "out")


def test_what_is_read_in_turn_is_read_once(uneven: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first takes all, the largest first: not in the order of the source."""
    monkeypatch.setattr("features.source.PIECE", 100_000)
    monkeypatch.setattr("features.collector._BATCH", 1_000_000)
    place = str(tmp_path / "place")
    told = shards.plan(str(uneven), place, 2, NOW_US, KEY)
    assert told.largest_first != sorted(told.largest_first)
    received = json.loads((alone / "summary.json").read_text())["received"]
    assert [shards.read_share(place, share, KEY, in_turn=True) for share in (0, 1)] == [received, 0]
    shards.settle(place, KEY)
    for shard in (0, 1):
        shards.build(place, shard, KEY)
    shards.join(place, tmp_path / "out")
    same(alone, tmp_path / "out")


@pytest.mark.slow
def test_a_ray_cluster_makes_the_same_bytes(uneven: Path, alone: Path, tmp_path: Path) -> None:
    shards.ingest(str(uneven), tmp_path / "out", KEY, shards=2, engine="ray", now=NOW)
    same(alone, tmp_path / "out")


@pytest.mark.shared_data
def test_real_shaped_records_make_the_same_bytes(shared_data: Path, tmp_path: Path) -> None:
    source = shared_data / "synthea_25"
    events.ingest(str(source), tmp_path / "alone", KEY, now=NOW)
    by_hand(source, tmp_path / "place", tmp_path / "out", 3)
    same(tmp_path / "alone", tmp_path / "out")


def test_shifted_dates_are_shifted_alike(uneven: Path, tmp_path: Path) -> None:
    events.ingest(str(uneven), tmp_path / "alone", KEY, now=NOW, dates="shifted")
    by_hand(uneven, tmp_path / "place", tmp_path / "out", 3, "shifted")
    same(tmp_path / "alone", tmp_path / "out")


def test_pieces_of_files_and_finer_groups_change_nothing(
    uneven: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("features.source.PIECE", 100_000)
    monkeypatch.setattr("features.collector._FLUSH", 500)
    by_hand(uneven, tmp_path / "place", tmp_path / "out", 4)
    same(alone, tmp_path / "out")
    monkeypatch.setattr("features.events.finer", lambda size: 256)
    monkeypatch.setattr("features.shards.finer", lambda size: 256)
    events.ingest(str(uneven), tmp_path / "fine", KEY, now=NOW)
    by_hand(uneven, tmp_path / "place", tmp_path / "fine-shards", 3)
    same(tmp_path / "fine", tmp_path / "fine-shards")
    plain, fine = (events.read(folder).drop_columns(["patient_id", "concept", "code", "unit"]) for folder in (alone, tmp_path / "fine"))
    assert fine.sort_by("source").num_rows == plain.num_rows
    assert fine["source"].equals(plain["source"]) and fine["ordinal"].equals(plain["ordinal"]) and fine["time"].equals(plain["time"])


def test_groups_stay_small_enough_for_memory() -> None:
    assert [events.finer(size << 30) for size in (0, 16, 17, 256, 257, 1 << 20)] == [16, 16, 256, 256, 4096, 4096]


def test_no_id_of_a_patient_lies_in_clear_between_the_steps(uneven: Path, tmp_path: Path) -> None:
    shards.plan(str(uneven), str(tmp_path), 3, NOW_US, KEY)
    for share in range(3):
        shards.read_share(str(tmp_path), share, KEY)
    shards.settle(str(tmp_path), KEY)
    waiting = [json.loads(path.read_text())["waiting"] for path in tmp_path.glob("part-000*.json")]
    assert max(map(len, waiting)) > 1000  # some do wait
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()


def test_shards_with_different_keys_are_refused(uneven: Path, tmp_path: Path) -> None:
    shards.plan(str(uneven), str(tmp_path), 1, NOW_US, KEY)
    shards.read_share(str(tmp_path), 0, KEY)
    with pytest.raises(ConcordantError, match="another pseudonym key"):
        shards.settle(str(tmp_path), PseudonymKey(b"another key, another key"))


def test_a_killed_shard_is_read_again(uneven: Path, alone: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    shards.plan(str(uneven), str(place), 2, NOW_US, KEY)
    (place / "part-0001").mkdir()
    (place / "part-0001" / "facts-0003").write_bytes(b"left by an attempt that was killed")
    for share in (0, 1, 1):
        shards.read_share(str(place), share, KEY)
    shards.settle(str(place), KEY)
    for shard in (0, 1, 0):
        shards.build(str(place), shard, KEY)
    shards.join(str(place), tmp_path / "out")
    same(alone, tmp_path / "out")


def test_a_place_where_an_ingest_was_killed_holds_nothing_of_it(small_export: Path, tmp_path: Path) -> None:
    """Its events were made, then the source grew: whoever takes them loses what is new."""
    source, place = tmp_path / "source", tmp_path / "place"
    shutil.copytree(small_export, source)
    by_hand(source, place, tmp_path / "killed", 2)
    more = [observation(f"more-{n}", 40) for n in range(50)]
    (source / "later.ndjson").write_bytes(lines([{"resourceType": "Patient", "id": CANARY, "birthDate": "1950-02-03"}, *more]))
    shards.ingest(str(source), tmp_path / "out", KEY, shards=2, place=str(place), now=NOW)
    events.ingest(str(source), tmp_path / "alone", KEY, now=NOW)
    same(tmp_path / "alone", tmp_path / "out")
    assert events.read(tmp_path / "out").num_rows > events.read(tmp_path / "killed").num_rows
    assert not place.exists()
    (place / "events").mkdir(parents=True)
    (place / "events" / "0000.parquet").write_bytes(b"left by an attempt that was killed")
    shards.plan(str(source), str(place), 2, NOW_US, KEY)
    assert [path.name for path in place.iterdir()] == ["plan.json"]


def test_patients_keep_their_order_where_an_unusual_line_is_read_after_a_later_one(tmp_path: Path) -> None:
    """A full batch of other resources stands before it, in one process only."""
    source = tmp_path / "source"
    source.mkdir()
    (source / "aa.ndjson").write_bytes(lines([{"resourceType": "Patient", "id": f"p{n}", "birthDate": "1950-02-03"} for n in range(3_999)]))
    unusual = [observation("", 40) | {"subject": {"reference": f"Patient/{name}"}} for name in ("A", "B")]
    for each in unusual:
        del each["id"]
    (source / "bb.ndjson").write_bytes(lines([*unusual, {"resourceType": "Patient", "id": "A", "birthDate": "1950-02-03"}]))
    for count in (1, 2, 3):
        shards.ingest(str(source), tmp_path / str(count), KEY, shards=count, now=NOW)
    same(tmp_path / "1", tmp_path / "2")
    same(tmp_path / "1", tmp_path / "3")
    table = events.read(tmp_path / "1")
    ordinal = dict(zip(table["patient_id"].to_pylist(), table["ordinal"].to_pylist(), strict=True))
    assert (ordinal[KEY.pseudonym("A")], ordinal[KEY.pseudonym("B")]) == (3_999, 4_000)


def test_a_join_of_a_group_that_was_not_built_says_so(uneven: Path, tmp_path: Path) -> None:
    by_hand(uneven, tmp_path / "place", tmp_path / "out", 2)
    (tmp_path / "place" / "events" / "0003.parquet").unlink()
    with pytest.raises(ConcordantError, match="was not built"):
        shards.join(str(tmp_path / "place"), tmp_path / "again")


def test_what_a_killed_ingest_left_beside_the_events_goes(uneven: Path, alone: Path, tmp_path: Path) -> None:
    (tmp_path / ".spoolx1" / "shuffle").mkdir(parents=True)
    (tmp_path / ".spoolx1" / "shuffle" / "facts-0003").write_bytes(CANARY.encode())
    shards.ingest(str(uneven), tmp_path, KEY, shards=2, now=NOW)
    same(alone, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_join_whose_result_was_lost_is_done_again(uneven: Path, alone: Path, tmp_path: Path) -> None:
    by_hand(uneven, tmp_path / "place", tmp_path / "lost", 2)
    shutil.rmtree(tmp_path / "lost")
    shards.join(str(tmp_path / "place"), tmp_path / "out")
    same(alone, tmp_path / "out")


def test_the_work_is_dealt_out_by_size(tmp_path: Path) -> None:
    for name, size in (("a", 900), ("b", 500), ("c", 300), ("d", 100)):
        (tmp_path / f"{name}.ndjson").write_bytes(b" " * size)
    found = shards.plan(str(tmp_path), str(tmp_path / "place"), 2, NOW_US, KEY)
    assert found.shares == [[0], [1, 2, 3]]
    assert shards.planned(Place(str(tmp_path / "place"))) == found


def test_a_shard_that_is_killed_and_one_that_fails_are_told_in_words(tmp_path: Path) -> None:
    with engines.opened("processes", 2) as run, pytest.raises(ConcordantError, match="does not exist"):
        run(shards.plan, [(str(tmp_path / "none"), str(tmp_path), 2, NOW_US, KEY)] * 2)
    with pytest.raises(ConcordantError, match="process was killed"), engines.opened("processes", 2) as run:
        run(os._exit, [(9,), (9,)])


def test_an_engine_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConcordantError, match="processes, ray"):
        shards.ingest(str(tmp_path), tmp_path / "out", KEY, shards=2, engine="spark")
