"""Looking into a container's root filesystem before anything runs in it.

The look is taken by a child that has changed its root to the mounted filesystem, so no symlink of
an image leads anywhere but into the image.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass

from .errors import NOT_EXECUTABLE, NOT_FOUND, ContainerError
from .userns import Mapping
from .users import User, resolve

_FILE_MAX = 4 << 20
"""The largest /etc/passwd or /etc/group that is read, in bytes."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """Who is ``user``, and can they execute ``program``, searched in ``path`` like a shell does?"""

    user: str
    program: str
    path: str
    working_dir: str


def look(rootfs: bytes, question: Question, mapping: Mapping | None) -> User:
    """The user, once it is clear that the program can be started.

    ``mapping`` is that of the user namespace this process is in, if any. Raises
    :class:`ContainerError` with Docker's exit codes.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = _answer(rootfs, question, mapping)
            with os.fdopen(writing, "wb") as stream:
                stream.write(json.dumps(answer).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        text = stream.read()
    os.waitpid(child, 0)
    if not text:
        raise ContainerError("cannot look into the root filesystem of the container")
    result = json.loads(text)
    if "error" in result:
        raise ContainerError(result["error"], result["code"])
    return User(result["uid"], result["gid"], tuple(result["groups"]), result["home"])


def _answer(rootfs: bytes, question: Question, mapping: Mapping | None) -> dict[str, object]:
    try:
        os.chroot(rootfs)
        os.chdir("/")
        user = resolve(question.user, _read("/etc/passwd"), _read("/etc/group"))
        if mapping is not None:
            user = _within(user, mapping)
        _become(user, mapping)
        _check_program(question)
    except ContainerError as error:
        return {"error": str(error), "code": error.code}
    except OSError as error:
        return {"error": f"root filesystem: {error.filename or ''}: {error.strerror}", "code": 125}
    return {"uid": user.uid, "gid": user.gid, "groups": user.groups, "home": user.home}


def _read(path: str) -> bytes:
    """The contents of a regular file; nothing if there is none."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return b""
        with open(path, "rb") as stream:
            data = stream.read(_FILE_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    if len(data) > _FILE_MAX:
        raise ContainerError(f"{path} of the image is larger than {_FILE_MAX} bytes")
    return data


def _within(user: User, mapping: Mapping) -> User:
    """The user without groups that do not exist in the namespace; itself it must exist."""
    if not mapping.has_uid(user.uid) or not mapping.has_gid(user.gid):
        raise ContainerError(
            f"user {user.uid}:{user.gid} does not exist in this user namespace, which has only "
            f"{'root' if mapping.is_single else 'the subordinate ids of this user'}; "
            "give the user more ids in /etc/subuid and /etc/subgid, and install newuidmap"
        )
    if mapping.is_single:
        # Such a namespace has given up setgroups(2) altogether.
        return User(user.uid, user.gid, (), user.home)
    groups = tuple(number for number in user.groups if mapping.has_gid(number))
    return User(user.uid, user.gid, groups, user.home)


def _become(user: User, mapping: Mapping | None) -> None:
    if mapping is None or not mapping.is_single:
        os.setgroups(user.groups)
        os.setresgid(user.gid, user.gid, user.gid)
        os.setresuid(user.uid, user.uid, user.uid)


def _check_program(question: Question) -> None:
    """Raise :class:`ContainerError`, in the words of runc, unless the program can be executed."""
    program = question.program
    if "/" in program:
        _check_file(program, os.path.join(question.working_dir or "/", program))
        return
    for directory in question.path.split(":"):
        candidate = os.path.join("/", question.working_dir, directory, program)
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return
    raise ContainerError(f'exec: "{program}": executable file not found in $PATH', NOT_FOUND)


def _check_file(program: str, path: str) -> None:
    try:
        mode = os.stat(path).st_mode
    except PermissionError:
        raise ContainerError(f'exec: "{program}": permission denied', NOT_EXECUTABLE) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        message = f'exec: "{program}": stat {program}: {(reason or "").lower()}'
        raise ContainerError(message, NOT_FOUND) from None
    if stat.S_ISDIR(mode):
        raise ContainerError(f'exec: "{program}": is a directory', NOT_EXECUTABLE)
    if not os.access(path, os.X_OK):
        raise ContainerError(f'exec: "{program}": permission denied', NOT_EXECUTABLE)
