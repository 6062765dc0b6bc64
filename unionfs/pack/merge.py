"""Several layers become one index: what a union of them shows, worked out once.

Directories are walked breadth first, the sorted names of the layers side by side, so nothing but
the directories still to be walked is held in memory beside the tables.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator, Sequence
from heapq import merge as merge_sorted
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from ..errors import LayerError, display
from .emit import Tables, emit, write_index
from .format import (
    CHUNK_ROW,
    COMPLETE,
    HEADER_SIZE,
    IMPLICIT,
    MERGED,
    NO_ROW,
    OPAQUE,
    SOURCE_ROW,
    UNRESOLVED,
    Header,
    Inode,
    little_endian,
)
from .reader import Pack

_IMPLICIT_MODE = stat.S_IFDIR | 0o755

Part = tuple[int, int]
"""A file of one of the packs: the position of the pack, 0 for the bottom one, and the row."""


class Merged(NamedTuple):
    """What came of a merge: how many names and files.

    ``complete`` says that the index does not speak of what lies below, ``unresolved`` that it has
    hardlinks into it; ``stored`` is the size in bytes.
    """

    names: int
    inodes: int
    complete: bool
    unresolved: bool
    stored: int


class _File(NamedTuple):
    """A file of the union: the parts that make it up, topmost first.

    Several parts are directories that merge. ``hides`` says that a directory hides what lies below
    all packs.
    """

    parts: tuple[Part, ...]
    kind: int
    hides: bool


def merge(packs: Sequence[Pack], path: Path, identity: bytes, *, complete: bool) -> Merged:
    """Write the index of a union of packs, bottom first, to ``path``; fsync it.

    ``complete`` says that nothing lies below: whiteouts and opaque flags are dropped, and a
    directory that no layer gives attributes becomes 0755 root:root. Otherwise what matters for the
    layers below is kept. A hardlink into a lower pack becomes a name of the file it leads to.

    Raises :class:`LayerError` for a hardlink that leads nowhere, :class:`PackError` for a damaged
    pack, :class:`OSError` as it comes; ``path`` is then removed.
    """
    with path.open("wb") as file:
        try:
            tables = Tables()
            union = _Union(packs, complete)
            emit(union, tables)
            header = Header(
                role=MERGED,
                flags=0 if tables.whiteouts or union.unresolved else COMPLETE,
                identity=identity,
                tar_size=0,
                entries=sum(pack.entries for pack in packs),
                content_size=tables.content_size,
                residue_size=0,
                residue_first=0,
                unresolved=union.unresolved,
                sums_crc=0,
                metadata=0,
                sections={},
            )
            file.write(bytes(HEADER_SIZE))
            sections = tables.sections() | union.contents.sections()
            stored = write_index(file, HEADER_SIZE, header, sections)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
    names, inodes = tables.counts
    return Merged(
        names, inodes, not tables.whiteouts and not union.unresolved, bool(union.unresolved), stored
    )


class _Contents:
    """The refs, chunks and sources of the merged index, copied from the packs."""

    def __init__(self, packs: Sequence[Pack]) -> None:
        self._packs = packs
        self._refs = array("I")
        self._table = bytearray()
        self._sources: dict[bytes, int] = {}
        self._pack_sources = [pack.sources for pack in packs]
        self._rows = [array("I", [NO_ROW]) * pack.chunk_count for pack in packs]

    def add(self, position: int, row: int) -> int:
        """Copy the refs of a regular file; the first of them."""
        first = len(self._refs)
        pack = self._packs[position]
        known = self._rows[position]
        for number in pack.refs(row):
            chunk = pack.ref(number)
            copied = known[chunk] if chunk < len(known) else NO_ROW
            if copied == NO_ROW:
                copied = self._copy(position, chunk)
            self._refs.append(copied)
        return first

    def _copy(self, position: int, row: int) -> int:
        pack = self._packs[position]
        chunk = pack.chunk(row)
        sources = self._pack_sources[position]
        if chunk.source >= len(sources):
            pack.fail(f"chunk {row} is in a pack it does not name")
        source = self._sources.setdefault(sources[chunk.source], len(self._sources))
        copied = self._rows[position][row] = len(self._table) // CHUNK_ROW.size
        if copied >= NO_ROW:
            raise LayerError("the image has more chunks than an index can hold")
        self._table += CHUNK_ROW.pack(*chunk._replace(source=source))
        return copied

    def sections(self) -> dict[str, bytes | bytearray]:
        """The sections this class has made."""
        return {
            "refs": little_endian(self._refs),
            "chunks": self._table,
            "sources": b"".join(map(SOURCE_ROW.pack, self._sources)),
        }


class _Union:
    """The union of the packs as the emitter wants it."""

    def __init__(self, packs: Sequence[Pack], complete: bool) -> None:
        self._packs = packs
        self._complete = complete
        self.contents = _Contents(packs)
        self.unresolved = 0
        self._resolved: dict[Part, Part] = {}
        self._linked: set[Part] = set()
        self.root = self._root(len(packs))
        for position, pack in enumerate(packs):
            if pack.unresolved:
                self._resolve_all(position)

    # -- what the emitter asks ---------------------------------------------------------------

    def children(self, directory: _File) -> Iterator[tuple[bytes, int, _File | None]]:
        """The names of a directory of the union, sorted."""
        parts = directory.parts
        if len(parts) == 1:
            named = self._names_of(parts[0], 0)
            groups = ((name, [(kind, part)]) for name, _, kind, part in named)
            merged: Iterator[tuple[bytes, list[tuple[int, Part]]]] = groups
        else:
            merged = self._merge_names(parts)
        for name, candidates in merged:
            file = self._decide(candidates)
            if file is not None:
                yield name, file.kind, file
            elif not self._complete and not directory.hides:
                yield name, 0, None

    def identity(self, file: _File) -> Part | None:
        """The one part of a file that may have several names."""
        if file.kind == stat.S_IFDIR:
            return None
        part = file.parts[0]
        if part in self._linked:
            return part
        position, row = part
        return part if self._packs[position].inode(row).nlink > 1 else None

    def describe(self, file: _File, tables: Tables) -> Inode:
        """The row of a file."""
        position, row = file.parts[0]
        pack = self._packs[position]
        inode = pack.inode(row)
        if file.kind == stat.S_IFDIR:
            return self._describe_directory(file, tables)
        first, flags = 0, inode.flags & UNRESOLVED
        if flags or stat.S_ISLNK(inode.mode):
            first = tables.string(pack.target(row))
            self.unresolved += bool(flags)
        elif stat.S_ISREG(inode.mode):
            first = self.contents.add(position, row)
        offset, length = tables.xattrs(pack.xattrs(row))
        return inode._replace(
            first=first, flags=flags, nlink=1, xattr_offset=offset, xattr_length=length
        )

    def _describe_directory(self, file: _File, tables: Tables) -> Inode:
        for position, row in file.parts:
            inode = self._packs[position].inode(row)
            if not inode.flags & IMPLICIT:
                xattrs = self._packs[position].xattrs(row)
                flags = 0
                break
        else:
            inode = Inode(_IMPLICIT_MODE, *[0] * (len(Inode._fields) - 1))
            xattrs = {}
            flags = 0 if self._complete or file.hides else IMPLICIT
        if file.hides and not self._complete:
            flags |= OPAQUE
        offset, length = tables.xattrs(xattrs)
        return inode._replace(
            flags=flags, first=0, length=0, xattr_offset=offset, xattr_length=length
        )

    # -- the union -----------------------------------------------------------------------------

    def _root(self, end: int) -> _File:
        """The root of the union of the packs below ``end``."""
        candidates = [(stat.S_IFDIR, (position, 0)) for position in range(end - 1, -1, -1)]
        root = self._decide(candidates)
        assert root is not None
        return root

    def _decide(self, candidates: Sequence[tuple[int, Part]]) -> _File | None:
        """What (kind, part) of one name, topmost first, make together; None for nothing."""
        parts: list[Part] = []
        for kind, part in candidates:
            if kind != stat.S_IFDIR:
                if parts:
                    return _File(tuple(parts), stat.S_IFDIR, True)
                return self._file(kind, part) if kind else None
            parts.append(part)
            if self._packs[part[0]].inode(part[1]).flags & OPAQUE:
                return _File(tuple(parts), stat.S_IFDIR, True)
        return _File(tuple(parts), stat.S_IFDIR, False)

    def _file(self, kind: int, part: Part) -> _File:
        """What is no directory; a hardlink into a lower pack is the file it leads to."""
        found = self._resolved.get(part)
        if found is None:
            return _File((part,), kind, True)
        position, row = found
        return _File((found,), stat.S_IFMT(self._packs[position].inode(row).mode), True)

    def _names_of(self, part: Part, rank: int) -> Iterator[tuple[bytes, int, int, Part]]:
        position, directory = part
        for name, kind, row in self._packs[position].names(directory):
            yield name, rank, kind, (position, row)

    def _merge_names(
        self, parts: tuple[Part, ...]
    ) -> Iterator[tuple[bytes, list[tuple[int, Part]]]]:
        """Each name of the directories, with what each that has it says, topmost first."""
        streams = [self._names_of(part, rank) for rank, part in enumerate(parts)]
        for name, group in groupby(merge_sorted(*streams), key=itemgetter(0)):
            yield name, [(kind, part) for _, _, kind, part in group]

    # -- hardlinks into lower layers ---------------------------------------------------------

    def _resolve_all(self, position: int) -> None:
        """Find what the unresolved hardlinks of a pack lead to, in the packs below it."""
        pack = self._packs[position]
        for row in range(pack.inode_count):
            if not pack.inode(row).flags & UNRESOLVED:
                continue
            target = pack.target(row)
            found, hidden = self._find(position, target.split(b"/"))
            if found is not None:
                self._resolved[position, row] = found
                self._linked.add(found)
            elif hidden or self._complete:
                raise self._leads_nowhere(pack, row, target)

    @staticmethod
    def _leads_nowhere(pack: Pack, row: int, target: bytes) -> LayerError:
        return LayerError(
            f"{display(pack.path(row))} in {display(pack.file.name)} is a hardlink to"
            f" {display(target)}, which is no file of the layers below"
        )

    def _find(self, end: int, names: list[bytes]) -> tuple[Part | None, bool]:
        """The file at a path of the union of the packs below ``end``; links are not followed.

        Without a file, whether these packs hide the path in what lies below them.
        """
        if not end:
            return None, False
        file = self._root(end)
        for name in names:
            if file.kind != stat.S_IFDIR:
                return None, True
            candidates = self._candidates(file, name)
            if not candidates:
                return None, file.hides
            found = self._decide(candidates)
            if found is None:
                return None, True
            file = found
        return (file.parts[0], True) if file.kind != stat.S_IFDIR else (None, True)

    def _candidates(self, directory: _File, name: bytes) -> list[tuple[int, Part]]:
        candidates = []
        for position, row in directory.parts:
            found = self._packs[position].lookup(row, name)
            if found is not None:
                candidates.append((found[0], (position, found[1])))
        return candidates
