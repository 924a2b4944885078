"""When: FHIR dates as microseconds since 1970 UTC, and the moments that stand for "always", "never" and "it does not say"."""

import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache

BEGIN_US = int(datetime(1900, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000  # facts of birth: known at any time anyone asks about
NEVER_US = int(datetime(2200, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
UNDATED_US = NEVER_US - 1  # stands in until the whole source is read: an undated fact is known from the source's newest date on
_MOMENT = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d))?)?)?", re.ASCII)


@lru_cache(maxsize=65536)
def instant(text: str) -> int:
    """Microseconds since 1970 UTC of a FHIR date, dateTime or instant.

    A day without an hour begins at 00:00 UTC; a month or a year alone is taken at its end, so that no fact is seen too early.
    Raises ValueError for anything else.
    """
    if not _MOMENT.fullmatch(text):
        raise ValueError("no FHIR date, dateTime or instant")
    if len(text) <= 7:
        first = datetime(int(text[:4]), int(text[5:] or 12), 1, tzinfo=UTC)
        moment = first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1) - timedelta(seconds=1)
    else:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def readable(text: object, otherwise: int) -> int:
    """The instant of a date, or another where there is none that can be read."""
    try:
        return instant(text) if isinstance(text, str) else otherwise
    except ValueError:
        return otherwise
