"""What all families of operations share: the tree, and how a node is told to the kernel."""

from __future__ import annotations

import errno
import os

import pyfuse3
import trio

from ..changes import WritableTree
from ..nodes import Node


class Base(pyfuse3.Operations):
    """Thin pyfuse3 handlers over a tree. File handles are inode numbers."""

    supports_dot_lookup = False

    def __init__(
        self,
        tree: WritableTree,
        *,
        cached_seconds: float,
        writeback: bool = True,
        acls: bool = True,
        xattrs: bool = True,
        fsync: bool = True,
    ) -> None:
        super().__init__()
        self.tree = tree
        self.cached_seconds = cached_seconds
        self.acls = acls
        self.has_xattrs = xattrs
        self.syncs = fsync
        self.enable_writeback_cache = writeback and tree.upper is not None
        # else the kernel keeps showing the mode of before a setfacl(1)
        self.enable_acl = acls and xattrs

    def describe(self, node: Node) -> pyfuse3.EntryAttributes:
        """The attributes of a node in the kernel's form."""
        found = self.tree.attributes(node)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(node.number)
        entry.entry_timeout = self.cached_seconds
        entry.attr_timeout = self.cached_seconds
        entry.st_mode = pyfuse3.ModeT(found.mode)
        entry.st_nlink = found.nlink
        entry.st_uid = found.uid
        entry.st_gid = found.gid
        entry.st_rdev = found.rdev
        entry.st_size = found.size
        entry.st_blocks = found.blocks
        entry.st_atime_ns = found.atime_ns
        entry.st_mtime_ns = found.mtime_ns
        entry.st_ctime_ns = found.ctime_ns
        return entry

    def introduce(self, node: Node) -> pyfuse3.EntryAttributes:
        """Describe a node and count the reference that the kernel takes by it."""
        entry = self.describe(node)
        node.lookups += 1
        return entry

    def absent(self) -> pyfuse3.EntryAttributes:
        """The answer that there is no such name, which the kernel may remember."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(0)
        entry.entry_timeout = self.cached_seconds
        return entry

    async def sync(self, node: Node, datasync: bool) -> None:
        """fsync(2) in a thread, so that a slow disk keeps no other request waiting.

        A mount that does not wait for the disk answers ENOSYS, and the kernel never asks again.
        """
        if not self.syncs:
            raise pyfuse3.FUSEError(errno.ENOSYS)
        fd = self.tree.sync_fd(node)
        if fd is None:
            return
        try:
            await trio.to_thread.run_sync(os.fdatasync if datasync else os.fsync, fd)
        finally:
            os.close(fd)
