"""When: FHIR dates as microseconds since 1970 UTC, and the moments that stand for "always", "never" and "it does not say"."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DAY_US = 86_400_000_000
BEGIN_US = int(datetime(1900, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000  # facts of birth: known at any time anyone asks about
NEVER_US = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
UNDATED_US = NEVER_US - 1  # stands in until the whole source is read: an undated fact is known from the source's newest date on
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d))?)?)?", re.ASCII)


@lru_cache(maxsize=65536)
def instant(text: str) -> int:
    """Microseconds since 1970 UTC of a FHIR date, dateTime or instant.

    A day without an hour begins at 00:00 UTC; a month or a year alone is taken at its end, so that no fact is seen too early.
    Raises ValueError for anything else.
    """
    if not (_is_plain(text) or _MOMENT.fullmatch(text)):
        raise ValueError("no FHIR date, dateTime or instant")
    if len(text) <= 7:
        first = datetime(int(text[:4]), int(text[5:] or 12), 1, tzinfo=UTC)
        moment = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1) - timedelta(seconds=1)
    else:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def instants(texts: Sequence[str | None]) -> tuple[Ints, Bools]:
    """As `instant`, for many at once: the microseconds, and which of the texts are of the kind that is read here.

    That kind is a dateTime to the second or millisecond with its zone; every other text, None too, is left to `instant`.
    """
    words = pa.array(texts, pa.string())
    found, read = np.zeros(len(words), np.int64), np.zeros(len(words), bool)
    if words.null_count == len(words):
        return found, read
    offsets = np.frombuffer(words.buffers()[1], np.int32)[: len(words) + 1].astype(np.int64)
    data = np.frombuffer(words.buffers()[2] or b"", np.uint8)
    size = np.diff(offsets)
    for length in (20, 24, 25, 29):
        rows = np.flatnonzero(size == length)
        if len(rows) == len(words):
            return _columns(data.reshape(-1, length), length)
        if len(rows):
            found[rows], read[rows] = _columns(data[offsets[rows][:, None] + np.arange(length)], length)
    return found, read


class _Layout:
    """Where the digits and the marks of texts of one length stand: `YYYY-MM-DDThh:mm:ss`, milliseconds in the longer, `Z` or `+hh:mm`."""

    def __init__(self, length: int) -> None:
        numbers = [(0, 1, 2, 3), (5, 6), (8, 9), (11, 12), (14, 15), (17, 18)]
        numbers.append((20, 21, 22) if length in (24, 29) else ())
        numbers += [(length - 5, length - 4), (length - 2, length - 1)] if length in (25, 29) else [(), ()]
        self.marks = {4: "-", 7: "-", 10: "T", 13: ":", 16: ":"} | ({19: "."} if length in (24, 29) else {})
        self.marks |= {length - 1: "Z"} if length in (20, 24) else {length - 3: ":"}
        self.sign = length - 6 if length in (25, 29) else None
        self.digits = sorted(place for places in numbers for place in places)
        self.weights = np.zeros((len(self.digits), len(numbers)), np.float32)
        for n, places in enumerate(numbers):
            for power, place in enumerate(reversed(places)):
                self.weights[self.digits.index(place), n] = 10.0**power


_LAYOUTS = {length: _Layout(length) for length in (20, 24, 25, 29)}


def _columns(text: npt.NDArray[np.uint8], length: int) -> tuple[Ints, Bools]:
    """Texts of one length, a row each."""
    layout = _LAYOUTS[length]
    digit = text[:, layout.digits] - np.uint8(48)
    good = (digit <= 9).all(axis=1) & (text[:, list(layout.marks)] == [ord(mark) for mark in layout.marks.values()]).all(axis=1)
    numbers = digit.astype(np.float32) @ layout.weights  # whole numbers; where they are more than 9999, no digits stand there
    year, month, day, hour, minute, second, fraction, ahead, past = np.ascontiguousarray(numbers.T).astype(np.int32)
    east = ahead * 60 + past
    if layout.sign is not None:
        sign = text[:, layout.sign]
        good &= ((sign == ord("+")) | (sign == ord("-"))) & (ahead <= 23) & (past <= 59)
        east = np.where(sign == ord("-"), -east, east)
    good &= (year >= 1000) & (month >= 1) & (month <= 12) & (day >= 1) & (hour <= 23) & (minute <= 59) & (second <= 59)
    month = np.where(good, month, 1)
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    good &= day <= _MONTH_DAYS[month] + (leap & (month == 2))
    minutes = _days(year, month, day).astype(np.int64) * 1440 + (hour * 60 + minute - east)
    return (minutes * 60 + second) * 1_000_000 + fraction * 1_000, good


_MONTH_DAYS = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])


def _days(year: Ints, month: Ints, day: Ints) -> Ints:
    """Days since 1970-01-01 in the Gregorian calendar; the year is turned to begin in March (H. Hinnant, days_from_civil)."""
    year = year - (month <= 2)
    era = year // 400
    of_era = year - era * 400
    of_year = (153 * (month + np.where(month > 2, -3, 9)) + 2) // 5 + day - 1
    return era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - 719_468


def _is_plain(text: str) -> bool:
    """A dateTime to the second or to the millisecond, with its zone: what servers write; `fromisoformat` checks the digits."""
    size = len(text)
    zoned = (size in (20, 24) and text[-1] == "Z") or (size in (25, 29) and text[-3] == ":" and text[-6] in "+-")
    return zoned and text[4] == text[7] == "-" and text[10] == "T" and text[13] == text[16] == ":" and (size in (20, 25) or text[19] == ".")


def readable(text: object, otherwise: int) -> int:
    """The instant of a date, or another where there is none that can be read."""
    try:
        return instant(text) if isinstance(text, str) else otherwise
    except ValueError:
        return otherwise
