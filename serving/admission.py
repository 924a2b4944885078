"""How many requests may be at work: as many as are answered in time. What is more is refused before anything is done for it.

A fixed number is right for one machine only: twice as many as a slow one can answer in time are all answered too late, which is nobody.
So the room shrinks by a tenth when an answer took too long while half of it was taken, at most once in that time, and grows by one for
every full room of timely ones (additive increase, multiplicative decrease: Chiu and Jain, Computer Networks 1989). A slow answer of a room
that is nearly empty is a large question, not a strain; and what is not asked for comes back by itself, a place a second.
"""

import time

TIMELY_S = 0.4  # well below the second that a transformer waits for its predictor
LEAST = 8
CUT = 0.9


class Admission:
    """The room, and how much of it is taken. `most`: what it may grow to, and begins with."""

    def __init__(self, most: int) -> None:
        self._most, self._least = most, min(LEAST, most)
        self._cut_at, self._left_at = 0.0, time.monotonic()
        self.room, self.taken = float(most), 0

    @property
    def full(self) -> bool:
        """Whether one more has to be refused."""
        return self.taken >= int(self.room)

    def enter(self) -> float:
        """Take a place; returns when."""
        self.taken += 1
        return time.monotonic()

    def leave(self, entered: float, *, refused: bool = False) -> None:
        """Give the place back. `refused`: others who were asked had no room, or no answer came in time."""
        was, self.taken, now = self.taken, self.taken - 1, time.monotonic()
        late, used = now - entered > TIMELY_S, 2 * was >= self.room
        if refused or (late and used):
            if now - self._cut_at > TIMELY_S:
                self._cut_at, self.room = now, max(self.room * CUT, self._least)
        elif not late:
            self.room = min(self.room + (1 / self.room if used else min(now - self._left_at, 1.0)), self._most)
        self._left_at = now
