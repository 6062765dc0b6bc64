"""How the upper keeps owner, mode and type of a file: on the host, or in an xattr beside it.

Where the host refuses, because lamina runs without the privilege, the xattr of
:mod:`unionfs.overrides` says what is meant. So it does for a mode that would keep lamina itself
from a file or directory: the host's owner keeps read and write (and search), or else the union's
own xattrs could be neither written nor read. Symlinks and special files take no such xattr: they
have what the host says. But a regular file can stand for a special one.
"""

from __future__ import annotations

import errno
import logging
import os
import stat

from .. import overrides
from ..entry import Attributes, Owner
from ..overrides import Override
from ..xattrs import ABSENT
from .spot import Spot

log = logging.getLogger(__name__)

_REFUSED = (errno.EPERM, errno.EINVAL, errno.EOVERFLOW)
"""What chown(2) and mknod(2) say to those who may not: EINVAL for an id that is not mapped."""


class Ownership:
    """``name`` is the xattr, None for none; ``always`` says that the host is not even asked."""

    def __init__(self, name: bytes | None, *, always: bool) -> None:
        self.name = name
        self._always = always and name is not None

    def shown(self, spot: Spot, found: Attributes) -> Attributes:
        """What a file is meant to be, from what the host says of it."""
        override = self._read(spot, found.mode)
        return found if override is None else overrides.apply(found, override)

    def chown(self, spot: Spot, owner: Owner) -> None:
        """Give a file away; -1 leaves an id as it is."""
        info = spot.stat()
        override = self._read(spot, info.st_mode)
        if self._is_hosts(info.st_mode, override):
            try:
                os.chown(
                    spot.name, owner.uid, owner.gid, dir_fd=spot.dir_fd, follow_symlinks=spot.follow
                )
            except OSError as error:
                if error.errno not in _REFUSED or not self._can_override(info.st_mode):
                    raise
            else:
                return
        now = self._now(info, override)
        uid = now.uid if owner.uid == -1 else owner.uid
        gid = now.gid if owner.gid == -1 else owner.gid
        self._write(spot, now._replace(uid=uid, gid=gid))

    def host_mode(self, mode: int) -> int:
        """The permission bits that a file of this type and mode has on the host."""
        if self._always or not self._can_override(mode):
            return stat.S_IMODE(mode)
        return stat.S_IMODE(mode) | (0o700 if stat.S_ISDIR(mode) else 0o600)

    def chmod(self, spot: Spot, mode: int) -> None:
        """Set permission bits."""
        info = spot.stat()
        mode = stat.S_IMODE(mode)
        override = self._read(spot, info.st_mode)
        if self._is_hosts(info.st_mode, override):
            kept = self.host_mode(stat.S_IFMT(info.st_mode) | mode)
            os.chmod(spot.name, kept, dir_fd=spot.dir_fd)
            if kept == mode:
                return
        self._write(spot, self._now(info, override)._replace(mode=mode))

    def mknod(
        self, directory_fd: int, name: bytes, mode: int, rdev: int, *, uid: int | None = None
    ) -> None:
        """Make a file of any type, if need be one that stands for it.

        That is so for a device that the host refuses, and where the file is to belong to another
        user ``uid`` and cannot be given away.
        """
        stands = self._always or (self.name is not None and uid not in (None, os.geteuid()))
        if stat.S_ISREG(mode) or not stands:
            try:
                os.mknod(name, mode, rdev, dir_fd=directory_fd)
            except OSError as error:
                if error.errno not in _REFUSED or self.name is None:
                    raise
            else:
                return
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory_fd))
        kind = stat.S_IFMT(mode)
        spot = Spot(directory_fd, name, follow=False)
        meant = Override(os.geteuid(), os.getegid(), stat.S_IMODE(mode), kind, rdev)
        try:
            self._write(spot, meant)
        except BaseException:
            os.unlink(name, dir_fd=directory_fd)
            raise

    def _can_override(self, mode: int) -> bool:
        return self.name is not None and (stat.S_ISREG(mode) or stat.S_ISDIR(mode))

    def _is_hosts(self, mode: int, override: Override | None) -> bool:
        """Whether it is the host that is asked to change a file with this host's mode."""
        return override is None and not (self._always and self._can_override(mode))

    def _read(self, spot: Spot, mode: int) -> Override | None:
        if self.name is None or not self._can_override(mode):
            return None
        try:
            return overrides.parse(os.getxattr(spot.path(), self.name, follow_symlinks=spot.follow))
        except OSError as error:
            if error.errno in ABSENT:
                return None
            raise

    @staticmethod
    def _now(info: os.stat_result, override: Override | None) -> Override:
        return override or Override(info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode))

    def _write(self, spot: Spot, override: Override) -> None:
        assert self.name is not None
        value = overrides.format(override)
        try:
            os.setxattr(spot.path(), self.name, value, follow_symlinks=spot.follow)
        except PermissionError:  # of a file that its owner may not write
            mode = stat.S_IMODE(spot.stat().st_mode)
            os.chmod(spot.name, mode | stat.S_IWUSR, dir_fd=spot.dir_fd)
            os.setxattr(spot.path(), self.name, value, follow_symlinks=spot.follow)
