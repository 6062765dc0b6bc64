"""An image's tree as plain files in a directory of the host.

The layers are merged before anything is written, so every name is made once, by a descriptor of its
directory that was itself reached name by name with O_NOFOLLOW: no name and no symlink of an image
can lead out. Nobody else may enter the directory before it is complete.

What this user may not do, such as giving files away, is left undone, as tar does, and counted. A
file that could not be given away gets no setuid and setgid bits: they would be somebody else's.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unionfs.layers import Content
from unionfs.layers.directory import DirectoryLayer, Place
from unionfs.layers.spot import Spot

from .entries import PIECE
from .errors import SnapshotterError
from .store import Image, Store
from .views import File, View, image_view, walk

_PRIVATE = 0o700
_IMPLICIT = 0o755
"""The mode of a root directory that no layer speaks of."""

_SETIDS = stat.S_ISUID | stat.S_ISGID
_ENTERED = stat.S_IRUSR | stat.S_IXUSR
_DEVICES = (stat.S_IFCHR, stat.S_IFBLK)

_REFUSED = (errno.EPERM, errno.EINVAL, errno.ENOTSUP)
"""Errors that say that this user or the filesystem cannot: EINVAL is what a user namespace says of
an id that it does not have."""


class InvalidTarget(SnapshotterError):
    """An image cannot be unpacked into that directory."""


@dataclass
class Losses:
    """How many files are not as the image has them: with another owner, without setuid or setgid
    bits, without extended attributes; and how many devices are missing."""

    owners: int = 0
    setids: int = 0
    xattrs: int = 0
    devices: int = 0


def unpack(store: Store, image: Image, directory: Path) -> Losses:
    """Make the files of an image in ``directory``, which is empty or does not exist.

    One that does not exist appears when it is complete. On failure everything is removed again.
    Raises :class:`InvalidTarget`, ``NoSuchImage``, :class:`unionfs.errors.UnionError`,
    :class:`OSError`.
    """
    with image_view(store, image) as view, _target(directory) as target:
        return _Unpacking(view, target).run()


@contextmanager
def _target(directory: Path) -> Iterator[DirectoryLayer]:
    """The directory to fill, open. It is emptied if the block raises, removed if it was not there.

    A directory that was not there is filled under another name beside it.
    """
    exists = _check(directory)
    place = directory
    if not exists:
        place = Path(tempfile.mkdtemp(prefix=".lamina-", dir=directory.absolute().parent))
    try:
        with closing(DirectoryLayer(os.fsencode(place))) as target:
            yield from _emptied_on_failure(target)
        if not exists:
            os.rename(place, directory)
    except BaseException:
        if not exists:
            with suppress(OSError):
                place.rmdir()
        raise


def _check(directory: Path) -> bool:
    """Whether a directory exists. Raises :class:`InvalidTarget` unless it can be filled."""
    try:
        with os.scandir(directory) as names:
            if any(names):
                raise InvalidTarget(f"{directory} is not empty: choose another directory")
    except FileNotFoundError:
        if directory.is_symlink():
            raise InvalidTarget(f"{directory} is a symlink that leads nowhere") from None
        if not directory.absolute().parent.is_dir():
            raise InvalidTarget(f"{directory}: its directory does not exist") from None
        return False
    except NotADirectoryError:
        raise InvalidTarget(f"{directory} is not a directory") from None
    return True


def _emptied_on_failure(target: DirectoryLayer) -> Iterator[DirectoryLayer]:
    fd = target.fd(target.root())
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    os.chmod(fd, _PRIVATE)
    try:
        yield target
    except BaseException:
        # The error that led here is the one to tell, also where not all can be removed.
        with suppress(OSError):
            os.chmod(fd, _PRIVATE)
            _empty(target)
            os.chmod(fd, mode)
        raise


def _empty(target: DirectoryLayer) -> None:
    """Remove everything in a directory, however deep it is."""
    root = target.root()
    stack = [(root, os.listdir(target.fd(root)))]
    while stack:
        place, names = stack[-1]
        if not names:
            stack.pop()
            if place.parent is not None:
                target.drop(place)
                os.rmdir(place.name, dir_fd=target.fd(place.parent))
            continue
        name, parent = os.fsencode(names.pop()), target.fd(place)
        try:
            os.unlink(name, dir_fd=parent)
        except IsADirectoryError:
            os.chmod(name, _PRIVATE, dir_fd=parent)
            child = Place(place, name)
            stack.append((child, os.listdir(target.fd(child))))


class _Unpacking:
    """One image on its way into a directory.

    A directory gets its attributes when everything in it is there, but where its own user could
    not enter it any more, it gets its mode at the very end: a hardlink may lead into it.
    """

    def __init__(self, view: View, target: DirectoryLayer) -> None:
        self._view = view
        self._target = target
        self._losses = Losses()
        self._open: list[tuple[File, Place]] = []
        self._late: list[tuple[Place, int]] = []
        self._firsts: dict[bytes, Place] = {}
        self._path = b""

    def run(self) -> Losses:
        """Make everything. A system call that fails is told with the path in the image."""
        try:
            self._make_all()
        except OSError as error:
            if error.errno is None:
                raise
            raise OSError(error.errno, os.strerror(error.errno), self._path) from error
        return self._losses

    def _make_all(self) -> None:
        root = self._view.tree.root
        self._open = [(File(b"", root, self._view.attributes(root), None), self._target.root())]
        for file in walk(self._view):
            above, _, name = file.path.rpartition(b"/")
            while self._open[-1][0].path != above:
                self._finish_directory()
            self._path = file.path
            place = Place(self._open[-1][1], name)
            if file.node.is_directory:
                os.mkdir(name, _PRIVATE, dir_fd=self._spot(place).dir_fd)
                self._open.append((file, place))
            else:
                self._make_file(file, place)
        while self._open:
            self._finish_directory()
        for place, mode in self._late:
            spot = self._spot(place)
            os.chmod(spot.name, mode, dir_fd=spot.dir_fd)

    def _spot(self, place: Place) -> Spot:
        if place.parent is None:
            return Spot(self._target.fd(place), b".", follow=False)
        return Spot(self._target.fd(place.parent), place.name, follow=False)

    def _make_file(self, file: File, place: Place) -> None:
        spot = self._spot(place)
        if file.first is not None:
            self._link(file.first, spot)
        elif self._make_new(file, spot):
            self._dress(file, spot)
            if file.attributes.nlink > 1:
                self._firsts[file.path] = place

    def _link(self, first: bytes, spot: Spot) -> None:
        place = self._firsts.get(first)
        if place is None:  # a device that could not be made
            self._losses.devices += 1
            return
        source = self._spot(place)
        os.link(
            source.name,
            spot.name,
            src_dir_fd=source.dir_fd,
            dst_dir_fd=spot.dir_fd,
            follow_symlinks=False,
        )

    def _make_new(self, file: File, spot: Spot) -> bool:
        """Make a file, for now for its user alone; False for a device that may not be made."""
        kind = file.attributes.kind
        if kind == stat.S_IFREG:
            self._make_regular(file, spot)
        elif kind == stat.S_IFLNK:
            os.symlink(self._view.tree.target(file.node), spot.name, dir_fd=spot.dir_fd)
        else:
            rdev = file.attributes.rdev
            try:
                os.mknod(spot.name, kind | 0o600, rdev, dir_fd=spot.dir_fd)
            except OSError as error:
                if error.errno not in _REFUSED or kind not in _DEVICES:
                    raise
                self._losses.devices += 1
                return False
        return True

    def _make_regular(self, file: File, spot: Spot) -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(spot.name, flags, 0o600, dir_fd=spot.dir_fd)
        try:
            content = self._view.tree.content(file.node)
            for start, length in content.extents():
                _copy(content, fd, start, start + length)
            os.ftruncate(fd, file.attributes.size)
        finally:
            os.close(fd)

    def _finish_directory(self) -> None:
        file, place = self._open.pop()
        self._path = file.path
        spot = self._spot(place)
        if place.parent is None and not self._view.has_attributes(file.node):
            os.chmod(spot.name, _IMPLICIT, dir_fd=spot.dir_fd)
            return
        mode = self._dress(file, spot)
        if mode & _ENTERED != _ENTERED:
            self._late.append((place, mode))

    def _dress(self, file: File, spot: Spot) -> int:
        """Give a file its owner, mode, xattrs and time; the mode that it has, or is to have."""
        attributes = file.attributes
        mode = stat.S_IMODE(attributes.mode)
        is_given = _attempt(
            partial(os.chown, spot.name, attributes.uid, attributes.gid),
            dir_fd=spot.dir_fd,
        )
        if not is_given:
            self._losses.owners += 1
            self._losses.setids += bool(mode & _SETIDS)
            mode &= ~_SETIDS
        # After the owner: chown(2) takes setuid bits and capabilities away.
        if attributes.kind != stat.S_IFLNK:
            is_late = attributes.kind == stat.S_IFDIR and mode & _ENTERED != _ENTERED
            os.chmod(spot.name, _PRIVATE if is_late else mode, dir_fd=spot.dir_fd)
        self._set_xattrs(file, spot)
        times = (attributes.mtime_ns, attributes.mtime_ns)
        os.utime(spot.name, ns=times, dir_fd=spot.dir_fd, follow_symlinks=False)
        return mode

    def _set_xattrs(self, file: File, spot: Spot) -> None:
        are_set = [
            _attempt(partial(os.setxattr, spot.path(), name, value))
            for name, value in self._view.xattrs(file.node).items()
        ]
        self._losses.xattrs += not all(are_set)


def _copy(content: Content, fd: int, start: int, end: int) -> None:
    while start < end:
        # What a full disk does not take is written next, and refused with the reason.
        start += os.pwrite(fd, content.read(start, min(PIECE, end - start)), start)


def _attempt(action: Callable[..., None], **more: int | None) -> bool:
    """Do something to a file, not following it, unless it is not allowed: whether it was done."""
    try:
        action(follow_symlinks=False, **more)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return False
    return True
