"""Checking a pack from end to end."""

from __future__ import annotations

import hashlib
import stat

from .format import LAYER, UNRESOLVED
from .reader import Pack
from .rebuild import rebuild


def verify(pack: Pack) -> None:
    """Check every block, row and chunk of a pack, and that a layer rebuilds to its diff_id.

    Raises :class:`unionfs.errors.PackError` naming what is damaged.
    """
    pack.check_metadata()
    _verify_tree(pack)
    for row in range(pack.chunk_count):
        pack.chunk_data(row, cached=False)
    if pack.role == LAYER:
        digest = hashlib.sha256()
        for piece in rebuild(pack):
            digest.update(piece)
        if digest.digest() != pack.identity:
            pack.fail("the archive it rebuilds is another than the one it was made of")


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
