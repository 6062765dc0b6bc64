"""A pack's file, mapped: rows and strings that are compared with their checksums when touched."""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from pathlib import Path
from typing import Any, NoReturn, Self

from ..errors import PackError, display
from .format import BLOCK_SIZE, BYTE, HEADER_SIZE, SUM_ROW, Header, decode_header


def open_pack(path: Path) -> tuple[int, Header]:
    """Open a pack and read its header; raises :class:`PackError` if it is none."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return fd, decode_header(os.pread(fd, HEADER_SIZE, 0), os.fstat(fd).st_size)
    except PackError as error:
        os.close(fd)
        raise PackError(f"{display(path)} {error}") from error.__cause__
    except BaseException:
        os.close(fd)
        raise


class Section:
    """Where the rows of one section are."""

    __slots__ = ("count", "layout", "name", "offset")

    def __init__(self, header: Header, name: str, layout: struct.Struct) -> None:
        self.name = name
        self.layout = layout
        self.offset, length = header.sections[name]
        self.count = length // layout.size


class MappedFile:
    """The header and the metadata of an open pack. It stays readable when its file is unlinked."""

    def __init__(self, path: Path) -> None:
        """Raises :class:`OSError` if ``path`` cannot be opened, :class:`PackError` for no pack."""
        self.file = path
        self._fd, self.header = open_pack(path)
        try:
            self._map = mmap.mmap(self._fd, 0, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self._fd)
            raise
        header = self.header
        self._metadata = header.metadata
        self._strings = Section(header, "strings", BYTE)
        sums, length = header.sections["sums"]
        self._end = sums
        self._sums = self._map[sums : sums + length]
        if zlib.crc32(self._sums) != header.sums_crc:
            self.close()
            self.fail("its checksums do not match theirs")
        self._checked = bytearray(length // SUM_ROW.size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give up the map and the descriptor."""
        if self._fd >= 0:
            self._map.close()
            os.close(self._fd)
            self._fd = -1

    def fail(self, what: str) -> NoReturn:
        """Raise the error that this file is damaged."""
        raise PackError(f"{display(self.file)} is damaged: {what}")

    def _check(self, offset: int, length: int) -> None:
        """Compare the blocks of a range of the metadata with their checksums, once each."""
        first = (offset - self._metadata) // BLOCK_SIZE
        last = (offset + length - 1 - self._metadata) // BLOCK_SIZE
        checked = self._checked
        for block in range(first, last + 1):
            if checked[block]:
                continue
            start = self._metadata + block * BLOCK_SIZE
            data = self._map[start : min(start + BLOCK_SIZE, self._end)]
            if zlib.crc32(data) != SUM_ROW.unpack_from(self._sums, block * SUM_ROW.size)[0]:
                self.fail(f"the metadata at byte {start} does not match its checksum")
            checked[block] = 1

    def _row(self, section: Section, row: int) -> tuple[Any, ...]:
        if not 0 <= row < section.count:
            self.fail(f"there is no row {row} in its {section.name}")
        layout = section.layout
        at = section.offset + row * layout.size
        block = (at - self._metadata) // BLOCK_SIZE
        last = (at + layout.size - 1 - self._metadata) // BLOCK_SIZE
        if not self._checked[block] or not self._checked[last]:
            self._check(at, layout.size)
        return layout.unpack_from(self._map, at)

    def string(self, offset: int, length: int) -> bytes:
        """Bytes of the strings section."""
        if not length:
            return b""
        section = self._strings
        if offset + length > section.count:
            self.fail("a string is not within its strings")
        at = section.offset + offset
        checked = self._checked
        block = (at - self._metadata) // BLOCK_SIZE
        last = (at + length - 1 - self._metadata) // BLOCK_SIZE
        if not checked[block] or not checked[last] or last > block + 1:
            self._check(at, length)
        return self._map[at : at + length]
