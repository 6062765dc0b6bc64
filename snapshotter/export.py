"""A whole tree as one tar stream: a container's filesystem, or an image as a single layer.

Entries are as in the layers that :mod:`.diff` makes: depth first and sorted by bytes, names without
a leading ``./``, directories ending in ``/``, times in whole seconds, hardlinks to the first name,
holes as zeros, no sockets. The same tree always gives the same bytes, whoever made it and when.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from unionfs.entry import Attributes
from unionfs.errors import LayerError, display
from unionfs.nodes import Node

from . import tarwriter
from .diff import PIECE
from .store import Container, Store
from .views import File, View, container_view, walk


def export(store: Store, container: Container, out: BinaryIO) -> None:
    """Write a container's filesystem as a tar, without what is mounted in it, also while it runs.

    Raises ``NoSuchImage``, :class:`unionfs.errors.UnionError`, :class:`OSError`.
    """
    with container_view(store, container) as view:
        for piece in pieces(view):
            out.write(piece)


def pieces(view: View, *, clamp: int | None = None, root: Node | None = None) -> Iterator[bytes]:
    """The tar of a tree, piece by piece.

    ``clamp`` is the latest time an entry may have, in seconds since the epoch. ``root`` is the
    directory whose attributes the root has; without it the root is no entry. Raises
    :class:`LayerError` for what no archive can hold, or becomes shorter while it is read.
    """
    if root is not None:
        yield _header(view, File(b".", root, view.attributes(root), None), clamp)
    for file in walk(view):
        if file.attributes.kind not in tarwriter.TYPES:
            continue
        has_content = file.attributes.kind == stat.S_IFREG and file.first is None
        try:
            if has_content:
                view.tree.content(file.node)
            header = _header(view, file, clamp)
        except FileNotFoundError:
            if file.attributes.nlink > 1:
                raise  # its other names would lead nowhere
            continue  # removed meanwhile, from a running container
        yield header
        if has_content:
            yield from _content(view, file)
    yield tarwriter.END


def flattened(
    view: View, *, clamp: int | None = None, root: Node | None = None
) -> tarwriter.TarStream:
    """The tar of :func:`pieces` as something to be read."""
    return tarwriter.TarStream(pieces(view, clamp=clamp, root=root))


def _header(view: View, file: File, clamp: int | None) -> bytes:
    path, node, attributes, first = file
    kind = attributes.kind
    is_link = first is not None
    try:
        return tarwriter.header(
            path + b"/" if kind == stat.S_IFDIR else path,
            tarwriter.HARDLINK if is_link else tarwriter.TYPES[kind],
            mode=stat.S_IMODE(attributes.mode),
            uid=attributes.uid,
            gid=attributes.gid,
            size=attributes.size if kind == stat.S_IFREG and not is_link else 0,
            mtime=_seconds(attributes, clamp),
            target=_target(view, file),
            device=(os.major(attributes.rdev), os.minor(attributes.rdev)),
            xattrs=None if is_link else view.xattrs(node),
        )
    except ValueError as error:
        raise LayerError(f"{display(path)}: {error}") from error


def _target(view: View, file: File) -> bytes:
    if file.first is not None:
        return file.first
    return view.tree.target(file.node) if file.attributes.kind == stat.S_IFLNK else b""


def _seconds(attributes: Attributes, clamp: int | None) -> int:
    seconds = attributes.mtime_ns // 10**9
    return seconds if clamp is None else min(seconds, clamp)


def _content(view: View, file: File) -> Iterator[bytes]:
    size, offset = file.attributes.size, 0
    while offset < size:
        piece = view.tree.read(file.node, offset, min(PIECE, size - offset))
        if not piece:
            raise LayerError(
                f"{display(file.path)} became shorter while it was read: stop what writes to it"
            )
        offset += len(piece)
        yield piece
    yield tarwriter.padding(size)
