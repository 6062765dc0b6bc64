"""Operations on the contents of files. They go by inode: a handle is an inode number."""

from __future__ import annotations

import errno
import os

from pyfuse3 import FileHandleT, FileInfo, FlagT, FUSEError, InodeT, RequestContext

from .base import Base
from .boundary import answer


class ContentOperations(Base):
    """open, read, write, flush, fsync, release."""

    @answer
    async def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> FileInfo:
        """Open a file. One opened for writing is copied up now, so that errors show at once."""
        node = self.tree.node(inode)
        if flags & os.O_TRUNC:
            self.tree.truncate(node, 0)
        elif flags & os.O_ACCMODE != os.O_RDONLY:
            self.tree.copy_up(node)
        self.tree.open_file(node)
        return FileInfo(fh=FileHandleT(inode), keep_cache=True)

    @answer
    async def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """Read from wherever the file's bytes are by now."""
        return self.tree.read(self.tree.node(fh), off, size)

    @answer
    async def write(self, fh: FileHandleT, off: int, buf: bytes) -> int:
        """Write to the file in the upper."""
        node = self.tree.node(fh)
        # with the writeback cache the kernel keeps the time, and writes arrive after it was set
        return self.tree.write(node, off, buf, keeps_mtime=self.enable_writeback_cache)

    async def flush(self, fh: FileHandleT) -> None:
        """Nothing is held back here, so the kernel need not ask at each close(2)."""
        raise FUSEError(errno.ENOSYS)

    @answer
    async def fsync(self, fh: FileHandleT, datasync: bool) -> None:
        """Bring a file's contents to disk."""
        await self.sync(self.tree.node(fh), datasync)

    @answer
    async def release(self, fh: FileHandleT) -> None:
        """The last descriptor of one open(2) is closed."""
        self.tree.close_file(self.tree.node(fh))
