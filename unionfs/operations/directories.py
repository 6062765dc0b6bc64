"""Operations that list directories."""

from __future__ import annotations

import pyfuse3
from pyfuse3 import FileHandleT, InodeT, ReaddirToken, RequestContext

from ..nodes import Node
from .base import Base
from .boundary import answer

_DOTS = 2
"""Positions 0 and 1 are ``.`` and ``..``; the tree's positions follow."""


class DirectoryOperations(Base):
    """opendir, readdir, releasedir, fsyncdir."""

    @answer
    async def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """Begin to read a directory."""
        self.tree.open_directory(self.tree.node(inode))
        return FileHandleT(inode)

    @answer
    async def readdir(self, fh: FileHandleT, start_id: int, token: ReaddirToken) -> None:
        """Report entries with their attributes from a position on."""
        node = self.tree.node(fh)
        if not self._reply_dots(node, start_id, token):
            return
        for name, child, position in self.tree.list(node, max(start_id - _DOTS, 0)):
            entry = self.describe(child)
            if not pyfuse3.readdir_reply(token, name, entry, position + _DOTS):
                self.tree.trim(child)
                return
            child.lookups += 1

    def _reply_dots(self, node: Node, start: int, token: ReaddirToken) -> bool:
        """Report ``.`` and ``..``, which the kernel takes no reference for."""
        above = next(iter(node.names), (node, b""))[0]
        for position, name, shown in ((0, b".", node), (1, b"..", above)):
            if position >= start:
                entry = self.describe(shown)
                if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                    return False
        return True

    @answer
    async def releasedir(self, fh: FileHandleT) -> None:
        """The reader is done."""
        self.tree.close_directory(self.tree.node(fh))

    @answer
    async def fsyncdir(self, fh: FileHandleT, datasync: bool) -> None:
        """Bring a directory's names to disk."""
        await self.sync(self.tree.node(fh), datasync)
