"""The writable layer: a directory that takes every change, and a work directory beside it.

Each change is wholly there or not at all, whenever the process is killed. What needs more than one
step is built aside, in ``work`` inside the work directory, and put in its place by one rename. The
forms on disk are those of kernel overlayfs and fuse-overlayfs, so that an upper written by one can
be read by the others. What a killed process left in the work directory goes at the next start.

The caller decides *what* happens to a name; this module knows *how* an upper says it. The process's
umask must be 0.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from .. import syscalls, whiteouts
from ..errors import MountError, display
from ..locks import lock_within
from .directory import DirectoryLayer, Place

_PATIENCE = 2.0
"""Seconds to wait for the daemon of a mount that has just ended to let go of the work directory."""

_DEFAULT_ACL = "system.posix_acl_default"

Make = Callable[[int, bytes], None]
"""Makes a file of some kind under a name in the directory of a descriptor."""


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


def pinned(fd: int) -> Spot:
    """The spot of a file that has no name any more, kept alive by a descriptor."""
    return Spot(None, b"/proc/self/fd/%d" % fd, follow=True)


class Upper(DirectoryLayer):
    """The upper directory with its work directory."""

    def __init__(self, path: bytes, work: bytes) -> None:
        """Open both; they must lie on one filesystem, and no other mount may use them.

        Raises :class:`MountError` for a pair that cannot work, :class:`OSError` otherwise.
        """
        super().__init__(path)
        self.privileged = syscalls.has_capability(0)  # CAP_CHOWN
        try:
            base = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            super().close()
            raise
        try:
            self._check(work, base)
            self.work_fd = self._open_work(base)
        except BaseException:
            os.close(base)
            super().close()
            raise
        self._lock_fd = base
        self._serial = 0
        self._number_xattr = self._choose_number_xattr()

    def _check(self, work: bytes, base: int) -> None:
        if os.fstat(base).st_dev != os.fstat(self._root.fd).st_dev:
            raise MountError(
                f"workdir {display(work)} and upperdir {display(self.path)} are on different "
                "filesystems: choose a workdir beside the upperdir"
            )
        if os.path.samestat(os.fstat(base), os.fstat(self._root.fd)):
            raise MountError(f"workdir and upperdir are the same directory: {display(work)}")
        for option, path, fd in (("upperdir", self.path, self._root.fd), ("workdir", work, base)):
            if not lock_within(fd, fcntl.LOCK_EX, _PATIENCE):
                raise MountError(
                    f"{option} {display(path)} is in use by another mount; unmount it first"
                )

    @staticmethod
    def _open_work(base: int) -> int:
        with contextlib.suppress(FileExistsError):
            os.mkdir(b"work", 0o700, dir_fd=base)
        fd = os.open(
            b"work", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=base
        )
        _empty(fd)
        try:
            os.removexattr(fd, _DEFAULT_ACL)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        return fd

    def _choose_number_xattr(self) -> str | None:
        """The xattr that keeps the inode number of a copied-up file, or None where none may be."""
        path = f"/proc/self/fd/{self.work_fd}"
        for name in ("trusted.overlay.lamina", "user.overlay.lamina"):
            try:
                os.setxattr(path, name, b"0")
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EACCES):
                    raise
            else:
                return name
        return None

    def remember_number(self, fd: int, name: bytes, number: int) -> None:
        """Keep the number that a file had before its copy-up, for the next mount.

        Symlinks and special files take no ``user.`` xattrs; theirs are kept for this mount only.
        """
        if self._number_xattr is None:
            return
        path = b"/proc/self/fd/%d/%s" % (fd, name)
        try:
            os.setxattr(path, self._number_xattr, b"%d" % number, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP):
                raise

    def number(self, spot: Spot) -> int | None:
        """The number that a file of the upper had before its copy-up, None for any other file."""
        if self._number_xattr is None:
            return None
        try:
            value = os.getxattr(spot.path(), self._number_xattr, follow_symlinks=spot.follow)
        except OSError as error:
            if error.errno in (errno.ENODATA, errno.EPERM, errno.ENOTSUP):
                return None
            raise
        return int(value) if value.isdigit() and len(value) < 20 and int(value) > 1 else None

    def close(self) -> None:
        """Close every descriptor; the work directory may be used again."""
        os.close(self.work_fd)
        os.close(self._lock_fd)
        super().close()

    def spot(self, directory: Place, name: bytes) -> Spot:
        """Where a name of a directory of the upper is reached."""
        return Spot(self.fd(directory), name, follow=False)

    def temporary(self) -> bytes:
        """A fresh name in the work directory."""
        self._serial += 1
        return b"#%x" % self._serial

    # -- names ---------------------------------------------------------------------------------

    def add(self, directory: Place, name: bytes, make: Make, *, aside: bool) -> None:
        """Make a file under a name that the upper shows as absent.

        ``aside`` says that a whiteout may stand in its place, or that making the file takes more
        than one step: it is then made in the work directory and renamed into its place.
        """
        if not aside:
            make(self.fd(directory), name)
            return
        temporary = self.temporary()
        try:
            with self._inheriting(directory):
                make(self.work_fd, temporary)
            self.publish(temporary, directory, name)
        except BaseException:
            self.discard(temporary)
            raise

    @contextlib.contextmanager
    def keeping_times(self, directory: Place) -> Iterator[None]:
        """Let a directory keep its times while a copy-up, which nobody asked for, changes it."""
        before = os.fstat(self.fd(directory))
        yield
        with contextlib.suppress(PermissionError):  # a directory that is another user's
            os.utime(self.fd(directory), ns=(before.st_atime_ns, before.st_mtime_ns))

    @contextlib.contextmanager
    def _inheriting(self, directory: Place) -> Iterator[None]:
        """Have what is made aside inherit the default ACL of the directory that it is for."""
        try:
            acl = os.getxattr(self.fd(directory), _DEFAULT_ACL)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
            yield
            return
        os.setxattr(self.work_fd, _DEFAULT_ACL, acl)
        try:
            yield
        finally:
            os.removexattr(self.work_fd, _DEFAULT_ACL)

    def publish(self, temporary: bytes, directory: Place, name: bytes) -> None:
        """Put a file of the work directory in its place, over whatever whiteout stands there."""
        fd = self.fd(directory)
        try:
            syscalls.renameat2(self.work_fd, temporary, fd, name, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            syscalls.renameat2(self.work_fd, temporary, fd, name, syscalls.RENAME_EXCHANGE)
            self.discard(temporary)
        self._unmark(fd, name)

    def remove(self, directory: Place, name: bytes, *, leave_whiteout: bool) -> None:
        """Take away what the upper has of a name; then it is gone or shows a whiteout.

        A directory must hold nothing but whiteouts.
        """
        fd = self.fd(directory)
        if leave_whiteout:
            self._cover(fd, name)
            return
        temporary = self.temporary()
        try:
            os.unlink(name, dir_fd=fd)
        except IsADirectoryError:
            os.rename(name, temporary, src_dir_fd=fd, dst_dir_fd=self.work_fd)
            self.discard(temporary)

    def _cover(self, fd: int, name: bytes) -> None:
        """Leave a whiteout where a name is, removing what is there now."""
        temporary = self.temporary()
        if whiteouts.create(self.work_fd, temporary):
            try:
                syscalls.renameat2(self.work_fd, temporary, fd, name, syscalls.RENAME_NOREPLACE)
            except FileExistsError:
                syscalls.renameat2(self.work_fd, temporary, fd, name, syscalls.RENAME_EXCHANGE)
                self.discard(temporary)
            return
        self._mark(fd, name)
        if whiteouts.has_entry(fd, name):
            os.rename(name, temporary, src_dir_fd=fd, dst_dir_fd=self.work_fd)
            self.discard(temporary)

    @staticmethod
    def _mark(fd: int, name: bytes) -> None:
        marker = whiteouts.marker_for(name)
        if marker is None:
            raise OSError(errno.ENAMETOOLONG, "no room for a whiteout of this name", name)
        os.close(os.open(marker, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=fd))

    @staticmethod
    def _unmark(fd: int, name: bytes) -> None:
        marker = whiteouts.marker_for(name)
        if marker is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(marker, dir_fd=fd)

    def move(
        self, source: tuple[Place, bytes], target: tuple[Place, bytes], *, leave_whiteout: bool
    ) -> None:
        """Rename within the upper, over a file, a whiteout, nothing, or an emptied directory."""
        source_fd = os.dup(self.fd(source[0]))  # reaching the target may close cached descriptors
        try:
            self._move(source_fd, source[1], self.fd(target[0]), target[1], leave_whiteout)
        finally:
            os.close(source_fd)

    def _move(
        self, source_fd: int, source: bytes, target_fd: int, target: bytes, leave_whiteout: bool
    ) -> None:
        if self._swap_with_whiteout(source_fd, source, target_fd, target):
            if not leave_whiteout:
                os.unlink(source, dir_fd=source_fd)
        elif not leave_whiteout:
            os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
        elif not whiteouts.rename_leaving_whiteout(source_fd, source, target_fd, target):
            self._mark(source_fd, source)
            os.rename(source, target, src_dir_fd=source_fd, dst_dir_fd=target_fd)
            self._cover(source_fd, source)
        self._unmark(target_fd, target)

    def _swap_with_whiteout(
        self, source_fd: int, source: bytes, target_fd: int, target: bytes
    ) -> bool:
        """Exchange a directory with the whiteout it cannot replace, if that is what there is.

        A whiteout by xattr, which would be a plain file in another directory, is replaced first.
        """
        try:
            there = os.stat(target, dir_fd=target_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        info = os.stat(source, dir_fd=source_fd, follow_symlinks=False)
        if not stat.S_ISDIR(info.st_mode) or stat.S_ISDIR(there.st_mode):
            return False
        if not whiteouts.is_device(there):
            self._cover(target_fd, target)
            return self._swap_with_whiteout(source_fd, source, target_fd, target)
        syscalls.renameat2(source_fd, source, target_fd, target, syscalls.RENAME_EXCHANGE)
        return True

    def exchange(self, source: tuple[Place, bytes], target: tuple[Place, bytes]) -> None:
        """Swap two names of the upper."""
        source_fd = os.dup(self.fd(source[0]))
        try:
            syscalls.renameat2(
                source_fd, source[1], self.fd(target[0]), target[1], syscalls.RENAME_EXCHANGE
            )
        finally:
            os.close(source_fd)

    def link(self, spot: Spot, directory: Place, name: bytes, *, covered: bool) -> None:
        """Give a file of the upper one more name."""

        def make(fd: int, new: bytes) -> None:
            os.link(
                spot.name, new, src_dir_fd=spot.dir_fd, dst_dir_fd=fd, follow_symlinks=spot.follow
            )

        self.add(directory, name, make, aside=covered)

    def make_opaque(self, directory: Place) -> None:
        """Hide what lower layers have in a directory."""
        whiteouts.make_opaque(self.fd(directory))

    def clear_whiteouts(self, directory: Place) -> None:
        """Empty a directory that shows nothing, without lower layers showing through.

        A marker file that makes it opaque goes with the rest, so one beside the directory replaces
        it, until something else is renamed into its place.
        """
        self.make_opaque(directory)
        if whiteouts.opaque_value(self.fd(directory)) != b"y":
            assert directory.parent is not None
            self._mark(self.fd(directory.parent), directory.name)
        _empty(self.fd(directory))

    def discard(self, temporary: bytes) -> None:
        """Remove a file, or a directory without subdirectories, from the work directory."""
        _remove(self.work_fd, temporary)


def _empty(fd: int) -> None:
    with os.scandir(fd) as entries:
        names = [os.fsencode(item.name) for item in entries]
    for name in names:
        _remove(fd, name)


def _remove(fd: int, name: bytes) -> None:
    try:
        os.unlink(name, dir_fd=fd)
    except FileNotFoundError:
        return
    except IsADirectoryError:
        inner = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
        )
        try:
            _empty(inner)
        finally:
            os.close(inner)
        os.rmdir(name, dir_fd=fd)
