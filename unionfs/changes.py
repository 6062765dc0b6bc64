"""What alters the union: every change goes to the upper layer, lower layers are never touched.

A lower file is copied up before its first change, its parents first; a name that lower layers have
is removed by a whiteout; a directory made where lower layers have one is opaque. Like
:mod:`unionfs.tree` this is synchronous and knows no FUSE.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from . import syscalls
from .copyup import CopyUpTree, write_all
from .entry import NAME_MAX, WHITEOUT, XATTR_MAX, Owner
from .layers.directory import FileContent, Place, attributes_of
from .nodes import Node, fail
from .whiteouts import is_marker, is_private_xattr


class WritableTree(CopyUpTree):
    """Layers joined to one tree that can be changed, if it has an upper."""

    # -- new names ---------------------------------------------------------------------------

    def create(self, parent: Node, name: bytes, mode: int, owner: Owner) -> Node:
        """Make a regular file. The umask is the caller's business."""
        opened: list[int] = []

        def make(fd: int, new: bytes) -> None:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            opened.append(os.open(new, flags, stat.S_IMODE(mode), dir_fd=fd))

        try:
            node = self._add(parent, name, stat.S_IFREG | stat.S_IMODE(mode), owner, make)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        self.contents.adopt(node, FileContent(opened.pop()))
        return node

    def mkdir(self, parent: Node, name: bytes, mode: int, owner: Owner) -> Node:
        """Make a directory; it hides what lower layers have under its name."""
        upper = self.writable()

        def make(fd: int, new: bytes) -> None:
            os.mkdir(new, stat.S_IMODE(mode), dir_fd=fd)
            if self._lower_directory(parent, name):
                place = Place(None, new)
                place.fd = os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
                try:
                    upper.make_opaque(place)
                finally:
                    upper.drop(place)

        return self._add(parent, name, stat.S_IFDIR | stat.S_IMODE(mode), owner, make)

    def mknod(self, parent: Node, name: bytes, mode: int, rdev: int, owner: Owner) -> Node:
        """Make a fifo, socket or device, or a regular file.

        Device 0:0 is what a whiteout looks like, and refused with EPERM as kernel overlayfs does.
        """
        if stat.S_ISCHR(mode) and rdev == 0:
            raise fail(errno.EPERM, name)

        def make(fd: int, new: bytes) -> None:
            os.mknod(new, mode, rdev, dir_fd=fd)

        return self._add(parent, name, mode, owner, make)

    def symlink(self, parent: Node, name: bytes, target: bytes, owner: Owner) -> Node:
        """Make a symlink."""

        def make(fd: int, new: bytes) -> None:
            os.symlink(target, new, dir_fd=fd)

        return self._add(parent, name, stat.S_IFLNK | 0o777, owner, make)

    def _add(
        self, parent: Node, name: bytes, mode: int, owner: Owner, make: Callable[[int, bytes], None]
    ) -> Node:
        upper = self.writable()
        self._expect_absent(parent, name)
        self.copy_up(parent)
        above = self.attributes(parent)
        inherits = bool(above.mode & stat.S_ISGID)
        if inherits:
            owner = Owner(owner.uid, above.gid)
            if stat.S_ISDIR(mode):
                mode |= stat.S_ISGID

        def make_owned(fd: int, new: bytes) -> None:
            make(fd, new)
            try:
                self._own_new(fd, new, mode, owner)
            except BaseException:
                (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(new, dir_fd=fd)
                raise

        assert parent.place is not None
        takes_steps = owner != (os.geteuid(), os.getegid()) or mode & (stat.S_ISUID | stat.S_ISGID)
        aside = bool(takes_steps) or self._is_covered(parent, name)
        upper.add(parent.place, name, make_owned, aside=aside)
        self._count_directory(parent, stat.S_IFMT(mode), +1)
        return self._enter_new(parent, name, stat.S_IFMT(mode))

    def _own_new(self, fd: int, name: bytes, mode: int, owner: Owner) -> None:
        """Give a new file its owner, as open(2) and mkdir(2) say, and the bits chown clears."""
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if owner != (info.st_uid, info.st_gid):
            try:
                os.chown(name, *owner, dir_fd=fd, follow_symlinks=False)
            except PermissionError:
                if self.writable().privileged or owner.uid != info.st_uid:
                    raise  # an ordinary user may at least make files in groups one is not in
        if not stat.S_ISLNK(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            os.chmod(name, stat.S_IMODE(mode), dir_fd=fd)

    def _enter_new(self, parent: Node, name: bytes, kind: int) -> Node:
        upper = self.writable()
        assert parent.place is not None
        place = Place(parent.place, name) if kind == stat.S_IFDIR else None
        found = attributes_of(os.stat(name, dir_fd=upper.fd(parent.place), follow_symlinks=False))
        number = self._numbers.number(found.space, found.number)
        node = self._enter(Node(number, kind, upper=True, place=place, parts=()), parent, name)
        self._listed(parent, name)
        return node

    def link(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a file one more name."""
        upper = self.writable()
        if node.is_directory:
            raise fail(errno.EPERM, name)
        if not node.names:
            raise fail(errno.ENOENT, name)
        self._expect_absent(parent, name)
        self.copy_up(node)
        self.copy_up(parent)
        assert parent.place is not None
        upper.link(self.spot(node), parent.place, name, covered=self._is_covered(parent, name))
        spot = upper.spot(parent.place, name)
        info = os.stat(name, dir_fd=spot.dir_fd, follow_symlinks=False)
        self.identify(node, (info.st_dev, info.st_ino))
        node.names[parent, name] = True
        parent.children[name] = node
        self._listed(parent, name)

    @staticmethod
    def _listed(parent: Node, name: bytes) -> None:
        if parent.listing is not None:
            parent.listing.add(name)

    def _expect_absent(self, parent: Node, name: bytes) -> None:
        """Refuse a name that exists, cannot exist, or is in a directory that was removed."""
        self._expect_live(parent)
        if is_marker(name):
            raise fail(errno.EINVAL, name)
        if len(name) > NAME_MAX:
            raise fail(errno.ENAMETOOLONG, name)
        try:
            found = self.lookup(parent, name)
        except FileNotFoundError:
            return
        self.trim(found)
        raise fail(errno.EEXIST, name)

    def _expect_live(self, parent: Node) -> None:
        if not parent.is_directory:
            raise fail(errno.ENOTDIR)
        if not self.is_live(parent):
            raise fail(errno.ENOENT)

    def lower_has(self, parent: Node, name: bytes) -> bool:
        """Whether a name would show from lower layers if the upper said nothing of it."""
        return self.lower_entry(parent, name) is not None

    def _is_covered(self, parent: Node, name: bytes) -> bool:
        """Whether the upper has a whiteout where a name is about to be made."""
        entry = self.writable().lookup(parent.place, name)
        return entry is not None and entry.kind == WHITEOUT

    def _lower_directory(self, parent: Node, name: bytes) -> bool:
        entry = self.lower_entry(parent, name)
        return entry is not None and entry.kind == stat.S_IFDIR

    @staticmethod
    def _count_directory(parent: Node, kind: int, change: int) -> None:
        if kind == stat.S_IFDIR and parent.subdirectories is not None:
            parent.subdirectories += change

    # -- names that go -------------------------------------------------------------------------

    def unlink(self, parent: Node, name: bytes) -> None:
        """Remove a name that is no directory."""
        self._expect_live(parent)
        node = self.lookup(parent, name)
        if node.is_directory:
            raise fail(errno.EISDIR, name)
        self._remove(node, parent, name)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """Remove an empty directory."""
        self._expect_live(parent)
        node = self.lookup(parent, name)
        if not node.is_directory:
            raise fail(errno.ENOTDIR, name)
        self.writable()
        if not self.is_empty(node):
            raise fail(errno.ENOTEMPTY, name)
        self._remove(node, parent, name)
        self._count_directory(parent, stat.S_IFDIR, -1)

    def _remove(self, node: Node, parent: Node, name: bytes) -> None:
        upper = self.writable()
        self.copy_up(parent)
        assert parent.place is not None
        in_upper = node.names[parent, name]
        if in_upper:
            self._keep_alive(node, parent, name)
        upper.remove(parent.place, name, leave_whiteout=self.lower_has(parent, name))
        self._removed(node, parent, name, in_upper=in_upper)

    def _removed(self, node: Node, parent: Node, name: bytes, *, in_upper: bool) -> None:
        self.unname(node, parent, name)
        if not in_upper and not node.is_directory:
            node.extra -= 1
        if node.is_directory:
            if node.place is not None:
                node.place.parent = None
            node.parts = node.parts[:1] if node.place is None else ()
        self.trim(node)

    def _keep_alive(self, node: Node, parent: Node, name: bytes) -> None:
        """Before a name leaves the upper: keep hold of a file that is about to lose its last one.

        If the union still shows other names of it from below, one of them takes the file over.
        """
        upper = self.writable()
        if node.place is not None:
            upper.pin(node.place)
            return
        others = [key for key in node.names if key != (parent, name)]
        if any(node.names[key] for key in others):
            return
        if others:
            other_parent, other = others[0]
            self.copy_up(other_parent)
            self.name_in_upper(node, other_parent, other)
            return
        node.pin = self.spot(node).open(os.O_PATH)

    # -- rename --------------------------------------------------------------------------------

    def rename(
        self, source: tuple[Node, bytes], destination: tuple[Node, bytes], flags: int = 0
    ) -> None:
        """Rename, with RENAME_NOREPLACE and RENAME_EXCHANGE of renameat2(2).

        A directory that has lower parts answers EXDEV, as kernel overlayfs does without
        ``redirect_dir``: mv(1) then copies.
        """
        self.writable()
        if flags & ~(syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE) or flags == 3:
            raise fail(errno.EINVAL)
        self._expect_live(source[0])
        self._expect_live(destination[0])
        node = self.lookup(*source)
        try:
            target: Node | None = self.lookup(*destination)
        except FileNotFoundError:
            target = None
        self._check_rename(node, target, destination[1], flags)
        if target is node:
            return
        exchange = target if flags & syscalls.RENAME_EXCHANGE else None
        for moved in (node, exchange) if exchange is not None else (node,):
            if moved.is_directory and moved.parts:
                raise fail(errno.EXDEV, source[1])
        for needed in (node, source[0], destination[0], *([exchange] if exchange else [])):
            self.copy_up(needed)
        if exchange is not None:
            self._exchange(node, source, exchange, destination)
        else:
            self._rename(node, source, target, destination)

    def _check_rename(self, node: Node, target: Node | None, new: bytes, flags: int) -> None:
        if is_marker(new):
            raise fail(errno.EINVAL, new)
        if target is None:
            if flags & syscalls.RENAME_EXCHANGE:
                raise fail(errno.ENOENT, new)
            return
        if flags & syscalls.RENAME_NOREPLACE:
            raise fail(errno.EEXIST, new)
        if flags & syscalls.RENAME_EXCHANGE or target is node:
            return
        if target.is_directory:
            if not node.is_directory:
                raise fail(errno.EISDIR, new)
            if not self.is_empty(target):
                raise fail(errno.ENOTEMPTY, new)
        elif node.is_directory:
            raise fail(errno.ENOTDIR, new)

    def _rename(
        self,
        node: Node,
        source: tuple[Node, bytes],
        target: Node | None,
        destination: tuple[Node, bytes],
    ) -> None:
        upper = self.writable()
        self.name_in_upper(node, *source)
        self._hide_lower(node, *destination)
        in_upper = target is not None and target.names[destination]
        if target is not None and in_upper:
            self._keep_alive(target, *destination)
            if target.place is not None:
                upper.clear_whiteouts(target.place)
        old_place, new_place = source[0].place, destination[0].place
        assert old_place is not None
        assert new_place is not None
        upper.move(
            (old_place, source[1]),
            (new_place, destination[1]),
            leave_whiteout=self.lower_has(*source),
        )
        if target is not None:
            self._count_directory(destination[0], target.kind, -1)
            self._removed(target, *destination, in_upper=in_upper)
        self._moved(node, source, destination)

    def _exchange(
        self,
        node: Node,
        source: tuple[Node, bytes],
        target: Node,
        destination: tuple[Node, bytes],
    ) -> None:
        self.name_in_upper(node, *source)
        self.name_in_upper(target, *destination)
        self._hide_lower(node, *destination)
        self._hide_lower(target, *source)
        old_place, new_place = source[0].place, destination[0].place
        assert old_place is not None
        assert new_place is not None
        self.writable().exchange((old_place, source[1]), (new_place, destination[1]))
        self._moved(node, source, destination)
        self._moved(target, destination, source)

    def _hide_lower(self, node: Node, parent: Node, name: bytes) -> None:
        """A directory about to arrive at a name must not merge with what lower layers have."""
        if node.place is not None and self._lower_directory(parent, name):
            self.writable().make_opaque(node.place)

    def _moved(
        self, node: Node, source: tuple[Node, bytes], destination: tuple[Node, bytes]
    ) -> None:
        del node.names[source]
        if source[0].children.get(source[1]) is node:
            self.unname(node, *source)
        node.names[destination] = True
        destination[0].children[destination[1]] = node
        self._listed(*destination)
        self._count_directory(source[0], node.kind, -1)
        self._count_directory(destination[0], node.kind, +1)
        if node.place is not None:
            node.place.parent, node.place.name = destination[0].place, destination[1]

    # -- attributes ------------------------------------------------------------------------------

    def chmod(self, node: Node, mode: int) -> None:
        """Change permission bits. A symlink has none: chmod(2) would reach what it points to."""
        if node.kind == stat.S_IFLNK:
            raise fail(errno.EOPNOTSUPP)
        self.copy_up(node)
        spot = self.spot(node)
        os.chmod(spot.name, stat.S_IMODE(mode), dir_fd=spot.dir_fd)

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """Change owner and group; -1 leaves one as it is."""
        self.copy_up(node)
        spot = self.spot(node)
        os.chown(spot.name, uid, gid, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)

    def utimens(self, node: Node, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Change times, nanoseconds since the epoch; None leaves one as it is.

        With the writeback cache the kernel repeats a file's own times to it after an unlink or a
        rename; that is no reason to copy it up.
        """
        self.writable()
        if not node.upper:
            found = self._lower_attributes(node)
            if atime_ns in (None, found.atime_ns) and mtime_ns in (None, found.mtime_ns):
                return
        self.copy_up(node)
        spot = self.spot(node)
        if atime_ns is None or mtime_ns is None:
            info = os.stat(spot.name, dir_fd=spot.dir_fd, follow_symlinks=spot.follow)
            atime_ns = info.st_atime_ns if atime_ns is None else atime_ns
            mtime_ns = info.st_mtime_ns if mtime_ns is None else mtime_ns
        os.utime(
            spot.name, ns=(atime_ns, mtime_ns), dir_fd=spot.dir_fd, follow_symlinks=spot.follow
        )

    def set_xattr(self, node: Node, name: bytes, value: bytes) -> None:
        """Set an extended attribute. The union's own bookkeeping is refused with EPERM."""
        if is_private_xattr(name):
            raise fail(errno.EPERM, name)
        if len(value) > XATTR_MAX:
            raise fail(errno.E2BIG, name)
        self.copy_up(node)
        spot = self.spot(node)
        os.setxattr(spot.path(), name, value, follow_symlinks=spot.follow)

    def remove_xattr(self, node: Node, name: bytes) -> None:
        """Remove an extended attribute; raises :class:`OSError` ENODATA where there is none."""
        self.writable()
        self.xattr(node, name)  # nothing is copied up for an attribute that is not there
        self.copy_up(node)
        spot = self.spot(node)
        os.removexattr(spot.path(), name, follow_symlinks=spot.follow)

    # -- contents ----------------------------------------------------------------------------

    def write(self, node: Node, offset: int, data: bytes) -> int:
        """Write into a file; returns how many bytes, always all."""
        write_all(self._writable_fd(node), data, offset)
        return len(data)

    def truncate(self, node: Node, size: int) -> None:
        """Cut or extend a file to ``size`` bytes."""
        self.copy_up(node, length=size)
        os.ftruncate(self._writable_fd(node), size)

    def _writable_fd(self, node: Node) -> int:
        self.copy_up(node)
        content = self.content(node)
        assert isinstance(content, FileContent)
        return content.fd

    def sync_fd(self, node: Node) -> int | None:
        """A descriptor to fsync, owned by the caller; None for what is not in the upper."""
        if not node.upper:
            return None
        if node.place is not None:
            return os.dup(self.writable().fd(node.place))
        if node.is_directory:
            return None  # removed before its copy-up: nothing of it is to last
        return os.dup(self._writable_fd(node))
