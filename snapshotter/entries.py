"""Entries of tar archives made of the files of a tree: what layers and exports have in common.

Times are cut to whole seconds, as Docker does, holes are written as zeros.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping

from unionfs.entry import Attributes
from unionfs.errors import LayerError, display
from unionfs.nodes import Node
from unionfs.reading import ReadableTree

from . import tarwriter

PIECE = 1 << 20
"""How many bytes of a file are read at once."""

_HOST_XATTRS = (b"security.selinux",)
"""What the host's policy says of a file, and no image."""


def without_host(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The xattrs of a file that are not the host's."""
    return {name: value for name, value in xattrs.items() if name not in _HOST_XATTRS}


def header(
    path: bytes,
    attributes: Attributes,
    *,
    clamp: int | None,
    link: bytes | None = None,
    target: bytes = b"",
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The header of a file: of its own kind, or of a hardlink to the entry ``link``.

    ``target`` is a symlink's; ``clamp`` the latest time an entry may have, in seconds since the
    epoch. Raises :class:`LayerError` for what cannot be represented.
    """
    is_link = link is not None
    mtime = attributes.mtime_ns // 10**9
    try:
        return tarwriter.header(
            path,
            tarwriter.HARDLINK if is_link else tarwriter.TYPES[attributes.kind],
            mode=stat.S_IMODE(attributes.mode),
            uid=attributes.uid,
            gid=attributes.gid,
            size=attributes.size if attributes.kind == stat.S_IFREG and not is_link else 0,
            mtime=mtime if clamp is None else min(mtime, clamp),
            target=target if link is None else link,
            device=(os.major(attributes.rdev), os.minor(attributes.rdev)),
            xattrs=None if is_link else xattrs,
        )
    except ValueError as error:
        raise LayerError(f"{display(path)}: {error}") from error


def content(tree: ReadableTree, node: Node, path: bytes, size: int) -> Iterator[bytes]:
    """The content of a regular file of ``size`` bytes, filled up to whole blocks.

    Raises :class:`LayerError` if it becomes shorter meanwhile, and :class:`OSError`.
    """
    offset = 0
    while offset < size:
        piece = tree.read(node, offset, min(PIECE, size - offset))
        if not piece:
            raise LayerError(
                f"{display(path)} became shorter while it was read: stop what writes to it"
            )
        offset += len(piece)
        yield piece
    yield tarwriter.padding(size)
