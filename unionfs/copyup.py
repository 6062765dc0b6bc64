"""Moving a file to the upper without ever showing half of it.

The copy is made in the work directory, gets its owner, xattrs, mode and times there, and is renamed
into its place when it is whole. Holes of the source stay holes; where both files are on a
filesystem that can share blocks, no bytes are copied at all.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from . import syscalls
from .entry import Attributes, Handle
from .layers import Content, Layer
from .layers.directory import FileContent
from .layers.upper import Upper

log = logging.getLogger(__name__)

_COPY_BYTES = 1 << 20


def stage(
    upper: Upper,
    layer: Layer,
    handle: Handle,
    found: Attributes,
    *,
    number: int,
    length: int | None = None,
) -> bytes:
    """Build a copy of a lower file in the work directory, and return its name there.

    ``found`` are the attributes the copy gets, ``number`` is the inode number to remember.
    ``length`` cuts the content, for a copy-up that a truncation asks for. On any error nothing is
    left behind.
    """
    temporary = upper.temporary()
    fd = upper.work_fd
    try:
        _make(fd, temporary, (layer, handle), found, length)
        _own(upper, temporary, found)
        _copy_xattrs(upper, temporary, layer.xattrs(handle))
        if found.kind != stat.S_IFDIR:
            upper.remember_number(fd, temporary, number)
        if found.kind != stat.S_IFLNK:
            os.chmod(temporary, stat.S_IMODE(found.mode), dir_fd=fd)  # after chown, which clears it
        os.utime(temporary, ns=(found.atime_ns, found.mtime_ns), dir_fd=fd, follow_symlinks=False)
    except BaseException:
        upper.discard(temporary)
        raise
    return temporary


def _make(
    fd: int, name: bytes, part: tuple[Layer, Handle], found: Attributes, length: int | None
) -> None:
    layer, handle = part
    if found.kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=fd)
    elif found.kind == stat.S_IFLNK:
        os.symlink(layer.target(handle), name, dir_fd=fd)
    elif found.kind == stat.S_IFREG:
        size = found.size if length is None else min(length, found.size)
        _make_regular(fd, name, layer, handle, size)
    else:
        os.mknod(name, found.kind | 0o600, found.rdev, dir_fd=fd)


def _make_regular(fd: int, name: bytes, layer: Layer, handle: Handle, size: int) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    target = os.open(name, flags, 0o600, dir_fd=fd)
    try:
        if size:
            content = layer.open(handle)
            try:
                _copy_content(content, target, size)
            finally:
                content.close()
    finally:
        os.close(target)


def _copy_content(source: Content, target: int, size: int) -> None:
    if isinstance(source, FileContent) and syscalls.clone_file(source.fd, target):
        os.ftruncate(target, size)
        return
    for start, length in source.extents():
        at, end = start, min(start + length, size)
        while at < end:
            data = source.read(at, min(_COPY_BYTES, end - at))
            if not data:
                raise OSError(errno.EIO, "a lower file ends before its size")
            write_all(target, data, at)
            at += len(data)
    os.ftruncate(target, size)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2) until everything is written."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def _own(upper: Upper, name: bytes, found: Attributes) -> None:
    """Give the copy its owner. An ordinary user can only own files as oneself."""
    try:
        os.chown(name, found.uid, found.gid, dir_fd=upper.work_fd, follow_symlinks=False)
    except OSError as error:
        if upper.privileged and error.errno != errno.EINVAL:
            raise
        log.debug("owner %d:%d cannot be kept: %s", found.uid, found.gid, error.strerror)


def _copy_xattrs(upper: Upper, name: bytes, xattrs: dict[bytes, bytes]) -> None:
    """Copy xattrs. Those of the kernel's own namespaces may need privileges that we lack."""
    path = b"/proc/self/fd/%d/%s" % (upper.work_fd, name)
    for key, value in xattrs.items():
        try:
            os.setxattr(path, key, value, follow_symlinks=False)
        except OSError as error:
            lacking = error.errno == errno.EPERM and not key.startswith(b"user.")
            if error.errno != errno.ENOTSUP and not lacking:
                raise
            log.warning("xattr %s is lost in copy-up: %s", os.fsdecode(key), error.strerror)
