"""The fields of tar headers: ustar, GNU and PAX. Pure functions, no I/O.

Sources: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header"; the GNU tar
manual, "Basic Tar Format" and "Storing Sparse Files". Errors are :class:`LayerError`
that say what is wrong but not where; the reader adds the entry.
"""

from __future__ import annotations

import base64
import binascii
import struct
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from ..errors import LayerError, display
from .format import MAJOR_MAX, MINOR_MAX

BLOCK = 512
_FIELDS = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12s")
_OLD_SPARSE = struct.Struct("12s12s")
_OLD_SPARSE_OFFSET = 386
_OLD_SPARSE_COUNT = 4
_OLD_SPARSE_MORE = 482
_OLD_SPARSE_SIZE = slice(483, 495)
_EXTENSION_COUNT = 21
_EXTENSION_MORE = 504
_STAR_PREFIX = slice(345, 476)
_NANO = 1_000_000_000
_NANO_DIGITS = 9
_TIME_MAX = 1 << 62

HEADER_ONLY = b"123456"
"""Types that have no payload, whatever the size field says."""

Runs = list[tuple[int, int]]


class Header(NamedTuple):
    """The fields of one header block, decoded."""

    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: tuple[int, int]
    type: bytes
    link: bytes
    major: int
    minor: int


def parse_header(block: bytes) -> Header:
    """Decode a header block, whatever dialect it is written in."""
    (
        name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, major, minor,
        prefix, _,
    ) = _FIELDS.unpack(block)  # fmt: skip
    _verify_checksum(block, checksum)
    name = _text(name)
    if magic.startswith(b"ustar\0"):
        if block[508:512] == b"tar\0":  # star's own layout: the times follow a shorter prefix
            prefix = block[_STAR_PREFIX]
        if prefix[0]:
            name = _text(prefix) + b"/" + name
    is_device = kind in b"34"
    return Header(
        name=name,
        mode=number(mode, "mode") & 0o7777,
        uid=_fits(number(uid, "uid"), "uid"),
        gid=_fits(number(gid, "gid"), "gid"),
        size=0 if kind in HEADER_ONLY else _natural(size, "size"),
        mtime=(_seconds(number(mtime, "mtime")), 0),
        type=kind,
        link=_text(link),
        major=_fits(number(major, "major"), "major number", MAJOR_MAX) if is_device else 0,
        minor=_fits(number(minor, "minor"), "minor number", MINOR_MAX) if is_device else 0,
    )


def _verify_checksum(block: bytes, field: bytes) -> None:
    stored = number(field, "checksum")
    unsigned = sum(block) - sum(field) + 8 * 0x20
    if stored == unsigned:
        return
    # Some old programs summed signed bytes.
    negative = sum(byte > 127 for byte in block) - sum(byte > 127 for byte in field)
    if stored != unsigned - 256 * negative:
        raise LayerError("the header does not match its checksum")


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def number(field: bytes, what: str) -> int:
    """A numeric field: octal digits, or base 256 where the first byte says so (GNU)."""
    first = field[0]
    if first & 0x80:
        return int.from_bytes(bytes([first & 0x7F]) + field[1:], "big") - (
            1 << (8 * len(field) - 1) if first & 0x40 else 0
        )
    digits = field.strip(b" \0").partition(b"\0")[0].rstrip(b" ")
    if not digits:
        return 0
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise LayerError(f"the {what} field is not a number: {field!r}")
    return int(digits, 8)


def _natural(field: bytes, what: str) -> int:
    value = number(field, what)
    if value < 0:
        raise LayerError(f"the {what} field is negative")
    return value


def _fits(value: int, what: str, limit: int = 0xFFFFFFFF) -> int:
    if not 0 <= value <= limit:
        raise LayerError(f"the {what} {value} is out of range")
    return value


def _seconds(value: int) -> int:
    if not -_TIME_MAX < value < _TIME_MAX:
        raise LayerError(f"the time {value} is out of range")
    return value


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The records ("<length> <key>=<value>\\n") of an extended header."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 21)
        digits = data[at:space] if space > 0 else b""
        end = at + int(digits) if digits.isdigit() else 0
        if not 0 < space < end <= len(data) or data[end - 1] != 0x0A:
            raise LayerError("an extended header is malformed")
        key, separator, value = data[space + 1 : end - 1].partition(b"=")
        if not separator or not key:
            raise LayerError("an extended header is malformed")
        _add_record(records, key, value)
        at = end
    return records


def _add_record(records: dict[bytes, bytes], key: bytes, value: bytes) -> None:
    # The map of the sparse format 0.0 repeats its keys; told as in format 0.1 it is one record.
    if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
        collected = records.get(b"GNU.sparse.map")
        records[b"GNU.sparse.map"] = value if collected is None else collected + b"," + value
        return
    if b"\0" in value and key in (b"path", b"linkpath", b"GNU.sparse.name"):
        raise LayerError(f"the {display(key)} in an extended header contains a NUL")
    records[key] = value


def decimal(value: bytes, what: str) -> int:
    """A natural number in decimal digits."""
    if not value.isdigit() or len(value) > 20:
        raise LayerError(f"the {what} in an extended header is not a number: {value[:40]!r}")
    return int(value)


def pax_time(value: bytes) -> tuple[int, int]:
    """Seconds and nanoseconds of a decimal time. Digits beyond the ninth are cut, never rounded."""
    digits = value.removeprefix(b"-")
    whole, _, fraction = digits.partition(b".")
    if not (whole + fraction).isdigit() or len(whole) > 20:
        raise LayerError(f"the mtime in an extended header is not a time: {value[:40]!r}")
    nanoseconds = int(fraction[:_NANO_DIGITS].ljust(_NANO_DIGITS, b"0"))
    seconds = int(whole or b"0")
    if digits is not value and len(digits) != len(value):
        total = -(seconds * _NANO + nanoseconds)
        seconds, nanoseconds = divmod(total, _NANO)
    return _seconds(seconds), nanoseconds


def apply_pax(header: Header, records: dict[bytes, bytes]) -> Header:
    """The header with what extended headers say in its place. An empty value says nothing."""
    changes: dict[str, object] = {}
    name = records.get(b"GNU.sparse.name") or records.get(b"path")
    if name:
        changes["name"] = name
    if value := records.get(b"linkpath"):
        changes["link"] = value
    if value := records.get(b"mtime"):
        changes["mtime"] = pax_time(value)
    if (value := records.get(b"size")) and header.type not in HEADER_ONLY:
        changes["size"] = decimal(value, "size")
    if value := records.get(b"uid"):
        changes["uid"] = _fits(decimal(value, "uid"), "uid")
    if value := records.get(b"gid"):
        changes["gid"] = _fits(decimal(value, "gid"), "gid")
    return header._replace(**changes) if changes else header  # type: ignore[arg-type]


def xattrs_of(records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Extended attributes in the dialects of star (raw) and libarchive (encoded)."""
    found: dict[bytes, bytes] = {}
    for key, value in records.items():
        if key.startswith(b"LIBARCHIVE.xattr."):
            name = unquote_to_bytes(key.removeprefix(b"LIBARCHIVE.xattr."))
            try:
                found.setdefault(
                    name, base64.b64decode(value + b"=" * (-len(value) % 4), validate=True)
                )
            except (binascii.Error, ValueError):
                raise LayerError(f"the xattr {display(name)} is not base64") from None
    for key, value in records.items():
        if key.startswith(b"SCHILY.xattr."):
            found[key.removeprefix(b"SCHILY.xattr.")] = value
    return found


def old_sparse(block: bytes) -> tuple[Runs, bool, int]:
    """GNU's sparse header: the first runs of data, whether more follow, and the file's size."""
    runs = _old_runs(block, _OLD_SPARSE_OFFSET, _OLD_SPARSE_COUNT)
    return runs, block[_OLD_SPARSE_MORE] != 0, _natural(block[_OLD_SPARSE_SIZE], "real size")


def old_sparse_extension(block: bytes) -> tuple[Runs, bool]:
    """A block of more runs, and whether yet another follows."""
    return _old_runs(block, 0, _EXTENSION_COUNT), block[_EXTENSION_MORE] != 0


def _old_runs(block: bytes, at: int, count: int) -> Runs:
    runs = []
    for _ in range(count):
        offset, length = _OLD_SPARSE.unpack_from(block, at)
        at += _OLD_SPARSE.size
        if offset[0] == 0 or length[0] == 0:
            break
        runs.append((_natural(offset, "sparse offset"), _natural(length, "sparse length")))
    return runs


def pax_sparse(records: dict[bytes, bytes]) -> tuple[Runs, int] | None:
    """The runs and real size that formats 0.0 and 0.1 put in the extended header."""
    if b"GNU.sparse.map" not in records and b"GNU.sparse.numblocks" not in records:
        return None
    numbers = [
        decimal(x, "sparse map") for x in records.get(b"GNU.sparse.map", b"").split(b",") if x
    ]
    if len(numbers) % 2:
        raise LayerError("the sparse map is malformed")
    size = records.get(b"GNU.sparse.size") or records.get(b"GNU.sparse.realsize", b"")
    return list(zip(numbers[::2], numbers[1::2], strict=True)), decimal(size, "sparse size")


def check_runs(runs: Runs, size: int, packed: int) -> Runs:
    """The runs without empty ones; they must lie in order in the file and account for its data."""
    at = total = 0
    for offset, length in runs:
        if offset < at or offset + length > size:
            raise LayerError("the sparse map is malformed")
        at = offset + length
        total += length
    if total != packed:
        raise LayerError("the sparse map does not fit the data")
    return [run for run in runs if run[1]]
