"""What all families of operations share: the tree, and how a node is told to the kernel."""

from __future__ import annotations

import pyfuse3

from ..changes import WritableTree
from ..nodes import Node

CACHED_SECONDS = 86400.0
"""How long the kernel may trust names and attributes. Every change passes the mount, so: long."""


class Base(pyfuse3.Operations):
    """Thin pyfuse3 handlers over a tree. File handles are inode numbers."""

    supports_dot_lookup = False

    def __init__(self, tree: WritableTree) -> None:
        super().__init__()
        self.tree = tree
        self.enable_writeback_cache = tree.upper is not None
        self.enable_acl = True  # else the kernel keeps showing the mode of before a setfacl(1)

    def describe(self, node: Node) -> pyfuse3.EntryAttributes:
        """The attributes of a node in the kernel's form."""
        found = self.tree.attributes(node)
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(node.number)
        entry.entry_timeout = CACHED_SECONDS
        entry.attr_timeout = CACHED_SECONDS
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


def absent() -> pyfuse3.EntryAttributes:
    """The answer that there is no such name, which the kernel may remember."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = pyfuse3.InodeT(0)
    entry.entry_timeout = CACHED_SECONDS
    return entry
