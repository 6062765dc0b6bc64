"""The bytes of a pack: constants, rows and the header. docs/formats.md describes them in words.

All numbers are little endian. Everything here is pure: bytes in, values out.
"""

from __future__ import annotations

import struct
import sys
import zlib
from array import array
from typing import NamedTuple

from ..errors import PackError

MAGIC = b"LaminaPk"
VERSION = 1
HEADER_SIZE = 4096
CHUNK_SIZE = 131072
"""Plain bytes of a chunk; only the last chunk of a content is shorter."""
BLOCK_SIZE = 16384
"""Metadata bytes that share one checksum."""
ALIGNMENT = 64
"""Sections start at multiples of this."""
NO_ROW = 0xFFFFFFFF
"""Stands for "no row" wherever a row number is expected."""

MAJOR_MAX = 0xFFF
MINOR_MAX = 0xFFFFF
"""Device numbers of Linux (12 and 20 bits)."""

LAYER = 1
MERGED = 2

OPAQUE = 1
"""Flag of a directory that hides everything lower layers have in it."""
IMPLICIT = 2
"""Flag of a directory that exists only as parent of an entry and brings no attributes."""
UNRESOLVED = 4
"""Flag of a hardlink to a file in a lower layer; its strings range holds the path."""

ZERO = 1
"""Flag of a chunk that is all zeros and stored nowhere."""
RAW = 2
"""Flag of a chunk stored as it is, because lz4 gains nothing."""

COMPLETE = 1
"""Header flag of an index that does not speak of what is below it: it has neither whiteouts nor
unresolved hardlinks. (Opaque directories may be left, they hide nothing where nothing is below.)"""

INODE_ROW = struct.Struct("<4IQq4IQ4IQ16x")
NAME_ROW = struct.Struct("<IHBxI4x")
LINK_ROW = struct.Struct("<3I")
REF_ROW = struct.Struct("<I")
CHUNK_ROW = struct.Struct("<32sQ4I8x")
SOURCE_ROW = struct.Struct("<32s")
RECIPE_ROW = struct.Struct("<3Q")
BYTE = struct.Struct("<B")
SUM_ROW = struct.Struct("<I")
XATTR_HEAD = struct.Struct("<HI")

SECTIONS = {
    "inodes": INODE_ROW.size,
    "names": NAME_ROW.size,
    "links": LINK_ROW.size,
    "strings": 1,
    "refs": REF_ROW.size,
    "chunks": CHUNK_ROW.size,
    "sources": SOURCE_ROW.size,
    "recipe": RECIPE_ROW.size,
    "sums": SUM_ROW.size,
}
"""The sections in the order of the section table, with the size of a row in bytes."""

_HEAD = struct.Struct("<8s4I32s5Q2IQ")
_TABLE_OFFSET = 128
_TABLE_ENTRY = struct.Struct("<2Q")
_CRC_OFFSET = HEADER_SIZE - 4


class Location(NamedTuple):
    """Where the bytes of a chunk are: in the pack ``source``, ``stored`` bytes at ``offset``.

    ``plain`` is its length uncompressed; ``flags`` are :data:`ZERO` and :data:`RAW`.
    """

    source: bytes
    offset: int
    stored: int
    plain: int
    flags: int


class Chunk(NamedTuple):
    """A row of the chunk table; ``source`` is a row of the sources."""

    digest: bytes
    offset: int
    stored: int
    plain: int
    source: int
    flags: int


class Inode(NamedTuple):
    """A row of the inode table.

    ``first`` and ``length`` mean: refs of a regular file; names of a directory; place of the target
    in the strings for symlinks and unresolved hardlinks. ``parent`` is the row of the
    directory with the first name, ``name`` that name's row (:data:`NO_ROW` for the root).
    """

    mode: int
    uid: int
    gid: int
    nlink: int
    size: int
    mtime_sec: int
    mtime_nsec: int
    flags: int
    major: int
    minor: int
    first: int
    length: int
    parent: int
    name: int
    xattr_length: int
    xattr_offset: int


class Header(NamedTuple):
    """What the first 4096 bytes say. ``sections`` are name -> (offset, length) in bytes."""

    role: int
    flags: int
    identity: bytes
    tar_size: int
    entries: int
    content_size: int
    residue_size: int
    residue_first: int
    unresolved: int
    sums_crc: int
    metadata: int
    sections: dict[str, tuple[int, int]]


def encode_header(header: Header) -> bytes:
    """The 4096 bytes of a header, checksum included."""
    page = bytearray(HEADER_SIZE)
    _HEAD.pack_into(
        page, 0, MAGIC, VERSION, header.role, CHUNK_SIZE, header.flags, header.identity,
        header.tar_size, header.entries, header.content_size, header.residue_size,
        header.residue_first, header.unresolved, header.sums_crc, header.metadata,
    )  # fmt: skip
    for index, name in enumerate(SECTIONS):
        place = _TABLE_OFFSET + index * _TABLE_ENTRY.size
        _TABLE_ENTRY.pack_into(page, place, *header.sections[name])
    SUM_ROW.pack_into(page, _CRC_OFFSET, zlib.crc32(page[:_CRC_OFFSET]))
    return bytes(page)


def decode_header(page: bytes, size: int) -> Header:
    """The header of a file of ``size`` bytes; raises :class:`PackError` (without the file's name).

    Every section of the result lies wholly in the file, in whole rows.
    """
    if page[: len(MAGIC)] != MAGIC:
        raise PackError("is not a pack")
    if len(page) < HEADER_SIZE:
        raise PackError("is truncated")
    _, version, role, chunk_size, flags, *rest = _HEAD.unpack_from(page)
    if version != VERSION:
        raise PackError(f"has format version {version}, this program reads version {VERSION}")
    if SUM_ROW.unpack_from(page, _CRC_OFFSET)[0] != zlib.crc32(page[:_CRC_OFFSET]):
        raise PackError("is damaged: the header does not match its checksum")
    if chunk_size != CHUNK_SIZE or role not in (LAYER, MERGED):
        raise PackError("is damaged: the header makes no sense")
    sections = {}
    metadata = rest[8]
    for index, (name, width) in enumerate(SECTIONS.items()):
        offset, length = _TABLE_ENTRY.unpack_from(page, _TABLE_OFFSET + index * _TABLE_ENTRY.size)
        if length % width or offset < metadata or offset + length > size:
            raise PackError(f"is truncated or damaged: its {name} are not within the file")
        sections[name] = (offset, length)
    blocks = -(-(sections["sums"][0] - metadata) // BLOCK_SIZE)
    if metadata < HEADER_SIZE or sections["sums"][1] != blocks * SUM_ROW.size:
        raise PackError("is damaged: its checksums do not fit its metadata")
    if any(sum(sections[name]) > sections["sums"][0] for name in SECTIONS if name != "sums"):
        raise PackError("is damaged: its sections overlap the checksums")
    return Header._make([role, flags, *rest, sections])


def encode_xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """The form of an xattr list in the strings, sorted by name."""
    return b"".join(
        XATTR_HEAD.pack(len(name), len(value)) + name + value
        for name, value in sorted(xattrs.items())
    )


def decode_xattrs(data: bytes) -> dict[bytes, bytes]:
    """The reverse; raises :class:`ValueError` if lengths and data disagree."""
    xattrs = {}
    at = 0
    while at < len(data):
        if at + XATTR_HEAD.size > len(data):
            raise ValueError("cut in a length")
        name_length, value_length = XATTR_HEAD.unpack_from(data, at)
        name_end = at + XATTR_HEAD.size + name_length
        if name_end + value_length > len(data):
            raise ValueError("cut in a value")
        xattrs[data[name_end - name_length : name_end]] = data[name_end : name_end + value_length]
        at = name_end + value_length
    return xattrs


def little_endian(numbers: array[int]) -> bytes:
    """The bytes of an array as every machine reads them."""
    if sys.byteorder == "big":
        numbers = array(numbers.typecode, numbers)
        numbers.byteswap()
    return numbers.tobytes()
