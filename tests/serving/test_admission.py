"""The room follows what is answered in time: smaller under strain, whole again after it, never nothing."""

from typing import Any

import pytest

from serving import admission
from serving.admission import LEAST, Admission


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(admission, "time", found)
    return found


def served(gate: Admission, clock: Any, per_second: float, seconds: float) -> tuple[int, int]:
    """A server that answers one after the other, and more asked than it can: answered in time, and too late."""
    queue: list[float] = []
    until, timely, late = clock.now + seconds, 0, 0
    while clock.now < until:
        while not gate.full:
            queue.append(gate.enter())
        clock.now += 1 / per_second
        entered = queue.pop(0)
        timely, late = (timely + 1, late) if clock.now - entered <= 1 else (timely, late + 1)
        gate.leave(entered)
    for entered in queue:
        gate.leave(entered)
    return timely, late


def test_a_slow_server_under_strain_answers_nearly_all_in_time(clock: Clock) -> None:
    slow = Admission(64)
    served(slow, clock, 40, 10)  # 64 at once would wait 1.6 s
    timely, late = served(slow, clock, 40, 20)
    assert timely >= 0.98 * 40 * 20 and late == 0
    assert slow.taken == 0 and LEAST <= slow.room < 40


def test_a_fast_server_keeps_its_whole_room_and_has_it_back_after_a_strain(clock: Clock) -> None:
    gate = Admission(64)
    served(gate, clock, 400, 5)
    assert gate.room == 64
    served(gate, clock, 20, 30)
    assert gate.room < 20
    served(gate, clock, 400, 30)
    assert gate.room == 64


def test_refusals_from_behind_shrink_the_room_once_in_a_while_and_never_to_nothing(clock: Clock) -> None:
    gate = Admission(64)
    for _ in range(50):
        gate.leave(gate.enter(), refused=True)
    assert gate.room == pytest.approx(64 * admission.CUT)
    for _ in range(500):
        clock.now += 1
        gate.leave(gate.enter(), refused=True)
    assert gate.room == LEAST
    few = Admission(2)
    clock.now += 1
    few.leave(few.enter(), refused=True)
    assert few.room == 2 and not few.full


def test_one_client_with_large_questions_takes_no_room_from_the_others(clock: Clock) -> None:
    gate = Admission(64)
    for _ in range(100):
        large = gate.enter()
        burst = [gate.enter() for _ in range(20)]
        clock.now += 0.03
        for entered in burst:
            gate.leave(entered)
        clock.now += 0.6
        gate.leave(large)
    assert gate.room == 64


def test_room_that_nobody_asks_for_comes_back(clock: Clock) -> None:
    gate = Admission(64)
    for _ in range(30):
        clock.now += 1
        gate.leave(gate.enter(), refused=True)
    assert gate.room == LEAST
    for _ in range(120):
        clock.now += 0.5
        gate.leave(gate.enter())
    assert gate.room == 64
