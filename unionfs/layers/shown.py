"""A layer with its whiteouts to be seen: for a read-only mount whose layers are to be merged.

What a layer declares gone is shown as the empty file ``.wh.NAME`` and an opaque directory has the
empty file ``.wh..wh..opq``, as AUFS shows them with ``shwh`` and as the OCI image specification
writes them (layer.md, "Whiteouts"). An archive of such a mount is one layer that does to whatever
lies below it what all the layers of the mount do. A marker speaks of lower layers only: a name can
be there beside its own marker, when one layer of the mount removed it and one above made it anew.

What such an archive cannot say: that a packed layer has a directory only as parent of an entry,
without attributes of its own.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import NamedTuple

from .. import whiteouts
from ..entry import WHITEOUT, Attributes, Entry, Handle
from ..redirects import Redirect
from . import Content, Layer
from .packed import PackedLayer

_MODE = stat.S_IFREG | 0o444

_BEYOND = 1 << 63
"""Set in the numbers of marks: no file of a layer has it, and a tree gives such files a number."""


class Mark(NamedTuple):
    """The handle of a marker file: the directory it is shown in, and its name."""

    directory: Handle
    name: bytes


class Covered(NamedTuple):
    """The handle of a file that is not shown because layers above have a directory in its place."""

    file: Handle


class Nothing:
    """The content of a marker file."""

    def read(self, offset: int, size: int) -> bytes:
        """No bytes."""
        return b""

    def extents(self) -> Iterator[tuple[int, int]]:
        """No runs of data."""
        return iter(())

    def close(self) -> None:
        """Nothing to give up."""


class ShownWhiteouts:
    """Another layer with its whiteouts shown, as a :class:`unionfs.layers.Layer`.

    Whiteouts still hide what lower layers have, so layers can be stacked as they were. The other
    layer belongs to this one and is closed with it.
    """

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    @property
    def path(self) -> bytes:
        """The directory or file on the host that holds the layer."""
        return self._layer.path

    def root(self) -> Handle:
        """The layer's root directory."""
        return self._layer.root()

    def covered(self, file: Handle) -> Covered:
        """A directory to merge with those that layers above have in the place of ``file``.

        It shows that they are opaque: they hide what is below the file, as the file does.
        """
        return Covered(file)

    def lookup(self, directory: Handle, name: bytes) -> Entry | None:
        """What the layer says of a name: an entry, a whiteout or its mark, or None."""
        if not whiteouts.is_marker(name):
            return None if isinstance(directory, Covered) else self._layer.lookup(directory, name)
        if name == whiteouts.OPAQUE_MARKER:
            is_shown = self.is_opaque(directory)
        else:
            hidden = whiteouts.hidden_by(name)
            if hidden is None or isinstance(directory, Covered):
                return None
            entry = self._layer.lookup(directory, hidden)
            is_shown = entry is not None and entry.kind == WHITEOUT
        return Entry(stat.S_IFREG, Mark(directory, name)) if is_shown else None

    def names(self, directory: Handle) -> Iterator[tuple[bytes, int]]:
        """Every name of a directory with its kind, and the marks.

        Raises :class:`OSError` ENAMETOOLONG for a whiteout whose mark no file could be: a listing
        without it would make a layer that brings the file back.
        """
        if self.is_opaque(directory):
            yield whiteouts.OPAQUE_MARKER, stat.S_IFREG
        if isinstance(directory, Covered):
            return
        for name, kind in self._layer.names(directory):
            yield name, kind
            if kind == WHITEOUT:
                marker = whiteouts.marker_for(name)
                if marker is None:
                    raise OSError(errno.ENAMETOOLONG, "no marker can show that this is gone", name)
                yield marker, stat.S_IFREG

    def is_opaque(self, directory: Handle) -> bool:
        """Whether the directory hides everything that lower layers have in it."""
        return isinstance(directory, Covered) or self._layer.is_opaque(directory)

    def is_implicit(self, directory: Handle) -> bool:
        """Whether the directory has no attributes of its own."""
        return isinstance(directory, Covered) or self._layer.is_implicit(directory)

    def attributes(self, handle: Handle) -> Attributes:
        """The attributes of a file. Marks are root's and have the times of their directory."""
        if isinstance(handle, Covered):
            found = self._layer.attributes(handle.file)
            return found._replace(mode=stat.S_IFDIR | 0o755, nlink=1, rdev=0, size=0, blocks=0)
        if not isinstance(handle, Mark):
            return self._layer.attributes(handle)
        found = self.attributes(handle.directory)
        identity = blake2b(b"%d/%s" % (found.number, handle.name), digest_size=7).digest()
        return found._replace(
            number=_BEYOND | int.from_bytes(identity, "big"),
            mode=_MODE, nlink=1, uid=0, gid=0, rdev=0, size=0, blocks=0,
        )  # fmt: skip

    def target(self, handle: Handle) -> bytes:
        """The target of a symlink; a mark has none."""
        if isinstance(handle, Mark):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), handle.name)
        return self._layer.target(handle)

    def xattrs(self, handle: Handle) -> dict[bytes, bytes]:
        """The extended attributes of a file; a mark has none."""
        return {} if isinstance(handle, (Mark, Covered)) else self._layer.xattrs(handle)

    def open(self, handle: Handle) -> Content:
        """The content of a regular file."""
        return Nothing() if isinstance(handle, Mark) else self._layer.open(handle)

    def redirect(self, handle: Handle) -> Redirect | None:
        """Where the layers below have what merges with a directory, if it is under another name."""
        return None if isinstance(handle, (Mark, Covered)) else self._layer.redirect(handle)

    def is_metacopy(self, handle: Handle) -> bool:
        """Whether a file's contents are in a layer below."""
        return not isinstance(handle, Mark) and self._layer.is_metacopy(handle)

    def links(self, handle: Handle) -> list[tuple[bytes, ...]]:
        """All paths of a file, where the layer knows them; else none."""
        if isinstance(handle, Mark) or not isinstance(self._layer, PackedLayer):
            return []
        return self._layer.links(handle)

    def close(self) -> None:
        """Close the other layer."""
        self._layer.close()


def marks_first(names: Iterable[bytes]) -> list[bytes]:
    """A directory's names with the marks at the head, otherwise in their order.

    In an archive a marker has to come before its siblings: readers remove what it names when they
    come to it, and that may just have been unpacked (OCI image specification, layer.md).
    """
    return sorted(names, key=lambda name: not whiteouts.is_marker(name))
