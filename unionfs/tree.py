"""The union itself: what a path means when layers lie upon each other.

This is the one place that defines it, with :mod:`unionfs.stacking` for the layers below the upper.
The module is synchronous, knows no FUSE and can be driven without a mount; :mod:`unionfs.reading`
adds what files show, :mod:`unionfs.changes` what alters the tree. The rules are those of kernel
overlayfs (Documentation/filesystems/overlayfs.rst):

* the topmost layer that has a name decides it; a whiteout ends the search;
* directories of one name merge, down to the first layer where the name is opaque or no directory;
* a renamed directory has a note of where its lower parts are.

A :class:`unionfs.nodes.Node` is one file of the union. It lives as long as the kernel knows it, is
open, or has children that live. Contents belong to the node and not to an open handle, so a file
opened before its copy-up sees what is written after it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from .contents import Contents
from .entry import NAME_MAX, WHITEOUT, Attributes, Entry, Handle
from .inodes import ROOT, Numbers
from .layers import Layer
from .layers.directory import Place
from .layers.links import LinkIndex
from .layers.packed import PackedLayer
from .layers.shown import ShownWhiteouts
from .layers.spot import Spot, pinned
from .layers.upper import Upper
from .nodes import Node, Part, fail
from .options import Redirects, TreeOptions
from .stacking import Found, Parts, Stack, first_entry
from .xattrs import METACOPY


class Tree:
    """Layers joined to one tree: its names, and the nodes behind them."""

    def __init__(
        self,
        lowers: Sequence[Layer],
        upper: Upper | None = None,
        *,
        options: TreeOptions | None = None,
        links: LinkIndex | None = None,
    ) -> None:
        """``lowers`` are topmost first. The tree owns the layers and closes them.

        ``links`` is the index of hardlinks of a finished upper that is read as the topmost lower.
        """
        self.lowers = tuple(lowers)
        self.upper = upper
        self.options = options or TreeOptions()
        self._links = links
        roots = [(layer, layer.root()) for layer in self.lowers]
        place = upper.root() if upper is not None else None
        spaces = [layer.attributes(handle).space for layer, handle in reversed(roots)]
        if upper is not None:
            spaces.append(upper.attributes(place).space)
        self._numbers = Numbers(spaces, short=self.options.short_numbers)
        follow = self.options.redirects is not Redirects.NOFOLLOW
        self.stack = Stack(self._root_parts(roots), follow=follow)
        self.root = Node(
            ROOT, stat.S_IFDIR, upper=upper is not None, place=place, parts=self.stack.roots
        )
        self._nodes = {ROOT: self.root}
        self._by_identity: dict[tuple[int, int], Node] = {}
        self.contents = Contents()

    def _root_parts(self, roots: list[Part]) -> Parts:
        if self.upper is not None and self.upper.is_opaque(self.upper.root()):
            return ()
        for count, (layer, handle) in enumerate(roots, 1):
            if layer.is_opaque(handle):
                return tuple(roots[:count])
        return tuple(roots)

    def close(self) -> None:
        """Give up every descriptor, of contents and of layers."""
        for node in list(self._nodes.values()):
            self.contents.close(node)
            if node.pin >= 0:
                os.close(node.pin)
                node.pin = -1
        for layer in self.lowers:
            layer.close()
        if self._links is not None:
            self._links.close()
        if self.upper is not None:
            self.upper.close()

    @property
    def links(self) -> LinkIndex | None:
        """The index of hardlinks that were copied up, if any was."""
        return self._links if self.upper is None else self.upper.links

    # -- names -------------------------------------------------------------------------------

    def node(self, number: int) -> Node:
        """The node the kernel knows by ``number``."""
        try:
            return self._nodes[number]
        except KeyError:
            raise fail(errno.ESTALE) from None

    def lookup(self, parent: Node, name: bytes) -> Node:
        """The child of a directory; raises FileNotFoundError."""
        child = parent.children.get(name)
        if child is not None:
            return child
        if not parent.is_directory:
            raise fail(errno.ENOTDIR, name)
        if len(name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG, name)
        entry = self._upper_entry(parent, name)
        if entry is None:
            return self._lookup_below(parent, name)
        if entry.kind == WHITEOUT:
            raise fail(errno.ENOENT, name)
        if not entry.is_directory:
            return self._upper_file(parent, name, entry)
        return self._directory(parent, name, entry.handle, self._merging(parent, name, entry))

    def _lookup_below(self, parent: Node, name: bytes) -> Node:
        found = self.stack.find(parent.parts, name)
        if found.kind == WHITEOUT:
            raise fail(errno.ENOENT, name)
        if found.kind == stat.S_IFDIR:
            return self._directory(parent, name, None, found.parts)
        return self._lower_file(parent, name, found.parts)

    def _upper_entry(self, parent: Node, name: bytes) -> Entry | None:
        if self.upper is None or parent.place is None or not self.is_live(parent):
            return None
        return self.upper.lookup(parent.place, name)

    def _merging(self, parent: Node, name: bytes, entry: Entry) -> Parts:
        """The lower parts of a directory that the upper has."""
        assert self.upper is not None
        if self.upper.is_opaque(entry.handle):
            return ()
        found = self._below(parent, name, entry)
        return found.parts if found.kind == stat.S_IFDIR else ()

    def _below(self, parent: Node, name: bytes, entry: Entry) -> Found:
        """What lower layers have of something in the upper: under its name, or at its redirect."""
        assert self.upper is not None
        redirect = self.stack.follow(self.upper, entry, name)
        if redirect is None:
            return self.stack.find(parent.parts, name)
        return self.stack.find_redirected(parent.parts, redirect)

    def is_live(self, directory: Node) -> bool:
        """Whether a directory still has its name; a removed one shows nothing."""
        return bool(directory.names) or directory is self.root

    def lower_entry(self, parent: Node, name: bytes) -> Entry | None:
        """What lower layers show of a name, so what a removal in the upper must cover."""
        entry = first_entry(parent.parts, name)
        return None if entry is None or entry.kind == WHITEOUT else entry

    def _directory(self, parent: Node, name: bytes, place: Place | None, parts: Parts) -> Node:
        if parts:
            layer, handle = parts[0]
            found = layer.attributes(handle)
        else:
            assert self.upper is not None
            found = self.upper.attributes(place)
        number = self._numbers.number(found.space, found.number)
        node = Node(number, stat.S_IFDIR, upper=place is not None, place=place, parts=parts)
        return self._enter(node, parent, name)

    def _upper_file(self, parent: Node, name: bytes, entry: Entry) -> Node:
        assert self.upper is not None
        assert parent.place is not None
        spot = self.upper.spot(parent.place, name)
        found = self.upper.stat(spot)
        identity = (found.space, found.number)
        node = self._by_identity.get(identity) if found.nlink > 1 else None
        if node is not None:
            return self._name(node, parent, name)
        marks = self.upper.marks(spot)
        number = self.upper.number(marks) or self._numbers.number(*identity)
        node = Node(number, found.kind, upper=True, place=None, parts=())
        if found.kind == stat.S_IFREG and METACOPY in marks:
            node.parts = self._contents_below(parent, name, entry)
        if found.nlink > 1:
            self.identify(node, identity)
            self._recall_links(node, spot, found)
        return self._enter(node, parent, name)

    def _contents_below(self, parent: Node, name: bytes, entry: Entry) -> Parts:
        found = self._below(parent, name, entry)
        if found.kind != stat.S_IFREG:
            raise fail(errno.EIO, name)  # what it was made over is not there
        return found.parts

    def _lower_file(self, parent: Node, name: bytes, parts: Parts) -> Node:
        layer, handle = parts[0]
        found = layer.attributes(handle)
        identity = (found.space, found.number)
        if found.nlink > 1:
            node = self._copied_up_link(found) or self._by_identity.get(identity)
            if node is not None:
                return self._name(node, parent, name, in_upper=False)
        node = Node(
            self._numbers.number(*identity), found.kind, upper=False, place=None, parts=parts
        )
        if found.nlink > 1:
            self.identify(node, identity)
            node.extra = -self._hidden_names(layer, handle)
        return self._enter(node, parent, name)

    def _hidden_names(self, layer: Layer, handle: Handle) -> int:
        """How many names of a file other layers hide. A pack counts all that it has itself."""
        if not isinstance(layer, (PackedLayer, ShownWhiteouts)) or len(self.stack.roots) == 1:
            return 0
        shown = (self.stack.find_path(path).parts for path in layer.links(handle))
        return sum(parts[:1] != ((layer, handle),) for parts in shown)

    # -- hardlinks ---------------------------------------------------------------------------

    def _copied_up_link(self, lower: Attributes) -> Node | None:
        """The node of a lower file with several names that was copied up by another of them."""
        if self.links is None:
            return None
        key = self._numbers.key(lower.space, lower.number)
        place = self.links.find(key) if key is not None else None
        if key is None or place is None:
            return None
        spot = self.links.spot(key)
        found = self.links.stat(spot)
        if found.kind != lower.kind:
            return None  # nothing of the index
        copied = (found.space, found.number)
        node = self._by_identity.get(copied)
        above = self.upper is not None
        if node is None:
            number = self._numbers.number(lower.space, lower.number)
            parts: Parts = () if above else ((self.links, place),)
            node = Node(number, found.kind, upper=above, place=None, parts=parts)
            self.identify(node, copied)
            if above:
                self._recall_links(node, spot, found)
            self._nodes_add(node)
        if above and node.link_key is None:  # the upper takes no xattrs, so the file below is asked
            node.link_key = key
            node.extra = max(0, lower.nlink - (found.nlink - 1))
        return node

    def _recall_links(self, node: Node, spot: Spot, found: Attributes) -> None:
        """Take from the index, if the file is in it, how many names only lower layers have."""
        record = self.links.record(spot) if self.links is not None else None
        if record is not None:
            node.link_key = record.key
            node.extra = record.names_below(found.nlink)

    def link_key(self, node: Node) -> bytes | None:
        """The key of a lower file in the index of hardlinks; None where it cannot have one."""
        layer, handle = node.parts[0]
        found = layer.attributes(handle)
        return self._numbers.key(found.space, found.number)

    def links_of(self, key: bytes) -> list[tuple[bytes, ...]]:
        """All paths, in its own layer, of the packed file that a key stands for."""
        space, number = self._numbers.locate(key)
        for layer in self.lowers:
            if isinstance(layer, PackedLayer):
                handle = layer.handle_of(space, number)
                if handle is not None:
                    return layer.links(handle)
        return []

    def walk(self, path: tuple[bytes, ...]) -> Node | None:
        """The node at a path from the root, None if there is none."""
        node = self.root
        for name in path:
            try:
                node = self.lookup(node, name)
            except (FileNotFoundError, NotADirectoryError):
                self.trim(node)
                return None
        return node

    def identify(self, node: Node, identity: tuple[int, int]) -> None:
        """Make a hardlinked file known, so that its other names lead to the same node."""
        if identity not in self._by_identity:
            self._by_identity[identity] = node
            node.identities.append(identity)

    # -- nodes -------------------------------------------------------------------------------

    def _enter(self, node: Node, parent: Node, name: bytes) -> Node:
        """Add a new node under its name; the upper has the name if it has the node."""
        self._nodes_add(node)
        return self._name(node, parent, name, in_upper=node.upper)

    def _nodes_add(self, node: Node) -> None:
        """Number a node; one whose number another node has already gets a spare number."""
        while node.number in self._nodes:
            node.number = self._numbers.spare()
        self._nodes[node.number] = node

    @staticmethod
    def _name(node: Node, parent: Node, name: bytes, *, in_upper: bool = True) -> Node:
        node.names[parent, name] = in_upper
        parent.children[name] = node
        return node

    def unname(self, node: Node, parent: Node, name: bytes) -> None:
        """A name has gone from the union."""
        node.names.pop((parent, name), None)
        parent.children.pop(name, None)
        if parent.listing is not None:
            parent.listing.remove(name)

    def forget(self, node: Node, count: int) -> None:
        """The kernel drops ``count`` of its references to a node."""
        node.lookups -= count
        self.trim(node)

    def trim(self, node: Node) -> None:
        """Drop a node that nothing needs any more, and parents that were kept for it."""
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is self.root or node.lookups > 0 or node.children or node.opened:
                continue
            if self._nodes.get(node.number) is not node:
                continue
            del self._nodes[node.number]
            for identity in node.identities:
                del self._by_identity[identity]
            self.contents.close(node)
            if node.pin >= 0:
                os.close(node.pin)
            if node.place is not None and self.upper is not None:
                self.upper.drop(node.place)
            for parent, name in node.names:
                parent.children.pop(name, None)
                waiting.append(parent)

    def spot(self, node: Node) -> Spot:
        """Where the file of the upper is reached."""
        assert self.upper is not None
        if node.pin >= 0:
            return pinned(node.pin)
        if node.link_key is not None and self.upper.links is not None:
            return self.upper.links.spot(node.link_key)
        if node.place is not None:
            if node.place.parent is None:
                return Spot(self.upper.fd(node.place), b".", follow=False)
            return self.upper.spot(node.place.parent, node.place.name)
        for (parent, name), in_upper in node.names.items():
            if in_upper and parent.place is not None:
                return self.upper.spot(parent.place, name)
        raise fail(errno.ESTALE)
