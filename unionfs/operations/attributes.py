"""Operations on attributes, the filesystem's and each file's."""

from __future__ import annotations

from pyfuse3 import (
    EntryAttributes,
    FileHandleT,
    FileNameT,
    InodeT,
    ModeT,
    RequestContext,
    SetattrFields,
    StatvfsData,
)

from ..entry import NAME_MAX
from ..nodes import Node
from .base import Base
from .boundary import answer


class AttributeOperations(Base):
    """getattr, setattr, readlink, access, statfs."""

    @answer
    async def getattr(self, inode: InodeT, ctx: RequestContext) -> EntryAttributes:
        """The attributes of a file."""
        return self.describe(self.tree.node(inode))

    @answer
    async def setattr(
        self,
        inode: InodeT,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: FileHandleT | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        """Truncate, chown, chmod, set times: in the order in which none undoes another."""
        node = self.tree.node(inode)
        if fields.update_size:
            self.tree.truncate(node, attr.st_size)
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            gid = attr.st_gid if fields.update_gid else -1
            self.tree.chown(node, uid, gid)
        if fields.update_mode:
            self.tree.chmod(node, attr.st_mode)
        self._set_times(node, attr, fields)
        return self.describe(node)

    def _set_times(self, node: Node, attr: EntryAttributes, fields: SetattrFields) -> None:
        if fields.update_atime or fields.update_mtime:
            self.tree.utimens(
                node,
                attr.st_atime_ns if fields.update_atime else None,
                attr.st_mtime_ns if fields.update_mtime else None,
            )

    @answer
    async def readlink(self, inode: InodeT, ctx: RequestContext) -> FileNameT:
        """The target of a symlink."""
        return FileNameT(self.tree.target(self.tree.node(inode)))

    async def access(self, inode: InodeT, mode: ModeT, ctx: RequestContext) -> bool:
        """Asked only without ``default_permissions``, where the user of the mount may do all."""
        return True

    @answer
    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """What df shows."""
        found = self.tree.statfs()
        data = StatvfsData()
        data.f_bsize = found.f_bsize
        data.f_frsize = found.f_frsize
        data.f_blocks = found.f_blocks
        data.f_bfree = found.f_bfree
        data.f_bavail = found.f_bavail
        data.f_files = found.f_files
        data.f_ffree = found.f_ffree
        data.f_favail = found.f_favail
        data.f_namemax = NAME_MAX
        return data
