"""The event sequence: the last facts that were known about a patient at a time, one after another, for a sequence encoder.

In a row a fact takes three columns: a number that stands for its concept, its value, and how many days before it was true. So a sequence
is stored, served and checked by what stores, serves and checks every other feature.

Axis suffixes: N asked (patient, time) pairs, L places, M matching facts, C columns of a place.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from features.concepts import Concepts, concepts
from features.feature import AsOf, Feature, Floats, Ints, Known

LENGTH = 64
EACH = 16  # of one concept: a device that reports every few minutes must not push everything else out
PLACES, EACH_IN_A_ROW = 32, 8  # the same for the columns of a row
MOST = 24  # of its places that a decision may ask for: what is left out of a row must not leave it short


def vocabulary(tables: Concepts | None = None) -> tuple[str, ...]:
    """Concepts that a sequence may hold: measurements, coded answers, conditions, drugs taken or not, encounters.

    Place n stands for index n + 1 of `EventSequence.concept_NL`. Whoever learns from sequences keeps the tuple that was used: a concept
    that is added to `concepts.yaml` later moves the places.
    """
    told = tables or concepts()
    conditions = dict.fromkeys(name for key, name in told.by_code.items() if key[0].startswith("condition/"))
    conditions |= dict.fromkeys(name for _, _, name in told.prefixes)
    words = [*told.measurements, *told.levels, *(f"condition:{name}" for name in conditions), *(f"takes:{drug}" for drug in told.drugs)]
    return tuple(sorted(words)) + ("record:encounter",)


@dataclass(frozen=True, kw_only=True)
class EventSequence:
    """Newest fact first, padded behind: `concept_NL` is 0 where there is none, else 1 + the place in `vocabulary`.

    `value_NL` is raw, in the concept's unit (1 or 0 for a condition or drug affirmed or denied), NaN where a fact has no number or there is
    no fact. `days_NL` is how many days before the asked time it was true, NaN where there is no fact.
    """

    vocabulary: tuple[str, ...]
    concept_NL: npt.NDArray[np.int32]
    value_NL: npt.NDArray[np.float32]
    days_NL: npt.NDArray[np.float32]

    @property
    def mask_NL(self) -> npt.NDArray[np.bool_]:
        """Where there is a fact."""
        return self.concept_NL > 0

    def __len__(self) -> int:
        return len(self.concept_NL)


def sequence(at: AsOf, words: Sequence[str], length: int = LENGTH, each: int = EACH) -> EventSequence:
    """The newest `length` facts of each asker among some concepts, at most `each` of one concept.

    What counts as known is what counts for a feature (`AsOf`): true and recorded up to the time, and not yet replaced by then. Facts of one
    moment stand in the order of the vocabulary. The same for one patient and for many, bit for bit.
    """
    parts = [
        (place, _newest(at.known(word), min(each, length))) for place, word in enumerate(words, 1) if at.events.facts(word) is not None
    ]
    place_M = np.concatenate([np.zeros(0, np.int64), *(np.full(len(known.ask_M), place) for place, known in parts)])
    ask_M = np.concatenate([np.zeros(0, np.int64), *(known.ask_M for _, known in parts)])
    time_M = np.concatenate([np.zeros(0, np.int64), *(known.time_M for _, known in parts)])
    value_M = np.concatenate([np.zeros(0), *(known.value_M for _, known in parts)])
    days_M = np.concatenate([np.zeros(0), *(known.days_ago_M for _, known in parts)])
    order = np.lexsort([-np.arange(len(ask_M)), place_M, -time_M, ask_M])  # of one concept and moment, what was recorded last comes first
    ask_M = ask_M[order]
    behind_M = np.arange(len(ask_M)) - np.searchsorted(ask_M, ask_M, "left")
    kept = behind_M < length
    order, cell = order[kept], (ask_M[kept], behind_M[kept])
    shape = (len(at), length)
    concept_NL, value_NL, days_NL = np.zeros(shape, np.int32), np.full(shape, np.nan, np.float32), np.full(shape, np.nan, np.float32)
    concept_NL[cell], value_NL[cell], days_NL[cell] = place_M[order], value_M[order], days_M[order]
    return EventSequence(vocabulary=tuple(words), concept_NL=concept_NL, value_NL=value_NL, days_NL=days_NL)


def _newest(known: Known, each: int) -> Known:
    """At most `each` newest facts of each asker."""
    past_N: Ints = np.searchsorted(known.ask_M, np.arange(known.asks), "right")
    left_M: Ints = past_N[known.ask_M] - np.arange(len(known.ask_M))  # 1 for the newest
    return known.where(left_M <= each)


# ------------------------------------------------------------------------------------------------------------------ as columns of a row


def code(word: str) -> float:
    """Number of a concept in a row: the same whatever else the vocabulary holds, and exact in single precision (24 bits of CRC-32)."""
    return float(zlib.crc32(word.encode()) >> 8)


@cache
def _coded() -> tuple[tuple[str, ...], Floats]:
    """The vocabulary but for inherited scores, which are of genomics, and the number of each word behind that of no fact."""
    words = tuple(word for word in vocabulary() if not word.startswith("prs_"))
    return words, np.array([np.nan, *map(code, words)])


def _in_rows(at: AsOf) -> Floats:
    """The newest facts of each asker, N by L by code, value and days; NaN where there are fewer."""
    words, code_V = _coded()
    found = sequence(at, words, PLACES, EACH_IN_A_ROW)
    return np.stack([code_V[found.concept_NL], found.value_NL, found.days_NL], axis=2).astype(np.float64)


def meaning() -> tuple[tuple[str, ...], int, int]:
    """What the columns of a row depend on beside their names: the concepts that take places, and how many there are."""
    return _coded()[0], PLACES, EACH_IN_A_ROW


def _column(place: int, c: int) -> Callable[[AsOf], Floats]:
    return lambda at: at.once(_in_rows)[:, place, c]


def _place(place: int) -> tuple[Feature, ...]:
    what = f"Fact {place + 1} before the time, the newest first"
    told = (("code", "1", "number of its concept"), ("value", "1", "its value in its own unit"), ("days", "d", "how long ago it was true"))
    return tuple(
        Feature(
            name=f"event_{place + 1:02}_{name}",
            modality="sequence",
            unit=unit,
            meaning=f"{what}: {meaning}",
            concepts=(),
            compute=_column(place, c),
        )
        for c, (name, unit, meaning) in enumerate(told)
    )


COLUMNS = tuple(feature for place in range(PLACES) for feature in _place(place))
COLUMNS_A_FACT = 3
