"""Checking a pack from end to end, and what mending one needs."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator

import lz4.block

from ..errors import PackError
from .chunks import unpack
from .format import HEADER_SIZE, LAYER, RAW, UNRESOLVED, ZERO, Chunk
from .reader import Pack
from .rebuild import rebuild

_RESIDUE_LEVEL = 4
"""As headers and padding are compressed in :mod:`.chunks`."""


def verify(pack: Pack, progress: Callable[[int], None] | None = None) -> None:
    """Check every block, row and chunk of a pack, and that a layer rebuilds to its diff_id.

    ``progress`` is told how many bytes of a layer's tar are rebuilt. Raises
    :class:`unionfs.errors.PackError` naming what is damaged.
    """
    pack.check_metadata()
    _verify_tree(pack)
    for row in range(pack.chunk_count):
        pack.chunk_data(row, cached=False)
    if pack.role == LAYER:
        digest = hashlib.sha256()
        done = 0
        for piece in rebuild(pack):
            digest.update(piece)
            done += len(piece)
            if progress is not None:
                progress(done)
        if digest.digest() != pack.identity:
            pack.fail("the archive it rebuilds is another than the one it was made of")


def own_chunks(pack: Pack) -> Iterator[Chunk]:
    """The chunks whose data is in the pack's own file."""
    for row in range(pack.chunk_count):
        chunk = pack.chunk(row)
        if pack.role == LAYER and not chunk.source and not chunk.flags & ZERO:
            yield chunk


def read_own(fd: int, chunk: Chunk) -> bytes | None:
    """The plain bytes of a chunk in the open file of its pack; None if they are damaged."""
    try:
        return unpack(chunk, os.pread(fd, chunk.stored, chunk.offset))
    except PackError:
        return None


def stored_form(chunk: Chunk, plain: bytes) -> bytes | None:
    """What is stored of a chunk in its place; None if its bytes cannot be had again exactly there.

    Another version of lz4 may compress to another length.
    """
    if chunk.flags & RAW:
        return plain
    for form in (
        lz4.block.compress(plain, store_size=False),
        lz4.block.compress(
            plain, mode="high_compression", compression=_RESIDUE_LEVEL, store_size=False
        ),
    ):
        if len(form) == chunk.stored:
            return bytes(form)
    return None


def filling(pack: Pack) -> tuple[int, int]:
    """From where to where the file has nothing but zeros: between its chunks and its metadata."""
    ends = (chunk.offset + chunk.stored for chunk in own_chunks(pack))
    return max(ends, default=HEADER_SIZE), pack.header.metadata


def _verify_tree(pack: Pack) -> None:
    """Every directory, name and row that can be reached from the root."""
    seen = bytearray(pack.inode_count)
    waiting = [0]
    while waiting:
        directory = waiting.pop()
        for _, kind, row in pack.names(directory):
            if not kind or seen[row]:
                continue
            seen[row] = 1
            inode = pack.inode(row)
            pack.xattrs(row)
            _verify_file(pack, row, inode.mode, inode.flags)
            if kind == stat.S_IFDIR:
                waiting.append(row)


def _verify_file(pack: Pack, row: int, mode: int, flags: int) -> None:
    if stat.S_ISLNK(mode) or flags & UNRESOLVED:
        pack.target(row)
    elif stat.S_ISREG(mode):
        for ref in pack.refs(row):
            pack.chunk(pack.ref(ref))
    if not stat.S_ISDIR(mode):
        for directory, _ in pack.links(row):
            pack.inode(directory)
