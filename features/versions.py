"""Versions of one resource: which repeats another, which replaces another, and from when each could be known.

A version is ordered by when it could be known: the later of its own recorded time and the server's last update; then by the server's
count of versions. What states the same as the version before it is a repeat. A correction is known only from its own update on, though
what it corrects keeps its earlier dates: else yesterday's question would see today's correction.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from features.moment import BEGIN_US, NEVER_US, UNDATED_US

Ints = npt.NDArray[np.int64]

VERSION = np.dtype(
    [
        ("identity", "i8"),  # keyed number of type and id
        ("content", "i8"),  # digest of what it states
        ("recorded", "i8"),
        ("updated", "i8"),
        ("version", "i8"),
        ("row", "i8"),  # its place in the source
        ("line", "i8"),
        ("task", "i4"),  # which file, or piece of one
        ("kind", "i2"),
        ("refused", "?"),  # already in quarantine
    ]
)


class Resolved(NamedTuple):
    """What became of the versions; rows are ascending."""

    dropped: Ints  # rows that repeat another
    ended: Ints  # rows that a later version replaced ...
    ended_us: Ints  # ... and when; BEGIN_US: it never held
    late: Ints  # rows that replaced another ...
    late_us: Ints  # ... and so were not known before
    repeats: npt.NDArray[np.void]  # the dropped versions that are not in quarantine yet


def resolve(found: npt.NDArray[np.void]) -> Resolved:
    """Follow each resource from version to version. `found` has the columns of VERSION."""
    ordered = np.sort(found["identity"])
    found = found[np.isin(found["identity"], ordered[1:][ordered[1:] == ordered[:-1]])]  # of most there is one version: nothing to follow
    known = np.maximum(found["recorded"], found["updated"])
    known = np.where((found["recorded"] == UNDATED_US) & (found["updated"] > BEGIN_US), found["updated"], known)
    order = np.lexsort([found["row"], found["content"], found["recorded"], found["version"], known, found["identity"]])
    identity, content = found["identity"][order], found["content"][order]
    repeat = np.zeros(len(order), bool)
    repeat[1:] = (identity[1:] == identity[:-1]) & (content[1:] == content[:-1])
    dropped, order = order[repeat], order[~repeat]
    identity = found["identity"][order]
    follows = identity[1:] == identity[:-1]
    earlier, later = order[:-1][follows], order[1:][follows]
    ended_us = np.where(known[later] == NEVER_US, BEGIN_US, known[later])  # withdrawn, it is not said when: then it never held
    late_us = np.where(known[later] >= UNDATED_US, BEGIN_US, known[later])
    repeats = found[dropped]
    ended, late = found["row"][earlier], found["row"][later]
    by_end, by_late = np.argsort(ended), np.argsort(late)
    return Resolved(
        dropped=np.sort(found["row"][dropped]),
        ended=ended[by_end],
        ended_us=ended_us[by_end],
        late=late[by_late],
        late_us=late_us[by_late],
        repeats=repeats[~repeats["refused"]],
    )


def merged(parts: list[Resolved]) -> Resolved:
    """The resolutions of several groups of resources as one."""
    dropped, ended, ended_us, late, late_us, repeats = (np.concatenate(column) for column in zip(*parts, strict=True))
    by_end, by_late = np.argsort(ended), np.argsort(late)
    return Resolved(np.sort(dropped), ended[by_end], ended_us[by_end], late[by_late], late_us[by_late], repeats)


def at(rows: Ints, of: Ints, values: Ints, otherwise: int) -> Ints:
    """Value of each row, where `of` (ascending) names it."""
    if not len(of):
        return np.full(len(rows), otherwise, np.int64)
    place = np.minimum(np.searchsorted(of, rows), len(of) - 1)
    return np.where(of[place] == rows, values[place], otherwise)
