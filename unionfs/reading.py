"""What a union shows: listings, attributes, xattrs and contents of its files."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator

from .contents import open_upper
from .entry import WHITEOUT, Attributes
from .errors import LayerError
from .layers import Content
from .layers.shown import marks_first
from .nodes import Listing, Node, Part, fail
from .stacking import describing_part, first_entry
from .tree import Tree
from .xattrs import DEFAULT_ACL

log = logging.getLogger(__name__)


class ReadableTree(Tree):
    """A tree whose files can be looked at."""

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
            names = self.names(node)
            # what unpacks an archive of the mount must meet a marker before what it does not hide
            marked = self.options.show_whiteouts
            node.listing = Listing(iter(marks_first(names)) if marked else names)
        for name, following in node.listing.after(position):
            try:
                child = self.lookup(node, name)
            except FileNotFoundError:
                continue
            except LayerError as error:
                if self.options.show_whiteouts:
                    raise  # an archive must not lack it without a word
                log.error("%s, so it is not listed", error)  # the others can still be reached
                continue
            yield name, child, following

    def names(self, node: Node) -> Iterator[bytes]:
        """Every name of a directory once, without ``.`` and ``..``."""
        return (name for name, _ in self._kinds(node))

    def _kinds(self, node: Node) -> Iterator[tuple[bytes, int]]:
        if not self.is_live(node):
            return
        settled: set[bytes] = set()
        for layer, handle in self._all_parts(node):
            for name, kind in layer.names(handle):
                if name not in settled:
                    settled.add(name)
                    if kind != WHITEOUT:
                        yield name, kind

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
            return sum(kind == stat.S_IFDIR for _, kind in self._kinds(node))
        count = links - 2
        for depth in range(len(parts) - 2, -1, -1):
            layer, handle = parts[depth]
            below = parts[depth + 1 :]
            for name, kind in layer.names(handle):
                hidden = first_entry(below, name)
                was = hidden is not None and hidden.is_directory
                count += (kind == stat.S_IFDIR) - was
        return count

    # -- attributes --------------------------------------------------------------------------

    def attributes(self, node: Node) -> Attributes:
        """The attributes of a node, as the union shows them; ``number`` is the union's."""
        if node.upper:
            assert self.upper is not None
            found = self.upper.stat(self.spot(node))
        else:
            found = self._lower_attributes(node)
        nlink = found.nlink + node.extra - (node.link_key is not None)
        if node.is_directory:
            nlink = self._directory_links(node, found.nlink)
        elif node.parts and node.kind == stat.S_IFREG and (node.upper or len(node.parts) > 1):
            layer, handle = node.parts[-1]
            found = found._replace(blocks=layer.attributes(handle).blocks)
        found = found._replace(number=node.number, nlink=nlink)
        if self.options.owners.changes:
            uid, gid = self.options.owners.shown(found.uid, found.gid)
            found = found._replace(uid=uid, gid=gid)
        return found

    def _directory_links(self, node: Node, on_disk: int) -> int:
        if not self.is_live(node):
            return 0
        if not self.options.count_subdirectories:
            return 1
        if len(node.parts) + (node.place is not None) == 1:
            return on_disk
        if node.subdirectories is None:
            node.subdirectories = self._count_subdirectories(node)
        return 2 + node.subdirectories

    def _lower_attributes(self, node: Node) -> Attributes:
        layer, handle = self._describing_part(node)
        return layer.attributes(handle)

    @staticmethod
    def _describing_part(node: Node) -> Part:
        return describing_part(node.parts) if node.is_directory else node.parts[0]

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
            assert self.upper is not None
            return self.upper.xattrs_at(self.spot(node))
        layer, handle = self._describing_part(node)
        return layer.xattrs(handle)

    def xattr(self, node: Node, name: bytes) -> bytes:
        """One extended attribute; raises :class:`OSError` ENODATA where there is none."""
        if node.upper:
            return self._upper_xattr(node, name)
        try:
            return self.xattrs(node)[name]
        except KeyError:
            raise fail(errno.ENODATA, name) from None

    def has_default_acl(self, directory: Node) -> bool:
        """Whether what is made in a directory gets an ACL from it (acl(5))."""
        try:
            if directory.place is not None and self.upper is not None:
                # asked for each new file, so by the descriptor that making it needs anyway
                os.getxattr(self.upper.fd(directory.place), DEFAULT_ACL)
            else:
                self.xattr(directory, DEFAULT_ACL)
        except OSError:
            return False
        return True

    def _upper_xattr(self, node: Node, name: bytes) -> bytes:
        assert self.upper is not None
        stored = self.upper.stored_name(name)
        if stored is None:
            raise fail(errno.ENODATA, name)
        spot = self.spot(node)
        try:
            return os.getxattr(spot.path(), stored, follow_symlinks=spot.follow)
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
        if node.parts:
            layer, handle = node.parts[-1]
            return layer.open(handle)
        return open_upper(self.spot(node))

    def open_file(self, node: Node) -> None:
        """Somebody opens a file."""
        node.opened += 1
        self.contents.use(node)

    def close_file(self, node: Node) -> None:
        """Somebody has closed a file."""
        node.opened -= 1
        if not node.opened:
            self.contents.rest(node)
        self.trim(node)

    def statfs(self) -> os.statvfs_result:
        """What df shows: the filesystem of the upper, or of the topmost lower layer."""
        if self.upper is not None:
            return os.fstatvfs(self.upper.fd(self.upper.root()))
        return os.statvfs(self.lowers[0].path)
