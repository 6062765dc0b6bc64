"""The index of hardlinks: copied-up files that had several names, found by what they were below.

A lower file with several names is copied up once, for all of them. The copy gets one more name, in
the directory ``links`` of the work directory: the key of the lower file. Whoever comes by a name
that the upper does not have yet finds the copy there, at this mount and at later ones, as in kernel
overlayfs with ``index=on`` (Documentation/filesystems/overlayfs.rst, "Inode properties").

How many names the union shows is kept in an xattr of the copy, relative to the names that it has on
disk, or absolute while that number is about to change. So a kill in between leaves it right.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import NamedTuple

from .. import xattrs
from ..entry import Attributes, Handle
from .directory import DirectoryLayer, Place
from .spot import Spot

_DIRECTORY = b"links"
_RECORD = b"lamina.links"
_KEY = re.compile(rb"[0-9a-f]{1,20}")


class Record(NamedTuple):
    """The key of a file in the index, and its names that only lower layers have.

    ``total`` is set instead of ``extra`` while names move: all names, wherever they are.
    """

    key: bytes
    extra: int = 0
    total: int | None = None

    def names_below(self, links_on_disk: int) -> int:
        """How many names only lower layers have; the index is one of the links on disk."""
        return self.extra if self.total is None else max(0, self.total - (links_on_disk - 1))

    def format(self) -> bytes:
        """The value of the xattr."""
        count = b"+%d" % self.extra if self.total is None else b"=%d" % self.total
        return self.key + count


def parse_record(value: bytes | None) -> Record | None:
    """Read the xattr; None for none, or for one that makes no sense."""
    match = re.fullmatch(rb"([0-9a-f]{1,20})([+=])([0-9]{1,9})", value or b"")
    if match is None:
        return None
    key, sign, count = match.groups()
    return Record(key, int(count)) if sign == b"+" else Record(key, total=int(count))


class LinkIndex(DirectoryLayer):
    """The directory of the index. Its files are handed out as handles of a layer, or as spots."""

    def all_keys(self) -> list[bytes]:
        """The keys of all files, sorted. Whatever else is in the directory is none of the index."""
        return sorted(
            name
            for name, kind in self.names(self.root())
            if kind != stat.S_IFDIR and _KEY.fullmatch(name)
        )

    def attributes(self, handle: Handle) -> Attributes:
        """The attributes of a file, with its names counted as in a layer.

        Those that lower layers have are names of it, and the key is none. Where that is not known,
        because the filesystem has no xattrs, there are several.
        """
        found = super().attributes(handle)
        if handle.parent is None:
            return found
        record = self.record(self.spot(handle.name))
        if record is None:
            return found._replace(nlink=max(found.nlink, 2))
        return found._replace(nlink=found.nlink - 1 + record.names_below(found.nlink))

    def find(self, key: bytes) -> Place | None:
        """The file of a key."""
        try:
            self.spot(key).stat()
        except FileNotFoundError:
            return None
        return Place(self.root(), key)

    def spot(self, key: bytes) -> Spot:
        """Where system calls reach the file of a key."""
        return Spot(self.fd(self.root()), key, follow=False)

    def record(self, spot: Spot) -> Record | None:
        """What a file says of itself, if it is indeed the one that the index has."""
        found = parse_record(xattrs.marks(spot.path(), follow=spot.follow).get(_RECORD))
        if found is None:
            return None
        try:
            indexed = self.spot(found.key).stat()
        except FileNotFoundError:
            return None
        return found if os.path.samestat(indexed, spot.stat()) else None

    def write_record(self, record: Record) -> None:
        """Note how many names a file of the index has."""
        xattrs.set_mark(self.spot(record.key).path(), _RECORD, record.format())

    def add(self, work_fd: int, staged: bytes, record: Record) -> None:
        """Take in a copy made in the work directory, whose names are all still below."""
        path = b"/proc/self/fd/%d/%s" % (work_fd, staged)
        xattrs.set_mark(path, _RECORD, record.format())
        os.rename(staged, record.key, src_dir_fd=work_fd, dst_dir_fd=self.fd(self.root()))

    def remove(self, key: bytes) -> None:
        """Forget a file that the union shows no more."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(key, dir_fd=self.fd(self.root()))

    def sweep(self) -> None:
        """Settle what a killed process left: counts, and files that no name leads to."""
        for key in self.all_keys():
            spot = self.spot(key)
            record = self.record(spot)
            links = spot.stat().st_nlink
            extra = 0 if record is None else record.names_below(links)
            if links == 1 and not extra:
                self.remove(key)
            elif record is not None and record.total is not None:
                self.write_record(Record(key, extra=extra))


def open_index(work_fd: int) -> LinkIndex | None:
    """The index in a work directory, None where none was begun.

    Raises :class:`OSError` for something else in its place; a symlink is not followed.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(_DIRECTORY, flags, dir_fd=work_fd)
    except FileNotFoundError:
        return None
    try:
        return LinkIndex(b"/proc/self/fd/%d" % fd)
    finally:
        os.close(fd)


def begin_index(work_fd: int) -> LinkIndex:
    """A new index in a work directory that has none."""
    os.mkdir(_DIRECTORY, 0o700, dir_fd=work_fd)
    index = open_index(work_fd)
    assert index is not None
    return index
