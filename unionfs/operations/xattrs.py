"""Operations on extended attributes."""

from __future__ import annotations

import errno
from collections.abc import Sequence

from pyfuse3 import FUSEError, InodeT, RequestContext, XAttrNameT

from ..nodes import Node
from .base import Base
from .boundary import answer

_ACL = b"system.posix_acl_"


class XattrOperations(Base):
    """getxattr, setxattr, listxattr, removexattr."""

    def _node(self, inode: InodeT, name: bytes = b"") -> Node:
        """The file, if the mount has attributes like this.

        A mount without any answers ENOSYS, and the kernel never asks again.
        """
        if not self.has_xattrs:
            raise FUSEError(errno.ENOSYS)
        if name.startswith(_ACL) and not self.acls:
            raise FUSEError(errno.ENOTSUP)
        return self.tree.node(inode)

    @answer
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """The value of an attribute."""
        return self.tree.xattr(self._node(inode, name), name)

    @answer
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Set an attribute."""
        self.tree.set_xattr(self._node(inode, name), name, value)

    @answer
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """The names of all attributes."""
        names = self.tree.xattrs(self._node(inode))
        return [XAttrNameT(name) for name in names if self.acls or not name.startswith(_ACL)]

    @answer
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an attribute."""
        self.tree.remove_xattr(self._node(inode, name), name)
