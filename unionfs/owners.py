"""Whose files a mount shows: id maps and squashing, both ways."""

from __future__ import annotations

from dataclasses import dataclass

IdMap = tuple[tuple[int, int, int], ...]
"""Ranges (id in the layer, id shown, count). Empty for "as it is"; ids outside are OVERFLOW_ID."""

OVERFLOW_ID = 65534


def shown_id(mapping: IdMap, value: int) -> int:
    """The id that a mount shows for the owner ``value`` of a file."""
    if not mapping:
        return value
    for first, shown, count in mapping:
        if first <= value < first + count:
            return shown + value - first
    return OVERFLOW_ID


def kept_id(mapping: IdMap, value: int) -> int:
    """The owner that a file gets on disk for the shown id ``value``."""
    return shown_id(tuple((shown, first, count) for first, shown, count in mapping), value)


@dataclass(frozen=True)
class Owners:
    """What the mount as a whole does to owners.

    ``uids`` and ``gids`` map ids on disk to ids shown; ``squash_uid`` and ``squash_gid`` give every
    file one owner, also on disk for files made or given away.
    """

    uids: IdMap = ()
    gids: IdMap = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
