"""Layer archives come plain, gzipped or as zstd; what they are shows in their first bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ..errors import LayerError

PIECE = 1 << 18
"""Compressed bytes read at once."""
_LARGEST_WINDOW_LOG = 27
"""zstd windows above 128 MiB are refused: they are memory that an archive makes us take."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = (b"\x2a\x4d\x18", 1)
_HEAD = 4


class Readable(Protocol):
    """A stream that is only read forward."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to ``size`` bytes; empty only at the end."""
        ...


class _Decoder(Protocol):
    """One gzip member or zstd frame: what bz2.BZ2Decompressor does, for other formats."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


def decompress(stream: Readable) -> Readable:
    """The plain bytes of a stream that may be gzip (any number of members), zstd or plain.

    Reading the result raises :class:`LayerError` for damaged or truncated data and for anything but
    zero padding after the end (RFC 1952; RFC 8878 for frames and skippable frames).
    """
    head = b""
    while len(head) < _HEAD and (piece := stream.read(_HEAD - len(head))):
        head += piece
    if head.startswith(_GZIP):
        return _Decompressed(stream, head, "gzip", _gzip_decoder, is_gzip)
    if is_zstd(head):
        return _Decompressed(stream, head, "zstd", _zstd_decoder, is_zstd)
    return _Prefixed(head, stream)


def is_gzip(head: bytes) -> bool:
    """Whether data that begins so is a gzip member."""
    return head.startswith(_GZIP)


def is_zstd(head: bytes) -> bool:
    """Whether data that begins so is a zstd frame or a skippable one."""
    skippable, at = _SKIPPABLE
    return head.startswith(_ZSTD) or (
        len(head) >= _HEAD and head.startswith(skippable, at) and head[0] & 0xF0 == 0x50
    )


def _gzip_decoder() -> _Decoder:
    from isal import igzip_lib  # noqa: PLC0415 - not needed by most commands

    decoder: _Decoder = igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP)
    return decoder


def _zstd_decoder() -> _Decoder:
    from backports import zstd  # noqa: PLC0415 - not needed by most commands

    return zstd.ZstdDecompressor(
        options={zstd.DecompressionParameter.window_log_max: _LARGEST_WINDOW_LOG}
    )


class _Prefixed:
    """A stream with some bytes put back in front."""

    def __init__(self, head: bytes, stream: Readable) -> None:
        self._head = head
        self._stream = stream

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes; empty only at the end."""
        head = self._head
        if not head:
            return self._stream.read(size)
        if 0 <= size < len(head):
            self._head = head[size:]
            return head[:size]
        self._head = b""
        return head + self._stream.read(size - len(head) if size >= 0 else -1)


class _Decompressed:
    """One or more compressed members in a row, as one plain stream."""

    def __init__(
        self,
        stream: Readable,
        head: bytes,
        name: str,
        decoder: Callable[[], _Decoder],
        begins: Callable[[bytes], bool],
    ) -> None:
        self._stream = stream
        self._input = head
        self._name = name
        self._new_decoder = decoder
        self._begins = begins
        self._decoder: _Decoder | None = decoder()
        self._started = False

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes, all that is left for a negative size; empty only at the end."""
        if size == 0:
            return b""
        if size < 0:
            return b"".join(iter(lambda: self.read(PIECE), b""))
        while self._decoder is not None:
            if self._decoder.eof:
                self._next_member(self._decoder.unused_data)
                continue
            data = self._some(self._decoder, size)
            if data:
                return data
        return b""

    def _some(self, decoder: _Decoder, size: int) -> bytes:
        if not self._input and decoder.needs_input:
            self._input = self._stream.read(PIECE)
            if not self._input:
                raise LayerError(f"the {self._name} data of the layer archive is truncated")
        data, self._input = self._input, b""
        try:
            return decoder.decompress(data, size)
        except LayerError:
            raise
        except Exception as error:  # each decoder has its own kinds of errors
            raise LayerError(
                f"the {self._name} data of the layer archive is damaged: {error}"
            ) from error

    def _next_member(self, rest: bytes) -> None:
        """Go on with the member after the one that ended; zeros may pad the end of the stream."""
        while len(rest) < _HEAD and (piece := self._stream.read(PIECE)):
            rest += piece
        if self._begins(rest):
            self._decoder = self._new_decoder()
            self._input = rest
            return
        self._decoder = None
        while rest:
            if rest.count(0) != len(rest):
                raise LayerError(f"the layer archive has other data after its {self._name} data")
            rest = self._stream.read(PIECE)
