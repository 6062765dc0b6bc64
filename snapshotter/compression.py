"""Reading archives in whatever form they come: plain, gzip, zstd, bzip2 or xz.

The first two are what layers come in and are read by :mod:`unionfs.pack`; the others Docker reads
too in ``import`` and ``load``.
"""

from __future__ import annotations

import bz2
import lzma
import re
from collections.abc import Callable

from unionfs.errors import LayerError
from unionfs.pack import decompress

from .progress import Readable

PIECE = 1 << 18
"""Compressed bytes read at once."""

_HEAD = 10
_XZ = b"\xfd7zXZ\x00"
_BZIP2 = re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)")
"""The signature, a digit, and the start of a block or of the end."""

_OTHER_MAGICS = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", _XZ)

_Decompressor = bz2.BZ2Decompressor | lzma.LZMADecompressor


def is_compressed(head: bytes) -> bool:
    """Whether data that begins so is compressed in one of the forms :func:`plain` reads.

    A zstd stream may begin with a skippable frame (RFC 8878, 3.1.2).
    """
    if head.startswith(_OTHER_MAGICS) or _BZIP2.match(head):
        return True
    return head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50


def plain(stream: Readable) -> Readable:
    """The stream uncompressed; how it is compressed shows in its first bytes.

    Reading raises :class:`unionfs.errors.LayerError` for damaged or truncated data.
    """
    pushed = Prefixed(stream)
    head = pushed.peek(_HEAD)
    if _BZIP2.match(head):
        return _Members(pushed, bz2.BZ2Decompressor, "bzip2")
    if head.startswith(_XZ):
        return _Members(pushed, lzma.LZMADecompressor, "xz")
    return decompress(pushed)


class Prefixed:
    """A stream whose first bytes can be looked at before they are read."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._ahead = b""

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end; they are read again later."""
        while len(self._ahead) < size:
            data = self._stream.read(size - len(self._ahead))
            if not data:
                break
            self._ahead += data
        return self._ahead[:size]

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; empty only at the end."""
        if not self._ahead:
            return self._stream.read(size)
        if size < 0:
            data, self._ahead = self._ahead + self._stream.read(), b""
            return data
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data


class _Members:
    """One or more compressed streams in a row, as one plain stream."""

    def __init__(self, stream: Readable, kind: Callable[[], _Decompressor], name: str) -> None:
        self._stream = stream
        self._kind = kind
        self._name = name
        self._current: _Decompressor | None = None
        self._input = b""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes (a large piece by default); empty only at the end."""
        limit = size if size > 0 else PIECE
        while True:
            if self._current is None or self._current.eof:
                unused = self._current.unused_data if self._current is not None else b""
                self._input = unused or self._stream.read(PIECE)
                if not self._input:
                    return b""
                self._current = self._kind()
            elif self._current.needs_input:
                self._input = self._stream.read(PIECE)
                if not self._input:
                    raise LayerError(f"the {self._name} data is truncated")
            try:
                data = self._current.decompress(self._input, limit)
            except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
                raise LayerError(f"damaged {self._name} data: {error}") from error
            self._input = b""
            if data:
                return data
