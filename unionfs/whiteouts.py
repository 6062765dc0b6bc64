"""Every form of "this name is gone" and of "this directory hides what is below".

Read are, side by side in one directory:

* the character device 0:0 in place of the name (kernel overlayfs, fuse-overlayfs);
* an empty regular file with the xattr ``overlay.whiteout``, in a directory whose ``overlay.opaque``
  is ``x`` (kernel overlayfs 6.7 and later, where devices may not be made);
* an entry ``.wh.NAME`` beside the name (AUFS, OCI layers, fuse-overlayfs without mknod);

and for opaque directories the xattr ``overlay.opaque`` = ``y``, the xattr
``user.fuseoverlayfs.opaque`` = ``y`` and the entry ``.wh..wh..opq``. ``overlay.`` stands for both
``trusted.overlay.`` and ``user.overlay.``. The kernel's forms are described in
Documentation/filesystems/overlayfs.rst, the ``.wh.`` forms in the OCI image specification
(layer.md, "Whiteouts").

A name that has both an entry and a ``.wh.`` marker in the same layer exists: the marker speaks of
lower layers only, so a directory beside its own marker is opaque.
"""

from __future__ import annotations

import errno
import os
import stat

from . import syscalls
from .entry import NAME_MAX
from .xattrs import marks, set_mark

PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
BOOKKEEPING = b".wh..wh."
OPAQUE = b"opaque"

AUFS_DIRECTORIES = (b".wh..wh.plnk", b".wh..wh.orph")
"""Directories that AUFS keeps in the root of a branch."""

AUFS_BASE = b".wh..wh.aufs"
"""What AUFS keeps in the root of a writable branch, so the sign of its dialect."""


def is_marker(name: bytes) -> bool:
    """Whether a name belongs to the AUFS dialect and is never shown as a file."""
    return name.startswith(PREFIX)


def marker_for(name: bytes) -> bytes | None:
    """The marker that deletes ``name``, or None where it would be longer than a name may be."""
    marker = PREFIX + name
    return marker if len(marker) <= NAME_MAX else None


def hidden_by(marker: bytes) -> bytes | None:
    """The name that a marker deletes; None for bookkeeping names such as the opaque marker."""
    if marker.startswith(BOOKKEEPING) or marker == PREFIX:
        return None
    return marker[len(PREFIX) :]


def is_device(info: os.stat_result) -> bool:
    """Whether a file is the whiteout device, character 0:0."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def opaque_value(directory_fd: int) -> bytes:
    """The value of a directory's opaque xattr: ``y``, ``x``, or empty for none."""
    return marks(directory_fd).get(OPAQUE, b"")


def has_entry(directory_fd: int, name: bytes) -> bool:
    """Whether a directory has an entry of this very name."""
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def has_whiteout_xattr(directory_fd: int, name: bytes) -> bool:
    """Whether an empty regular file is a whiteout by its xattr."""
    return b"whiteout" in marks(b"/proc/self/fd/%d/%s" % (directory_fd, name))


def create(directory_fd: int, name: bytes) -> bool:
    """Make the whiteout device ``name``; False where no such device may be made.

    Unprivileged processes may make it since Linux 5.8, except on some network filesystems.
    """
    try:
        os.mknod(name, stat.S_IFCHR, 0, dir_fd=directory_fd)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOTSUP, errno.EINVAL):
            return False
        raise
    return True


def make_opaque(directory_fd: int, *, aufs: bool = False) -> None:
    """Mark a directory as hiding what lower layers have in it.

    In the dialect of AUFS, and where the filesystem has no xattrs, by the marker file.
    """
    if aufs or not set_mark(directory_fd, OPAQUE, b"y"):
        make_marker(directory_fd, OPAQUE_MARKER)


def make_marker(directory_fd: int, marker: bytes) -> None:
    """Make an empty file of the AUFS dialect, unless it is there."""
    flags = os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    os.close(os.open(marker, flags, 0o600, dir_fd=directory_fd))


def rename_leaving_whiteout(source_fd: int, source: bytes, target_fd: int, target: bytes) -> bool:
    """Rename and leave a whiteout device behind in one step; False where the kernel cannot."""
    try:
        syscalls.renameat2(source_fd, source, target_fd, target, syscalls.RENAME_WHITEOUT)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPERM, errno.ENOTSUP):
            return False
        raise
    return True
