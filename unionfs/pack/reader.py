"""Reading packs and merged indexes straight from the mapped file.

Opening costs the same for every size: a block of metadata is compared with its checksum when it is
first touched, a chunk with its digest when it is read. Whatever a file says is checked before it is
followed, so a damaged or hostile pack ends in :class:`PackError` and nothing else.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

from ..errors import PackError, display
from .chunks import CACHE, unpack
from .format import (
    CHUNK_ROW,
    CHUNK_SIZE,
    COMPLETE,
    HEADER_SIZE,
    INODE_ROW,
    LAYER,
    LINK_ROW,
    NAME_ROW,
    RECIPE_ROW,
    REF_ROW,
    SOURCE_ROW,
    UNRESOLVED,
    ZERO,
    Chunk,
    Inode,
    decode_xattrs,
)
from .mapped import MappedFile, Section, open_pack

_OFFSET_MAX = 1 << 62
_FORBIDDEN_NAMES = (b"", b".", b"..")


class Pack(MappedFile):
    """An open pack or merged index. It stays readable when its file is unlinked.

    Rows are numbered from 0; row 0 of the inodes is the root directory. Every method raises
    :class:`PackError`, naming the file and what is damaged in it.
    """

    def __init__(self, path: Path) -> None:
        """Raises :class:`OSError` if ``path`` cannot be opened, :class:`PackError` for no pack."""
        self._others: dict[int, int] = {}
        super().__init__(path)
        header = self.header
        self.role = header.role
        self.identity = header.identity
        self.tar_size = header.tar_size
        self.entries = header.entries
        self.content_size = header.content_size
        self.unresolved = header.unresolved
        self.is_complete = bool(header.flags & COMPLETE)
        self._inodes = Section(header, "inodes", INODE_ROW)
        self._names = Section(header, "names", NAME_ROW)
        self._links = Section(header, "links", LINK_ROW)
        self._refs = Section(header, "refs", REF_ROW)
        self._chunks = Section(header, "chunks", CHUNK_ROW)
        self._sources = Section(header, "sources", SOURCE_ROW)
        self._recipe = Section(header, "recipe", RECIPE_ROW)

    def close(self) -> None:
        """Give up the map and all descriptors."""
        super().close()
        while self._others:
            os.close(self._others.popitem()[1])

    # -- the tree ----------------------------------------------------------------------------

    @property
    def inode_count(self) -> int:
        """How many inodes there are."""
        return self._inodes.count

    def inode(self, row: int) -> Inode:
        """The row of a file."""
        return Inode._make(self._row(self._inodes, row))

    def _directory(self, row: int) -> range:
        """The name rows of a directory."""
        inode = self.inode(row)
        if not stat.S_ISDIR(inode.mode):
            self.fail(f"file {row} is taken for a directory")
        if inode.first + inode.length > self._names.count:
            self.fail(f"the names of directory {row} are not within its names")
        return range(inode.first, inode.first + inode.length)

    def _name(self, number: int) -> bytes:
        offset, length, _, _ = self._row(self._names, number)
        return self.string(offset, length)

    def _entry(self, directory: int, number: int) -> tuple[bytes, int, int]:
        offset, length, kind, row = self._row(self._names, number)
        if kind:
            kind <<= 12
            # What keeps hostile directories from containing each other.
            if kind == stat.S_IFDIR:
                if row <= directory:
                    self.fail(f"directory {row} is not below directory {directory}")
                child = self.inode(row)
                if child.parent != directory or child.name != number:
                    self.fail(f"directory {row} has a second name in directory {directory}")
            if stat.S_IFMT(self.inode(row).mode) != kind:
                self.fail(f"file {row} is not of the kind its name in directory {directory} says")
        return self.string(offset, length), kind, row

    def lookup(self, directory: int, name: bytes) -> tuple[int, int] | None:
        """The kind (``stat.S_IF*``, 0 for a whiteout) and row of a name, or None."""
        names = self._directory(directory)
        at = bisect_left(names, name, key=self._name)
        if at == len(names):
            return None
        found, kind, row = self._entry(directory, names[at])
        return (kind, row) if found == name else None

    def names(self, directory: int) -> Iterator[tuple[bytes, int, int]]:
        """The names of a directory in order: (name, kind, row), see :meth:`lookup`."""
        previous = b""
        for number in self._directory(directory):
            name, kind, row = self._entry(directory, number)
            if name <= previous or b"/" in name or name in _FORBIDDEN_NAMES:
                self.fail(f"the names of directory {directory} are out of order or forbidden")
            previous = name
            yield name, kind, row

    def target(self, row: int) -> bytes:
        """The target of a symlink, or the path an unresolved hardlink leads to."""
        inode = self.inode(row)
        if not stat.S_ISLNK(inode.mode) and not inode.flags & UNRESOLVED:
            self.fail(f"file {row} is taken for a link")
        return self.string(inode.first, inode.length)

    def xattrs(self, row: int) -> dict[bytes, bytes]:
        """The extended attributes of a file, as the layer has them."""
        inode = self.inode(row)
        if not inode.xattr_length:
            return {}
        try:
            return decode_xattrs(self.string(inode.xattr_offset, inode.xattr_length))
        except ValueError:
            self.fail(f"the xattrs of file {row} are malformed")

    def links(self, row: int) -> list[tuple[int, bytes]]:
        """All names of a file that has several: (row of the directory, name)."""
        inode = self.inode(row)
        if stat.S_ISDIR(inode.mode) or inode.nlink < 2:
            return [(inode.parent, self._name(inode.name))] if row else []
        table = range(self._links.count)
        found = []
        at = bisect_left(table, row, key=lambda number: self._row(self._links, number)[0])
        for number in table[at:]:
            linked, directory, name = self._row(self._links, number)
            if linked != row:
                break
            found.append((directory, self._name(name)))
        return found

    def path(self, row: int) -> bytes:
        """A path from the root of the layer to a file, by its first name; empty for the root."""
        names: list[bytes] = []
        while row:
            inode = self.inode(row)
            if inode.parent >= row:
                self.fail(f"file {row} is above its own directory")
            names.append(self._name(inode.name))
            row = inode.parent
        return b"/".join(reversed(names))

    # -- contents ----------------------------------------------------------------------------

    @property
    def sources(self) -> tuple[bytes, ...]:
        """The diff_ids of the packs that hold the data; the first of a layer is its own."""
        return tuple(self._row(self._sources, row)[0] for row in range(self._sources.count))

    @property
    def chunk_count(self) -> int:
        """How many rows the chunk table has."""
        return self._chunks.count

    def ref(self, number: int) -> int:
        """The chunk that a ref stands for."""
        row: int = self._row(self._refs, number)[0]
        return row

    def refs(self, row: int) -> range:
        """The refs of a regular file."""
        inode = self.inode(row)
        if not stat.S_ISREG(inode.mode) or inode.flags & UNRESOLVED:
            self.fail(f"file {row} is taken for a regular file")
        if inode.length != -(-inode.size // CHUNK_SIZE):
            self.fail(f"file {row} has not as many chunks as its size takes")
        if inode.first + inode.length > self._refs.count:
            self.fail(f"the chunks of file {row} are not within its refs")
        return range(inode.first, inode.first + inode.length)

    def chunk(self, row: int) -> Chunk:
        """A row of the chunk table."""
        chunk = Chunk._make(self._row(self._chunks, row))
        if not 0 < chunk.plain <= CHUNK_SIZE or chunk.stored > CHUNK_SIZE:
            self.fail(f"chunk {row} has an impossible length")
        if chunk.offset > _OFFSET_MAX:
            self.fail(f"chunk {row} has an impossible place")
        return chunk

    def chunk_data(self, row: int, *, length: int | None = None, cached: bool = True) -> bytes:
        """The plain bytes of a chunk, checked; ``length`` is what they must be."""
        chunk = self.chunk(row)
        if length is not None and chunk.plain != length:
            self.fail(f"chunk {row} has not the length its content needs")
        if chunk.flags & ZERO:
            return bytes(chunk.plain)
        data = CACHE.get(chunk.digest) if cached else None
        if data is None:
            data = self._read_chunk(row, chunk)
            if cached:
                CACHE.put(chunk.digest, data)
        elif len(data) != chunk.plain:
            self.fail(f"chunk {row} has not the length its digest belongs to")
        return data

    def _read_chunk(self, row: int, chunk: Chunk) -> bytes:
        fd = self._fd if not chunk.source and self.role == LAYER else self._other(chunk.source)
        try:
            return unpack(chunk, os.pread(fd, chunk.stored, chunk.offset))
        except PackError as error:
            path = self.file if fd == self._fd else self._other_path(chunk.source)
            raise PackError(
                f"{display(path)} {error} (chunk {row} of {display(self.file.name)})"
            ) from error

    def _other_path(self, source: int) -> Path:
        return self.file.parent / f"{self._row(self._sources, source)[0].hex()}.pack"

    def _other(self, source: int) -> int:
        """The descriptor of another pack that holds chunks of this one."""
        fd = self._others.get(source)
        if fd is not None:
            return fd
        path = self._other_path(source)
        try:
            fd, header = open_pack(path)
        except FileNotFoundError:
            raise PackError(
                f"{display(self.file)} needs the pack {display(path)}, which does not exist"
            ) from None
        if header.identity != self._row(self._sources, source)[0] or header.role != LAYER:
            os.close(fd)
            raise PackError(f"{display(path)} is the pack of another layer than its name says")
        self._others[source] = fd
        return fd

    def open_sources(self) -> None:
        """Open all packs that hold data now, so that nothing is missing later."""
        for source in range(1 if self.role == LAYER else 0, self._sources.count):
            self._other(source)

    def read(self, row: int, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes of a regular file from ``offset``; fewer only at its end."""
        refs = self.refs(row)
        length = self.inode(row).size
        end = min(offset + size, length)
        if offset >= end:
            return b""
        pieces = []
        for index in range(offset // CHUNK_SIZE, (end - 1) // CHUNK_SIZE + 1):
            start = index * CHUNK_SIZE
            plain = min(CHUNK_SIZE, length - start)
            data = self.chunk_data(self.ref(refs[index]), length=plain)
            pieces.append(data[max(0, offset - start) : end - start])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def extents(self, row: int) -> Iterator[tuple[int, int]]:
        """The (offset, length) runs of a regular file that are not zero chunks, in order."""
        start = at = 0
        for ref in self.refs(row):
            chunk = self.chunk(self.ref(ref))
            if chunk.flags & ZERO:
                if at > start:
                    yield start, at - start
                start = at + chunk.plain
            at += chunk.plain
        if at > start:
            yield start, at - start

    # -- the recipe --------------------------------------------------------------------------

    def recipe(self) -> Iterator[tuple[int, int, int]]:
        """What the tar was made of: (bytes of the residue, bytes of a content, its first ref)."""
        for row in range(self._recipe.count):
            raw, payload, first = self._row(self._recipe, row)
            yield raw, payload, first

    def content(self, first: int, size: int) -> Iterator[bytes]:
        """The pieces of a content of ``size`` bytes whose refs begin at ``first``."""
        for ref in range(first, first + -(-size // CHUNK_SIZE)):
            plain = min(CHUNK_SIZE, size)
            size -= plain
            yield self.chunk_data(self.ref(ref), length=plain, cached=False)

    def check_metadata(self) -> None:
        """Compare all metadata with its checksums; see that there is nothing before and behind."""
        if self._end > self._metadata:
            self._check(self._metadata, self._end - self._metadata)
        end = HEADER_SIZE
        for row in range(self._chunks.count):
            chunk = self.chunk(row)
            if self.role == LAYER and not chunk.source:
                end = max(end, chunk.offset + chunk.stored)
        if any(self._map[end : self._metadata]) or len(self._map) != self._end + len(self._sums):
            self.fail("there are bytes that belong to nothing")
