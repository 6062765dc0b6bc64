"""Reading what a running container has changed: processes paused, writes written back.

Processes are paused by freezing their cgroup (Documentation/admin-guide/cgroup-v1/
freezer-subsystem.rst; cgroup-v2.rst, "cgroup.freeze"), as ``runc pause`` does; a runtime would not
find them from outside the supervisor's pid namespace. SIGSTOP is no substitute: the container sees
it and may undo it, and processes that are starting escape it. Only a privileged container has a
cgroup of its own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from unionfs.locks import lock_within

from ..errors import Conflict
from ..store import Container
from .errors import ContainerError
from .supervisor import cgroup_name

_log = logging.getLogger(__name__)

_CGROUPS = Path("/sys/fs/cgroup")
_LOCK = "pause"
_PATIENCE_SECONDS = 10.0
_OTHERS_PATIENCE_SECONDS = 60.0
_LOOK_SECONDS = 0.005


class CannotPause(ContainerError):
    """The processes of a container cannot be paused here."""


class _Freezer(NamedTuple):
    """The files that freeze a cgroup: what to write where, and what says that it is done."""

    control: Path
    freeze: str
    thaw: str
    state: Path
    frozen: str

    def is_frozen(self) -> bool:
        """Whether all processes stand still."""
        return self.frozen in self.state.read_text(encoding="ascii").splitlines()


def _freezers(name: str) -> Iterator[_Freezer]:
    old = _CGROUPS / "freezer" / name / "freezer.state"
    yield _Freezer(old, "FROZEN", "THAWED", old, "FROZEN")
    for place in (_CGROUPS, _CGROUPS / "unified"):
        directory = place / name
        yield _Freezer(
            directory / "cgroup.freeze", "1", "0", directory / "cgroup.events", "frozen 1"
        )


@contextmanager
def paused(container: Container) -> Iterator[None]:
    """Let the processes of a container stand still, if it runs, until the end of the block.

    They go on even if this process is killed. Raises :class:`CannotPause`, and :class:`Conflict`
    if another process has paused them for a minute.
    """
    if container.status != "running":
        yield
        return
    name = cgroup_name(container.id)
    freezer = next((one for one in _freezers(name) if one.control.exists()), None)
    if freezer is None:
        raise CannotPause(
            f"container {container.short_id} cannot be paused: only a container that root runs "
            "has a cgroup that can be frozen"
        )
    lock = os.open(container.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not lock_within(lock, fcntl.LOCK_EX, _OTHERS_PATIENCE_SECONDS):
            raise Conflict(f"container {container.short_id} is paused by another process")
        with _thawed_afterwards(freezer):
            _freeze(container, freezer)
            yield
    finally:
        os.close(lock)


def _freeze(container: Container, freezer: _Freezer) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    try:
        while True:
            freezer.control.write_text(freezer.freeze, encoding="ascii")
            if freezer.is_frozen():
                return
            if time.monotonic() > deadline:
                raise CannotPause(
                    f"the processes of container {container.short_id} do not stand still"
                )
            time.sleep(_LOOK_SECONDS)
    except (FileNotFoundError, ProcessLookupError):
        _log.debug("container %s has ended meanwhile", container.short_id)


@contextmanager
def _thawed_afterwards(freezer: _Freezer) -> Iterator[None]:
    """Thaw a cgroup at the end of the block, or of this process, whatever ends it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(writing)
            # Signals from a terminal are for the process that is being waited for.
            os.setsid()
            os.read(reading, 1)
            freezer.control.write_text(freezer.thaw, encoding="ascii")
        finally:
            os._exit(0)
    os.close(reading)
    try:
        yield
    finally:
        os.close(writing)
        os.waitpid(child, 0)


def write_back(container: Container, search_path: str) -> None:
    """Have the kernel hand on what programs have written to files that they still have open.

    An ordinary user must call it before entering a user namespace. Where it fails, the log says so:
    such files may then look older than they are.
    """
    if container.status != "running" or container.pid is None:
        return
    command = ["sync", "--file-system", f"/proc/{container.pid}/root"]
    if os.geteuid() != 0:
        # Only from inside the user namespace in which it was made may the mount be entered.
        inside = ["nsenter", f"--target={container.pid}", "--user", "--preserve-credentials", "--"]
        command = inside + command
    environment = {"PATH": search_path}
    program = shutil.which(command[0], path=search_path) or command[0]
    try:
        done = subprocess.run(
            command,
            executable=program,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:
        _log.warning("what container %s is writing: %s", container.short_id, error)
        return
    if done.returncode != 0 and _is_there(container.pid):
        _log.warning("what container %s is writing: %s", container.short_id, done.stderr.strip())


def _is_there(pid: int) -> bool:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, 0)
        return True
    return False
