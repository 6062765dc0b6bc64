"""Compressed archives: read plain, gzip, zstd, bzip2 or xz; written gzip or zstd.

Layers come plain, as gzip or as zstd, which :mod:`unionfs.pack` reads; the others Docker reads too
in ``import`` and ``load``. The layers this program compresses are the same bytes on every machine,
so their digests can be relied on; whole archives are compressed as fast as possible.
"""

from __future__ import annotations

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, Protocol

from unionfs.errors import LayerError
from unionfs.pack import decompress

from .progress import Readable

PIECE = 1 << 18
"""Compressed bytes read at once."""

_LEVEL = 3
_LIBRARY = "zlib-ng" if "zlib-ng" in zlib.ZLIB_RUNTIME_VERSION else "zlib"
RECIPE = f"gzip-{_LEVEL}-{_LIBRARY}"
"""What :func:`compress_layer` does: zlib and zlib-ng differ, releases of one of them do not."""

_GZIP_HEAD = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""No name, no time, no operating system (RFC 1952, 2.3)."""

_ARCHIVE_LEVELS = {"gzip": 2, "zstd": 3}
"""The level of isal and of zstd for whole archives."""

_XZ_MEMORY = 160 << 20
"""Bytes that an xz archive may make us take: twice what ``xz -9`` asks for, as for zstd."""

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


def kind(head: bytes) -> str:
    """How data that begins so is compressed, if as layers should be: gzip, zstd, or else empty."""
    if head.startswith(_OTHER_MAGICS[0]):
        return "gzip"
    return "zstd" if is_compressed(head) and not _is_rare(head) else ""


def _is_rare(head: bytes) -> bool:
    return head.startswith(_XZ) or _BZIP2.match(head) is not None


def plain(stream: Readable) -> Readable:
    """The stream uncompressed; how it is compressed shows in its first bytes.

    Reading raises :class:`unionfs.errors.LayerError` for damaged or truncated data.
    """
    pushed = Prefixed(stream)
    head = pushed.peek(_HEAD)
    if _BZIP2.match(head):
        return _Members(pushed, bz2.BZ2Decompressor, "bzip2")
    if head.startswith(_XZ):
        return _Members(pushed, _xz_decompressor, "xz")
    return decompress(pushed)


def _xz_decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=_XZ_MEMORY)


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


def compress_layer(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The gzip form of a layer, always the same bytes for the same layer and :data:`RECIPE`."""
    deflate = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    check = size = 0
    yield _GZIP_HEAD
    for piece in pieces:
        check = zlib.crc32(piece, check)
        size += len(piece)
        if data := deflate.compress(piece):
            yield data
    yield deflate.flush() + check.to_bytes(4, "little") + (size & 0xFFFFFFFF).to_bytes(4, "little")


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...
    def flush(self) -> bytes: ...


class Compressed:
    """A stream to write to, whose compressed bytes go to another; ``finish`` must be called."""

    def __init__(self, out: BinaryIO, form: str) -> None:
        """``form`` is gzip or zstd."""
        self._out = out
        self._compressor = _compressor(form)

    def write(self, data: bytes) -> int:
        """Compress and write all of ``data``."""
        if compressed := self._compressor.compress(data):
            self._out.write(compressed)
        return len(data)

    def finish(self) -> None:
        """Write what the compressor holds back. The other stream stays open."""
        self._out.write(self._compressor.flush())


def _compressor(form: str) -> _Compressor:
    # Neither is needed by most commands.
    if form == "gzip":
        from isal import isal_zlib  # noqa: PLC0415

        fast: _Compressor = isal_zlib.compressobj(
            _ARCHIVE_LEVELS[form], isal_zlib.DEFLATED, 16 + isal_zlib.MAX_WBITS
        )
        return fast
    from backports import zstd  # noqa: PLC0415

    return zstd.ZstdCompressor(level=_ARCHIVE_LEVELS[form])
