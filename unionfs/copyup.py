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
from .layers.directory import FileContent, Place
from .layers.packed import PackedLayer
from .layers.upper import Upper
from .nodes import Node, fail
from .tree import Tree

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


class CopyUpTree(Tree):
    """A tree whose files can be brought to the upper, where they may be changed."""

    def writable(self) -> Upper:
        """The upper, or the error EROFS."""
        if self.upper is None:
            raise fail(errno.EROFS)
        return self.upper

    # -- copy-up -----------------------------------------------------------------------------

    def copy_up(self, node: Node, *, length: int | None = None) -> None:
        """Bring a node, and before it its parents, to the upper.

        ``length`` cuts the content of a regular file that is about to be truncated.
        """
        self.writable()
        if node.upper:
            return
        waiting = [node]
        while waiting[-1].names and not (parent := next(iter(waiting[-1].names))[0]).upper:
            waiting.append(parent)
        for step in reversed(waiting):
            self._copy_up_one(step, length if step is node else None)

    def _copy_up_one(self, node: Node, length: int | None) -> None:
        upper = self.writable()
        layer, handle = node.parts[0]
        found = self._lower_attributes(node)
        staged = stage(upper, layer, handle, found, number=node.number, length=length)
        if not node.names:
            self._keep_nameless(node, staged)
        else:
            parent, name = next(iter(node.names))
            assert parent.place is not None
            with upper.keeping_times(parent.place):
                upper.publish(staged, parent.place, name)
            node.names[parent, name] = True
            if node.is_directory:
                node.place = Place(parent.place, name)
        node.upper = True
        if not node.is_directory:
            self.contents.close(node)
            node.parts = ()
            if node.names:
                self._join_links(node, found.nlink, layer, handle)

    def _keep_nameless(self, node: Node, staged: bytes) -> None:
        """A file that is open but has no name any more goes on without one in the upper."""
        upper = self.writable()
        node.pin = os.open(staged, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work_fd)
        upper.discard(staged)
        node.extra = 0

    def _join_links(self, node: Node, links: int, layer: object, handle: object) -> None:
        """Keep the names of a hardlinked file together after its copy-up.

        A pack knows all its names, so all are linked to the copy and stay so for good. A directory
        knows only how many there are: names found later lead to this node while the mount lasts.
        """
        if links < 2:
            return
        spot = self.spot(node)
        info = os.stat(spot.name, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)
        self.identify(node, (info.st_dev, info.st_ino))
        node.extra += links - 1
        if isinstance(layer, PackedLayer):
            for path in layer.links(handle):
                self._join_link(node, path)

    def _join_link(self, node: Node, path: tuple[bytes, ...]) -> None:
        found = self.walk(path)
        if found is node:
            parent = self.walk(path[:-1])
            assert parent is not None
            self.copy_up(parent)
            self.name_in_upper(node, parent, path[-1])
        if found is not None:
            self.trim(found)

    def name_in_upper(self, node: Node, parent: Node, name: bytes) -> None:
        """See to it that the upper itself has this name of a file that it has."""
        if node.is_directory or node.names[parent, name]:
            return
        assert parent.place is not None
        with self.writable().keeping_times(parent.place):
            self.writable().link(self.spot(node), parent.place, name, covered=False)
        node.names[parent, name] = True
        node.extra -= 1
