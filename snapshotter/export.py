"""A whole tree as one tar stream: a container's filesystem, or an image as a single layer.

Entries are as in the layers that :mod:`.diff` makes: depth first and sorted by bytes, names without
a leading ``./``, directories ending in ``/``, times in whole seconds, hardlinks to the first name,
holes as zeros, no sockets. The same tree always gives the same bytes, whoever made it and when.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import BinaryIO

from unionfs.nodes import Node

from . import entries, tarwriter
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
    ``LayerError`` for what no archive can hold, or becomes shorter while it is read.
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
            yield from entries.content(view.tree, file.node, file.path, file.attributes.size)
    yield tarwriter.END


def flattened(
    view: View, *, clamp: int | None = None, root: Node | None = None
) -> tarwriter.TarStream:
    """The tar of :func:`pieces` as something to be read."""
    return tarwriter.TarStream(pieces(view, clamp=clamp, root=root))


def _header(view: View, file: File, clamp: int | None) -> bytes:
    path, node, attributes, first = file
    if first is not None:
        return entries.header(path, attributes, clamp=clamp, link=first)
    return entries.header(
        path + b"/" if node.is_directory else path,
        attributes,
        clamp=clamp,
        target=view.tree.target(node) if node.kind == stat.S_IFLNK else b"",
        xattrs=view.xattrs(node),
    )
