"""What containers and images show, opened for reading, and the way through all of it.

The mount points that every container has below its image (:meth:`Store.lowers`) are there so that
something can be mounted on them: they belong to neither, and are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import NamedTuple

from unionfs.entry import Attributes
from unionfs.layers import Layer
from unionfs.nodes import Node, Part
from unionfs.opening import open_finished, open_union
from unionfs.reading import ReadableTree
from unionfs.stacking import describing_part

from .entries import without_host
from .store import Container, Image, Store


class View:
    """A tree in which every layer is a lower one, and the ``hidden`` one of them, if any."""

    def __init__(self, tree: ReadableTree, hidden: Layer | None = None) -> None:
        self.tree = tree
        self._hidden = hidden

    def shows(self, node: Node) -> bool:
        """Whether another layer than the hidden one has a file."""
        return any(layer is not self._hidden for layer, _ in node.parts)

    def attributes(self, node: Node) -> Attributes:
        """The attributes of a file. Number and count of links are those in its layer."""
        layer, handle = self._part(node)
        return layer.attributes(handle)

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        """The extended attributes of a file that are not the host's."""
        layer, handle = self._part(node)
        return without_host(layer.xattrs(handle))

    def has_attributes(self, node: Node) -> bool:
        """Whether a layer says what a directory looks like; else it only is above something."""
        layer, handle = self._part(node)
        return not layer.is_implicit(handle)

    def _part(self, node: Node) -> Part:
        """The part of a file that says what it looks like."""
        if not node.is_directory:
            return node.parts[0]
        shown = [part for part in node.parts if part[0] is not self._hidden]
        return describing_part(shown or node.parts)


@contextmanager
def container_view(store: Store, container: Container) -> Iterator[View]:
    """What a container shows, also while it runs: the topmost layer is its upper.

    Raises ``NoSuchImage``, :class:`unionfs.errors.UnionError`, :class:`OSError`.
    """
    image = store.image(container.image)
    with store.reading():
        places = (os.fsencode(container.upper), os.fsencode(container.work))
        tree = open_finished(*places, store.lowers(container, image))
    with closing(tree):
        yield View(tree, tree.lowers[-1])


@contextmanager
def image_view(store: Store, image: Image) -> Iterator[View]:
    """What an image shows. Raises as :func:`container_view` does."""
    with store.reading():
        tree = open_union([os.fsencode(path) for path in store.runs(image)])
    with closing(tree):
        yield View(tree)


class File(NamedTuple):
    """One name below the root. ``first`` is the first name of the same file, if it came before.

    The node is good until the next file is asked for.
    """

    path: bytes
    node: Node
    attributes: Attributes
    first: bytes | None


def walk(view: View) -> Iterator[File]:
    """Everything but the root: depth first, a directory before what it holds, names sorted.

    What is removed meanwhile, from a running container, is passed over.
    """
    tree = view.tree
    firsts: dict[tuple[int, int], bytes] = {}
    tree.open_directory(tree.root)
    # A stack of half-read directories, so that depth is bounded by memory alone.
    stack = [(tree.root, b"", iter(_names(tree, tree.root)))]
    while stack:
        directory, prefix, names = stack[-1]
        name = next(names, None)
        if name is None:
            stack.pop()
            tree.close_directory(directory)
            continue
        try:
            node = tree.lookup(directory, name)
            attributes = view.attributes(node)
        except FileNotFoundError:
            continue
        path = prefix + name
        if not view.shows(node):
            tree.trim(node)
        elif node.is_directory:
            tree.open_directory(node)
            stack.append((node, path + b"/", iter(_names(tree, node))))
            yield File(path, node, attributes, None)
        else:
            yield File(path, node, attributes, _first(firsts, path, attributes))
            tree.trim(node)


def _names(tree: ReadableTree, node: Node) -> list[bytes]:
    try:
        return sorted(tree.names(node))
    except FileNotFoundError:
        return []


def _first(
    firsts: dict[tuple[int, int], bytes], path: bytes, attributes: Attributes
) -> bytes | None:
    if attributes.nlink < 2:
        return None
    first = firsts.setdefault((attributes.space, attributes.number), path)
    return first if first is not path else None
