"""The union itself: what a path means when layers lie upon each other.

This is the one place that defines it. The module is synchronous, knows no FUSE and can be driven
without a mount; :mod:`unionfs.changes` adds what alters the tree. The rules are those of kernel
overlayfs (Documentation/filesystems/overlayfs.rst):

* the topmost layer that has a name decides it; a whiteout ends the search;
* directories of one name merge, down to the first layer where the name is opaque or no directory;
* a merged directory's attributes are those of its topmost layer that has any.

A :class:`unionfs.nodes.Node` is one file of the union. It lives as long as the kernel knows it, is
open, or has children that live. Contents belong to the node and not to an open handle, so a file
opened before its copy-up sees what is written after it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence

from .contents import Contents, open_upper
from .entry import NAME_MAX, WHITEOUT, Attributes, Entry, Handle
from .inodes import ROOT, Numbers
from .layers import Content, Layer
from .layers.directory import Place, attributes_of, visible_xattrs
from .layers.packed import PackedLayer
from .layers.upper import Spot, Upper, pinned
from .nodes import Listing, Node, Part, fail
from .owners import IdMap, shown_id
from .whiteouts import is_private_xattr


class Tree:
    """Layers joined to one tree, for reading."""

    def __init__(
        self,
        lowers: Sequence[Layer],
        upper: Upper | None = None,
        *,
        uid_map: IdMap = (),
        gid_map: IdMap = (),
    ) -> None:
        """``lowers`` are topmost first. The tree owns the layers and closes them."""
        self.lowers = tuple(lowers)
        self.upper = upper
        self._uid_map = uid_map
        self._gid_map = gid_map
        roots = [(layer, layer.root()) for layer in self.lowers]
        place = upper.root() if upper is not None else None
        spaces = [layer.attributes(handle).space for layer, handle in reversed(roots)]
        if upper is not None:
            spaces.append(upper.attributes(place).space)
        self._numbers = Numbers(spaces)
        self.root = Node(
            ROOT, stat.S_IFDIR, upper=upper is not None, place=place, parts=self._root_parts(roots)
        )
        self._nodes = {ROOT: self.root}
        self._by_identity: dict[tuple[int, int], Node] = {}
        self.contents = Contents()

    def _root_parts(self, roots: list[Part]) -> tuple[Part, ...]:
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
        if self.upper is not None:
            self.upper.close()

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
        if entry.kind != stat.S_IFDIR:
            return self._upper_file(parent, name, entry)
        kind, parts = self._lower_parts(parent, name)
        merges = kind == stat.S_IFDIR and not self._is_opaque(entry.handle)
        return self._directory(parent, name, entry.handle, parts if merges else ())

    def _lookup_below(self, parent: Node, name: bytes) -> Node:
        kind, parts = self._lower_parts(parent, name)
        if not parts:
            raise fail(errno.ENOENT, name)
        if kind == stat.S_IFDIR:
            return self._directory(parent, name, None, parts)
        return self._lower_file(parent, name, parts)

    def _upper_entry(self, parent: Node, name: bytes) -> Entry | None:
        if self.upper is None or parent.place is None or not self.is_live(parent):
            return None
        return self.upper.lookup(parent.place, name)

    def _is_opaque(self, place: Place) -> bool:
        return self.upper is not None and self.upper.is_opaque(place)

    def is_live(self, directory: Node) -> bool:
        """Whether a directory still has its name; a removed one shows nothing."""
        return bool(directory.names) or directory is self.root

    @staticmethod
    def _lower_parts(parent: Node, name: bytes) -> tuple[int, tuple[Part, ...]]:
        """What the lower layers make of a name: one file, or the directories that merge."""
        parts: list[Part] = []
        for layer, handle in parent.parts:
            entry = layer.lookup(handle, name)
            if entry is None:
                continue
            if entry.kind == WHITEOUT:
                break
            if entry.kind != stat.S_IFDIR:
                if not parts:
                    return entry.kind, ((layer, entry.handle),)
                break
            parts.append((layer, entry.handle))
            if layer.is_opaque(entry.handle):
                break
        return stat.S_IFDIR, tuple(parts)

    def lower_entry(self, parent: Node, name: bytes) -> Entry | None:
        """What lower layers show of a name, so what a removal in the upper must cover."""
        for layer, handle in parent.parts:
            entry = layer.lookup(handle, name)
            if entry is not None:
                return None if entry.kind == WHITEOUT else entry
        return None

    def _directory(
        self, parent: Node, name: bytes, place: Place | None, parts: tuple[Part, ...]
    ) -> Node:
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
        found = attributes_of(os.stat(name, dir_fd=spot.dir_fd, follow_symlinks=False))
        identity = (found.space, found.number)
        node = self._by_identity.get(identity) if found.nlink > 1 else None
        if node is not None:
            return self._name(node, parent, name)
        number = self.upper.number(spot) or self._numbers.number(*identity)
        node = Node(number, entry.kind, upper=True, place=None, parts=())
        if found.nlink > 1:
            self.identify(node, identity)
        return self._enter(node, parent, name)

    def _lower_file(self, parent: Node, name: bytes, parts: tuple[Part, ...]) -> Node:
        layer, handle = parts[0]
        found = layer.attributes(handle)
        identity = (found.space, found.number)
        node = self._by_identity.get(identity) if found.nlink > 1 else None
        if node is not None:
            return self._name(node, parent, name)
        node = Node(
            self._numbers.number(*identity), found.kind, upper=False, place=None, parts=parts
        )
        if found.nlink == 1:
            return self._enter(node, parent, name)
        self.identify(node, identity)
        self._enter(node, parent, name)
        self._subtract_hidden_names(node, layer, handle)
        return node

    def _subtract_hidden_names(self, node: Node, layer: Layer, handle: Handle) -> None:
        """A pack counts all names of a file, also those that layers above it hide."""
        if isinstance(layer, PackedLayer) and (self.upper is not None or len(self.lowers) > 1):
            for path in layer.links(handle):
                found = self.walk(path)
                if found is not node:
                    node.extra -= 1
                    if found is not None:
                        self.trim(found)

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

    def _enter(self, node: Node, parent: Node, name: bytes) -> Node:
        """Add a new node; one whose number another node has already gets a spare number."""
        if node.number in self._nodes:
            node.number = self._numbers.spare()
        self._nodes[node.number] = node
        return self._name(node, parent, name)

    def _name(self, node: Node, parent: Node, name: bytes) -> Node:
        in_upper = node.upper
        if in_upper and not node.is_directory and (node.names or node.pin >= 0):
            in_upper = self._upper_has(parent, name)
        node.names[parent, name] = in_upper
        parent.children[name] = node
        return node

    def _upper_has(self, parent: Node, name: bytes) -> bool:
        entry = self._upper_entry(parent, name)
        return entry is not None and entry.kind != WHITEOUT

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
            if node.upper and node.extra > 0 and node.names:
                continue  # only this node knows which names below belong to the copy
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

    # -- directories -------------------------------------------------------------------------

    def open_directory(self, node: Node) -> None:
        """Somebody is about to read a directory."""
        if not node.is_directory:
            raise fail(errno.ENOTDIR)
        node.opened += 1

    def close_directory(self, node: Node) -> None:
        """Somebody has finished reading a directory. The last one's listing is given up."""
        node.opened -= 1
        if not node.opened:
            node.listing = None
            self.trim(node)

    def list(self, node: Node, position: int) -> Iterator[tuple[bytes, Node, int]]:
        """The (name, child, next position) of a directory from a position on, 0 at the start."""
        if node.listing is None:
            node.listing = Listing(self.names(node))
        listing = node.listing
        at = position
        while at < len(listing.names):
            name = listing.names[at]
            at += 1
            if name is None:
                continue
            try:
                child = self.lookup(node, name)
            except FileNotFoundError:
                continue
            yield name, child, at

    def names(self, node: Node) -> Iterator[bytes]:
        """Every name of a directory once, without ``.`` and ``..``."""
        if not self.is_live(node):
            return
        settled: set[bytes] = set()
        for layer, handle in self._all_parts(node):
            for name, kind in layer.names(handle):
                if name not in settled:
                    settled.add(name)
                    if kind != WHITEOUT:
                        yield name

    def _all_parts(self, node: Node) -> Iterator[Part]:
        if node.place is not None and self.upper is not None:
            yield self.upper, node.place
        yield from node.parts

    def is_empty(self, node: Node) -> bool:
        """Whether a directory shows no name."""
        return next(self.names(node), None) is None

    def _count_subdirectories(self, node: Node) -> int:
        """How many subdirectories a merged directory shows.

        The lowest part's own link count is taken, and what each part above it changes is added, so
        that the cost is that of the upper parts, which are small.
        """
        parts = list(self._all_parts(node))
        layer, handle = parts[-1]
        links = layer.attributes(handle).nlink
        if links < 2:  # the filesystem does not count (btrfs)
            return sum(self.lookup(node, name).is_directory for name in list(self.names(node)))
        count = links - 2
        for depth in range(len(parts) - 2, -1, -1):
            layer, handle = parts[depth]
            below = parts[depth + 1 :]
            for name, kind in layer.names(handle):
                was = _kind_in(below, name) == stat.S_IFDIR
                count += (kind == stat.S_IFDIR) - was
        return count

    # -- attributes --------------------------------------------------------------------------

    def spot(self, node: Node) -> Spot:
        """Where the file of the upper is reached."""
        assert self.upper is not None
        if node.pin >= 0:
            return pinned(node.pin)
        if node.place is not None:
            if node.place.parent is None:
                return Spot(self.upper.fd(node.place), b".", follow=False)
            return self.upper.spot(node.place.parent, node.place.name)
        for (parent, name), in_upper in node.names.items():
            if in_upper and parent.place is not None:
                return self.upper.spot(parent.place, name)
        raise fail(errno.ESTALE)

    def attributes(self, node: Node) -> Attributes:
        """The attributes of a node, as the union shows them; ``number`` is the union's."""
        if node.upper:
            spot = self.spot(node)
            found = attributes_of(
                os.stat(spot.name, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)
            )
        else:
            found = self._lower_attributes(node)
        nlink = found.nlink + node.extra
        if node.is_directory:
            nlink = self._directory_links(node, found.nlink)
        return found._replace(number=node.number, nlink=nlink)

    def _directory_links(self, node: Node, on_disk: int) -> int:
        if not self.is_live(node):
            return 0
        if len(node.parts) + (node.place is not None) == 1:
            return on_disk
        if node.subdirectories is None:
            node.subdirectories = self._count_subdirectories(node)
        return 2 + node.subdirectories

    def _lower_attributes(self, node: Node) -> Attributes:
        layer, handle = node.parts[0]
        if node.is_directory:
            for part in node.parts:
                if not part[0].is_implicit(part[1]):
                    layer, handle = part
                    break
        found = layer.attributes(handle)
        if self._uid_map or self._gid_map:
            found = found._replace(
                uid=shown_id(self._uid_map, found.uid),
                gid=shown_id(self._gid_map, found.gid),
            )
        return found

    def target(self, node: Node) -> bytes:
        """The target of a symlink."""
        if node.kind != stat.S_IFLNK:
            raise fail(errno.EINVAL)
        if node.upper:
            spot = self.spot(node)
            return (
                os.readlink(spot.name, dir_fd=spot.dir_fd)
                if spot.dir_fd is not None
                else (os.readlink(b"", dir_fd=node.pin))
            )
        layer, handle = node.parts[0]
        return layer.target(handle)

    def xattrs(self, node: Node) -> dict[bytes, bytes]:
        """All extended attributes of a node, without bookkeeping."""
        if node.upper:
            spot = self.spot(node)
            return visible_xattrs(spot.path(), follow=spot.follow)
        layer, handle = node.parts[0]
        return layer.xattrs(handle)

    def xattr(self, node: Node, name: bytes) -> bytes:
        """One extended attribute; raises :class:`OSError` ENODATA where there is none."""
        if is_private_xattr(name):
            raise fail(errno.ENODATA, name)
        if node.upper:
            return self._upper_xattr(node, name)
        try:
            return self.xattrs(node)[name]
        except KeyError:
            raise fail(errno.ENODATA, name) from None

    def _upper_xattr(self, node: Node, name: bytes) -> bytes:
        spot = self.spot(node)
        try:
            return os.getxattr(spot.path(), name, follow_symlinks=spot.follow)
        except OSError as error:
            if error.errno == errno.ENOTSUP:  # the kernel would refuse access for want of an ACL
                raise fail(errno.ENODATA, name) from None
            raise

    # -- contents ----------------------------------------------------------------------------

    def read(self, node: Node, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes of a file from ``offset`` on, wherever they are by now."""
        return self.content(node).read(offset, size)

    def content(self, node: Node) -> Content:
        """The open content of a file: of the upper, or of the layer that has it."""
        return self.contents.get(node, self._open_content)

    def _open_content(self, node: Node) -> Content:
        if node.kind != stat.S_IFREG:
            raise fail(errno.EISDIR if node.is_directory else errno.EINVAL)
        if node.upper:
            return open_upper(self.spot(node))
        layer, handle = node.parts[0]
        return layer.open(handle)

    def open_file(self, node: Node) -> None:
        """Somebody opens a file."""
        node.opened += 1

    def close_file(self, node: Node) -> None:
        """Somebody has closed a file."""
        node.opened -= 1
        self.trim(node)

    def statfs(self) -> os.statvfs_result:
        """What df shows: the filesystem of the upper, or of the topmost lower layer."""
        if self.upper is not None:
            return os.fstatvfs(self.upper.fd(self.upper.root()))
        return os.statvfs(self.lowers[0].path)


def _kind_in(parts: Sequence[Part], name: bytes) -> int:
    for layer, handle in parts:
        entry = layer.lookup(handle, name)
        if entry is not None:
            return entry.kind
    return WHITEOUT
