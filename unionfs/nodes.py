"""The files of a union as the tree knows them, and small rules about them. Pure, no I/O."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from .entry import Handle
from .layers import Content, Layer
from .layers.directory import Place

Part = tuple[Layer, Handle]


def fail(number: int, name: bytes = b"") -> OSError:
    """The error of a request that cannot be met."""
    return OSError(number, os.strerror(number), name)


class Listing:
    """The names of one directory at stable positions.

    A name keeps its position while others come and go; a position is never used again. So a reader
    that goes on from a position neither misses a name that stayed nor sees one twice.
    """

    __slots__ = ("names", "positions")

    def __init__(self, names: Iterator[bytes]) -> None:
        self.names: list[bytes | None] = list(names)
        self.positions = {name: at for at, name in enumerate(self.names) if name is not None}

    def add(self, name: bytes) -> None:
        """A name has come."""
        if name not in self.positions:
            self.positions[name] = len(self.names)
            self.names.append(name)

    def remove(self, name: bytes) -> None:
        """A name has gone."""
        at = self.positions.pop(name, None)
        if at is not None:
            self.names[at] = None


class Node:
    """One file of the union.

    ``names`` are the known names, each with whether the upper itself has it. ``upper`` says that
    the upper has the file, ``place`` where (directories only); ``parts`` are the lower layers that
    take part, topmost first: those of a merged directory, or of a file whose contents are below,
    of which the last has them. ``pin`` is a descriptor that keeps an upper file without a name.
    ``link_key`` is the name of a file in the upper's index of hardlinks. ``extra`` is what the link
    count differs from the one on disk.
    """

    __slots__ = (
        "__weakref__", "children", "content", "extra", "identities", "kind", "link_key", "listing",
        "lookups", "names", "number", "opened", "parts", "pin", "place", "subdirectories", "upper",
    )  # fmt: skip

    def __init__(
        self, number: int, kind: int, *, upper: bool, place: Place | None, parts: tuple[Part, ...]
    ) -> None:
        self.number = number
        self.kind = kind
        self.upper = upper
        self.place = place
        self.parts = parts
        self.names: dict[tuple[Node, bytes], bool] = {}
        self.children: dict[bytes, Node] = {}
        self.identities: list[tuple[int, int]] = []
        self.lookups = 0
        self.opened = 0
        self.extra = 0
        self.pin = -1
        self.link_key: bytes | None = None
        self.content: Content | None = None
        self.listing: Listing | None = None
        self.subdirectories: int | None = None

    @property
    def is_directory(self) -> bool:
        """Whether the node is a directory."""
        return self.kind == stat.S_IFDIR

    @property
    def is_metacopy(self) -> bool:
        """Whether the upper has the attributes of a regular file, but not its contents."""
        return self.upper and bool(self.parts) and self.kind == stat.S_IFREG
