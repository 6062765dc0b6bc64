"""Operations that find, make, remove and rename names."""

from __future__ import annotations

from collections.abc import Sequence

from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileInfo,
    FileNameT,
    FlagT,
    InodeT,
    ModeT,
    RequestContext,
)

from ..entry import Owner
from ..nodes import Node
from .base import Base
from .boundary import answer


class NameOperations(Base):
    """lookup, forget, mknod, mkdir, symlink, link, create, unlink, rmdir, rename."""

    @answer
    async def lookup(
        self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Find a name; its absence is an answer that the kernel remembers."""
        try:
            node = self.tree.lookup(self.tree.node(parent_inode), name)
        except FileNotFoundError:
            return self.absent()
        return self.introduce(node)

    async def forget(self, inode_list: Sequence[tuple[InodeT, int]]) -> None:
        """Drop references. This request has no reply, so nothing may be raised."""
        for inode, count in inode_list:
            try:
                node = self.tree.node(inode)
            except OSError:
                continue
            self.tree.forget(node, count)

    def _masked(self, parent: Node, mode: ModeT, ctx: RequestContext) -> ModeT:
        """The mode of a new file: a default ACL takes the place of the umask (acl(5))."""
        if not ctx.umask & mode or self.tree.has_default_acl(parent):
            return mode
        return ModeT(mode & ~ctx.umask)

    @answer
    async def mknod(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        rdev: int,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Make a special file, or a regular one for mknod(2)."""
        parent = self.tree.node(parent_inode)
        mode = self._masked(parent, mode, ctx)
        return self.introduce(self.tree.mknod(parent, name, mode, rdev, Owner(ctx.uid, ctx.gid)))

    @answer
    async def mkdir(
        self, parent_inode: InodeT, name: FileNameT, mode: ModeT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a directory."""
        parent = self.tree.node(parent_inode)
        mode = self._masked(parent, mode, ctx)
        return self.introduce(self.tree.mkdir(parent, name, mode, Owner(ctx.uid, ctx.gid)))

    @answer
    async def symlink(
        self, parent_inode: InodeT, name: FileNameT, target: FileNameT, ctx: RequestContext
    ) -> EntryAttributes:
        """Make a symlink."""
        parent = self.tree.node(parent_inode)
        return self.introduce(self.tree.symlink(parent, name, target, Owner(ctx.uid, ctx.gid)))

    @answer
    async def link(
        self,
        inode: InodeT,
        new_parent_inode: InodeT,
        new_name: FileNameT,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Give a file one more name."""
        node = self.tree.node(inode)
        self.tree.link(node, self.tree.node(new_parent_inode), new_name)
        return self.introduce(node)

    @answer
    async def create(
        self,
        parent_inode: InodeT,
        name: FileNameT,
        mode: ModeT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> tuple[FileInfo, EntryAttributes]:
        """Make a regular file and open it."""
        parent = self.tree.node(parent_inode)
        mode = self._masked(parent, mode, ctx)
        node = self.tree.create(parent, name, mode, Owner(ctx.uid, ctx.gid))
        entry = self.introduce(node)
        self.tree.open_file(node)
        return FileInfo(fh=FileHandleT(node.number), keep_cache=True), entry

    @answer
    async def unlink(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove a name that is no directory."""
        self.tree.unlink(self.tree.node(parent_inode), name)

    @answer
    async def rmdir(self, parent_inode: InodeT, name: FileNameT, ctx: RequestContext) -> None:
        """Remove an empty directory."""
        self.tree.rmdir(self.tree.node(parent_inode), name)

    @answer
    async def rename(  # noqa: PLR0917 - pyfuse3's signature
        self,
        parent_inode_old: InodeT,
        name_old: FileNameT,
        parent_inode_new: InodeT,
        name_new: FileNameT,
        flags: FlagT,
        ctx: RequestContext,
    ) -> None:
        """Rename, with the flags of renameat2(2)."""
        old, new = self.tree.node(parent_inode_old), self.tree.node(parent_inode_new)
        self.tree.rename((old, name_old), (new, name_new), flags)
