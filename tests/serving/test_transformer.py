"""Inline records are made in turns: whoever brings many of them holds up nobody."""

import asyncio
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
from conftest import WholeRun

from components.decision import load
from features.events import PseudonymKey
from features.store import Rows
from serving.guard import Unavailable
from serving.inline import Inline
from serving.patient import Patients
from serving.schema import FeatureRow, PatientQuery
from serving.transformer import INLINE_S, Transformer
from serving.upstream import Upstream

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("whole")]
Result = TypeVar("Result")
ONE = 0.02  # seconds that a record takes in these tests


class Slow(Inline):
    """The real one, on a machine where each record takes long."""

    def row(self, bundle: dict[str, Any]) -> tuple[str, FeatureRow]:
        time.sleep(ONE)
        return super().row(bundle)


def record(name: str) -> PatientQuery:
    """A record of one patient with one fact."""
    patient = {"resourceType": "Patient", "id": name, "birthDate": "1950-02-03"}
    return PatientQuery(bundle={"resourceType": "Bundle", "type": "collection", "entry": [{"resource": patient}]})


def finished(work: Coroutine[Any, Any, Result]) -> Result:
    """In a thread of its own: the browser's tests leave a loop running in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@pytest.fixture
def slow(whole_run: WholeRun, run_key: PseudonymKey) -> Transformer:
    """A transformer of the demo's store and decision."""
    patients = Patients(whole_run.folder / "store", run_key, wall_clock=False)
    return Transformer("m", patients, Slow(load("glucose_lowering"), run_key, wall_clock=False), lambda: Upstream("http://127.0.0.1:9"))


def test_a_record_does_not_wait_for_all_of_anothers(slow: Transformer) -> None:
    async def both() -> list[str]:
        ended: list[str] = []

        async def ask(name: str, count: int) -> None:
            names, rows = await slow._rows([record(f"{name}-{n}") for n in range(count)])
            assert len(set(names)) == len(rows) == count
            ended.append(name)

        many = asyncio.create_task(ask("many", 20))
        await asyncio.sleep(2 * ONE)
        await ask("one", 1)
        await many
        return ended

    assert finished(both()) == ["one", "many"]


def test_too_many_records_at_once_are_refused_by_what_they_are_and_the_next_is_answered(slow: Transformer) -> None:
    async def then() -> None:
        with pytest.raises(Unavailable, match="fewer of them") as refused:
            await slow._rows([record(f"p{n}") for n in range(int(INLINE_S / ONE) + 10)])
        assert refused.value.code == "OVERLOADED"
        await slow._rows([record("next")])

    finished(then())


def test_stored_patients_and_records_of_one_question_keep_their_order(slow: Transformer, stored: Rows) -> None:
    ids = stored.patient_ids[:2]
    names, rows = finished(slow._rows([PatientQuery(pseudonym=ids[0]), record("between"), PatientQuery(pseudonym=ids[1])]))
    assert (names[0], names[2]) == ids and names[1] not in ids and len(rows) == 3
