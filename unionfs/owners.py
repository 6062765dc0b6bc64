"""Whose files a mount shows: id maps and squashing, both ways.

The meaning is that of fuse-overlayfs' ``uidmapping``, ``gidmapping``, ``squash_to_root``,
``squash_to_uid`` and ``squash_to_gid`` (fuse-overlayfs(1)). An id that no range covers is shown as
the overflow id, and a file made or given away by one is the overflow id's on disk. But ids that
are already on the side that they would be mapped to stay as they are: podman also gives lower
layers as idmapped mounts, and prepares the root of a container as an id that it has not mapped.

Squashing hides owners and does not change them: what is written is still what was asked for. As
nobody sees it, an id outside the ranges then leaves the owner alone.
"""

from __future__ import annotations

from dataclasses import dataclass

IdMap = tuple[tuple[int, int, int], ...]
"""Ranges (id in the layer, id shown, count). Empty for "as it is"; ids outside are OVERFLOW_ID."""

OVERFLOW_ID = 65534
"""Who owns what nobody known owns: the kernel's default, proc(5), ``overflowuid``."""

UNCHANGED = -1
"""In place of an id that is to be left alone, as for chown(2)."""

_ID_MAX = 2**32 - 2
"""The largest id; the one above it is -1."""


def shown_id(mapping: IdMap, value: int) -> int:
    """The id that a mount shows for the owner ``value`` of a file."""
    if not mapping:
        return value
    for first, shown, count in mapping:
        if first <= value < first + count:
            return shown + value - first
    return OVERFLOW_ID


def _mapped(mapping: IdMap, value: int) -> int | None:
    """The id that the first of ranges (from, to, count) leads to; None if no range knows it."""
    if not mapping or value == UNCHANGED:
        return value
    for first, target, count in mapping:
        if first <= value < first + count:
            return target + value - first
    return value if any(target <= value < target + count for _, target, count in mapping) else None


def check_map(mapping: IdMap) -> None:
    """Raise :class:`ValueError` unless every id has at most one other, whichever way it goes.

    The rules are those for ``/proc/PID/uid_map`` (user_namespaces(7)): ranges are not empty, end
    below 2**32 - 1 and do not overlap, neither on disk nor as shown.
    """
    for side, what in enumerate(("in the layers", "shown")):
        end = 0
        for part in sorted(mapping, key=lambda part: part[side]):
            first, count = part[side], part[2]
            name = ":".join(map(str, part))
            if count < 1:
                raise ValueError(f"the range {name} is empty")
            if first < 0 or first + count - 1 > _ID_MAX:
                raise ValueError(f"the range {name} leaves the ids from 0 to {_ID_MAX}")
            if first < end:
                raise ValueError(f"the range {name} overlaps another in its ids {what}")
            end = first + count


@dataclass(frozen=True)
class Owners:
    """What a mount does to owners.

    ``uids`` and ``gids`` map ids on disk to ids shown; ``squash_uid`` and ``squash_gid`` are shown
    as owner of every file whatever the maps say (0 and 0 for ``squash_to_root``). Raises
    :class:`ValueError` for maps and ids that make no sense.
    """

    uids: IdMap = ()
    gids: IdMap = ()
    squash_uid: int | None = None
    squash_gid: int | None = None

    def __post_init__(self) -> None:
        check_map(self.uids)
        check_map(self.gids)
        for squash in (self.squash_uid, self.squash_gid):
            if squash is not None and not 0 <= squash <= _ID_MAX:
                raise ValueError(f"{squash} is no id; ids go from 0 to {_ID_MAX}")

    @property
    def changes(self) -> bool:
        """Whether anything is shown or kept differently from what it is."""
        return bool(self.uids or self.gids or self.squashes)

    @property
    def squashes(self) -> bool:
        """Whether owners are hidden, so that failing to set one must not fail the caller."""
        return self.squash_uid is not None or self.squash_gid is not None

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        """The owner a mount shows for the owner on disk."""
        return (
            _shown(self.uids, uid) if self.squash_uid is None else self.squash_uid,
            _shown(self.gids, gid) if self.squash_gid is None else self.squash_gid,
        )

    def kept(self, uid: int, gid: int) -> tuple[int, int]:
        """The owner on disk for one that a caller of the mount is or asks for.

        UNCHANGED stays; it also stands for an id outside the ranges where owners are squashed.
        """
        return (
            _kept(self.uids, uid, squashed=self.squash_uid is not None),
            _kept(self.gids, gid, squashed=self.squash_gid is not None),
        )


def _shown(mapping: IdMap, value: int) -> int:
    found = _mapped(mapping, value)
    return OVERFLOW_ID if found is None else found


def _kept(mapping: IdMap, value: int, *, squashed: bool) -> int:
    found = _mapped(tuple((shown, first, count) for first, shown, count in mapping), value)
    if found is not None:
        return found
    return UNCHANGED if squashed else OVERFLOW_ID
