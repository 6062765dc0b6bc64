"""A pack or merged index as a layer of a union."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from ..entry import Attributes, Entry, Handle
from ..errors import PackError
from ..owners import IdMap, shown_id
from ..pack.format import IMPLICIT, MAJOR_MAX, MINOR_MAX, OPAQUE, UNRESOLVED, Inode
from ..pack.reader import Pack

_NANO = 1_000_000_000
_SECTOR = 512


class PackedContent:
    """The bytes of one regular file of a pack."""

    def __init__(self, pack: Pack, row: int) -> None:
        self._pack = pack
        self._row = row

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; :class:`PackError` for damaged data."""
        return self._pack.read(self._row, offset, size)

    def extents(self) -> Iterator[tuple[int, int]]:
        """The runs that hold data; chunks of nothing but zeros are holes."""
        return self._pack.extents(self._row)

    def close(self) -> None:
        """Nothing to do: contents are read through the pack's own descriptors."""


class PackedLayer:
    """The :class:`unionfs.layers.Layer` of a pack. Handles are inode rows.

    The layer owns the pack and closes it. All packs of a mount share one ``space`` of inode
    numbers; ``base`` is where the rows of this one begin in it.
    """

    def __init__(
        self, pack: Pack, space: int, base: int, *, uid_map: IdMap = (), gid_map: IdMap = ()
    ) -> None:
        """``uid_map`` and ``gid_map`` say how the image's ids are shown.

        Raises :class:`PackError` if a pack with chunks of this one is missing.
        """
        pack.open_sources()
        self._maps = (uid_map, gid_map)
        self.pack = pack
        self._space = space
        self._base = base + 1

    @property
    def path(self) -> bytes:
        """The file on the host that holds the layer."""
        return os.fsencode(self.pack.file)

    def root(self) -> Handle:
        """The root directory: row 0."""
        return 0

    def lookup(self, directory: Handle, name: bytes) -> Entry | None:
        """What this layer says of a name: entry, whiteout, or None."""
        found = self.pack.lookup(directory, name)
        if found is None:
            return None
        kind, row = found
        return Entry(kind, row if kind else None)

    def names(self, directory: Handle) -> Iterator[tuple[bytes, int]]:
        """Every name of a directory with its kind, whiteouts included, in order."""
        return ((name, kind) for name, kind, _ in self.pack.names(directory))

    def is_opaque(self, directory: Handle) -> bool:
        """Whether a directory hides what lower layers have in it."""
        return bool(self.pack.inode(directory).flags & OPAQUE)

    def is_implicit(self, directory: Handle) -> bool:
        """Whether the layer has the directory only as parent of something."""
        return bool(self.pack.inode(directory).flags & IMPLICIT)

    def redirect(self, handle: Handle) -> None:
        """Never: an image layer says what it holds, and its xattrs are its files' own."""

    def is_metacopy(self, handle: Handle) -> bool:
        """Never, likewise."""
        return False

    def attributes(self, handle: Handle) -> Attributes:
        """The attributes of a file."""
        inode = self.pack.inode(handle)
        mtime_ns = inode.mtime_sec * _NANO + inode.mtime_nsec
        return Attributes(
            self._space,
            self._base + handle,
            inode.mode,
            inode.nlink,
            shown_id(self._maps[0], inode.uid),
            shown_id(self._maps[1], inode.gid),
            self._device(inode) if inode.major or inode.minor else 0,
            inode.size,
            -(-inode.size // _SECTOR) if stat.S_ISREG(inode.mode) else 0,
            mtime_ns,
            mtime_ns,
            mtime_ns,
        )

    def _device(self, inode: Inode) -> int:
        if inode.major > MAJOR_MAX or inode.minor > MINOR_MAX:
            self.pack.fail(f"{inode.major}:{inode.minor} is no device")
        return os.makedev(inode.major, inode.minor)

    def target(self, handle: Handle) -> bytes:
        """The target of a symlink."""
        if not stat.S_ISLNK(self.pack.inode(handle).mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return self.pack.target(handle)

    def xattrs(self, handle: Handle) -> dict[bytes, bytes]:
        """The extended attributes of a file."""
        return self.pack.xattrs(handle)

    def open(self, handle: Handle) -> PackedContent:
        """The content of a regular file."""
        inode = self.pack.inode(handle)
        if inode.flags & UNRESOLVED:
            raise PackError(
                f"a file of {os.fsdecode(self.path)} is a hardlink into a layer below it;"
                " the layers must be merged to show it"
            )
        if not stat.S_ISREG(inode.mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return PackedContent(self.pack, handle)

    def handle_of(self, space: int, number: int) -> Handle | None:
        """The file of this layer with the identity that :meth:`attributes` gives, if it is one."""
        row = number - self._base
        return row if space == self._space and 0 <= row < self.pack.inode_count else None

    def links(self, handle: Handle) -> list[tuple[bytes, ...]]:
        """All paths of a file, each as the names from the root of the layer."""
        paths = []
        for directory, name in self.pack.links(handle):
            parent = self.pack.path(directory)
            paths.append((*parent.split(b"/"), name) if parent else (name,))
        return paths

    def close(self) -> None:
        """Close the pack."""
        self.pack.close()
