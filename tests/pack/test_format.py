"""A reader written from docs/formats.md alone reads what the program writes."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import lz4.block
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pack import archives
from tests.pack.archives import Entry
from unionfs.errors import LayerError
from unionfs.pack import Pack

_SECTIONS = ["inodes", "names", "links", "strings", "refs", "chunks", "sources", "recipe", "sums"]


class Plain:
    """The file as the document describes it; nothing here is taken from the program."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = path.read_bytes()
        assert self.data[:8] == b"LaminaPk"
        assert self.number("<I", 8) == 1
        assert self.number("<I", 4092) == zlib.crc32(self.data[:4092])
        self.sections = {
            name: struct.unpack_from("<QQ", self.data, 128 + 16 * index)
            for index, name in enumerate(_SECTIONS)
        }
        sums, length = self.sections["sums"]
        assert sums + length == len(self.data)
        assert zlib.crc32(self.data[sums:]) == self.number("<I", 100)
        metadata = self.number("<Q", 104)
        assert metadata % 64 == 0
        blocks = range(metadata, sums, 16384)
        assert length == 4 * len(blocks)
        for index, start in enumerate(blocks):
            block = self.data[start : min(start + 16384, sums)]
            assert zlib.crc32(block) == self.number("<I", sums + 4 * index)

    def number(self, layout: str, offset: int) -> int:
        """One number."""
        value: int = struct.unpack_from(layout, self.data, offset)[0]
        return value

    def row(self, section: str, layout: str, row: int) -> tuple[int, ...]:
        """One row of a table."""
        offset, length = self.sections[section]
        size = struct.calcsize(layout)
        assert (row + 1) * size <= length
        return struct.unpack_from(layout, self.data, offset + row * size)

    def string(self, offset: int, length: int) -> bytes:
        """Bytes of the strings."""
        start = self.sections["strings"][0] + offset
        return self.data[start : start + length]

    def content(self, first: int, size: int) -> bytes:
        """The content whose refs begin at ``first``."""
        pieces = []
        for ref in range(first, first + (size + 131071) // 131072):
            (chunk,) = self.row("refs", "<I", ref)
            digest, offset, stored, plain, source, flags = struct.unpack_from(
                "<32sQIIII", self.data, self.sections["chunks"][0] + 64 * chunk
            )
            assert source == 0
            piece = self.data[offset : offset + stored]
            if flags & 1:
                piece = bytes(plain)
            elif not flags & 2:
                piece = lz4.block.decompress(piece, uncompressed_size=plain)
            assert hashlib.sha256(piece).digest() == digest
            pieces.append(piece)
        return b"".join(pieces)

    def walk(self, row: int = 0, prefix: bytes = b"") -> Iterator[tuple[bytes, int, bytes]]:
        """Every path with its kind and its content or target."""
        first, length = self.row("inodes", "<48xQI36x", row)
        for name_row in range(first, first + length):
            at, size, kind, inode = self.row("names", "<IHBxI4x", name_row)
            path = prefix + self.string(at, size)
            content = b""
            if kind:
                mode, file_size, flags, start, count = self.row(
                    "inodes", "<I12xQ12xI8xQI36x", inode
                )
                if kind == 0o12 or flags & 4:
                    content = self.string(start, count)
                elif kind == 0o10:
                    content = self.content(start, file_size)
                assert mode >> 12 == kind
            yield path, kind << 12, content
            if kind == 0o4:
                yield from self.walk(inode, path + b"/")

    def rebuild(self) -> bytes:
        """The tar."""
        residue = self.content(self.number("<Q", 88), self.number("<Q", 80))
        at = 0
        tar = b""
        for row in range(self.sections["recipe"][1] // 24):
            raw, size, first = self.row("recipe", "<QQQ", row)
            tar += residue[at : at + raw] + self.content(first, size)
            at += raw
        assert at == len(residue)
        return tar


@settings(max_examples=60, deadline=None)
@given(st.lists(archives.entries(), max_size=8))
def test_the_document_describes_what_is_written(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]
) -> None:
    place = tmp_path_factory.getbasetemp()
    tar = archives.tar_of([*entries, archives.file("big", bytes(range(256)) * 2000)])
    try:
        archives.take_in(place, tar, name="described")
    except LayerError:  # a hardlink to a directory
        return
    plain = Plain(place / "described")
    assert plain.rebuild() == tar
    with Pack(place / "described") as pack:
        expected = {}
        for path, row in archives.walk(pack):
            kind, content = 0, b""
            if row is not None:
                inode = pack.inode(row)
                kind = inode.mode & 0o170000
                if kind == 0o120000 or inode.flags & 4:
                    content = pack.target(row)
                elif kind == 0o100000:
                    content = pack.read(row, 0, inode.size)
            expected[path] = (kind, content)
        assert plain.data[24:56] == pack.identity == hashlib.sha256(tar).digest()
    assert {path: (kind, content) for path, kind, content in plain.walk()} == expected
