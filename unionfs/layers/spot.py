"""How system calls reach one file of a directory layer."""

from __future__ import annotations

import os
from typing import NamedTuple


class Spot(NamedTuple):
    """Where system calls reach a file: a name in a directory, or a pinned descriptor by /proc."""

    dir_fd: int | None
    name: bytes
    follow: bool

    def path(self) -> bytes:
        """A path for calls that take no directory descriptor (xattrs)."""
        return (
            self.name if self.dir_fd is None else b"/proc/self/fd/%d/%s" % (self.dir_fd, self.name)
        )

    def open(self, flags: int) -> int:
        """Open the file itself, never what a symlink points to."""
        nofollow = 0 if self.follow else os.O_NOFOLLOW
        return os.open(self.name, flags | nofollow | os.O_CLOEXEC, dir_fd=self.dir_fd)

    def stat(self) -> os.stat_result:
        """What the host says of the file."""
        return os.stat(self.name, dir_fd=self.dir_fd, follow_symlinks=self.follow)


def pinned(fd: int) -> Spot:
    """The spot of a file that has no name any more, kept alive by a descriptor."""
    return Spot(None, b"/proc/self/fd/%d" % fd, follow=True)
