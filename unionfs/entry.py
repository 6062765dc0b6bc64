"""What a layer says of a name: which kind of thing it is, and its attributes."""

from __future__ import annotations

import stat
from typing import Any, NamedTuple

WHITEOUT = 0
"""The kind of a name that a layer declares gone; every other kind is a ``stat.S_IF*`` value."""

XATTR_MAX = 65536
NAME_MAX = 255

Handle = Any
"""How a layer refers to one of its files. Only the layer that gave it out can read it."""


class Entry(NamedTuple):
    """One name in a directory of one layer.

    ``kind`` is ``stat.S_IFMT(mode)`` or :data:`WHITEOUT`; ``handle`` is None for a whiteout.
    """

    kind: int
    handle: Handle

    @property
    def is_directory(self) -> bool:
        """Whether the name is a directory."""
        return self.kind == stat.S_IFDIR


class Owner(NamedTuple):
    """Who a new file belongs to."""

    uid: int
    gid: int


class Attributes(NamedTuple):
    """The attributes of one file in one layer. Times are nanoseconds since the epoch, sizes bytes.

    ``space`` and ``number`` identify the file: two names are the same file exactly when both are
    equal. ``blocks`` counts 512-byte units. ``rdev`` is as :func:`os.makedev` makes it.
    """

    space: int
    number: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def kind(self) -> int:
        """The file type bits of the mode (``stat.S_IF*``)."""
        return stat.S_IFMT(self.mode)
