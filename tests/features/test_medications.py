"""The Medication that an order means is that of its own file: whatever the file's size, the shards, and what other files call the same."""

import json
import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import examples

from features import events, shards, source
from features.events import PseudonymKey
from features.medications import chosen

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NOW_US = int(NOW.timestamp()) * 1_000_000
KEY = PseudonymKey(b"0123456789abcdef0123456789abcdef")
FILES = ["events.parquet", "quarantine.parquet", "summary.json"]
CANARY = "ZQCANARYMED"
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
METFORMIN, WARFARIN, ASPIRIN = "6809", "11289", "1191"
PIECE = source.PIECE


def filler(size: int = PIECE + PIECE // 4) -> dict[str, Any]:
    """Something that we do not read, longer than a piece: what stands before it and after it is never in one piece."""
    return {"resourceType": "Basic", "id": "b", "text": "x" * size}


def order(number: int, reference: str) -> dict[str, Any]:
    """In the year of its number."""
    told = {"resourceType": "MedicationRequest", "id": f"order-{number}", "status": "active", "intent": "order"}
    told |= {"authoredOn": f"20{number:02}-01-01", "subject": {"reference": f"Patient/{CANARY}"}}
    return told | {"medicationReference": {"reference": f"Medication/{reference}"}}


def medication(identity: str, code: str) -> dict[str, Any]:
    return {"resourceType": "Medication", "id": identity, "code": {"coding": [{"system": RXNORM, "code": code}]}}


def put(folder: Path, **files: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    for name, resources in files.items():
        (folder / f"{name}.ndjson").write_text("".join(json.dumps(resource) + "\n" for resource in resources))
    return folder


def of_orders(table: pa.Table) -> dict[int, str]:
    """The drug of each order that has one."""
    return {row["time"].year - 2000: row["concept"].partition(":")[2] for row in table.to_pylist()}


def by_hand(folder: Path, place: Path, out: Path, count: int) -> None:
    """All shards one after the other, the last first, in this process."""
    shards.plan(str(folder), str(place), count, NOW_US, KEY)
    for share in reversed(range(count)):
        shards.read_share(str(place), share, KEY)
    shards.settle(str(place), KEY)
    for shard in reversed(range(count)):
        shards.build(str(place), shard, KEY)
    shards.join(str(place), out)


def same(one: Path, other: Path) -> None:
    for file in FILES:
        assert (one / file).read_bytes() == (other / file).read_bytes(), file
    assert sorted(path.name for path in other.iterdir()) == FILES


def every_way(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """The drugs of the orders, the same bytes by one process, two and three shards, processes of this machine, and in small pieces."""
    events.ingest(str(folder), out / "1", KEY, now=NOW)
    for count in (2, 3):
        by_hand(folder, out / f"place-{count}", out / str(count), count)
    shards.ingest(str(folder), out / "processes", KEY, shards=2, now=NOW)
    with monkeypatch.context() as smaller:
        smaller.setattr("features.source.PIECE", PIECE // 3)
        events.ingest(str(folder), out / "small", KEY, now=NOW)
        by_hand(folder, out / "place-small", out / "small-shards", 4)
    for name in ("2", "3", "processes", "small", "small-shards"):
        same(out / "1", out / name)
    in_memory = events.of_source(str(folder), KEY, NOW_US)
    assert of_orders(in_memory) == of_orders(events.read(out / "1"))
    return of_orders(in_memory)


LARGE = [
    order(1, "m"),  # before any Medication of its file
    filler(),
    medication("m", WARFARIN),
    order(2, "m"),
    filler(),
    order(3, "m"),  # its Medication stands in another piece
    medication("m", METFORMIN),  # here begins the second of two sources that were merged
    filler(),
    order(4, "m"),
    order(5, "elsewhere"),
]


@pytest.mark.parametrize("name", ["Medication", "aa", "zz"])
def test_an_order_in_a_large_file_has_the_drug_of_its_own_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another file, read before or after it, calls another drug the same."""
    folder = put(tmp_path / "in", **{name: [medication("m", ASPIRIN), medication("elsewhere", ASPIRIN)]}, merged=LARGE)
    assert (folder / "merged.ndjson").stat().st_size > 3 * PIECE
    found = every_way(folder, tmp_path / "out", monkeypatch)
    assert found == {1: "warfarin", 2: "warfarin", 3: "warfarin", 4: "metformin", 5: "aspirin"}


def test_a_large_file_is_read_as_a_small_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = [medication("m", ASPIRIN), medication("elsewhere", ASPIRIN)]
    short = [resource for resource in LARGE if resource["resourceType"] != "Basic"]
    small = put(tmp_path / "small", Medication=other, merged=short)
    large = put(tmp_path / "large", Medication=other, merged=LARGE)
    assert every_way(small, tmp_path / "out-small", monkeypatch) == every_way(large, tmp_path / "out-large", monkeypatch)


def test_files_that_call_two_drugs_the_same_keep_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = [order(1, "m"), medication("m", WARFARIN), order(2, "m")]
    second = [order(3, "m"), medication("m", METFORMIN), order(4, "m")]
    nothing = [order(5, "n"), {"resourceType": "Medication", "id": "n"}]  # means nothing to us: so does the order
    folder = put(tmp_path / "in", first=first, second=second, nothing=nothing, Medication=[medication("n", ASPIRIN)])
    bundle = {"resourceType": "Bundle", "entry": [{"resource": one} for one in (order(6, "m"), medication("m", ASPIRIN))]}
    (folder / "third.json").write_text(json.dumps(bundle))
    found = every_way(folder, tmp_path / "out", monkeypatch)
    assert found == {1: "warfarin", 2: "warfarin", 3: "metformin", 4: "metformin", 6: "aspirin"}
    told = json.loads((tmp_path / "out" / "1" / "summary.json").read_text())
    assert (told["received"], told["quarantined"]) == (11, 0)
    received = [source.Line("a", 1, one, None, json.dumps(one).encode()) for one in first]
    received += [source.Line("b", 1, one, None, json.dumps(one).encode()) for one in second]
    assert of_orders(events.collect(received, KEY, NOW_US)) == {number: drug for number, drug in found.items() if number < 5}


def expected(files: dict[str, list[dict[str, Any]]]) -> dict[int, str]:
    """By the rule as it is written down, with everything at hand: no pieces, no shards, no order of reading."""
    name = {METFORMIN: "metformin", WARFARIN: "warfarin", ASPIRIN: "aspirin"}
    every = [one for own in files.values() for one in own]
    meant = dict[int, str]()
    for own in files.values():
        for place, one in enumerate(own):
            if one["resourceType"] == "MedicationRequest":
                whom = one["medicationReference"]["reference"].partition("/")[2]
                before, mine, anywhere = ([told for told in some if told["id"] == whom] for some in (own[:place], own, every))
                medications = [*before[-1:], *mine, *anywhere]
                drug = name.get(medications[0]["code"]["coding"][0]["code"]) if medications else None
                meant |= {int(one["id"].partition("-")[2]): drug} if drug else {}
    return meant


def test_the_rule_holds_whatever_stands_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, twice = random.Random(7), 0
    for case in range(examples(15, 1000)):
        files: dict[str, list[dict[str, Any]]] = {"Medication": [], "a": [], "b": []}
        for number in range(1, draw.randint(3, 26)):
            code = draw.choice([METFORMIN, WARFARIN, ASPIRIN, "means nothing"])
            one = order(number, draw.choice("mno")) if draw.random() < 0.6 else medication(draw.choice("mn"), code)
            files[draw.choice(list(files))].append(one)
        folder, out, read = put(tmp_path / f"in-{case}", **files), tmp_path / f"out-{case}", list[tuple[str, int]]()
        monkeypatch.setattr("features.source.PIECE", draw.choice([100, 300, 700, 2000]))
        events.ingest(str(folder), out / "1", KEY, now=NOW, progress=lambda file, at, read=read: read.append((file, at)))
        by_hand(folder, out / "place", out / "2", draw.randint(2, 5))
        same(out / "1", out / "2")
        assert of_orders(events.read(out / "1")) == expected(files) == of_orders(events.of_source(str(folder), KEY, NOW_US))
        twice += len(read) % 2 == 0 and read[: len(read) // 2] == read[len(read) // 2 :]
    assert 0 < twice <= case


def test_of_several_in_a_file_the_last_before_the_order_counts_else_the_first() -> None:
    told = [(10, "warfarin"), (20, None), (30, "metformin")]
    assert [chosen(told, row) for row in (1, 11, 19, 21, 29, 31, 99)] == [
        "warfarin",
        "warfarin",
        "warfarin",
        None,
        None,
        *["metformin"] * 2,
    ]


def test_a_source_is_read_again_only_where_another_file_gave_a_wrong_drug(tmp_path: Path) -> None:
    def times(name: str, code: str) -> int:
        again = [order(1, "m"), medication("m", code)]
        folder = put(tmp_path / name, a=[medication("m", WARFARIN)], b=again, c=[order(2, "m")])
        read = list[str]()
        events.ingest(str(folder), tmp_path / f"out-{name}", KEY, now=NOW, progress=lambda file, _: read.append(file))
        return read.count("b.ndjson")

    assert (times("alike", WARFARIN), times("other", METFORMIN)) == (1, 2)


def test_shards_are_settled_again_after_a_task_was_killed(tmp_path: Path) -> None:
    folder = put(tmp_path / "in", Medication=[medication("m", ASPIRIN)], merged=LARGE[:6])
    events.ingest(str(folder), tmp_path / "alone", KEY, now=NOW)
    place = tmp_path / "place"
    shards.plan(str(folder), str(place), 2, NOW_US, KEY)
    for share in range(2):
        shards.read_share(str(place), share, KEY)
    before = {path.name: path.read_bytes() for path in place.glob("part-*.json")}
    assert shards.settle(str(place), KEY) == shards.settle(str(place), KEY)
    assert any(content != (place / name).read_bytes() for name, content in before.items())  # those that were wrong were read again
    for path in place.rglob("*"):
        assert path.is_dir() or CANARY.encode() not in path.read_bytes()
    for shard in range(2):
        shards.build(str(place), shard, KEY)
    shards.join(str(place), tmp_path / "out")
    same(tmp_path / "alone", tmp_path / "out")
