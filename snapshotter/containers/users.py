"""Who a container's process runs as: ``user[:group]`` looked up in the image's own files.

The rules are those of Docker: names come before numbers, a number needs no entry, and the
supplementary groups are those that list the user, unless a group was named.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .errors import ContainerError

ID_MAX = 2**31 - 1


@dataclass(frozen=True)
class User:
    """A resolved user; ``groups`` are the supplementary ones."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def resolve(text: str, passwd: bytes, group: bytes) -> User:
    """The user that ``text`` names, given the contents of /etc/passwd and /etc/group.

    An empty ``text`` is root. Raises :class:`ContainerError` for names without an entry and for
    numbers out of range.
    """
    wanted, colon, wanted_group = text.partition(":")
    name, uid, gid, home = _find_user(wanted or "0", passwd)
    if colon and wanted_group:
        return User(uid, _find_group(wanted_group, group), (), home)
    groups = tuple(dict.fromkeys(number for number, names in _groups(group) if name in names))
    return User(uid, gid, groups if name else (), home)


def _find_user(wanted: str, passwd: bytes) -> tuple[str, int, int, str]:
    """(name, uid, gid, home) of the first entry with that name, or else with that number."""
    entries = list(_users(passwd))
    for name, uid, gid, home in entries:
        if name == wanted:
            return name, uid, gid, home
    if not wanted.isdecimal():
        raise ContainerError(f"unable to find user {wanted}: no matching entries in passwd file")
    number = _number(wanted, "user")
    for name, uid, gid, home in entries:
        if uid == number:
            return name, uid, gid, home
    return "", number, 0, "/"


def _find_group(wanted: str, group: bytes) -> int:
    for fields in _lines(group):
        if fields[0] == wanted and len(fields) > 2 and fields[2].isdecimal():
            return _number(fields[2], "group")
    if not wanted.isdecimal():
        raise ContainerError(f"unable to find group {wanted}: no matching entries in group file")
    return _number(wanted, "group")


def _number(text: str, what: str) -> int:
    # The length first: int() of a very long text takes very long.
    if len(text) > 10 or int(text) > ID_MAX:
        raise ContainerError(f"{what} id {text[:20]} is out of range: at most {ID_MAX} is possible")
    return int(text)


def _users(passwd: bytes) -> Iterator[tuple[str, int, int, str]]:
    for fields in _lines(passwd):
        if len(fields) >= 6 and fields[2].isdecimal() and fields[3].isdecimal():
            uid, gid = _number(fields[2], "user"), _number(fields[3], "group")
            yield fields[0], uid, gid, fields[5] or "/"


def _groups(group: bytes) -> Iterator[tuple[int, list[str]]]:
    for fields in _lines(group):
        if len(fields) >= 4 and fields[2].isdecimal():
            yield _number(fields[2], "group"), fields[3].split(",")


def _lines(data: bytes) -> Iterator[list[str]]:
    """The colon-separated fields of each line; comments, blanks and NIS entries left out."""
    for line in data.decode("utf-8", "surrogateescape").splitlines():
        text = line.strip()
        if text and text[0] not in "#+-":
            yield text.split(":")
