"""What the door makes of records as they come: medications by reference, suspected diagnoses, half-bad panels, deletions, any packing."""

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from features import events
from features.events import PseudonymKey, ingest, of_bundle
from features.feature import AsOf, Events
from features.moment import instant
from features.resources import Broken, gate
from features.source import Line

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
KEY = PseudonymKey(b"0123456789abcdef0123456789abcdef")
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"


def observation(identity: str = "o1", value: float = 50, **fields: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "id": identity,
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "4548-4"}]},
        "subject": {"reference": "Patient/p1"},
        "effectiveDateTime": "2020-03-01T00:00:00Z",
        "issued": "2020-03-02T00:00:00Z",
        "valueQuantity": {"value": value, "code": "mmol/mol"},
    } | fields


def request(reference: str = "Medication/m1") -> dict[str, Any]:
    told = {"resourceType": "MedicationRequest", "id": "r1", "status": "active", "intent": "order", "authoredOn": "2020-01-01"}
    return told | {"subject": {"reference": "Patient/p1"}, "medicationReference": {"reference": reference}}


MEDICATION = {"resourceType": "Medication", "id": "m1", "code": {"coding": [{"system": RXNORM, "code": "6809"}]}}


def put(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, resources in files.items():
        (folder / f"{name}.ndjson").write_text("".join(json.dumps(resource) + "\n" for resource in resources))
    return folder


def ingested(source: Path | str, out: Path, **options: Any) -> tuple[pa.Table, dict[str, Any]]:
    told = ingest(str(source), out, KEY, now=NOW, **options)
    return events.read(out), told


def concepts(table: pa.Table) -> set[str]:
    return set(table["concept"].to_pylist())


def hba1c(table: pa.Table, day: str) -> float:
    at = AsOf(Events(table), [KEY.pseudonym("p1")], np.array([instant(day)]))
    known = at.known("hba1c")
    return float(known.pick(known.last_row(), known.value_M)[0])


@pytest.mark.parametrize("name", ["Medication", "ZMedications"])
def test_a_medication_in_another_file_gives_the_drug_whichever_is_read_first(tmp_path: Path, name: str) -> None:
    table, told = ingested(put(tmp_path / "in", MedicationRequest=[request()], **{name: [MEDICATION]}), tmp_path / "out")
    assert concepts(table) == {"takes:metformin", "start:metformin"}
    assert told["quarantined"] == 0


def test_a_medication_that_nobody_sent_is_told(tmp_path: Path) -> None:
    table, told = ingested(put(tmp_path / "in", MedicationRequest=[request()]), tmp_path / "out")
    assert table.num_rows == 0
    assert told["reasons"] == [
        {"file": "MedicationRequest.ndjson", "type": "MedicationRequest", "reason": "medication_missing", "resources": 1}
    ]


def test_a_medication_of_the_same_bundle_is_found_by_full_url() -> None:
    entries = [{"resource": request("urn:uuid:5a")}, {"fullUrl": "urn:uuid:5a", "resource": MEDICATION}]
    assert concepts(of_bundle({"resourceType": "Bundle", "entry": entries}, KEY, NOW_US)) == {"takes:metformin", "start:metformin"}


@pytest.mark.parametrize("verification", ["unconfirmed", "provisional", "differential"])
def test_a_suspected_diagnosis_is_never_counted_as_one(tmp_path: Path, verification: str) -> None:
    told = {"resourceType": "Condition", "id": "c", "subject": {"reference": "Patient/p1"}, "recordedDate": "2020-01-01"}
    told["code"] = {"coding": [{"system": "http://snomed.info/sct", "code": "44054006"}]}
    told["verificationStatus"] = {"coding": [{"code": verification}]}
    table, _ = ingested(put(tmp_path / "in", Condition=[told]), tmp_path / "out")
    assert concepts(table) == {"record:condition", "unconfirmed:type_2_diabetes"}


def test_one_bad_part_of_a_blood_pressure_loses_only_itself(tmp_path: Path) -> None:
    part = [("8480-6", 900), ("8462-4", 80)]
    component = [
        {"code": {"coding": [{"system": "http://loinc.org", "code": c}]}, "valueQuantity": {"value": v, "code": "mm[Hg]"}} for c, v in part
    ]
    panel = observation(code={"coding": [{"system": "http://loinc.org", "code": "85354-9"}]}, component=component)
    del panel["valueQuantity"]
    table, told = ingested(put(tmp_path / "in", Observation=[panel]), tmp_path / "out")
    assert concepts(table) == {"diastolic_blood_pressure"}
    assert (told["accepted"], told["quarantined"]) == (1, 0)
    (refused,) = pq.read_table(tmp_path / "out" / "quarantine.parquet").to_pylist()
    assert (refused["reason"], refused["part"]) == ("implausible", "systolic_blood_pressure")


def test_a_correction_is_known_from_its_own_update_on_and_not_before(tmp_path: Path) -> None:
    first = observation(meta={"lastUpdated": "2020-03-02T00:00:00Z", "versionId": "1"})
    corrected = observation(value=60, status="corrected", meta={"lastUpdated": "2020-05-01T00:00:00Z", "versionId": "2"})
    table, told = ingested(put(tmp_path / "in", Observation=[corrected, first]), tmp_path / "out")
    assert [hba1c(table, day) for day in ("2020-03-03", "2020-04-30", "2020-05-02")] == [50, 50, 60]
    assert told["quarantined"] == 0


def test_of_two_versions_of_one_moment_the_servers_own_count_decides(tmp_path: Path) -> None:
    versions = [observation(value=v, meta={"lastUpdated": "2020-03-02T00:00:00Z", "versionId": str(v - 40)}) for v in (50, 49)]
    table, _ = ingested(put(tmp_path / "in", Observation=versions), tmp_path / "out")
    assert hba1c(table, "2021-01-01") == 50  # version 10 comes after version 9


def test_a_late_arrival_keeps_the_time_at_which_it_was_recorded(tmp_path: Path) -> None:
    late = observation(meta={"lastUpdated": "2025-06-01T00:00:00Z"})
    table, _ = ingested(put(tmp_path / "in", Observation=[late]), tmp_path / "out")
    assert hba1c(table, "2020-03-03") == 50


def deleted(**meta: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "transaction", **meta, "entry": [{"request": {"method": "DELETE", "url": "Observation/o1"}}]}


def test_what_a_server_deleted_never_held_and_holds_until_then_where_it_says_when(tmp_path: Path) -> None:
    for name, bundle in (("never", deleted()), ("until", deleted(meta={"lastUpdated": "2021-01-01T00:00:00Z"}))):
        folder = put(tmp_path / name / "in", Observation=[observation()])
        put(folder / "deleted", Bundle=[bundle])
        table, told = ingested(folder, tmp_path / name / "out")
        assert told["by_type"]["deletion"] == {"received": 1, "quarantined": 0}
        assert np.isnan(hba1c(table, "2022-01-01"))
        assert np.isnan(hba1c(table, "2020-06-01")) == (name == "never")


def test_the_same_export_twice_changes_no_byte_of_the_events(small_export: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "in" / "000", tmp_path / "in" / "001"
    for folder in (first, second):
        folder.mkdir(parents=True)
        for path in small_export.glob("*.ndjson"):
            (folder / path.name).write_bytes(path.read_bytes())
    ingested(first, tmp_path / "once")
    _, told = ingested(tmp_path / "in", tmp_path / "twice")
    assert (tmp_path / "once" / "events.parquet").read_bytes() == (tmp_path / "twice" / "events.parquet").read_bytes()
    names = {entry["file"] for entry in told["by_file"]}
    assert {"000/Patient.ndjson", "001/Patient.ndjson"} <= names  # two files of one name stay two


def test_small_pieces_give_the_same_bytes(small_export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingested(small_export, tmp_path / "one")
    monkeypatch.setattr("features.source.PIECE", 200_000)
    monkeypatch.setattr("features.collector._FLUSH", 500)
    ingested(small_export, tmp_path / "pieces")
    for file in ("events.parquet", "quarantine.parquet", "summary.json"):
        assert (tmp_path / "pieces" / file).read_bytes() == (tmp_path / "one" / file).read_bytes()
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["events.parquet", "quarantine.parquet", "summary.json"]


def test_zstd_gzip_and_a_url_give_the_same_events(tmp_path: Path) -> None:
    raw = b"".join(json.dumps(observation(f"o{n}", 40 + n % 50)).encode() + b"\n" for n in range(500))
    packed = {"a.ndjson": raw, "a.ndjson.gz": gzip.compress(raw, mtime=0), "a.ndjson.zst": pa.compress(raw, codec="zstd", asbytes=True)}
    tables = []
    for name, content in packed.items():
        (tmp_path / name.replace(".", "-")).mkdir()
        (tmp_path / name.replace(".", "-") / name).write_bytes(content)
        tables.append(ingested(tmp_path / name.replace(".", "-"), tmp_path / f"out-{name}")[0])
    fsspec.filesystem("memory").pipe("/door/a.ndjson", raw)
    tables.append(ingested("memory://door", tmp_path / "out-memory")[0])
    assert tables[0].num_rows == 500
    assert all(table.equals(tables[0]) for table in tables)


@pytest.mark.parametrize(("name", "content"), [("a.ndjson.gz", b""), ("a.ndjson.zst", b""), ("a.json.gz", b"\x1f\x8b\x08")])
def test_a_packed_file_that_is_empty_or_cut_off_is_told(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / name).write_bytes(content)
    _, told = ingested(tmp_path / "in", tmp_path / "out")
    assert told["reasons"] == [{"file": name, "type": "unreadable", "reason": "file_truncated", "resources": 1}]


def test_a_bundle_in_a_line_is_as_many_resources_as_it_has_entries(tmp_path: Path) -> None:
    bundle = {"resourceType": "Bundle", "entry": [{"resource": observation()}, {"resource": {"resourceType": "Claim"}}, 5]}
    table, told = ingested(put(tmp_path / "in", Bundle=[bundle]), tmp_path / "out")
    assert table.num_rows == 1
    assert (told["received"], told["quarantined"]) == (3, 1)


ONE, TWO = (json.dumps(observation(name)).encode() for name in ("o1", "o2"))


@pytest.mark.parametrize(
    ("text", "bad"),
    [
        (ONE + b"\n" + TWO, 0),
        (ONE + b" \r\n" + TWO, 0),
        (b"\n" + ONE + b"\n\n" + TWO + b"\n \n", 0),
        (ONE + b"\n" + TWO[:-40], 1),
        (ONE + TWO + b"\n" + TWO, 1),  # two values in a line
        (ONE.replace(b", ", b",\n", 1) + b" " + TWO, 2),  # one value in two lines, two in the second
        (ONE.replace(b'"final"', b'"fi\nnal"') + b"\n" + TWO, 2),
        (ONE.replace(b"{", b'{"note":"}\n{",', 1) + b"\n" + TWO + TWO, 3),
        (ONE.replace(b"{", b'{"note":"\xff",', 1) + b"\n" + TWO, 1),
        (ONE.replace(b'"Observation"', b'"Basic"') + b"\n" + TWO, 0),
        (ONE.replace(b'"status": "final"', b'"status": ["final"]') + b"\n" + TWO, 1),
        (ONE.replace(b'"Patient/p1"', b'{"x": 1}') + b"\n" + TWO, 1),
    ],
)
def test_many_lines_at_once_are_what_each_is_alone(tmp_path: Path, text: bytes, bad: int) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "Observation.ndjson").write_bytes(text)
    table, told = ingested(tmp_path / "in", tmp_path / "out")
    lines = [raw for raw in text.split(b"\n") if raw.strip()]
    problems = [found.problem for found in map(gate, lines) if isinstance(found, Broken)]
    refused = pq.read_table(tmp_path / "out" / "quarantine.parquet")["reason"].to_pylist()
    assert len(refused) == bad and (refused == problems or not problems)
    assert told["received"] == len(lines) and told["accepted"] == len(lines) - bad
    alone = events.collect((Line("o", 1, {}, None, raw) for raw in lines), KEY, NOW_US)
    assert table.num_rows == alone.num_rows and set(table["source"].to_pylist()) == set(alone["source"].to_pylist())
