"""Operations on extended attributes."""

from __future__ import annotations

from collections.abc import Sequence

from pyfuse3 import InodeT, RequestContext, XAttrNameT

from .base import Base
from .boundary import answer


class XattrOperations(Base):
    """getxattr, setxattr, listxattr, removexattr."""

    @answer
    async def getxattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> bytes:
        """The value of an attribute."""
        return self.tree.xattr(self.tree.node(inode), name)

    @answer
    async def setxattr(
        self, inode: InodeT, name: XAttrNameT, value: bytes, ctx: RequestContext
    ) -> None:
        """Set an attribute."""
        self.tree.set_xattr(self.tree.node(inode), name, value)

    @answer
    async def listxattr(self, inode: InodeT, ctx: RequestContext) -> Sequence[XAttrNameT]:
        """The names of all attributes."""
        return [XAttrNameT(name) for name in self.tree.xattrs(self.tree.node(inode))]

    @answer
    async def removexattr(self, inode: InodeT, name: XAttrNameT, ctx: RequestContext) -> None:
        """Remove an attribute."""
        self.tree.remove_xattr(self.tree.node(inode), name)
