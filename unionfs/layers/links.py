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
from typing import NamedTuple

from .. import xattrs
from .directory import DirectoryLayer, Place, attributes_of
from .spot import Spot

DIRECTORY = b"links"
_RECORD = b"lamina.links"


class Record(NamedTuple):
    """The key of a file in the index, and its names that only lower layers have.

    ``total`` is set instead of ``extra`` while names move: all names, wherever they are.
    """

    key: bytes
    extra: int = 0
    total: int | None = None

    def names_below(self, links_on_disk: int) -> int:
        """How many names only lower layers have; the index is one of the links on disk."""
        return self.extra if self.total is None else self.total - (links_on_disk - 1)

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

    def find(self, key: bytes) -> Place | None:
        """The file of a key."""
        try:
            os.stat(key, dir_fd=self.fd(self.root()), follow_symlinks=False)
        except FileNotFoundError:
            return None
        return Place(self.root(), key)

    def spot(self, key: bytes) -> Spot:
        """Where system calls reach the file of a key."""
        return Spot(self.fd(self.root()), key, follow=False)

    def record(self, spot: Spot) -> Record | None:
        """What a file says of itself, if it is indeed the one that the index has."""
        found = parse_record(xattrs.marks(spot.path(), follow=spot.follow).get(_RECORD))
        if found is None or self.find(found.key) is None:
            return None
        same = os.path.samestat(self.spot(found.key).stat(), spot.stat())
        return found if same else None

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
        """Remove what a killed process left: files that no name of the union leads to."""
        for name in os.listdir(self.fd(self.root())):
            spot = self.spot(os.fsencode(name))
            record = self.record(spot)
            links = attributes_of(spot.stat()).nlink
            if links == 1 and (record is None or record.names_below(links) == 0):
                self.remove(spot.name)
