"""The event sequence: the newest known facts in order, nothing of the future, the same for one patient and for many."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from conftest import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from told import DAYS, PATIENTS, Event, T, table, told_events

from features import sequence as sequence_module
from features.catalogue import FEATURES, digest, select
from features.concepts import concepts
from features.events import PseudonymKey, ingest, read
from features.feature import DAY_US, AsOf, Events, compute
from features.sequence import COLUMNS, COLUMNS_A_FACT, EACH_IN_A_ROW, PLACES, EventSequence, code, sequence, vocabulary

WORDS = vocabulary()
FEW = ("condition:ascvd", "hba1c", "steps_day", "takes:simvastatin")


def told_at(*told: Event, day: float = 0, length: int = 4, each: int = 16, words: tuple[str, ...] = FEW) -> EventSequence:
    return sequence(AsOf(Events(table(told)), ["anna"], np.array([T + round(day * DAY_US)])), words, length, each)


def spelt(found: EventSequence, row: int = 0) -> list[tuple[str, float, float]]:
    """The facts of one asker as words."""
    columns = zip(found.concept_NL[row], found.value_NL[row], found.days_NL[row], strict=True)
    return [(found.vocabulary[concept - 1], float(value), float(days)) for concept, value, days in columns if concept]


def bytes_of(found: EventSequence, rows: Any = slice(None)) -> tuple[bytes, ...]:
    return tuple(array[rows].tobytes() for array in (found.concept_NL, found.value_NL, found.days_NL))


def test_the_newest_fact_stands_first_and_the_padding_behind() -> None:
    found = told_at(Event("hba1c", -30, 60.0), Event("condition:ascvd", -2, 1.0), Event("takes:simvastatin", -10, 0.0))
    assert spelt(found) == [("condition:ascvd", 1.0, 2.0), ("takes:simvastatin", 0.0, 10.0), ("hba1c", 60.0, 30.0)]
    assert found.mask_NL.tolist() == [[True, True, True, False]]
    assert found.concept_NL[0, 3] == 0 and np.isnan(found.value_NL[0, 3]) and np.isnan(found.days_NL[0, 3])
    assert (found.concept_NL.dtype, found.value_NL.dtype, found.days_NL.dtype) == (np.int32, np.float32, np.float32)


def test_what_does_not_fit_is_the_oldest() -> None:
    told = [Event("hba1c", -day, float(day)) for day in range(20)]
    assert [value for _, value, _ in spelt(told_at(*told))] == [0.0, 1.0, 2.0, 3.0]


def test_a_device_leaves_room_for_the_rest() -> None:
    device = [Event("steps_day", -day / 100, 4000.0 + day) for day in range(500)]
    found = spelt(told_at(*device, Event("hba1c", -300, 60.0), length=64, each=16))
    assert [word for word, _, _ in found] == ["steps_day"] * 16 + ["hba1c"]
    assert [value for _, value, _ in found[:16]] == [4000.0 + day for day in range(16)]


def test_of_one_moment_the_order_is_the_vocabularys_and_what_was_recorded_last_comes_first() -> None:
    told = [Event("steps_day", -3, 1.0), Event("hba1c", -3, 50.0, recorded=-2), Event("hba1c", -3, 51.0, recorded=-1)]
    assert [value for _, value, _ in spelt(told_at(*told))] == [51.0, 50.0, 1.0]


def test_a_concept_outside_the_vocabulary_takes_no_place() -> None:
    assert spelt(told_at(Event("egfr", -3, 60.0), Event("hba1c", -4, 50.0))) == [("hba1c", 50.0, 4.0)]


def test_the_vocabulary_names_every_measurement_answer_condition_and_drug_once() -> None:
    assert len(set(WORDS)) == len(WORDS) == len([word for word in WORDS if word])
    assert set(concepts().measurements) | set(concepts().levels) | {"record:encounter", "condition:ascvd", "takes:metformin"} <= set(WORDS)
    assert "condition:lower_limb_amputation" in WORDS  # told by prefixes alone


SAMPLED = (*FEW, "record:encounter")


@pytest.mark.deep
@settings(derandomize=True, max_examples=examples(150, 5000), deadline=None)
@given(told=told_events(SAMPLED), day=DAYS, length=st.integers(1, 9))
def test_a_sequence_never_sees_the_future(told: list[Event], day: float, length: int) -> None:
    numbered = [replace(event, source=f"Observation/{n}") for n, event in enumerate(told)]
    known = [event for event in numbered if event.known_day <= day]
    found = told_at(*numbered, day=day, length=length, words=WORDS)
    assert bytes_of(found) == bytes_of(told_at(*known, day=day, length=length, words=WORDS))
    assert (found.days_NL[found.mask_NL] >= 0).all()


@pytest.mark.deep
@settings(derandomize=True, max_examples=examples(75, 2000), deadline=None)
@given(told=told_events(SAMPLED), day=DAYS, rng=st.randoms(use_true_random=False), length=st.integers(1, 9), each=st.integers(1, 5))
def test_it_says_what_a_plain_reading_of_the_events_says(told: list[Event], day: float, rng: Any, length: int, each: int) -> None:
    rng.shuffle(told)
    at_us = T + round(day * DAY_US)
    found = sequence(AsOf(Events(table(told)), PATIENTS, np.full(3, at_us)), FEW, length, each)
    for row, patient in enumerate(PATIENTS):
        plain = [e.row(n) for n, e in enumerate(told) if e.patient == patient and e.concept in FEW]
        plain = [e for e in plain if max(e["time"], e["recorded"]) <= at_us < e["superseded"]]
        plain.sort(key=lambda e: (-e["time"], FEW.index(e["concept"]), -e["recorded"]))
        plain = [e for n, e in enumerate(plain) if sum(o["concept"] == e["concept"] for o in plain[:n]) < each][:length]
        assert [word for word, _, _ in spelt(found, row)] == [e["concept"] for e in plain]
        assert [days for _, _, days in spelt(found, row)] == [np.float32((at_us - e["time"]) / DAY_US) for e in plain]


@pytest.fixture(scope="module")
def whole(small_export: Path, key: PseudonymKey, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    out = tmp_path_factory.mktemp("sequence")
    ingest(str(small_export), out, key)
    return read(out)


def test_one_patient_at_a_time_gives_the_rows_of_many(whole: pa.Table) -> None:
    rng = np.random.default_rng(1)
    rows = rng.integers(0, len(whole), 300)
    ids = np.array(whole["patient_id"].to_pylist())[rows]
    time_N = np.asarray(whole["recorded"].cast(pa.int64()))[rows] + rng.integers(0, 30, 300) * DAY_US
    ids[::50] = "nobody"
    many = sequence(AsOf(Events(whole), ids, time_N), WORDS)
    assert len(many) == 300 and not many.mask_NL[::50].any()
    assert many.mask_NL.mean() > 0.1  # there is something to compare
    for n in range(0, 300, 3):
        own = whole.filter(pa.compute.equal(whole["patient_id"], ids[n]))
        alone = sequence(AsOf(Events(own), [ids[n]], time_N[n : n + 1]), WORDS)
        assert bytes_of(alone) == bytes_of(many, slice(n, n + 1))


# ------------------------------------------------------------------------------------------------------------------ as columns of a row


def row_at(*told: Event, day: float = 0) -> Any:
    return compute(COLUMNS, AsOf(Events(table(told)), ["anna"], np.array([T + round(day * DAY_US)])))[0].reshape(PLACES, COLUMNS_A_FACT)


def test_the_number_of_a_concept_is_its_own_and_exact_in_single_precision() -> None:
    numbers = [code(word) for word in WORDS]
    assert len(set(numbers)) == len(WORDS) and min(numbers) > 0
    assert all(float(np.float32(number)) == number == int(number) for number in numbers)
    assert code("hba1c") == 10861666.0  # stored rows and models know it by this number: it must never change


def test_a_row_holds_the_newest_facts_by_number_value_and_days() -> None:
    found = row_at(Event("hba1c", -30, 60.0), Event("condition:ascvd", -2, 1.0), Event("egfr", 3, 50.0))
    assert found[0].tolist() == [code("condition:ascvd"), 1.0, 2.0]
    assert found[1].tolist() == [code("hba1c"), 60.0, 30.0]
    assert np.isnan(found[2:]).all()


def test_of_one_concept_a_row_holds_some_so_that_others_have_their_place() -> None:
    device = [Event("steps_day", -day / 100, 4000.0 + day) for day in range(500)]
    found = row_at(*device, Event("hba1c", -300, 60.0))
    assert found[: EACH_IN_A_ROW + 1, 0].tolist() == [code("steps_day")] * EACH_IN_A_ROW + [code("hba1c")]


def test_a_shorter_row_is_the_beginning_of_a_longer_one_and_names_its_columns() -> None:
    names = [feature.name for feature in COLUMNS]
    assert names[:4] == ["event_01_code", "event_01_value", "event_01_days", "event_02_code"]
    assert len(set(names)) == len(names) == PLACES * COLUMNS_A_FACT
    assert select(names[:6]) == COLUMNS[:6] and not set(names) & set(FEATURES)
    at = AsOf(Events(table([Event("hba1c", -30, 60.0)])), ["anna"], np.array([T]))
    assert compute(COLUMNS[:6], at).tobytes() == compute(COLUMNS, at)[:, :6].tobytes()


def test_rows_of_one_patient_at_a_time_are_those_of_many(whole: pa.Table) -> None:
    known = Events(whole)
    at = AsOf(known, known.patients, np.full(len(known.patients), known.newest_us))
    many = compute(COLUMNS, at)
    assert (~np.isnan(many[:, 0])).mean() > 0.9
    for n in range(0, len(known.patients), 29):
        own = whole.filter(pa.compute.equal(whole["patient_id"], known.patients[n]))
        alone = compute(COLUMNS, AsOf(Events(own), [known.patients[n]], np.array([known.newest_us])))
        assert alone[0].tobytes() == many[n].tobytes()


def test_what_the_columns_mean_is_part_of_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, tabular = digest(COLUMNS), digest(tuple(FEATURES.values()))
    monkeypatch.setattr(sequence_module, "EACH_IN_A_ROW", EACH_IN_A_ROW + 1)
    assert digest(COLUMNS) != usual and digest(tuple(FEATURES.values())) == tabular


def test_an_inherited_score_is_no_event() -> None:
    assert np.isnan(row_at(Event("prs_bmi", -3, 1.0))).all()
