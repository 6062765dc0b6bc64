"""Writes the tables of an index: directories breadth first, the names of each in order.

So the names of a directory are contiguous, the row of a file is higher than that of the directory
it was first seen in, and a tree of any depth needs no recursion.
"""

from __future__ import annotations

import os
import stat
import zlib
from array import array
from collections import deque
from collections.abc import Hashable, Iterable
from typing import BinaryIO, Protocol, TypeVar

from ..errors import LayerError
from .format import (
    ALIGNMENT,
    BLOCK_SIZE,
    HEADER_SIZE,
    INODE_ROW,
    LINK_ROW,
    NAME_ROW,
    NO_ROW,
    SECTIONS,
    SUM_ROW,
    Header,
    Inode,
    encode_header,
    encode_xattrs,
)

N = TypeVar("N")

_NLINK_OFFSET = 12
_SIZE_MAX = (1 << 32) - 1


class Tables:
    """The metadata sections of an index in the making."""

    def __init__(self) -> None:
        self.inodes = bytearray()
        self.names = bytearray()
        self.strings = bytearray()
        self.links: list[tuple[int, int, int]] = []
        self.content_size = 0
        self.whiteouts = 0
        self._known: dict[bytes, int] = {}

    def string(self, data: bytes) -> int:
        """Where a string is; equal strings are stored once."""
        offset = self._known.get(data)
        if offset is None:
            offset = self._known[data] = len(self.strings)
            self.strings += data
            if len(self.strings) > _SIZE_MAX:
                raise LayerError("the names of the layer are more than a pack can hold")
        return offset

    def xattrs(self, xattrs: dict[bytes, bytes]) -> tuple[int, int]:
        """Offset and length of an encoded xattr list."""
        if not xattrs:
            return 0, 0
        data = encode_xattrs(xattrs)
        return self.string(data), len(data)

    def add_inode(self, inode: Inode) -> int:
        """Append a row; its number."""
        row = len(self.inodes) // INODE_ROW.size
        if row >= NO_ROW:
            raise LayerError("the layer has more files than a pack can hold")
        self.inodes += INODE_ROW.pack(*inode)
        return row

    def add_name(self, name: bytes, kind: int, row: int) -> int:
        """Append a name to the directory that is being written; the row of the name."""
        number = len(self.names) // NAME_ROW.size
        if number >= NO_ROW:
            raise LayerError("the layer has more names than a pack can hold")
        self.names += NAME_ROW.pack(self.string(name), len(name), kind >> 12, row)
        return number

    def set_directory(self, row: int, first: int, count: int, subdirectories: int) -> None:
        """Tell a directory its names, and its link count, which every subdirectory adds to."""
        at = row * INODE_ROW.size
        inode = Inode._make(INODE_ROW.unpack_from(self.inodes, at))
        inode = inode._replace(first=first, length=count, nlink=2 + subdirectories)
        INODE_ROW.pack_into(self.inodes, at, *inode)

    def set_links(self, row: int, count: int) -> None:
        """Tell a file how many names it has."""
        SUM_ROW.pack_into(self.inodes, row * INODE_ROW.size + _NLINK_OFFSET, count)

    @property
    def counts(self) -> tuple[int, int]:
        """How many names and how many inodes there are."""
        return len(self.names) // NAME_ROW.size, len(self.inodes) // INODE_ROW.size

    def sections(self) -> dict[str, bytes | bytearray]:
        """The sections this class has made."""
        links = b"".join(LINK_ROW.pack(*link) for link in sorted(self.links))
        return {
            "inodes": self.inodes,
            "names": self.names,
            "links": links,
            "strings": self.strings,
        }


class Tree(Protocol[N]):
    """What the emitter writes down."""

    root: N

    def children(self, directory: N, /) -> Iterable[tuple[bytes, int, N | None]]:
        """The names of a directory, sorted, with their kinds (0 and None for a whiteout).

        Called once for each directory, before :meth:`describe` is called for its children.
        """
        ...

    def identity(self, node: N, /) -> Hashable | None:
        """Equal for all names of one file that may have several; None for all others."""
        ...

    def describe(self, node: N, tables: Tables, /) -> Inode:
        """The row of a file; parent, name, links and a directory's names are filled in later."""
        ...


def emit(tree: Tree[N], tables: Tables) -> None:
    """Write a tree into tables."""
    root = tables.add_inode(tree.describe(tree.root, tables)._replace(parent=0, name=NO_ROW))
    waiting = deque([(root, tree.root)])
    shared: dict[Hashable, int] = {}
    names_of: dict[int, list[tuple[int, int]]] = {}
    while waiting:
        directory, node = waiting.popleft()
        first = len(tables.names) // NAME_ROW.size
        count = subdirectories = 0
        for name, kind, child in tree.children(node):
            number = first + count
            count += 1
            if child is None:
                tables.add_name(name, 0, NO_ROW)
                tables.whiteouts += 1
                continue
            identity = tree.identity(child)
            row = shared.get(identity) if identity is not None else None
            if row is None:
                inode = tree.describe(child, tables)
                row = tables.add_inode(inode._replace(parent=directory, name=number))
                if kind == stat.S_IFDIR:
                    waiting.append((row, child))
                    subdirectories += 1
                elif kind == stat.S_IFREG:
                    tables.content_size += inode.size
            if identity is not None:
                shared[identity] = row
                names_of.setdefault(row, []).append((directory, number))
            tables.add_name(name, kind, row)
        tables.set_directory(directory, first, count, subdirectories)
    for row, names in names_of.items():
        tables.set_links(row, len(names))
        if len(names) > 1:
            tables.links += [(row, directory, number) for directory, number in names]


def write_index(
    file: BinaryIO, end: int, header: Header, sections: dict[str, bytes | bytearray]
) -> int:
    """Write the metadata region of a file whose data ends at ``end``, and its header; fsync.

    ``header`` brings everything but the places of the sections. The size of the file in bytes.
    """
    metadata = at = _aligned(max(end, HEADER_SIZE))
    places: dict[str, tuple[int, int]] = {}
    summer = _Summer()
    file.seek(end)
    file.write(bytes(metadata - end))
    for name in SECTIONS:
        if name == "sums":
            break
        data = sections.get(name, b"")
        padding = bytes(_aligned(len(data)) - len(data))
        places[name] = (at, len(data))
        for piece in (data, padding):
            file.write(piece)
            summer.add(piece)
        at += len(data) + len(padding)
    sums = summer.finish()
    places["sums"] = (at, len(sums))
    file.write(sums)
    complete = header._replace(metadata=metadata, sums_crc=zlib.crc32(sums), sections=places)
    file.seek(0)
    file.write(encode_header(complete))
    file.flush()
    os.fsync(file.fileno())
    return at + len(sums)


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


class _Summer:
    """The checksum of each block of a stream of bytes."""

    def __init__(self) -> None:
        self._crc = 0
        self._filled = 0
        self._sums = array("I")

    def add(self, data: bytes | bytearray) -> None:
        """Go on with these bytes."""
        view = memoryview(data)
        at = 0
        while at < len(view):
            take = min(BLOCK_SIZE - self._filled, len(view) - at)
            self._crc = zlib.crc32(view[at : at + take], self._crc)
            at += take
            self._filled += take
            if self._filled == BLOCK_SIZE:
                self._next()

    def _next(self) -> None:
        self._sums.append(self._crc)
        self._crc = self._filled = 0

    def finish(self) -> bytes:
        """The sums section."""
        if self._filled:
            self._next()
        return b"".join(SUM_ROW.pack(crc) for crc in self._sums)
