"""The layer that an upper directory stands for: a stream of tar bytes.

It depends on nothing but the upper, and the same upper always gives the same bytes:

* entries come depth first, the names of a directory sorted by their bytes: the directory, its
  opaque marker, its whiteouts, its other names (image-spec, layer.md, "Whiteouts");
* names have no leading ``./``, directories end in ``/``; the parents of a change are in the upper
  and so in the layer. The root itself is left out, as Docker does, unless the caller wants it;
* times are cut to whole seconds, as Docker does, and clamped to ``clamp`` if one is given;
  whiteouts have time 0 and mode 0;
* files with several names in the upper are hardlinks of the first one; sockets are left out;
  holes are written as zeros;
* all xattrs are kept but those of the union's bookkeeping and ``security.selinux``, which is the
  host's policy.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator

from unionfs.entry import WHITEOUT, Attributes
from unionfs.errors import LayerError, display
from unionfs.layers.directory import DirectoryLayer, Place

from . import tarwriter

PIECE = 1 << 20
"""How many bytes of a file are read at once."""

_MARKER = b".wh."
_OPAQUE = b".wh..wh..opq"
_HOST_XATTRS = (b"security.selinux",)
_UNRESOLVED = ("overlay.redirect", "overlay.metacopy")


class Difference:
    """The tar stream of one upper directory.

    ``clamp`` is the latest time an entry may have, in seconds since the epoch; with ``with_root``
    the attributes of the upper's root are an entry too. Reading raises :class:`LayerError` for
    what cannot be represented, or changes while it is read, and :class:`OSError`.
    """

    def __init__(
        self, layer: DirectoryLayer, *, clamp: int | None = None, with_root: bool = False
    ) -> None:
        self._layer = layer
        self._clamp = clamp
        self._with_root = with_root
        self._first_names: dict[tuple[int, int], bytes] = {}
        self._pieces = self._tar()
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes (all by default); empty only at the end."""
        if size < 0:
            parts = [self._rest, *self._pieces]
            self._rest = b""
            return b"".join(parts)
        parts, length = [self._rest], len(self._rest)
        while length < size and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            length += len(piece)
        data = b"".join(parts)
        self._rest = data[size:]
        return data[:size]

    def _tar(self) -> Iterator[bytes]:
        root = self._layer.root()
        if self._with_root:
            yield self._header(b"./", tarwriter.DIRECTORY, root, self._layer.attributes(root))
        # A stack of half-written directories, so that depth is bounded by memory alone.
        stack = [self._children(b"", root)]
        while stack:
            following = next(stack[-1], None)
            if following is None:
                stack.pop()
                continue
            path, place = following
            if place is None:
                yield tarwriter.header(path, tarwriter.REGULAR, mode=0)
                continue
            attributes = self._layer.attributes(place)
            if attributes.kind == stat.S_IFDIR:
                path += b"/"
                self._refuse_unresolved(path, place)
                yield self._header(path, tarwriter.DIRECTORY, place, attributes)
                stack.append(self._children(path, place))
            else:
                yield from self._file(path, place, attributes)
        yield tarwriter.END

    def _children(self, path: bytes, directory: Place) -> Iterator[tuple[bytes, Place | None]]:
        """What a directory holds, in the order of the layer; None stands for a whiteout."""
        names = sorted(self._layer.names(directory))
        if self._layer.is_opaque(directory):
            # It hides everything below, so that its whiteouts say nothing more.
            yield path + _OPAQUE, None
        else:
            for name, kind in names:
                if kind == WHITEOUT:
                    yield path + _MARKER + name, None
        for name, kind in names:
            if kind not in (WHITEOUT, stat.S_IFSOCK):
                yield path + name, Place(directory, name)

    def _file(self, path: bytes, place: Place, attributes: Attributes) -> Iterator[bytes]:
        """The entry of anything but a directory."""
        if attributes.nlink > 1:
            first = self._first_names.setdefault((attributes.space, attributes.number), path)
            if first != path:
                yield self._header(path, tarwriter.HARDLINK, None, attributes, target=first)
                return
        kind = attributes.kind
        if kind == stat.S_IFLNK:
            target = self._layer.target(place)
            yield self._header(path, tarwriter.TYPES[kind], place, attributes, target=target)
        elif kind == stat.S_IFREG:
            self._refuse_unresolved(path, place)
            yield self._header(path, tarwriter.REGULAR, place, attributes)
            yield from self._content(path, place, attributes.size)
        elif kind in tarwriter.TYPES:
            yield self._header(path, tarwriter.TYPES[kind], place, attributes)

    def _header(
        self,
        path: bytes,
        kind: bytes,
        place: Place | None,
        attributes: Attributes,
        *,
        target: bytes = b"",
    ) -> bytes:
        mtime = attributes.mtime_ns // 10**9
        if self._clamp is not None:
            mtime = min(mtime, self._clamp)
        try:
            return tarwriter.header(
                path,
                kind,
                mode=stat.S_IMODE(attributes.mode),
                uid=attributes.uid,
                gid=attributes.gid,
                size=attributes.size if kind == tarwriter.REGULAR else 0,
                mtime=mtime,
                target=target,
                device=(os.major(attributes.rdev), os.minor(attributes.rdev)),
                xattrs=self._xattrs(place) if place is not None else None,
            )
        except ValueError as error:
            raise LayerError(f"{display(path)}: {error}") from error

    def _xattrs(self, place: Place) -> dict[bytes, bytes]:
        found = self._layer.xattrs(place)
        for name in _HOST_XATTRS:
            found.pop(name, None)
        return found

    def _content(self, path: bytes, place: Place, size: int) -> Iterator[bytes]:
        content = self._layer.open(place)
        try:
            offset = 0
            while offset < size:
                piece = content.read(offset, min(PIECE, size - offset))
                if not piece:
                    raise LayerError(
                        f"{display(path)} became shorter while it was read: stop what writes to it"
                    )
                offset += len(piece)
                yield piece
        finally:
            content.close()
        yield tarwriter.padding(size)

    def _refuse_unresolved(self, path: bytes, place: Place) -> None:
        """Refuse what kernel overlayfs wrote as a reference into the lower layers.

        With ``redirect_dir`` or ``metacopy`` (Documentation/filesystems/overlayfs.rst) an upper
        does not hold what it shows, so a layer made of it would lose data.
        """
        if place.parent is None:
            return
        path_to = b"/proc/self/fd/%d/%s" % (self._layer.fd(place.parent), place.name)
        try:
            names = os.listxattr(path_to, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return
            raise
        for xattr in names:
            if xattr.partition(".")[2] in _UNRESOLVED:
                raise LayerError(
                    f"{display(path)} has the xattr {xattr}: its content is in a lower layer; "
                    "mount without redirect_dir and metacopy to make an upper that can be committed"
                )
