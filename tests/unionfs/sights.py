"""What a walk sees of a tree, and what differs between two."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

LONG_AGO = 1_000_000_000 * 10**9
"""What the tests set. All such times are before RECENT, and what time itself sets is after it."""
RECENT = 1_500_000_000 * 10**9

_libc = ctypes.CDLL(None, use_errno=True)


class Sight(NamedTuple):
    """What a walk sees of one file. ``first`` is the first path of the same inode."""

    kind: int
    mode: int
    owner: tuple[int, int]
    links: int
    size: int
    mtime_ns: int
    data: bytes
    xattrs: tuple[tuple[str, bytes], ...]
    first: bytes


def look(root: bytes) -> tuple[dict[bytes, Sight], dict[bytes, int]]:
    """Everything a walk sees, and inode numbers, by path."""
    found, numbers = {}, {}
    device = os.lstat(root).st_dev
    firsts: dict[int, bytes] = {}
    found[b""] = see(root, b"", firsts)
    waiting = [b""]
    while waiting:
        above = waiting.pop()
        with os.scandir(os.path.join(root, above)) as entries:
            listed = sorted((entry.name, entry.inode()) for entry in entries)
        for name, d_ino in listed:
            path = os.path.join(above, name)
            assert path not in found, f"listed twice: {path!r}"
            info = os.lstat(os.path.join(root, path))
            assert (info.st_ino, info.st_dev) == (d_ino, device), path
            found[path] = see(os.path.join(root, path), path, firsts)
            numbers[path] = info.st_ino
            if stat.S_ISDIR(info.st_mode):
                waiting.append(path)
    return found, numbers


def see(place: bytes, path: bytes, firsts: dict[int, bytes]) -> Sight:
    """One file. Times that a test did not set are all the same."""
    info = os.lstat(place)
    kind = stat.S_IFMT(info.st_mode)
    data = b""
    if kind == stat.S_IFREG:
        with open(place, "rb") as file:
            data = file.read()
        assert len(data) == info.st_size, path
    elif kind == stat.S_IFLNK:
        data = os.readlink(place)
    names = os.listxattr(place, follow_symlinks=False)
    xattrs = {name: os.getxattr(place, name, follow_symlinks=False) for name in names}
    is_directory = kind == stat.S_IFDIR
    return Sight(
        kind,
        stat.S_IMODE(info.st_mode),
        (info.st_uid, info.st_gid),
        info.st_nlink,
        0 if is_directory else info.st_size,
        min(info.st_mtime_ns, RECENT),
        data,
        tuple(sorted(xattrs.items())),
        path if is_directory else firsts.setdefault(info.st_ino, path),
    )


def entries_read(fd: int, size: int) -> list[tuple[bytes, int]]:
    """(name, offset after it) of what getdents64(2) reads with ``size`` bytes of buffer.

    Without the dots: a buffer that holds nothing else is read over. Nothing only at the end.
    """
    buffer = ctypes.create_string_buffer(size)
    while (count := _libc.getdents64(fd, buffer, size)) > 0:
        found = list(_entries(buffer.raw[:count]))
        if found:
            return found
    if count < 0 and ctypes.get_errno() != errno.ENOENT:  # that of a directory that was removed
        raise OSError(ctypes.get_errno(), "getdents64")
    return []


def _entries(data: bytes) -> Iterator[tuple[bytes, int]]:
    at = 0
    while at < len(data):
        offset = int.from_bytes(data[at + 8 : at + 16], "little")
        length = int.from_bytes(data[at + 16 : at + 18], "little")
        name = data[at + 19 : at + length].split(b"\0", 1)[0]
        if name not in (b".", b".."):
            yield name, offset
        at += length


def no_differences(union: dict[bytes, Sight], plain: dict[bytes, Sight]) -> None:
    """Fails with (path, what of it, the union's, the plain directory's) of whatever differs."""
    found: list[tuple[bytes, str, object, object]] = []
    for path in sorted(union.keys() | plain.keys()):
        one, other = union.get(path), plain.get(path)
        if one is None or other is None:
            found.append((path, "existence", one, other))
        elif one != other:
            pairs = zip(Sight._fields, one, other, strict=True)
            found.extend((path, *pair) for pair in pairs if pair[1] != pair[2])
    assert not found, found


def without_directory_links(seen: dict[bytes, Sight]) -> dict[bytes, Sight]:
    return {
        path: one._replace(links=0) if one.kind == stat.S_IFDIR else one
        for path, one in seen.items()
    }
