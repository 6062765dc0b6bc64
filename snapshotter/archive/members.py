"""The members of an image archive, read once from front to back.

Only what such archives use: regular files and links in ustar, GNU or PAX form. Names are no more
than keys, never paths on this machine. Anything damaged or cut off is an error: an archive that
seems to end early must not pass for a smaller one.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from unionfs.errors import display

from ..errors import ArchiveError
from ..progress import Readable
from ..tarwriter import BLOCK

MEMBERS_MAX = 200_000
HEADER_MAX = 1 << 20
"""The most bytes of a PAX or GNU long name header."""

_PIECE = 1 << 18


@dataclass(slots=True)
class Member:
    """One member. ``target`` is the name of the member that a link stands for.

    The content can be read until the next member is asked for.
    """

    name: str
    is_file: bool
    target: str | None
    size: int
    left: int
    stream: Readable

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes of the content (a piece by default); empty only at its end."""
        wanted = min(self.left, size if size >= 0 else _PIECE)
        data = self.stream.read(wanted) if wanted else b""
        if wanted and not data:
            raise ArchiveError(f"the archive is truncated in {display(self.name)}")
        self.left -= len(data)
        return data

    def drain(self) -> None:
        """Read what is left of the content."""
        while self.read():
            pass


def members(stream: Readable) -> Iterator[Member]:
    """Each file and link of a tar archive. Raises :class:`ArchiveError`.

    What follows the end of the archive is read too, so that a pipe's writer can finish.
    """
    extended: dict[str, bytes] = {}
    count = 0
    while (block := _exactly(stream, BLOCK)) != bytes(BLOCK):
        _check_sum(block)
        count += 1
        if count > MEMBERS_MAX:
            raise ArchiveError(f"the archive has more than {MEMBERS_MAX} members")
        kind = block[156:157]
        if kind in (b"x", b"g", b"L", b"K"):
            data = _extension(stream, _number(block[124:136]))
            if kind != b"g":
                extended.update(_fields(kind, data))
            continue
        member = _member(block, kind, extended, stream)
        extended = {}
        padding = -member.size % BLOCK
        yield member
        member.drain()
        _exactly(stream, padding)
    while stream.read(_PIECE):
        pass


def _member(block: bytes, kind: bytes, extended: dict[str, bytes], stream: Readable) -> Member:
    name = extended.get("path")
    if name is None:
        name = _string(block[:100])
        if block[257:263] == b"ustar\0" and (prefix := _string(block[345:500])):
            name = prefix + b"/" + name
    size = _decimal(extended["size"]) if "size" in extended else _number(block[124:136])
    if kind in (b"0", b"\0", b"7"):
        key = normalise(name)
        return Member(key, not name.endswith(b"/"), None, size, size, stream)
    target = extended.get("linkpath", _string(block[157:257]))
    key = normalise(name)
    if kind == b"1":
        return Member(key, False, normalise(target), 0, 0, stream)
    if kind == b"2":
        base = b"" if target.startswith(b"/") else posixpath.dirname(_clean(name))
        return Member(key, False, normalise(posixpath.join(base, target)), 0, 0, stream)
    if kind in b"3456":
        return Member(key, False, None, 0, 0, stream)
    raise ArchiveError(f"{display(name)}: a member of type {kind!r} has no place in an archive")


def normalise(name: bytes) -> str:
    """The one form of a member's name: no ``./``, no leading or doubled slashes.

    ``..`` is resolved by the text alone. Raises :class:`ArchiveError` if it leads out.
    """
    clean = _clean(name)
    if clean == b".." or clean.startswith(b"../"):
        raise ArchiveError(f"{display(name)} leads out of the archive")
    return clean.decode(errors="surrogateescape")


def _clean(name: bytes) -> bytes:
    return posixpath.normpath(name.lstrip(b"/") or b".")


def _exactly(stream: Readable, size: int) -> bytes:
    parts = []
    while size:
        data = stream.read(size)
        if not data:
            raise ArchiveError("the archive is truncated: its end is missing")
        parts.append(data)
        size -= len(data)
    return b"".join(parts)


def _check_sum(block: bytes) -> None:
    total = sum(block) - sum(block[148:156]) + 8 * 32
    if block[148:156].strip(b" \0").lstrip(b"0") != b"%o" % total:
        raise ArchiveError("not a tar archive, or a damaged one: a header's checksum is wrong")


def _string(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def _number(field: bytes) -> int:
    """A number of a header: octal, or binary with the highest bit set (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big", signed=False) & ~(0x80 << 8 * (len(field) - 1))
        if field[0] & 0x40 or value >= 1 << 62:
            raise ArchiveError("a number in a header of the archive is out of range")
        return value
    digits = field.strip(b" \0")
    if digits.strip(b"01234567"):
        raise ArchiveError(f"{digits!r} in a header of the archive is not a number")
    return int(digits or b"0", 8)


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 18:
        raise ArchiveError(f"{text[:40]!r} in a header of the archive is not a size")
    return int(text)


def _extension(stream: Readable, size: int) -> bytes:
    if size > HEADER_MAX:
        raise ArchiveError(f"a header of the archive is larger than {HEADER_MAX} bytes")
    data = _exactly(stream, size)
    _exactly(stream, -size % BLOCK)
    return data


def _fields(kind: bytes, data: bytes) -> dict[str, bytes]:
    """The fields an extension header sets for the next member."""
    if kind == b"L":
        return {"path": _string(data)}
    if kind == b"K":
        return {"linkpath": _string(data)}
    fields = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        end = at + _decimal(data[at:space]) if space > at else 0
        key, equals, value = data[space + 1 : end].partition(b"=")
        if not space < end <= len(data) or not equals or value[-1:] != b"\n":
            raise ArchiveError("a PAX header of the archive is malformed")
        if key in (b"path", b"linkpath", b"size"):
            fields[key.decode()] = value[:-1]
        at = end
    return fields
