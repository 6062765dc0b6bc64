"""User namespaces: how an ordinary user becomes root over files and mounts of their own.

With subordinate ids (``/etc/subuid``, ``/etc/subgid``, newuidmap and newgidmap) the namespace has
a whole range of ids; without, only one, the user's own, which is root inside.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from unionfs.syscalls import CLONE_NEWUSER, unshare

from .errors import ContainerError

_ALL_IDS = 2**32 - 1

Ranges = tuple[tuple[int, int, int], ...]
"""(first id inside, first id outside, count), as in ``/proc/PID/uid_map``."""


@dataclass(frozen=True)
class Mapping:
    """Which ids a user namespace has."""

    uids: Ranges
    gids: Ranges

    @property
    def is_single(self) -> bool:
        """Whether root is the only id inside."""
        return sum(count for _, _, count in self.uids) == 1

    def has_uid(self, uid: int) -> bool:
        """Whether ``uid`` exists inside."""
        return _contains(self.uids, uid)

    def has_gid(self, gid: int) -> bool:
        """Whether ``gid`` exists inside."""
        return _contains(self.gids, gid)


def _contains(ranges: Ranges, number: int) -> bool:
    return any(inside <= number < inside + count for inside, _, count in ranges)


def single_mapping() -> Mapping:
    """The mapping that needs no help: the caller is root inside, and nobody else exists."""
    return Mapping(((0, os.geteuid(), 1),), ((0, os.getegid(), 1),))


def current_mapping() -> Mapping | None:
    """The mapping of the user namespace this process is in; None if it is the machine's own."""
    uids, gids = (_read_map(Path(f"/proc/self/{name}")) for name in ("uid_map", "gid_map"))
    return None if uids == ((0, 0, _ALL_IDS),) else Mapping(uids, gids)


def _read_map(path: Path) -> Ranges:
    rows = [tuple(map(int, line.split())) for line in path.read_text("ascii").splitlines()]
    return tuple((row[0], row[1], row[2]) for row in rows)


def best_mapping(
    search_path: str, subuid: Path = Path("/etc/subuid"), subgid: Path = Path("/etc/subgid")
) -> Mapping:
    """The caller's subordinate ids if it has any and the tools to use them, else a single id."""
    single = single_mapping()
    tools = ("newuidmap", "newgidmap")
    if not all(shutil.which(tool, path=search_path) for tool in tools):
        return single
    uids = _subordinate(subuid, os.geteuid())
    gids = _subordinate(subgid, os.geteuid())
    if not uids or not gids:
        return single
    return Mapping(_append(single.uids, uids), _append(single.gids, gids))


def _subordinate(path: Path, uid: int) -> list[tuple[int, int]]:
    """The (first, count) ranges the file gives to the user, by name or number (subuid(5))."""
    owners = {str(uid)}
    with suppress(KeyError):
        owners.add(pwd.getpwuid(uid).pw_name)
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
    ranges = []
    for line in lines:
        fields = line.strip().split(":")
        if len(fields) == 3 and fields[0] in owners and all(map(str.isdecimal, fields[1:])):
            ranges.append((int(fields[1]), int(fields[2])))
    return [(first, count) for first, count in ranges if count]


def _append(ranges: Ranges, more: list[tuple[int, int]]) -> Ranges:
    result = list(ranges)
    for first, count in more:
        inside = sum(length for _, _, length in result)
        result.append((inside, first, count))
    return tuple(result)


def enter(mapping: Mapping, search_path: str) -> None:
    """Move this process, which must have one thread, into a new user namespace as its root.

    Raises :class:`ContainerError` if the kernel or the administrator does not allow it.
    """
    helper = None if mapping.is_single else _Helper(mapping, search_path)
    pid = os.getpid()
    try:
        unshare(CLONE_NEWUSER)
    except OSError as error:
        if helper is not None:
            helper.dismiss()
        raise ContainerError(
            f"cannot create a user namespace: {error.strerror}; "
            "unprivileged user namespaces must be allowed on this machine (sysctl "
            "user.max_user_namespaces, kernel.unprivileged_userns_clone)"
        ) from error
    if helper is not None:
        # The groups stay: one of them may be what allows this user to open /dev/fuse.
        helper.write_maps(pid)
    else:
        _write_single(mapping)


def become_owner(search_path: str) -> None:
    """Become the one to whom the files of this user's containers belong.

    Root is that already; an ordinary user becomes root of a user namespace, where files have the
    owners the containers gave them. Raises :class:`ContainerError`.
    """
    if os.geteuid() != 0:
        enter(best_mapping(search_path), search_path)


def _write_single(mapping: Mapping) -> None:
    # user_namespaces(7): without a capability in the parent, setgroups has to be given up first.
    Path("/proc/self/setgroups").write_text("deny", encoding="ascii")
    for name, ranges in (("uid_map", mapping.uids), ("gid_map", mapping.gids)):
        (inside, outside, count), *_ = ranges
        Path(f"/proc/self/{name}").write_text(f"{inside} {outside} {count}", encoding="ascii")


class _Helper:
    """A child that stays outside: only from there newuidmap and newgidmap have their privilege."""

    def __init__(self, mapping: Mapping, search_path: str) -> None:
        self._ask, ask = os.pipe()[::-1]
        answer, reply = os.pipe()
        self._answer = answer
        self._pid = os.fork()
        if self._pid == 0:
            code = 1
            try:
                os.close(self._ask)
                text = os.read(ask, 32)
                message = _run_map_tools(int(text), mapping, search_path) if text else ""
                os.write(reply, message.encode()[:4000])
                code = 0
            finally:
                os._exit(code)
        os.close(ask)
        os.close(reply)

    def write_maps(self, pid: int) -> None:
        """Have the maps of the process ``pid`` written. Raises :class:`ContainerError`."""
        os.write(self._ask, str(pid).encode())
        message = os.read(self._answer, 4096).decode("utf-8", "replace")
        status = self.dismiss()
        if message or status:
            raise ContainerError(f"cannot use the subordinate ids of this user: {message}")

    def dismiss(self) -> int:
        """Let the child end; its wait status."""
        os.close(self._ask)
        os.close(self._answer)
        return os.waitpid(self._pid, 0)[1]


def _run_map_tools(pid: int, mapping: Mapping, search_path: str) -> str:
    """Write both maps; an empty text, or what went wrong."""
    for tool, ranges in (("newuidmap", mapping.uids), ("newgidmap", mapping.gids)):
        program = shutil.which(tool, path=search_path)
        if program is None:
            return f"{tool} is not installed"
        numbers = [str(number) for line in ranges for number in line]
        done = subprocess.run(
            [program, str(pid), *numbers], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            return done.stderr.strip() or f"{tool} failed with exit code {done.returncode}"
    return ""


def call_inside(mapping: Mapping, search_path: str, action: Callable[[], None]) -> None:
    """Run ``action`` in a child that has entered a user namespace, and wait for it.

    Raises :class:`ContainerError` with the message of whatever the action raised.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        message = "interrupted"
        try:
            enter(mapping, search_path)
            action()
            message = ""
        except Exception as error:
            message = str(error) or type(error).__name__
        finally:
            os.write(writing, message.encode("utf-8", "replace")[:4000])
            os._exit(bool(message))
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        message = answer.read().decode("utf-8", "replace")
    _, status = os.waitpid(child, 0)
    if status:
        raise ContainerError(message or "a helper process was killed")
