"""From paths to a tree: opening layers, for a mount or to read what an upper has become."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from .changes import WritableTree
from .layers import Layer
from .layers.directory import DirectoryLayer
from .layers.links import open_index
from .layers.packed import PackedLayer
from .layers.shown import ShownWhiteouts
from .layers.upper import Upper
from .options import TreeOptions
from .owners import IdMap
from .pack import Pack
from .reading import ReadableTree

PACK_SPACE = 0
"""The space of inode numbers of packs. No filesystem has device number 0."""

T = TypeVar("T", bound=ReadableTree)


def open_union(
    lowers: Sequence[bytes],
    upper: bytes | None = None,
    work: bytes | None = None,
    *,
    options: TreeOptions | None = None,
    uid_map: IdMap = (),
    gid_map: IdMap = (),
) -> WritableTree:
    """The union of layers, topmost first, each a directory or the file of a pack or merged index.

    ``uid_map`` and ``gid_map`` say how the ids of packs are shown. Raises
    :class:`unionfs.errors.UnionError` and :class:`OSError`; what was opened is closed again then.
    """
    options = options or TreeOptions()

    def join(layers: list[Layer]) -> WritableTree:
        if options.show_whiteouts:
            layers = [ShownWhiteouts(layer) for layer in layers]
        writable = None
        if upper is not None and work is not None:
            writable = Upper(upper, work, aufs=options.aufs, override=options.override)
        return WritableTree(layers, writable, options=options)

    return _open(lowers, join, uid_map, gid_map)


def open_finished(upper: bytes, work: bytes, lowers: Sequence[bytes]) -> ReadableTree:
    """What an upper shows over its lowers, for reading: as it is, also while it is mounted.

    The upper itself is the tree's topmost layer. The lowers must be those it is mounted with.
    """

    def join(layers: list[Layer]) -> ReadableTree:
        fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            index = open_index(fd)
        finally:
            os.close(fd)
        return ReadableTree(layers, links=index)

    return _open([upper, *lowers], join)


def _open(
    paths: Sequence[bytes],
    join: Callable[[list[Layer]], T],
    uid_map: IdMap = (),
    gid_map: IdMap = (),
) -> T:
    layers: list[Layer] = []
    rows = 0
    try:
        for path in reversed(paths):  # numbers are given from the bottom up
            layer: Layer
            if os.path.isdir(path):
                layer = DirectoryLayer(path)
            else:
                pack = Pack(Path(os.fsdecode(path)))
                layer = PackedLayer(pack, PACK_SPACE, rows, uid_map=uid_map, gid_map=gid_map)
                rows += pack.inode_count
            layers.insert(0, layer)
        return join(layers)
    except BaseException:
        for layer in layers:
            layer.close()
        raise
