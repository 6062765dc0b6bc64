"""The extended attributes that a union keeps its books in, told from those of everybody else.

Kernel overlayfs and lamina use ``trusted.overlay.*`` where they may and ``user.overlay.*``
elsewhere (Documentation/filesystems/overlayfs.rst), fuse-overlayfs also ``user.fuseoverlayfs.*``.
Whoever uses the mount never meets them. One may nest unions all the same: what is set under such a
name is kept with one more ``overlay.`` in it, as kernel overlayfs does ("Nesting overlayfs
mounts").
"""

from __future__ import annotations

import contextlib
import errno
import os

_OVERLAY = (b"trusted.overlay.", b"user.overlay.")
_FUSE_OVERLAYFS = b"user.fuseoverlayfs."
_ESCAPE = b"overlay."

METACOPY = b"metacopy"
"""The mark of a file whose contents are in a lower layer."""

DEFAULT_ACL = b"system.posix_acl_default"

MARKS = (_FUSE_OVERLAYFS, b"user.overlay.", b"trusted.overlay.")
"""Where marks are read from; the last that has one decides."""

ABSENT = (errno.ENODATA, errno.ENOTSUP, errno.EPERM, errno.EACCES)
"""Errors that say that a file has no such mark, or that none can be made on it."""


def stored_name(name: bytes) -> bytes | None:
    """The name on disk of an xattr that a user of the mount names; None for one that is refused."""
    for prefix in _OVERLAY:
        if name.startswith(prefix):
            return prefix + _ESCAPE + name[len(prefix) :]
    return None if name.startswith(_FUSE_OVERLAYFS) else name


def shown_name(stored: bytes) -> bytes | None:
    """The name under which the mount shows an xattr on disk; None for the union's own."""
    for prefix in _OVERLAY:
        if stored.startswith(prefix):
            rest = stored[len(prefix) :]
            return prefix + rest[len(_ESCAPE) :] if rest.startswith(_ESCAPE) else None
    return None if stored.startswith(_FUSE_OVERLAYFS) else stored


def visible(path: bytes | int, *, follow: bool = False) -> dict[bytes, bytes]:
    """All xattrs of a file on the host but a union's own; empty where there are none."""
    path, follow = _reach(path, follow)
    found = {}
    for stored in _list(path, follow):
        shown = shown_name(stored)
        if shown is not None:
            found[shown] = os.getxattr(path, stored, follow_symlinks=follow)
    return found


def marks(path: bytes | int, *, follow: bool = False) -> dict[bytes, bytes]:
    """The union's own xattrs of a file, by the last part of their names (``opaque``)."""
    path, follow = _reach(path, follow)
    names = _list(path, follow)
    if not names:
        return {}
    found: dict[bytes, bytes] = {}
    for prefix in MARKS:
        for stored in names:
            if stored.startswith(prefix) and not stored.startswith(prefix + _ESCAPE):
                with contextlib.suppress(PermissionError):  # a lower file we may not read
                    value = os.getxattr(path, stored, follow_symlinks=follow)
                    found[stored[len(prefix) :]] = value
    return found


def set_mark(path: bytes | int, name: bytes, value: bytes, *, follow: bool = False) -> bool:
    """Give a file a mark in the best form that is allowed; False where none is.

    ``trusted.`` needs CAP_SYS_ADMIN in the initial user namespace; ``user.`` needs a regular file
    or a directory. Raises :class:`OSError`, also ENOSPC and E2BIG for a value that is too long.
    """
    path, follow = _reach(path, follow)
    for prefix in _OVERLAY:
        try:
            os.setxattr(path, prefix + name, value, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
        else:
            return True
    return False


def remove_mark(path: bytes | int, name: bytes, *, follow: bool = False) -> None:
    """Take a mark away, in whatever form it is there."""
    path, follow = _reach(path, follow)
    for prefix in MARKS:
        try:
            os.removexattr(path, prefix + name, follow_symlinks=follow)
        except OSError as error:
            if error.errno not in ABSENT:
                raise


def _reach(path: bytes | int, follow: bool) -> tuple[bytes, bool]:
    """A path to a file that is given by one, or by a descriptor."""
    return (b"/proc/self/fd/%d" % path, True) if isinstance(path, int) else (path, follow)


def _list(path: bytes, follow: bool) -> list[bytes]:
    try:
        names = os.listxattr(path, follow_symlinks=follow)
        return [os.fsencode(name) for name in names] if names else []
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM, errno.EACCES):
            return []
        raise
