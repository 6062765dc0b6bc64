"""The layers a union is made of: the protocol, and one module for each kind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from ..entry import Attributes, Entry, Handle
from ..redirects import Redirect


class Content(Protocol):
    """The bytes of one regular file of a layer, open for reading."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes from ``offset``; fewer only at the end of the file.

        Raises :class:`OSError`, and :class:`unionfs.errors.PackError` for damaged data.
        """
        ...

    def extents(self) -> Iterator[tuple[int, int]]:
        """The (offset, length) runs that hold data, in order; what lies between is a hole."""
        ...

    def close(self) -> None:
        """Give up descriptors. The content is not used afterwards."""
        ...


class Layer(Protocol):
    """A read-only tree of names. Nothing here follows a symlink or leaves the layer."""

    @property
    def path(self) -> bytes:
        """The directory or file on the host that holds the layer."""
        ...

    def root(self) -> Handle:
        """The layer's root directory."""
        ...

    def lookup(self, directory: Handle, name: bytes) -> Entry | None:
        """What this layer alone says of ``name``: an entry, a whiteout, or None for nothing.

        Marker names (``.wh.*`` in a layer that uses them) are nothing.
        """
        ...

    def names(self, directory: Handle) -> Iterator[tuple[bytes, int]]:
        """Every (name, kind) of a directory, whiteouts included, markers not, in any order."""
        ...

    def is_opaque(self, directory: Handle) -> bool:
        """Whether the directory hides everything that lower layers have in it."""
        ...

    def is_implicit(self, directory: Handle) -> bool:
        """Whether the layer has the directory only as parent of an entry, without attributes."""
        ...

    def redirect(self, handle: Handle) -> Redirect | None:
        """Where the layers below have a directory, or a metacopy's contents, if not under its name.

        Raises :class:`unionfs.errors.LayerError` for a note that makes no sense.
        """
        ...

    def is_metacopy(self, handle: Handle) -> bool:
        """Whether a regular file has only its attributes here, and its contents further below."""
        ...

    def attributes(self, handle: Handle) -> Attributes:
        """The attributes of a file."""
        ...

    def target(self, handle: Handle) -> bytes:
        """The target of a symlink."""
        ...

    def xattrs(self, handle: Handle) -> dict[bytes, bytes]:
        """All extended attributes but a union's own (:mod:`unionfs.xattrs`)."""
        ...

    def open(self, handle: Handle) -> Content:
        """The content of a regular file."""
        ...

    def close(self) -> None:
        """Give up descriptors and maps."""
        ...
