"""The layer that an upper directory stands for: a stream of tar bytes.

Only what the upper has is read, and from lower layers what the upper refers to. The same upper over
the same lowers always gives the same bytes:

* entries come depth first, the names of a directory sorted by their bytes: the directory, its
  opaque marker, its whiteouts, its other names (image-spec, layer.md, "Whiteouts");
* names have no leading ``./``, directories end in ``/``; the parents of a change are in the upper
  and so in the layer. The root itself is left out, as Docker does, unless the caller wants it;
* times are cut to whole seconds, as Docker does, and clamped to ``clamp`` if one is given;
  whiteouts have time 0 and mode 0;
* files with several names are hardlinks of the first one; a file that was copied up has all its
  names in the layer, also those that the upper does not have; sockets are left out; holes are
  written as zeros;
* a renamed directory is written with everything that it shows, for a layer has no redirects; a
  metacopy with its contents;
* all xattrs are kept but those of the union's bookkeeping and ``security.selinux``, which is the
  host's policy.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from unionfs.entry import WHITEOUT, Attributes
from unionfs.layers import Layer
from unionfs.layers.directory import DirectoryLayer, Place
from unionfs.layers.packed import PackedLayer
from unionfs.nodes import Node
from unionfs.reading import ReadableTree

from . import entries, tarwriter

_MARKER = b".wh."
_OPAQUE = b".wh..wh..opq"


class _Step(NamedTuple):
    """Something to be written: a whiteout where there is no ``node``.

    ``is_whole`` is a directory of which everything is written, not only what the upper has.
    """

    path: bytes
    node: Node | None = None
    is_whole: bool = False


class _Links(NamedTuple):
    """The names of one file that are in the layer, and those that its pack has."""

    names: list[bytes]
    below: tuple[tuple[bytes, ...], ...]


class Difference(tarwriter.TarStream):
    """The tar stream of an upper, the topmost layer of ``tree``.

    ``clamp`` is the latest time an entry may have, in seconds since the epoch; with ``with_root``
    the attributes of the upper's root are an entry too. Reading raises :class:`LayerError` for
    what cannot be represented, or changes while it is read, and :class:`OSError`.
    """

    def __init__(
        self, tree: ReadableTree, *, clamp: int | None = None, with_root: bool = False
    ) -> None:
        self._tree = tree
        self._clamp = clamp
        self._with_root = with_root
        self._links: dict[tuple[int, int], _Links] = {}
        self._late: set[bytes] = set()
        super().__init__(self._tar())

    def _tar(self) -> Iterator[bytes]:
        root = self._tree.root
        if self._with_root:
            yield self._header(b"./", root, self._tree.attributes(root))
        # A stack of half-written directories, so that depth is bounded by memory alone.
        stack = [(root, self._children(_Step(b"", root)))]
        self._tree.open_directory(root)
        while stack:
            step = next(stack[-1][1], None)
            if step is None:
                self._tree.close_directory(stack.pop()[0])
                continue
            if step.node is None:
                yield tarwriter.header(step.path, tarwriter.REGULAR, mode=0)
                continue
            attributes = self._tree.attributes(step.node)
            if step.node.is_directory:
                yield self._header(step.path, step.node, attributes)
                self._tree.open_directory(step.node)
                stack.append((step.node, self._children(step)))
            else:
                yield from self._file(step.path, step.node, attributes)
                self._tree.trim(step.node)
        yield from self._names_below()
        yield tarwriter.END

    def _upper_place(self, node: Node) -> tuple[DirectoryLayer, Place] | None:
        """Where the upper has a directory, if it has it."""
        layer, handle = node.parts[0]
        if layer is not self._tree.lowers[0]:
            return None
        assert isinstance(layer, DirectoryLayer)
        assert isinstance(handle, Place)
        return layer, handle

    def _children(self, step: _Step) -> Iterator[_Step]:
        """What a directory holds, in the order of the layer."""
        node, path = step.node, step.path
        assert node is not None
        in_upper = self._upper_place(node)
        if step.is_whole:
            names = sorted(self._tree.names(node))
            if self._covers(node, path[:-1]):
                yield _Step(path + _OPAQUE)
        elif in_upper is not None:
            layer, place = in_upper
            kinds = dict(layer.names(place))
            if layer.is_opaque(place):
                # It hides everything below, so that its whiteouts say nothing more.
                yield _Step(path + _OPAQUE)
            else:
                gone = sorted(name for name, kind in kinds.items() if kind == WHITEOUT)
                yield from (_Step(path + _MARKER + name) for name in gone)
            names = sorted(name for name, kind in kinds.items() if kind != WHITEOUT)
        else:
            return
        for name in names:
            child = self._tree.lookup(node, name)
            if child.kind == stat.S_IFDIR:
                is_whole = step.is_whole or self._is_redirected(child, path + name)
                yield _Step(path + name + b"/", child, is_whole)
            elif child.kind != stat.S_IFSOCK:
                yield _Step(path + name, child)

    def _is_redirected(self, node: Node, path: bytes) -> bool:
        """Whether a directory shows what lower layers have elsewhere; not if it was moved back."""
        in_upper = self._upper_place(node)
        redirect = in_upper[0].redirect(in_upper[1]) if in_upper is not None else None
        if redirect is None:
            return False
        here = tuple(path.split(b"/"))
        return redirect.names != (here if redirect.is_absolute else here[-1:])

    def _covers(self, node: Node, path: bytes) -> bool:
        """Whether lower layers have something under a name that must not show through."""
        parent, name = next(iter(node.names))
        if not self._is_redirected(node, path):
            return False  # in a directory that covers everything
        return any(
            (entry := layer.lookup(handle, name)) is not None and entry.kind != WHITEOUT
            for layer, handle in parent.parts
            if layer is not self._tree.lowers[0]
        )

    def _file(self, path: bytes, node: Node, attributes: Attributes) -> Iterator[bytes]:
        """The entry of anything but a directory."""
        layer, handle = node.parts[0]
        if layer.attributes(handle).nlink > 1:  # the tree's own count is without names that moved
            links = self._links_of(node)
            links.names.append(path)
            if links.names[0] != path:
                yield entries.header(path, attributes, clamp=self._clamp, link=links.names[0])
                return
        kind = attributes.kind
        if kind == stat.S_IFLNK:
            yield self._header(path, node, attributes, target=self._tree.target(node))
        elif kind == stat.S_IFREG:
            yield self._header(path, node, attributes)
            yield from entries.content(self._tree, node, path, attributes.size)
        elif kind in tarwriter.TYPES:
            yield self._header(path, node, attributes)

    def _links_of(self, node: Node) -> _Links:
        """The record of a file with several names."""
        layer, handle = node.parts[0]
        identity = _identity(layer.attributes(handle))
        if identity not in self._links:
            below = layer.links(handle) if isinstance(layer, PackedLayer) else ()
            self._links[identity] = _Links([], tuple(below))
        return self._links[identity]

    def _names_below(self) -> Iterator[bytes]:
        """The names that files of the layer have in lower layers only, with their parents."""
        index = self._tree.links
        if index is not None:
            for key in index.all_keys():
                identity = _identity(index.stat(index.spot(key)))
                yield from self._late_names(identity, self._tree.links_of(key))
        for identity, links in list(self._links.items()):
            yield from self._late_names(identity, links.below)

    def _late_names(
        self, identity: tuple[int, int], paths: Sequence[tuple[bytes, ...]]
    ) -> Iterator[bytes]:
        for path in sorted(paths):
            node = self._tree.walk(path)
            if node is None:
                continue
            name = b"/".join(path)
            layer, handle = node.parts[0]
            if (
                _identity(layer.attributes(handle)) == identity
                and name not in self._links_of(node).names
            ):
                yield from self._late_parents(path)
                yield from self._file(name, node, self._tree.attributes(node))
            self._tree.trim(node)

    def _late_parents(self, path: tuple[bytes, ...]) -> Iterator[bytes]:
        for depth in range(1, len(path)):
            node = self._tree.walk(path[:depth])
            name = b"/".join(path[:depth]) + b"/"
            if node is not None and self._upper_place(node) is None and name not in self._late:
                self._late.add(name)
                yield self._header(name, node, self._tree.attributes(node))

    def _header(
        self, path: bytes, node: Node, attributes: Attributes, *, target: bytes = b""
    ) -> bytes:
        xattrs = entries.without_host(self._tree.xattrs(node))
        return entries.header(path, attributes, clamp=self._clamp, target=target, xattrs=xattrs)


def _identity(attributes: Attributes) -> tuple[int, int]:
    return attributes.space, attributes.number


def root_has_changed(tree: ReadableTree, pristine: Path) -> bool:
    """Whether the root directory of an upper looks otherwise than when it was made.

    The lower layers are not asked: without privileges the upper could not be given the owner of
    their root, and which number this user's own ID is depends on the user namespace of this
    process. ``pristine`` is a directory that was made in the same way.
    """
    with closing(DirectoryLayer(os.fsencode(pristine))) as layer:
        return _root_of(tree.lowers[0]) != _root_of(layer)


def _root_of(layer: Layer) -> tuple[int, int, int, dict[bytes, bytes]]:
    """What a root directory looks like, but for what the host alone decides."""
    own = layer.attributes(layer.root())
    xattrs = entries.without_host(layer.xattrs(layer.root()))
    return stat.S_IMODE(own.mode), own.uid, own.gid, xattrs
