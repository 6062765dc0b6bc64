"""A directory as a layer: unpacked layers, the lower directories of a mount, finished uppers.

No path string is ever built: a file is reached by its name in a descriptor of its directory, and a
directory's descriptor by walking down from the root one name at a time with O_NOFOLLOW. So a
symlink can never lead out of the layer, and paths may be longer than PATH_MAX.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator

from .. import overrides, redirects, whiteouts, xattrs
from ..entry import WHITEOUT, Attributes, Entry, Handle
from .ownership import Ownership
from .spot import Spot

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES = 512
"""How many directory descriptors one layer keeps open."""


class Place:
    """Where a file is in a directory layer: a name in a parent directory. The root has neither."""

    __slots__ = ("fd", "name", "parent")

    def __init__(self, parent: Place | None, name: bytes) -> None:
        self.parent = parent
        self.name = name
        self.fd = -1


def attributes_of(info: os.stat_result) -> Attributes:
    """What stat(2) says of a file."""
    return Attributes(
        space=info.st_dev,
        number=info.st_ino,
        mode=info.st_mode,
        nlink=info.st_nlink,
        uid=info.st_uid,
        gid=info.st_gid,
        rdev=info.st_rdev,
        size=info.st_size,
        blocks=info.st_blocks,
        atime_ns=info.st_atime_ns,
        mtime_ns=info.st_mtime_ns,
        ctime_ns=info.st_ctime_ns,
    )


def open_unnoticed(name: bytes, flags: int, dir_fd: int | None = None) -> int:
    """Open a file that reading shall not change the access time of, where that may be asked."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:  # it belongs to another user
        return os.open(name, flags, dir_fd=dir_fd)


class FileContent:
    """The bytes of a file on the host, through a descriptor that this object owns.

    ``expected`` is the size of a file that nobody should change, in bytes.
    """

    __slots__ = ("_expected", "fd")

    def __init__(self, fd: int, expected: int = 0) -> None:
        self.fd = fd
        self._expected = expected

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; raises EIO where a file ends before the size it had."""
        data = os.pread(self.fd, size, offset)
        if len(data) < size and offset + len(data) < self._expected:
            raise OSError(errno.EIO, "a lower file was cut while it was open")
        return data

    def extents(self) -> Iterator[tuple[int, int]]:
        """The runs of data, as SEEK_DATA and SEEK_HOLE find them (lseek(2))."""
        end = os.fstat(self.fd).st_size
        position = 0
        while position < end:
            try:
                start = os.lseek(self.fd, position, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                raise
            position = os.lseek(self.fd, start, os.SEEK_HOLE)
            yield start, position - start

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


class DirectoryLayer:
    """The tree below one directory of the host, as a :class:`unionfs.layers.Layer`."""

    def __init__(self, path: bytes) -> None:
        """Open the layer at ``path``, which may be a symlink; raises :class:`OSError`."""
        self.path = path
        self._root = Place(None, b"")
        self._root.fd = open_unnoticed(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._bookkeeping = sum(
            whiteouts.has_entry(self._root.fd, name) for name in whiteouts.AUFS_DIRECTORIES
        )
        self.ownership = Ownership(overrides.used_in(self._root.fd), always=True)
        self._open: OrderedDict[Place, None] = OrderedDict()

    def root(self) -> Place:
        """The layer's root directory."""
        return self._root

    def fd(self, place: Place) -> int:
        """A descriptor of a directory. It stays open until some hundred others were asked for."""
        if place.fd >= 0:
            if place in self._open:
                self._open.move_to_end(place)
            return place.fd
        missing = [place]
        while (parent := missing[-1].parent) is not None and parent.fd < 0:
            missing.append(parent)
        for step in reversed(missing):
            if step.parent is None:
                raise OSError(errno.ENOENT, "the directory was removed", step.name)
            step.fd = open_unnoticed(step.name, _DIRECTORY_FLAGS, step.parent.fd)
            self._open[step] = None
            if len(self._open) > _OPEN_DIRECTORIES:
                self.drop(next(iter(self._open)))
        return place.fd

    def drop(self, place: Place) -> None:
        """Close the descriptor of a directory, if it has one."""
        self._open.pop(place, None)
        if place.fd >= 0:
            os.close(place.fd)
            place.fd = -1

    def pin(self, place: Place) -> None:
        """Keep a directory's descriptor until :meth:`drop`, though its name is about to go."""
        self.fd(place)
        self._open.pop(place, None)

    def lookup(self, directory: Handle, name: bytes) -> Entry | None:
        """What this layer says of a name: entry, whiteout, or None."""
        if whiteouts.is_marker(name):
            return None
        fd = self.fd(directory)
        try:
            info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            marker = whiteouts.marker_for(name)
            if marker is not None and whiteouts.has_entry(fd, marker):
                return Entry(WHITEOUT, None)
            return None
        if self._is_whiteout(fd, name, info):
            return Entry(WHITEOUT, None)
        place = Place(directory, name)
        if self.ownership.name is not None:
            return Entry(self.attributes(place).kind, place)
        return Entry(stat.S_IFMT(info.st_mode), place)

    def _is_whiteout(self, fd: int, name: bytes, info: os.stat_result) -> bool:
        if whiteouts.is_device(info):
            return True
        if info.st_size or not stat.S_ISREG(info.st_mode):
            return False
        return whiteouts.opaque_value(fd) == b"x" and whiteouts.has_whiteout_xattr(fd, name)

    def names(self, directory: Handle) -> Iterator[tuple[bytes, int]]:
        """Every name with its kind; a marked name is reported gone unless it exists as well."""
        fd = self.fd(directory)
        by_xattr = whiteouts.opaque_value(fd) == b"x"
        present: dict[bytes, int] = {}
        marked: list[bytes] = []
        with os.scandir(fd) as entries:
            for item in entries:
                name = os.fsencode(item.name)
                if whiteouts.is_marker(name):
                    hidden = whiteouts.hidden_by(name)
                    if hidden is not None:
                        marked.append(hidden)
                else:
                    present[name] = self._kind(fd, name, item, by_xattr)
        for name in marked:
            present.setdefault(name, WHITEOUT)
        yield from present.items()

    @staticmethod
    def _kind(fd: int, name: bytes, item: os.DirEntry[str], by_xattr: bool) -> int:
        if item.is_symlink():
            return stat.S_IFLNK
        if item.is_dir(follow_symlinks=False):
            return stat.S_IFDIR
        if item.is_file(follow_symlinks=False) and not by_xattr:
            return stat.S_IFREG
        info = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if whiteouts.is_device(info):
            return WHITEOUT
        if by_xattr and info.st_size == 0 and whiteouts.has_whiteout_xattr(fd, name):
            return WHITEOUT
        return stat.S_IFMT(info.st_mode)

    def is_opaque(self, directory: Handle) -> bool:
        """Whether a directory hides what lower layers have in it.

        A marker beside a directory that has a redirect is a rename of it that was interrupted.
        """
        fd = self.fd(directory)
        marks = xattrs.marks(fd)
        if marks.get(whiteouts.OPAQUE) == b"y" or whiteouts.has_entry(fd, whiteouts.OPAQUE_MARKER):
            return True
        if directory.parent is None or b"redirect" in marks:
            return False
        marker = whiteouts.marker_for(directory.name)
        return marker is not None and whiteouts.has_entry(self.fd(directory.parent), marker)

    def is_implicit(self, directory: Handle) -> bool:
        """Never: a directory on the host always has attributes of its own."""
        return False

    def attributes(self, handle: Handle) -> Attributes:
        """The attributes of a file: those of lstat(2), or what is kept beside it."""
        found = self.stat(self._spot(handle))
        if handle.parent is None and self._bookkeeping:
            return found._replace(nlink=found.nlink - self._bookkeeping)
        return found

    def stat(self, spot: Spot) -> Attributes:
        """The same of a file that system calls reach."""
        return self.ownership.shown(spot, attributes_of(spot.stat()))

    def _spot(self, handle: Handle) -> Spot:
        if handle.parent is None:
            return Spot(self._root.fd, b".", follow=False)
        return Spot(self.fd(handle.parent), handle.name, follow=False)

    def target(self, handle: Handle) -> bytes:
        """The target of a symlink."""
        target: bytes = os.readlink(handle.name, dir_fd=self.fd(handle.parent))
        return target

    def xattrs(self, handle: Handle) -> dict[bytes, bytes]:
        """The xattrs of a file without a union's own."""
        return self.xattrs_at(self._spot(handle))

    def xattrs_at(self, spot: Spot) -> dict[bytes, bytes]:
        """The same of a file that system calls reach."""
        found = xattrs.visible(spot.path(), follow=spot.follow)
        if self.ownership.name is not None:
            found.pop(self.ownership.name, None)
        return found

    def redirect(self, directory: Handle) -> redirects.Redirect | None:
        """Where a directory or a metacopy is in lower layers (``overlay.redirect``)."""
        if directory.parent is None:
            return None
        value = self.marks(self._spot(directory)).get(b"redirect")
        return None if value is None else redirects.parse(value, self.path, directory.name)

    def is_metacopy(self, handle: Handle) -> bool:
        """Whether a regular file has its attributes here, but its contents in a lower layer."""
        return xattrs.METACOPY in self.marks(self._spot(handle))

    @staticmethod
    def marks(spot: Spot) -> dict[bytes, bytes]:
        """A union's own xattrs of a file (:func:`unionfs.xattrs.marks`)."""
        return xattrs.marks(spot.path(), follow=spot.follow)

    def open(self, handle: Handle) -> FileContent:
        """The content of a regular file."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = open_unnoticed(handle.name, flags, self.fd(handle.parent))
        return FileContent(fd, os.fstat(fd).st_size)

    def close(self) -> None:
        """Close every descriptor."""
        for place in list(self._open):
            self.drop(place)
        os.close(self._root.fd)
        self._root.fd = -1
