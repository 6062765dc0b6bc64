"""Tar archives as they are written: headers of entries, always the same bytes for the same entry.

The format is POSIX ustar; what does not fit in it (long names, large numbers, negative times,
xattrs) goes into a PAX extended header before it (IEEE Std 1003.1, pax, "pax Interchange Format").
Extended attributes are written as ``SCHILY.xattr.*`` records, as the OCI image specification's
tools read them. User and group names are left empty: only numbers mean anything in an image.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping

BLOCK = 512
END = bytes(2 * BLOCK)
"""What closes an archive."""

REGULAR = b"0"
HARDLINK = b"1"
DIRECTORY = b"5"
TYPES = {
    stat.S_IFREG: REGULAR,
    stat.S_IFLNK: b"2",
    stat.S_IFCHR: b"3",
    stat.S_IFBLK: b"4",
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: b"6",
}
"""The type flag of each kind of file that an archive can hold."""

_NAME, _PREFIX = 100, 155
_ID_MAX, _SIZE_MAX = 0o7777777, 0o77777777777
_XATTR = b"SCHILY.xattr."


class TarStream:
    """An archive that is made piece by piece while it is read."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes (all by default); empty only at the end.

        Raises what making the pieces raises.
        """
        parts, length = [self._rest], len(self._rest)
        while (size < 0 or length < size) and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            length += len(piece)
        data = b"".join(parts)
        end = length if size < 0 else size
        self._rest = data[end:]
        return data[:end]


def padding(size: int) -> bytes:
    """The zeros that fill the last block of ``size`` bytes of content."""
    return bytes(-size % BLOCK)


def header(
    name: bytes,
    kind: bytes,
    *,
    mode: int,
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    xattrs: Mapping[bytes, bytes] | None = None,
) -> bytes:
    """The header blocks of one entry; its content and :func:`padding` follow.

    ``mode`` holds the permission bits, ``size`` counts bytes, ``mtime`` seconds since the epoch,
    ``target`` is what a link leads to. Raises :class:`ValueError` for an xattr whose name has an
    equals sign, which no archive can hold.
    """
    records: list[tuple[bytes, bytes]] = []
    place = _place(name)
    if place is None:
        records.append((b"path", name))
        place = (b"", name[:_NAME])
    if len(target) > _NAME:
        records.append((b"linkpath", target))
    for key, value, largest in (
        (b"uid", uid, _ID_MAX),
        (b"gid", gid, _ID_MAX),
        (b"size", size, _SIZE_MAX),
        (b"mtime", mtime, _SIZE_MAX),
    ):
        if not 0 <= value <= largest:
            records.append((key, b"%d" % value))
    for key, value_bytes in sorted((xattrs or {}).items()):
        if b"=" in key:
            raise ValueError(f"extended attribute {key!r} cannot be stored in an archive")
        records.append((_XATTR + key, value_bytes))
    prefix, last = place
    block = _block(
        last,
        prefix=prefix,
        kind=kind,
        mode=mode,
        uid=uid,
        gid=gid,
        size=size,
        mtime=mtime,
        target=target[:_NAME],
        device=device,
    )
    return _extended(name, records) + block if records else block


def _place(name: bytes) -> tuple[bytes, bytes] | None:
    """The name cut into ustar's prefix and name fields, or None if it does not fit."""
    if len(name) <= _NAME:
        return b"", name
    # The name field must not be empty, so a directory's final slash is no place to cut.
    cut = name.find(b"/", len(name) - _NAME - 1, len(name) - 1)
    if cut <= 0 or cut > _PREFIX:
        return None
    return name[:cut], name[cut + 1 :]


def _block(
    name: bytes,
    *,
    kind: bytes,
    mode: int,
    prefix: bytes = b"",
    uid: int = 0,
    gid: int = 0,
    size: int = 0,
    mtime: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
) -> bytes:
    """One ustar header block; numbers that do not fit are zero and stand in a PAX record."""
    major, minor = device
    block = (
        name.ljust(_NAME, b"\0")
        + b"%07o\0%07o\0%07o\0%011o\0%011o\0"
        % (
            mode & 0o7777,
            uid if 0 <= uid <= _ID_MAX else 0,
            gid if 0 <= gid <= _ID_MAX else 0,
            size if size <= _SIZE_MAX else 0,
            mtime if 0 <= mtime <= _SIZE_MAX else 0,
        )
        + b"        "
        + kind
        + target.ljust(_NAME, b"\0")
        + b"ustar\x0000"
        + bytes(64)
        + b"%07o\0%07o\0" % (major, minor)
        + prefix.ljust(_PREFIX, b"\0")
        + bytes(12)
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _extended(name: bytes, records: list[tuple[bytes, bytes]]) -> bytes:
    """A PAX extended header for the entry that follows."""
    texts = [value for key, value in records if not key.startswith(_XATTR)]
    if not all(_is_utf8(value) for value in texts):
        # The standard's values are UTF-8; this record says that these are raw bytes.
        records = [(b"hdrcharset", b"BINARY"), *records]
    data = b"".join(_record(key, value) for key, value in records)
    label = b"PaxHeaders/" + name.rstrip(b"/").rpartition(b"/")[2][: _NAME - 11]
    block = _block(label, kind=b"x", mode=0o644, size=len(data))
    return block + data + padding(len(data))


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _record(key: bytes, value: bytes) -> bytes:
    """``length key=value\\n``, where the length counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1
    return b"%d %s=%s\n" % (length, key, value)
