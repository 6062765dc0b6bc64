"""A streaming tar reader that accounts for every byte.

Payload goes to whoever reads the entry; each other byte (headers, extensions, padding, what follows
the end) goes to the recorder, in order. So the archive can be put together again exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from ..errors import LayerError, display
from .decompress import Readable
from .format import CHUNK_SIZE
from .headers import (
    BLOCK,
    Header,
    Runs,
    apply_pax,
    check_runs,
    decimal,
    old_sparse,
    old_sparse_extension,
    parse_header,
    parse_pax,
    pax_sparse,
    xattrs_of,
)

_PIECE = 1 << 20
"""Bytes read from the stream at once."""
_ZERO_BLOCK = bytes(BLOCK)
_EVERY = {b"path", b"linkpath", b"size", b"GNU.sparse.name"}
"""Global extended headers that would give one name, target or size to every entry."""
_KNOWN_TYPES = b"\x0001234567SD"
REGULAR = b"\x0007S"


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may make us take. Lengths in bytes; an error names the limit.

    ``entries`` also bounds the directories, with those that only paths tell of, ``metadata`` the
    names, targets and xattrs of all entries together: these are held in memory.
    """

    entries: int = 1 << 22
    path: int = 4096
    depth: int = 1024
    xattrs: int = 1 << 20
    pax: int = 1 << 20
    metadata: int = 1 << 29
    tar: int = 1 << 42
    content: int = 1 << 40


class Sparse(NamedTuple):
    """How the payload of a sparse file is spread over its ``size`` bytes."""

    size: int
    runs: Runs


class Member(NamedTuple):
    """One entry of the archive. ``payload`` bytes of data follow its headers."""

    header: Header
    payload: int
    xattrs: dict[bytes, bytes]
    sparse: Sparse | None

    @property
    def is_regular(self) -> bool:
        """Whether the entry is a regular file."""
        return self.header.type in REGULAR


class _Source:
    """The stream, hashed and counted as it is read."""

    def __init__(self, stream: Readable, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self._buffer = b""
        self._at = 0
        self._read = 0
        self.hash = hashlib.sha256()

    @property
    def position(self) -> int:
        """Bytes taken so far."""
        return self._read - len(self._buffer) + self._at

    def take(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end of the stream."""
        at = self._at
        end = at + size
        if end > len(self._buffer):
            self._fill(size)
            at = 0
            end = size
        self._at = min(end, len(self._buffer))
        return self._buffer[at:end]

    def _fill(self, size: int) -> None:
        pieces = [self._buffer[self._at :]]
        have = len(pieces[0])
        while have < size and (piece := self._stream.read(_PIECE)):
            self.hash.update(piece)
            self._read += len(piece)
            if self._read > self._limit:
                raise LayerError(
                    f"the layer archive is larger than the limit of {self._limit} bytes"
                )
            pieces.append(piece)
            have += len(piece)
        self._buffer = b"".join(pieces)
        self._at = 0


class TarReader:
    """Reads the entries of an archive one after the other.

    After :meth:`next`, the payload of the entry must be taken with :meth:`payload` before the next
    call; :meth:`rest` ends the work and gives the digest of the whole stream.
    """

    def __init__(self, stream: Readable, record: Callable[[bytes], None], limits: Limits) -> None:
        self._source = _Source(stream, limits.tar)
        self._record = record
        self._limits = limits
        self._global: dict[bytes, bytes] = {}
        self._last: bytes = b""
        self._padding = 0
        self._metadata = 0

    def next(self) -> Member | None:
        """The next entry, or None at the end marker. Raises :class:`LayerError`."""
        start = self._source.position + self._padding
        try:
            return self._next()
        except LayerError as error:
            where = f"at byte {start}"
            if self._last:
                where += f", after {display(self._last)}"
            raise LayerError(f"the layer archive is damaged {where}: {error}") from error.__cause__

    def payload(self, member: Member) -> Iterator[bytes]:
        """The payload of an entry in pieces of :data:`CHUNK_SIZE` (the last may be shorter)."""
        left = member.payload
        while left:
            piece = self._source.take(min(left, CHUNK_SIZE))
            if len(piece) < min(left, CHUNK_SIZE):
                raise LayerError(
                    f"the layer archive is truncated in the content of {display(self._last)}"
                )
            left -= len(piece)
            yield piece
        self._padding = -member.payload % BLOCK

    def skip(self, member: Member) -> None:
        """Pass over the payload of an entry."""
        for piece in self.payload(member):
            self._record(piece)

    def rest(self) -> tuple[bytes, int]:
        """Read to the end of the stream; its sha256 and its length in bytes."""
        while piece := self._source.take(CHUNK_SIZE):
            self._record(piece)
        return self._source.hash.digest(), self._source.position

    def _take_padding(self) -> None:
        """What fills the last block of a payload, taken late so that it is recorded after it."""
        size, self._padding = self._padding, 0
        data = self._source.take(size)
        if len(data) < size:
            raise LayerError("it is truncated")
        self._record(data)

    def _block(self) -> bytes:
        block = self._source.take(BLOCK)
        if len(block) < BLOCK:
            raise LayerError("it ends without an end marker; it is truncated")
        self._record(block)
        return block

    def _next(self) -> Member | None:
        records: dict[bytes, bytes] = {}
        name = link = b""
        budget = self._limits.pax
        while True:
            if self._padding:
                self._take_padding()
            block = self._block()
            if block == _ZERO_BLOCK:
                self._end(bool(records or name or link))
                return None
            header = parse_header(block)
            kind = header.type
            if kind == b"V":  # a volume label is no file
                self.skip(Member(header, header.size, {}, None))
            elif kind not in b"xXgLK":
                header = header._replace(name=name or header.name, link=link or header.link)
                return self._member(block, header, records)
            else:
                budget -= header.size
                data = self._extension(header.size, budget)
                if kind == b"L":
                    name = data.partition(b"\0")[0]
                elif kind == b"K":
                    link = data.partition(b"\0")[0]
                elif kind == b"g":
                    self._set_global(parse_pax(data))
                else:
                    records.update(parse_pax(data))

    def _end(self, unfinished: bool) -> None:
        """A zero block ends the archive; a second one follows, unless the stream ends here."""
        if unfinished:
            raise LayerError("it ends after an extended header")
        block = self._source.take(BLOCK)
        self._record(block)
        if block != _ZERO_BLOCK[: len(block)]:
            raise LayerError("a zero block is followed by something else")

    def _extension(self, size: int, budget: int) -> bytes:
        if budget < 0:
            self._too_much()
        padded = -(-size // BLOCK) * BLOCK
        data = self._source.take(padded)
        if len(data) < padded:
            raise LayerError("it is truncated in an extended header")
        self._record(data)
        return data[:size]

    def _set_global(self, records: dict[bytes, bytes]) -> None:
        if not _EVERY.isdisjoint(records):
            raise LayerError("a global extended header gives all entries one name or size")
        for key, value in records.items():
            if value:
                self._global[key] = value
            else:
                self._global.pop(key, None)
        if sum(map(len, self._global.values())) + sum(map(len, self._global)) > self._limits.pax:
            self._too_much()

    def _too_much(self) -> NoReturn:
        raise LayerError(f"extended headers are larger than the limit of {self._limits.pax} bytes")

    def _member(self, block: bytes, header: Header, own: dict[bytes, bytes]) -> Member:
        records = {**self._global, **own} if self._global else own
        header = apply_pax(header, records) if records else header
        self._last = header.name
        if header.type not in _KNOWN_TYPES:
            raise LayerError(f"{display(header.name)} is of the unknown type {header.type!r}")
        payload, sparse = header.size, None
        if header.type == b"S":
            sparse = self._old_sparse(block, payload)
        elif header.type in b"\x0007":
            payload, sparse = self._pax_sparse(records, payload)
        xattrs = xattrs_of(records) if records else {}
        self._bound_metadata(header, sum(map(len, xattrs)) + sum(map(len, xattrs.values())))
        return Member(header, payload, xattrs, sparse)

    def _bound_metadata(self, header: Header, xattrs: int) -> None:
        if xattrs > self._limits.xattrs:
            raise LayerError(
                f"the xattrs of {display(header.name)} are larger than the limit of"
                f" {self._limits.xattrs} bytes"
            )
        self._metadata += len(header.name) - header.name.rfind(b"/") + len(header.link) + xattrs
        if self._metadata > self._limits.metadata:
            raise LayerError(
                f"the names, targets and xattrs up to {display(header.name)} are larger than the"
                f" limit of {self._limits.metadata} bytes"
            )

    def _old_sparse(self, block: bytes, payload: int) -> Sparse:
        runs, more, size = old_sparse(block)
        while more:
            added, more = old_sparse_extension(self._block())
            runs += added
            self._bound_map(len(runs) * 24)
        return Sparse(size, check_runs(runs, size, payload))

    def _bound_map(self, size: int) -> None:
        limit = 16 * self._limits.pax
        if size > limit:
            raise LayerError(f"a sparse map is larger than the limit of {limit} bytes")

    def _pax_sparse(self, records: dict[bytes, bytes], payload: int) -> tuple[int, Sparse | None]:
        """How many bytes are data, and how they are spread (GNU tar's PAX formats 0.0 to 1.0)."""
        if records.get(b"GNU.sparse.major") == b"1" and records.get(b"GNU.sparse.minor") == b"0":
            runs, used = self._map_in_payload(payload)
            size = decimal(records.get(b"GNU.sparse.realsize", b""), "sparse size")
            return payload - used, Sparse(size, check_runs(runs, size, payload - used))
        found = pax_sparse(records)
        if found is None:
            return payload, None
        runs, size = found
        return payload, Sparse(size, check_runs(runs, size, payload))

    def _map_in_payload(self, payload: int) -> tuple[Runs, int]:
        """The map that begins the payload in format 1.0: numbers in lines, padded to a block."""
        lines: list[bytes] = []
        wanted = used = 0
        rest = b""
        while not lines or len(lines) < wanted:
            used += BLOCK
            if used > payload:
                raise LayerError("the sparse map is malformed")
            self._bound_map(used)
            *complete, rest = (rest + self._block()).split(b"\n")
            lines += complete
            if lines:
                wanted = 1 + 2 * decimal(lines[0], "sparse map")
        numbers = [decimal(line, "sparse map") for line in lines[1:wanted]]
        return list(zip(numbers[::2], numbers[1::2], strict=True)), used
