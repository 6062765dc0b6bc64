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
import logging
import os
import stat
from collections.abc import Callable, Iterator

from .. import overrides, syscalls, whiteouts, xattrs
from ..errors import MountError, display
from ..locks import lock_within
from ..redirects import Redirect
from .directory import DirectoryLayer, Place
from .links import LinkIndex, begin_index, open_index
from .ownership import Ownership
from .spot import Spot

log = logging.getLogger(__name__)

_PATIENCE = 2.0
"""Seconds to wait for the daemon of a mount that has just ended to let go of the work directory."""

_NUMBER = b"lamina"

Make = Callable[[int, bytes], None]
"""Makes a file of some kind under a name in the directory of a descriptor."""


class Upper(DirectoryLayer):
    """The upper directory with its work directory."""

    def __init__(
        self,
        path: bytes,
        work: bytes,
        *,
        aufs: bool | None = None,
        override: bytes | None = None,
    ) -> None:
        """Open both; they must lie on one filesystem, and no other mount may use them.

        ``aufs`` chooses how whiteouts are written; None leaves it to what the upper holds.
        ``override`` is the xattr that owners, modes and types are kept in, empty for none; None for
        as the upper's root has it, or else where the host refuses them and lamina has no
        privileges. Raises :class:`MountError` for a pair that cannot work, :class:`OSError`
        otherwise.
        """
        super().__init__(path)
        self.links: LinkIndex | None = None
        self.work_fd = -1
        self._serial = 0
        try:
            base = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            super().close()
            raise
        self._lock_fd = base
        try:
            self._check(work, base)
            self.work_fd = self._open_work(base)
            self._choose_ownership(override)
            self._aufs = self._choose_dialect(aufs)
            self.links = open_index(base)
            if self.links is not None:
                self.links.sweep()
        except BaseException:
            self.close()
            raise

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
            os.removexattr(fd, xattrs.DEFAULT_ACL)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
        return fd

    def _choose_ownership(self, wanted: bytes | None) -> None:
        found = self.ownership.name
        if wanted == overrides.CONTAINERS and found == overrides.FUSE_OVERLAYFS:
            return  # an older name of the same
        if wanted is not None:
            self.ownership = Ownership(wanted or None, always=True)
        elif found is None and not syscalls.has_capability(syscalls.CAP_CHOWN):
            self.ownership = Ownership(overrides.CONTAINERS, always=False)

    def stored_name(self, xattr: bytes) -> bytes | None:
        """The name on disk of an xattr that a user of the mount names; None for one refused."""
        return None if xattr == self.ownership.name else xattrs.stored_name(xattr)

    def _choose_dialect(self, wanted: bool | None) -> bool:
        """Whether whiteouts are those of AUFS. An upper that has been begun so goes on so."""
        if wanted is None:
            return whiteouts.has_entry(self._root.fd, whiteouts.AUFS_BASE)
        if wanted:
            whiteouts.make_marker(self._root.fd, whiteouts.AUFS_BASE)
        return wanted

    def index(self) -> LinkIndex:
        """The index of hardlinks, begun if there is none."""
        if self.links is None:
            self.links = begin_index(self._lock_fd)
        return self.links

    # -- marks -----------------------------------------------------------------------------------

    def remember_number(self, fd: int, name: bytes, number: int) -> None:
        """Keep the number that a file had before its copy-up, for the next mount.

        Symlinks and special files take no ``user.`` xattrs; theirs are kept for this mount only.
        """
        xattrs.set_mark(b"/proc/self/fd/%d/%s" % (fd, name), _NUMBER, b"%d" % number)

    @staticmethod
    def number(marks: dict[bytes, bytes]) -> int | None:
        """The number that a file of the upper had before its copy-up, None for any other file."""
        value = marks.get(_NUMBER, b"")
        return int(value) if value.isdigit() and len(value) < 20 and int(value) > 1 else None

    def set_redirect(self, spot: Spot, redirect: Redirect) -> bool:
        """Note where lower layers have a file; False where the filesystem has no room for it."""
        try:
            return xattrs.set_mark(spot.path(), b"redirect", redirect.format(), follow=spot.follow)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.E2BIG, errno.ERANGE):
                return False
            raise

    def close(self) -> None:
        """Close every descriptor; the work directory may be used again."""
        if self.links is not None:
            self.links.close()
        if self.work_fd >= 0:
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
            acl = os.getxattr(self.fd(directory), xattrs.DEFAULT_ACL)
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise
            yield
            return
        os.setxattr(self.work_fd, xattrs.DEFAULT_ACL, acl)
        try:
            yield
        finally:
            os.removexattr(self.work_fd, xattrs.DEFAULT_ACL)

    def publish(self, temporary: bytes, directory: Place, name: bytes) -> None:
        """Put a file of the work directory in its place, over whatever whiteout stands there."""
        fd = self.fd(directory)
        self._put(temporary, fd, name)
        self._unmark(fd, name)

    def _put(self, temporary: bytes, fd: int, name: bytes) -> None:
        """Move a file of the work directory to a name, instead of what has it now."""
        try:
            syscalls.renameat2(self.work_fd, temporary, fd, name, syscalls.RENAME_NOREPLACE)
        except FileExistsError:
            syscalls.renameat2(self.work_fd, temporary, fd, name, syscalls.RENAME_EXCHANGE)
            self.discard(temporary)

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
        if not self._aufs and whiteouts.create(self.work_fd, temporary):
            self._put(temporary, fd, name)
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
        whiteouts.make_marker(fd, marker)

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
        elif self._aufs or not whiteouts.rename_leaving_whiteout(
            source_fd, source, target_fd, target
        ):
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

        # reaching the directory may close cached descriptors
        source_fd = None if spot.dir_fd is None else os.dup(spot.dir_fd)

        def make(fd: int, new: bytes) -> None:
            os.link(
                spot.name, new, src_dir_fd=source_fd, dst_dir_fd=fd, follow_symlinks=spot.follow
            )

        try:
            self.add(directory, name, make, aside=covered)
        finally:
            if source_fd is not None:
                os.close(source_fd)

    def make_opaque(self, directory: Place) -> None:
        """Hide what lower layers have in a directory."""
        whiteouts.make_opaque(self.fd(directory), aufs=self._aufs)

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
        """Remove a file or directory from the work directory, if it is there.

        That it cannot be removed is no error of the change that is done or given up by now: the
        next start tries again.
        """
        try:
            _remove(self.work_fd, temporary)
        except OSError as error:
            log.warning("%s is left in the work directory: %s", display(temporary), error.strerror)


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
