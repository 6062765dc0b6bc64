"""Moving a file to the upper without ever showing half of it.

The copy is made in the work directory, gets its owner, xattrs, mode and times there, and is renamed
into its place when it is whole. Holes of the source stay holes; where both files are on a
filesystem that can share blocks, no bytes are copied at all. With ``metacopy`` a change of
attributes copies no bytes either: the upper gets an empty file of the right size, marked as such,
and the contents follow when somebody is about to write to them.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from dataclasses import dataclass

from . import syscalls, xattrs
from .entry import Attributes, Owner
from .layers import Content
from .layers.directory import FileContent, Place
from .layers.links import Record
from .layers.spot import Spot
from .layers.upper import Upper
from .nodes import Node, Part, fail
from .options import Durability
from .reading import ReadableTree
from .xattrs import METACOPY

log = logging.getLogger(__name__)

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Draft:
    """What a copy in the upper is to be.

    ``source`` has the contents, ``attributes`` and ``xattrs`` are what the copy gets, ``number`` is
    the inode number to remember. ``length`` cuts the contents, for a copy-up that a truncation
    asks for; ``metacopy`` leaves them where they are.
    """

    source: Part
    attributes: Attributes
    xattrs: dict[bytes, bytes]
    number: int
    length: int | None = None
    metacopy: bool = False


def stage(upper: Upper, draft: Draft, durability: Durability) -> bytes:
    """Build a copy in the work directory, and return its name there.

    On any error nothing is left behind.
    """
    temporary = upper.temporary()
    spot = Spot(upper.work_fd, temporary, follow=False)
    found = draft.attributes
    try:
        _make(upper, temporary, draft, durability)
        _own(upper, spot, found)
        _set_xattrs(upper, spot, draft.xattrs)
        if found.kind != stat.S_IFDIR:
            upper.remember_number(upper.work_fd, temporary, draft.number)
        if found.kind != stat.S_IFLNK:
            upper.ownership.chmod(spot, found.mode)  # after chown, which clears bits of it
        os.utime(
            temporary,
            ns=(found.atime_ns, found.mtime_ns),
            dir_fd=upper.work_fd,
            follow_symlinks=False,
        )
    except BaseException:
        upper.discard(temporary)
        raise
    return temporary


def _make(upper: Upper, name: bytes, draft: Draft, durability: Durability) -> None:
    layer, handle = draft.source
    found = draft.attributes
    if found.kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=upper.work_fd)
    elif found.kind == stat.S_IFLNK:
        os.symlink(layer.target(handle), name, dir_fd=upper.work_fd)
    elif found.kind == stat.S_IFREG:
        _make_regular(upper.work_fd, name, draft, durability)
    else:
        mode = found.kind | 0o600
        upper.ownership.mknod(upper.work_fd, name, mode, found.rdev, uid=found.uid)


def _make_regular(directory_fd: int, name: bytes, draft: Draft, durability: Durability) -> None:
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
    target = os.open(name, flags, 0o600, dir_fd=directory_fd)
    size = draft.attributes.size
    if draft.length is not None:
        size = min(draft.length, size)
    try:
        if draft.metacopy:
            os.ftruncate(target, size)
            if not xattrs.set_mark(target, METACOPY, b""):
                raise fail(errno.ENOTSUP, name)
        elif size:
            copy_content(draft.source, target, size)
            settle(target, durability)
    finally:
        os.close(target)


def copy_content(source: Part, target: int, size: int) -> None:
    """Give an empty open file the first ``size`` bytes of a lower file, holes as holes."""
    layer, handle = source
    content = layer.open(handle)
    try:
        if isinstance(content, FileContent) and syscalls.clone_file(content.fd, target):
            os.ftruncate(target, size)
        else:
            _copy_extents(content, target, size)
    finally:
        content.close()


def _copy_extents(source: Content, target: int, size: int) -> None:
    for start, length in source.extents():
        at, end = start, min(start + length, size)
        while at < end:
            data = source.read(at, min(_COPY_BYTES, end - at))
            if not data:
                raise OSError(errno.EIO, "a lower file ends before its size")
            write_all(target, data, at)
            at += len(data)
    os.ftruncate(target, size)


def settle(fd: int, durability: Durability) -> None:
    """See to it that contents reach the disk before the rename that shows them does.

    Writeback that has begun is enough for filesystems that order data before metadata (ext4 with
    ``data=ordered``), and costs no waiting; ``SYNCED`` waits.
    """
    if durability is Durability.SYNCED:
        os.fdatasync(fd)
    elif durability is Durability.ORDERED:
        syscalls.start_writeback(fd)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """pwrite(2) until everything is written."""
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, offset)
        view = view[count:]
        offset += count


def _own(upper: Upper, spot: Spot, found: Attributes) -> None:
    """Give the copy its owner, as far as the host and the xattr beside it can say it."""
    try:
        upper.ownership.chown(spot, Owner(found.uid, found.gid))
    except OSError as error:
        if syscalls.has_capability(syscalls.CAP_CHOWN) and error.errno != errno.EINVAL:
            raise
        log.debug("owner %d:%d cannot be kept: %s", found.uid, found.gid, error.strerror)


def _set_xattrs(upper: Upper, spot: Spot, values: dict[bytes, bytes]) -> None:
    """Copy xattrs. Those of the kernel's own namespaces may need privileges that we lack."""
    for name, value in values.items():
        stored = upper.stored_name(name)
        if stored is None:
            continue
        try:
            os.setxattr(spot.path(), stored, value, follow_symlinks=False)
        except OSError as error:
            lacking = error.errno == errno.EPERM and not name.startswith(b"user.")
            if error.errno != errno.ENOTSUP and not lacking:
                raise
            log.warning("xattr %s is lost in copy-up: %s", os.fsdecode(name), error.strerror)


class CopyUpTree(ReadableTree):
    """A tree whose files can be brought to the upper, where they may be changed."""

    def writable(self) -> Upper:
        """The upper, or the error EROFS."""
        if self.upper is None:
            raise fail(errno.EROFS)
        return self.upper

    # -- copy-up -----------------------------------------------------------------------------

    def copy_up(self, node: Node, *, length: int | None = None, contents: bool = True) -> None:
        """Bring a node, and before it its parents, to the upper.

        ``length`` cuts the content of a regular file that is about to be truncated. Without
        ``contents`` a change of attributes is ahead, for which a metacopy will do.
        """
        self.writable()
        if node.upper:
            if contents and node.is_metacopy:
                self._complete(node, length)
            return
        waiting = [node]
        while waiting[-1].names and not (parent := next(iter(waiting[-1].names))[0]).upper:
            waiting.append(parent)
        for step in reversed(waiting):
            is_last = step is node
            self._copy_up_one(step, length if is_last else None, contents or not is_last)

    def _copy_up_one(self, node: Node, length: int | None, contents: bool) -> None:
        upper = self.writable()
        found = self._lower_attributes(node)
        links = found.nlink + node.extra
        # A file with several names goes up whole: its copy could not be completed in one step.
        metacopy = (
            not contents
            and self.options.metacopy
            and node.kind == stat.S_IFREG
            and bool(node.names)
            and links == 1
            and found.size > 0
        )
        draft = Draft(
            source=node.parts[0 if node.is_directory else -1],
            attributes=found,
            xattrs=self.xattrs(node),
            number=node.number,
            length=length,
            metacopy=metacopy,
        )
        staged = stage(upper, draft, self.options.durability)
        try:
            if not node.names:
                self._keep_nameless(node, staged)
            elif links > 1 and not node.is_directory and (key := self.link_key(node)) is not None:
                self._index(node, staged, Record(key, extra=links))
            else:
                self._publish(node, staged)
        except BaseException:
            upper.discard(staged)
            raise
        node.upper = True
        if not node.is_directory:
            self.contents.close(node)
            node.parts = node.parts if metacopy else ()
            if node.link_key is not None:
                self.name_in_upper(node, *next(iter(node.names)))

    def _publish(self, node: Node, staged: bytes) -> None:
        upper = self.writable()
        parent, name = next(iter(node.names))
        assert parent.place is not None
        with upper.keeping_times(parent.place):
            upper.publish(staged, parent.place, name)
        self._leave_other_names(node, parent, name)
        node.names[parent, name] = True
        node.extra = 0
        if node.is_directory:
            node.place = Place(parent.place, name)

    def _leave_other_names(self, node: Node, parent: Node, name: bytes) -> None:
        """What has several names but no key is copied up by one: the others stay below."""
        for other in [key for key in node.names if key != (parent, name)]:
            del node.names[other]
            other[0].children.pop(other[1], None)
        for identity in node.identities:
            del self._by_identity[identity]
        node.identities.clear()

    def _keep_nameless(self, node: Node, staged: bytes) -> None:
        """A file that is open but has no name any more goes on without one in the upper."""
        upper = self.writable()
        if node.pin >= 0:
            os.close(node.pin)
        node.pin = os.open(staged, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=upper.work_fd)
        upper.discard(staged)
        node.extra = 0

    def _complete(self, node: Node, length: int | None) -> None:
        """Give a metacopy its contents, cut to ``length``.

        It is made anew and renamed over the old one. Only a metacopy of another program's can have
        several names; that one is filled where it is.
        """
        upper = self.writable()
        spot = self.spot(node)
        found = upper.stat(spot)
        if found.nlink > 1:
            self._fill(node, spot, found)
        else:
            draft = Draft(
                source=node.parts[-1],
                attributes=found,
                xattrs=upper.xattrs_at(spot),
                number=node.number,
                length=length,
            )
            staged = stage(upper, draft, self.options.durability)
            try:
                self._replace(node, staged)
            except BaseException:
                upper.discard(staged)
                raise
        self.contents.close(node)
        node.parts = ()

    def _replace(self, node: Node, staged: bytes) -> None:
        upper = self.writable()
        if not node.names:
            self._keep_nameless(node, staged)
            return
        parent, name = next(iter(node.names))
        assert parent.place is not None
        with upper.keeping_times(parent.place):
            os.rename(staged, name, src_dir_fd=upper.work_fd, dst_dir_fd=upper.fd(parent.place))
        if node.pin >= 0:  # of the metacopy, from a removal that failed
            os.close(node.pin)
            node.pin = -1

    def _fill(self, node: Node, spot: Spot, found: Attributes) -> None:
        target = spot.open(os.O_RDWR)
        try:
            copy_content(node.parts[-1], target, found.size)
            os.utime(target, ns=(found.atime_ns, found.mtime_ns))
            settle(target, self.options.durability)
        finally:
            os.close(target)
        xattrs.remove_mark(spot.path(), METACOPY, follow=spot.follow)

    # -- hardlinks ---------------------------------------------------------------------------

    def _index(self, node: Node, staged: bytes, record: Record) -> None:
        """Keep a copy of a file with several names where each of them leads to it."""
        upper = self.writable()
        index = upper.index()
        index.add(upper.work_fd, staged, record)
        node.link_key, node.extra = record.key, record.extra
        info = index.spot(record.key).stat()
        self.identify(node, (info.st_dev, info.st_ino))

    def name_in_upper(self, node: Node, parent: Node, name: bytes) -> None:
        """See to it that the upper itself has this name of a file that it has."""
        if node.is_directory or node.names[parent, name]:
            return
        upper = self.writable()
        self.copy_up(parent)
        assert parent.place is not None
        assert node.link_key is not None
        index = upper.index()
        links_on_disk = self.spot(node).stat().st_nlink
        index.write_record(Record(node.link_key, total=links_on_disk - 1 + node.extra))
        with upper.keeping_times(parent.place):
            upper.link(self.spot(node), parent.place, name, covered=False)
        node.names[parent, name] = True
        node.extra -= 1
        index.write_record(Record(node.link_key, extra=node.extra))
