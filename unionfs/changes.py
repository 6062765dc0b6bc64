"""What alters the files of a union: attributes, xattrs and contents.

A lower file is copied up before its first change, its parents first. Like :mod:`unionfs.tree` this
is synchronous and knows no FUSE.
"""

from __future__ import annotations

import errno
import os
import stat

from .contents import open_upper
from .copyup import write_all
from .entry import XATTR_MAX, Owner
from .layers.directory import FileContent
from .naming import NamingTree
from .nodes import Node, fail


class WritableTree(NamingTree):
    """Layers joined to one tree that can be changed, if it has an upper."""

    # -- attributes ------------------------------------------------------------------------------

    def chmod(self, node: Node, mode: int) -> None:
        """Change permission bits. A symlink has none: chmod(2) would reach what it points to."""
        if node.kind == stat.S_IFLNK:
            raise fail(errno.EOPNOTSUPP)
        self.copy_up(node, contents=False)
        self.writable().ownership.chmod(self.spot(node), mode)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """Change owner and group; -1 leaves one as it is."""
        owner = Owner(*self.options.owners.kept(uid, gid))
        self.copy_up(node, contents=False)
        self.writable().ownership.chown(self.spot(node), owner)

    def utimens(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Change times, nanoseconds since the epoch; None leaves one as it is.

        With the writeback cache the kernel repeats a file's own times to it after an unlink or a
        rename; that is no reason to copy it up.
        """
        self.writable()
        if not node.upper:
            found = self._lower_attributes(node)
            if atime_ns in (None, found.atime_ns) and mtime_ns in (None, found.mtime_ns):
                return
        self.copy_up(node, contents=False)
        spot = self.spot(node)
        if atime_ns is None or mtime_ns is None:
            info = os.stat(spot.name, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)
            atime_ns = info.st_atime_ns if atime_ns is None else atime_ns
            mtime_ns = info.st_mtime_ns if mtime_ns is None else mtime_ns
        os.utime(
            spot.name, ns=(atime_ns, mtime_ns), dir_fd=spot.dir_fd, follow_symlinks=spot.follow
        )

    def set_xattr(self, node: Node, name: bytes, value: bytes) -> None:
        """Set an extended attribute. The union's own bookkeeping is refused with EPERM."""
        stored = self.writable().stored_name(name)
        if stored is None:
            raise fail(errno.EPERM, name)
        if len(value) > XATTR_MAX:
            raise fail(errno.E2BIG, name)
        self.copy_up(node, contents=False)
        spot = self.spot(node)
        os.setxattr(spot.path(), stored, value, follow_symlinks=spot.follow)

    def remove_xattr(self, node: Node, name: bytes) -> None:
        """Remove an extended attribute; raises :class:`OSError` ENODATA where there is none."""
        stored = self.writable().stored_name(name)
        self.xattr(node, name)  # nothing is copied up for an attribute that is not there
        self.copy_up(node, contents=False)
        spot = self.spot(node)
        assert stored is not None
        os.removexattr(spot.path(), stored, follow_symlinks=spot.follow)

    # -- contents ----------------------------------------------------------------------------

    def write(self, node: Node, offset: int, data: bytes, *, keeps_mtime: bool = False) -> int:
        """Write into a file; returns how many bytes, always all.

        ``keeps_mtime`` is for a caller that sets the time of what it writes by itself.
        """
        fd = self._writable_fd(node)
        before = os.fstat(fd) if keeps_mtime else None
        write_all(fd, data, offset)
        if before is not None:
            os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        return len(data)

    def truncate(self, node: Node, size: int) -> None:
        """Cut or extend a file to ``size`` bytes. Its time stays if it has that size already."""
        self.copy_up(node, length=size)
        fd = self._writable_fd(node)
        if os.fstat(fd).st_size != size:
            os.ftruncate(fd, size)

    def _writable_fd(self, node: Node) -> int:
        self.copy_up(node)
        content = self.content(node)
        assert isinstance(content, FileContent)
        return content.fd

    def sync_fd(self, node: Node) -> int | None:
        """A descriptor to fsync, owned by the caller; None for what is not in the upper."""
        if not node.upper:
            return None
        if node.place is not None:
            return os.dup(self.writable().fd(node.place))
        if node.is_directory:
            return None  # removed before its copy-up: nothing of it is to last
        return open_upper(self.spot(node)).fd
