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

PREFIX = b".wh."
OPAQUE_MARKER = b".wh..wh..opq"
BOOKKEEPING = b".wh..wh."

_OPAQUE_XATTRS = ("trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque")
_WHITEOUT_XATTRS = ("trusted.overlay.whiteout", "user.overlay.whiteout")
_PRIVATE_XATTRS = (
    b"trusted.overlay.",
    b"user.overlay.",
    b"user.fuseoverlayfs.",
)
_ABSENT = (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES)


def is_marker(name: bytes) -> bool:
    """Whether a name belongs to the AUFS dialect and is never shown as a file."""
    return name.startswith(PREFIX)


def is_private_xattr(name: bytes) -> bool:
    """Whether an xattr is bookkeeping of a union, hidden from those who use the mount."""
    return name.startswith(_PRIVATE_XATTRS)


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
    path = f"/proc/self/fd/{directory_fd}"
    for name in _OPAQUE_XATTRS:
        try:
            return os.getxattr(path, name)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
    return b""


def has_entry(directory_fd: int, name: bytes) -> bool:
    """Whether a directory has an entry of this very name."""
    try:
        os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def has_whiteout_xattr(directory_fd: int, name: bytes) -> bool:
    """Whether an empty regular file is a whiteout by its xattr."""
    path = b"/proc/self/fd/%d/%s" % (directory_fd, name)
    for attribute in _WHITEOUT_XATTRS:
        try:
            os.getxattr(path, attribute, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
        else:
            return True
    return False


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


def make_opaque(directory_fd: int) -> None:
    """Mark a directory as hiding what lower layers have in it, in the best form that is allowed.

    ``trusted.overlay.opaque`` needs CAP_SYS_ADMIN in the initial user namespace; below it comes
    ``user.overlay.opaque``, which kernel overlayfs reads with ``userxattr``; where the filesystem
    has no xattrs, the marker file.
    """
    path = f"/proc/self/fd/{directory_fd}"
    for name in _OPAQUE_XATTRS[:2]:
        try:
            os.setxattr(path, name, b"y")
        except OSError as error:
            if error.errno not in _ABSENT:
                raise
        else:
            return
    os.close(os.open(OPAQUE_MARKER, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory_fd))


def rename_leaving_whiteout(source_fd: int, source: bytes, target_fd: int, target: bytes) -> bool:
    """Rename and leave a whiteout device behind in one step; False where the kernel cannot."""
    try:
        syscalls.renameat2(source_fd, source, target_fd, target, syscalls.RENAME_WHITEOUT)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EPERM, errno.ENOTSUP):
            return False
        raise
    return True
