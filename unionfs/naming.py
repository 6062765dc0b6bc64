"""Names that come, go and move. Every change goes to the upper, lower layers are never touched.

A name that lower layers have is removed by a whiteout; a directory made where lower layers have one
is opaque; a directory that has lower parts moves with a note of where they are.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from . import syscalls
from .copyup import CopyUpTree
from .entry import NAME_MAX, WHITEOUT, Attributes, Owner
from .layers.directory import FileContent, Place
from .layers.spot import Spot
from .nodes import Node, fail
from .options import Redirects
from .redirects import Redirect
from .whiteouts import is_marker

_RENAME_FLAGS = syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT


class NamingTree(CopyUpTree):
    """A tree whose names can be changed, if it has an upper."""

    # -- new names ---------------------------------------------------------------------------

    def create(self, parent: Node, name: bytes, mode: int, owner: Owner) -> Node:
        """Make a regular file. The umask is the caller's business."""
        opened: list[int] = []
        host_mode = self.writable().ownership.host_mode(stat.S_IFREG | stat.S_IMODE(mode))

        def make(fd: int, new: bytes) -> None:
            flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC
            opened.append(os.open(new, flags, host_mode, dir_fd=fd))

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
        host_mode = upper.ownership.host_mode(stat.S_IFDIR | stat.S_IMODE(mode))

        def make(fd: int, new: bytes) -> None:
            os.mkdir(new, host_mode, dir_fd=fd)
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

        upper = self.writable()

        def make(fd: int, new: bytes) -> None:
            upper.ownership.mknod(fd, new, mode, rdev)

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
        above = upper.stat(self.spot(parent))
        owner = Owner(*self.options.owners.kept(*owner))
        if above.mode & stat.S_ISGID:
            owner = Owner(owner.uid, above.gid)  # the one on disk, whatever is shown
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
        takes_steps = (
            owner != (os.geteuid(), os.getegid())
            or bool(mode & (stat.S_ISUID | stat.S_ISGID))
            or upper.ownership.host_mode(mode) != stat.S_IMODE(mode)
            or stat.S_IFMT(mode) not in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
        )
        aside = takes_steps or self._is_covered(parent, name)
        upper.add(parent.place, name, make_owned, aside=aside)
        self._count_directory(parent, stat.S_IFMT(mode), +1)
        return self._enter_new(parent, name, stat.S_IFMT(mode))

    def _own_new(self, fd: int, name: bytes, mode: int, owner: Owner) -> None:
        """Give a new file its owner, as open(2) and mkdir(2) say, and the bits chown clears."""
        upper = self.writable()
        spot = Spot(fd, name, follow=False)
        found = upper.stat(spot)
        if owner != (found.uid, found.gid):
            self._give_new(spot, owner, found)
        bits = mode & (stat.S_ISUID | stat.S_ISGID)
        added = upper.ownership.host_mode(mode) & ~mode
        if (bits or added) and not stat.S_ISLNK(mode):
            # the other bits are those that the default ACL of the directory has made of ``mode``
            upper.ownership.chmod(spot, upper.stat(spot).mode & ~added | bits)

    def _give_new(self, spot: Spot, owner: Owner, found: Attributes) -> None:
        try:
            self.writable().ownership.chown(spot, owner)
        except PermissionError:
            # An ordinary user may make symlinks and special files in others' setgid directories.
            if owner.uid != found.uid or syscalls.has_capability(syscalls.CAP_CHOWN):
                raise

    def _enter_new(self, parent: Node, name: bytes, kind: int) -> Node:
        upper = self.writable()
        assert parent.place is not None
        place = Place(parent.place, name) if kind == stat.S_IFDIR else None
        found = upper.stat(upper.spot(parent.place, name))
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
        covered = self._is_covered(parent, name)
        upper.link(self.spot(node), parent.place, name, covered=covered)
        info = upper.spot(parent.place, name).stat()
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
        self._before_removal(node, parent, name)
        upper.remove(parent.place, name, leave_whiteout=self.lower_has(parent, name))
        self._removed(node, parent, name)

    def _before_removal(self, node: Node, parent: Node, name: bytes) -> None:
        """Keep hold of what the upper is about to lose, so that whoever has it open still has it.

        A file with several names goes to the upper first, where its names are counted.
        """
        upper = self.writable()
        if node.is_directory:
            if node.place is not None:
                upper.pin(node.place)
            return
        has_links = bool(node.identities)
        if has_links and not node.names[parent, name]:
            self.copy_up(node)
            self.name_in_upper(node, parent, name)
        if node.names[parent, name] and node.link_key is None and node.pin < 0:
            spot = self.spot(node)
            if not has_links or spot.stat().st_nlink == 1:
                node.pin = spot.open(os.O_PATH)

    def _removed(self, node: Node, parent: Node, name: bytes) -> None:
        self.unname(node, parent, name)
        if node.is_directory:
            if node.place is not None:
                node.place.parent = None
            node.parts = node.parts[:1] if node.place is None else ()
        elif not node.upper:
            node.extra -= 1
        elif node.link_key is not None and self.attributes(node).nlink == 0:
            self._leave_index(node)
        self.trim(node)

    def _leave_index(self, node: Node) -> None:
        """The last name of a file is gone. It lives on while somebody has it open."""
        assert node.link_key is not None
        node.pin = self.spot(node).open(os.O_PATH)
        self.writable().index().remove(node.link_key)
        node.link_key = None

    # -- rename --------------------------------------------------------------------------------

    def rename(
        self, source: tuple[Node, bytes], destination: tuple[Node, bytes], flags: int = 0
    ) -> None:
        """Rename, with the RENAME_* flags of renameat2(2).

        What is at the old name afterwards is a whiteout if lower layers have the name, and with
        RENAME_WHITEOUT in any case. A directory that has lower parts answers EXDEV, mv(1) then
        copies, if redirects are not wanted or have no room.
        """
        self.writable()
        exchanges = bool(flags & syscalls.RENAME_EXCHANGE)
        if flags & ~_RENAME_FLAGS or (exchanges and flags != syscalls.RENAME_EXCHANGE):
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
        for directory in (source[0], destination[0]):
            self.copy_up(directory)
        self._prepare_move(node, source, destination)
        if exchanges:
            assert target is not None
            self._prepare_move(target, destination, source)
            self._exchange(node, source, target, destination)
        else:
            whiteout = bool(flags & syscalls.RENAME_WHITEOUT) or self.lower_has(*source)
            self._rename(node, source, target, destination, leave_whiteout=whiteout)

    def _prepare_move(
        self, node: Node, source: tuple[Node, bytes], destination: tuple[Node, bytes]
    ) -> None:
        """Make a file one that the upper alone can move: copied up, named there, redirected."""
        if node.is_directory and node.parts and self.options.redirects is not Redirects.ON:
            raise fail(errno.EXDEV, source[1])
        self.copy_up(node, contents=False)
        self.name_in_upper(node, *source)
        if node.parts:
            self._redirect(node, source, destination)

    def _redirect(
        self, node: Node, source: tuple[Node, bytes], destination: tuple[Node, bytes]
    ) -> None:
        """Note where the lower parts of a file are, before its name says it no more.

        Within a directory the old name is enough; elsewhere it takes the path from the root.
        """
        upper = self.writable()
        redirect = self._redirect_of(node)
        if redirect is None:
            redirect = Redirect(is_absolute=False, names=(source[1],))
        if not redirect.is_absolute and source[0] is not destination[0]:
            redirect = Redirect(is_absolute=True, names=self._lower_path(source[0], redirect))
        if not upper.set_redirect(self.spot(node), redirect):
            raise fail(errno.EXDEV, source[1])

    def _redirect_of(self, node: Node) -> Redirect | None:
        parent, name = next(iter(node.names))
        return self.writable().redirect(Place(parent.place, name))

    def _lower_path(self, directory: Node, redirect: Redirect) -> tuple[bytes, ...]:
        """The path, as lower layers know it, of a place in a directory."""
        names = redirect.names
        while directory is not self.root:
            above = self._redirect_of(directory) if directory.upper else None
            if above is not None and above.is_absolute:
                return above.names + names
            directory, name = next(iter(directory.names))
            names = (*(above.names if above is not None else (name,)), *names)
        return names

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
        *,
        leave_whiteout: bool,
    ) -> None:
        upper = self.writable()
        self._hide_lower(node, *destination)
        if target is not None:
            self._before_removal(target, *destination)
            if target.place is not None:
                upper.clear_whiteouts(target.place)
        old_place, new_place = source[0].place, destination[0].place
        assert old_place is not None
        assert new_place is not None
        upper.move(
            (old_place, source[1]), (new_place, destination[1]), leave_whiteout=leave_whiteout
        )
        if target is not None:
            self._count_directory(destination[0], target.kind, -1)
            self._removed(target, *destination)
        self._moved(node, source, destination)

    def _exchange(
        self,
        node: Node,
        source: tuple[Node, bytes],
        target: Node,
        destination: tuple[Node, bytes],
    ) -> None:
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
        if node.place is not None and not node.parts and self._lower_directory(parent, name):
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
