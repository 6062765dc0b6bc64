"""Contents as chunks: cutting, finding what is known, compressing, and reading back."""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from threading import Lock
from typing import BinaryIO, NamedTuple, Protocol

import lz4.block

from ..errors import LayerError, PackError
from .format import CHUNK_ROW, CHUNK_SIZE, NO_ROW, RAW, ZERO, Chunk, Location

_ZEROS = bytes(CHUNK_SIZE)
_ZEROS_DIGEST = hashlib.sha256(_ZEROS).digest()
_LEAST_GAIN = 0.97
"""A chunk whose compressed form is larger than this share of it is stored raw."""
_RESIDUE_LEVEL = 4
"""lz4's high compression level for headers and padding: they are small and shrink very well."""


class Chunks(Protocol):
    """What a store knows of chunks it already has."""

    def find(self, digest: bytes) -> Location | None:
        """Where the chunk with this sha256 is, or None."""
        ...


class Content(NamedTuple):
    """The chunks of one content: ``length`` refs from ``first`` on, ``size`` plain bytes."""

    first: int
    length: int
    size: int


class ChunkWriter:
    """Writes the data of a pack and collects its refs, chunks and sources.

    Chunks the store has are referred to where they are; the new ones are appended to ``file``,
    which must stand at ``offset``.
    """

    def __init__(self, file: BinaryIO, offset: int, known: Chunks | None) -> None:
        self._file = file
        self._known = known
        self._rows: dict[bytes, int] = {}
        self.offset = offset
        self.refs = array("I")
        self.table = bytearray()
        self.others: dict[bytes, int] = {}
        self.new: list[tuple[bytes, int, int, int, int]] = []

    def content(self, pieces: Iterable[bytes]) -> Content:
        """Store a content that comes in pieces of :data:`CHUNK_SIZE` (the last may be shorter)."""
        first = len(self.refs)
        size = 0
        append = self.refs.append
        for piece in pieces:
            size += len(piece)
            append(self.chunk(piece))
        return Content(first, len(self.refs) - first, size)

    def chunk(self, data: bytes, *, tight: bool = False) -> int:
        """Store one chunk; its row in the chunk table. ``tight`` takes more time to compress."""
        digest = _ZEROS_DIGEST if data is _ZEROS else hashlib.sha256(data).digest()
        row = self._rows.get(digest)
        if row is not None:
            return row
        if is_zero(data):
            return self._add_row(Chunk(digest, 0, 0, len(data), 0, ZERO))
        if self._known is not None:
            known = self._known.find(digest)
            if known is not None and known.plain == len(data) and not known.flags & ZERO:
                source = self.others.setdefault(known.source, len(self.others) + 1)
                return self._add_row(Chunk(digest, *known[1:4], source, known.flags))
        return self._store(digest, data, tight)

    def _store(self, digest: bytes, data: bytes, tight: bool) -> int:
        flags = 0
        if tight:
            stored = lz4.block.compress(
                data, mode="high_compression", compression=_RESIDUE_LEVEL, store_size=False
            )
        else:
            stored = lz4.block.compress(data, store_size=False)
        if len(stored) > len(data) * _LEAST_GAIN:
            stored = data
            flags = RAW
        self._file.write(stored)
        self.new.append((digest, self.offset, len(stored), len(data), flags))
        row = self._add_row(Chunk(digest, self.offset, len(stored), len(data), 0, flags))
        self.offset += len(stored)
        return row

    def _add_row(self, chunk: Chunk) -> int:
        row = self._rows[chunk.digest] = len(self._rows)
        if row >= NO_ROW:
            raise LayerError("the layer has more chunks than a pack can hold")
        self.table += CHUNK_ROW.pack(*chunk)
        return row


def expand(size: int, runs: list[tuple[int, int]], data: Iterable[bytes]) -> Iterator[bytes]:
    """The content of a sparse file in pieces of :data:`CHUNK_SIZE` (the last may be shorter).

    ``runs`` are the (offset, length) of the data, in order and within ``size``; ``data`` brings
    their bytes in pieces of any length. Memory does not grow with the holes.
    """
    pending = bytearray()
    for segment in _segments(size, runs, data):
        if isinstance(segment, bytes):
            pending += segment
            while len(pending) >= CHUNK_SIZE:
                yield bytes(pending[:CHUNK_SIZE])
                del pending[:CHUNK_SIZE]
            continue
        hole = segment
        if pending:
            fill = min(hole, CHUNK_SIZE - len(pending))
            pending += bytes(fill)
            hole -= fill
            if len(pending) == CHUNK_SIZE:
                yield bytes(pending)
                pending.clear()
        for _ in range(hole // CHUNK_SIZE):
            yield _ZEROS
        pending += bytes(hole % CHUNK_SIZE)
    if pending:
        yield bytes(pending)


def _segments(
    size: int, runs: list[tuple[int, int]], data: Iterable[bytes]
) -> Iterator[bytes | int]:
    """The bytes of each run, and the length of each hole."""
    source = iter(data)
    rest = b""
    at = 0
    for offset, length in runs:
        yield offset - at
        at = offset + length
        wanted = length
        while wanted:
            rest = rest or next(source)
            piece, rest = rest[:wanted], rest[wanted:]
            wanted -= len(piece)
            yield piece
    yield size - at


def is_zero(data: bytes) -> bool:
    """Whether all bytes are zero; ``data`` is no longer than a chunk."""
    if not data or data[0] or data[-1]:
        return False
    return data == _ZEROS if len(data) == CHUNK_SIZE else data == _ZEROS[: len(data)]


def unpack(chunk: Chunk, stored: bytes) -> bytes:
    """The plain bytes of a chunk; raises :class:`PackError` (without a file's name) if damaged."""
    if len(stored) != chunk.stored:
        raise PackError("is truncated")
    if chunk.flags & RAW:
        data = stored
    else:
        try:
            data = lz4.block.decompress(stored, uncompressed_size=chunk.plain)
        except lz4.block.LZ4BlockError as error:
            raise PackError("is damaged: a chunk does not decompress") from error
    if len(data) != chunk.plain or hashlib.sha256(data).digest() != chunk.digest:
        raise PackError("is damaged: a chunk does not match its digest")
    return data


class Cache:
    """The chunks read last, by digest, up to ``capacity`` bytes. Usable from several threads."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._size = 0
        self._chunks: OrderedDict[bytes, bytes] = OrderedDict()
        self._lock = Lock()

    def get(self, digest: bytes) -> bytes | None:
        """The chunk, if it is still there."""
        with self._lock:
            data = self._chunks.get(digest)
            if data is not None:
                self._chunks.move_to_end(digest)
            return data

    def put(self, digest: bytes, data: bytes) -> None:
        """Keep a chunk, at the cost of those not used for the longest time."""
        with self._lock:
            if digest in self._chunks:
                return
            self._chunks[digest] = data
            self._size += len(data)
            while self._size > self._capacity:
                self._size -= len(self._chunks.popitem(last=False)[1])


CACHE = Cache(32 << 20)
"""One for the process: packs share chunks."""
