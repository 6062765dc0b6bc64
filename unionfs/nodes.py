"""The files of a union as the tree knows them, and small rules about them. Pure, no I/O."""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterator

from .entry import Handle
from .layers import Content, Layer
from .layers.directory import Place

Part = tuple[Layer, Handle]

_FEW_GONE = 64
"""How many names that went are kept in a listing in any case."""


def fail(number: int, name: bytes = b"") -> OSError:
    """The error of a request that cannot be met."""
    return OSError(number, os.strerror(number), name)


class Listing:
    """The names of one directory at stable positions.

    A name keeps its position while others come and go; a position is never used again. So a reader
    that goes on from a position neither misses a name that stayed nor sees one twice.
    """

    __slots__ = ("_gone", "_names", "_next", "_places", "_positions")

    def __init__(self, names: Iterator[bytes]) -> None:
        self._names: list[bytes | None] = list(names)
        self._places = list(range(len(self._names)))  # the position of each, rising
        self._next = len(self._names)
        self._positions = dict(zip(self._names, self._places, strict=True))
        self._gone = 0

    def after(self, position: int) -> Iterator[tuple[bytes, int]]:
        """Every name from a position on, each with the position that follows it."""
        names, places = self._names, self._places
        for at in range(bisect_left(places, position), len(places)):
            name = names[at]
            if name is not None:
                yield name, places[at] + 1

    def add(self, name: bytes) -> None:
        """A name has come."""
        if name not in self._positions:
            self._positions[name] = self._next
            self._names.append(name)
            self._places.append(self._next)
            self._next += 1

    def remove(self, name: bytes) -> None:
        """A name has gone. What is left of those that went is cleared away when it is the most."""
        position = self._positions.pop(name, None)
        if position is None:
            return
        self._names[bisect_left(self._places, position)] = None
        self._gone += 1
        if self._gone > _FEW_GONE and self._gone > len(self._positions):
            self._names = list(self._positions)
            self._places = list(self._positions.values())
            self._gone = 0


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
