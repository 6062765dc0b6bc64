"""OCI runtimes: which are installed, which of them works here, and the calls lamina makes.

Whether a runtime works depends on cgroups, kernel, namespaces and the runtime's version in ways
that only a try can tell. So a runtime is probed once, with a container that has everything but a
program: the runtime works if it gets far enough to miss that program. The answer is kept in a file.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unionfs.syscalls import mount, umount

from .bundle import Document, Surroundings, runtime_config
from .errors import FAILED, NOT_EXECUTABLE, NOT_FOUND, ContainerError, RuntimeUnavailable
from .users import User

RUNTIMES = ("runc", "crun")

_log = logging.getLogger(__name__)

_CGROUPS = Path("/sys/fs/cgroup")
_PROBE_PROGRAM = "/lamina-probe-has-no-program"
_LOG_MAX = 1 << 20


@dataclass(frozen=True)
class Runtime:
    """One installed runtime."""

    name: str
    path: Path

    def identity(self) -> str:
        """What changes when another version is installed; cheaper than asking for the version."""
        info = self.path.stat()
        return f"{self.path}:{info.st_size}:{info.st_mtime_ns}"

    def version(self) -> str:
        """The first line of what ``--version`` prints."""
        done = subprocess.run(
            [self.path, "--version"], capture_output=True, text=True, check=False, timeout=10
        )
        return done.stdout.partition("\n")[0].strip() or "unknown version"


@dataclass(frozen=True)
class Streams:
    """Descriptors that become the standard streams of a container."""

    stdin: int
    stdout: int
    stderr: int


class Instance:
    """One container of a runtime. ``directory`` is its bundle; the state is kept in it as well."""

    def __init__(self, runtime: Runtime, directory: Path, identity: str, search_path: str) -> None:
        self._runtime = runtime
        self._directory = directory
        self._identity = identity
        self._environment = {"PATH": search_path}
        self._log = directory / "runtime.log"

    def create(self, config: Document, streams: Streams, console: str | None) -> int:
        """Set everything up but do not start the program; the pid of the waiting process.

        ``console`` is the name of a socket in the bundle that receives the terminal, if the
        container is to have one. Raises :class:`ContainerError`.
        """
        (self._directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
        pid_file = self._directory / "pid"
        arguments = ["create", "--bundle", str(self._directory), "--pid-file", str(pid_file)]
        if console is not None:
            arguments += ["--console-socket", console]
        self._call([*arguments, self._identity], streams)
        return int(pid_file.read_text(encoding="ascii"))

    def start(self) -> None:
        """Start the program. Raises :class:`ContainerError`."""
        self._call(["start", self._identity], None)

    def delete(self) -> None:
        """Remove what the runtime keeps of the container; kills it if it still runs."""
        self._call(["delete", "--force", self._identity], None)

    def _call(self, arguments: list[str], streams: Streams | None) -> None:
        self._log.unlink(missing_ok=True)
        done = subprocess.run(
            [
                self._runtime.path,
                *("--root", self._directory / "runtime"),
                *("--log", self._log, "--log-format", "json"),
                *arguments,
            ],
            cwd=self._directory,
            env=self._environment,
            stdin=streams.stdin if streams else subprocess.DEVNULL,
            stdout=streams.stdout if streams else subprocess.DEVNULL,
            stderr=streams.stderr if streams else subprocess.DEVNULL,
            check=False,
        )
        if done.returncode != 0:
            message = self._last_error() or f"{arguments[0]} failed without a message"
            raise ContainerError(f"{self._runtime.name}: {message}", classify(message))

    def _last_error(self) -> str:
        """The message of the last error in the runtime's log; empty if there is none."""
        try:
            with self._log.open("rb") as stream:
                lines = stream.read(_LOG_MAX).splitlines()
        except FileNotFoundError:
            return ""
        for line in reversed(lines):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and record.get("level") in ("error", "fatal"):
                return str(record.get("msg", ""))
        return ""


def classify(message: str) -> int:
    """The exit code for a runtime's error: whether it was about the program, and how."""
    text = message.lower()
    if "exec: " not in text and "executable" not in text:
        return FAILED
    if "not found" in text or "no such file or directory" in text:
        return NOT_FOUND
    if "permission denied" in text or "not permitted" in text or "is a directory" in text:
        return NOT_EXECUTABLE
    return FAILED


def installed(search_path: str) -> Iterator[Runtime]:
    """The runtimes that are found in the directories of ``search_path``, best first."""
    for name in RUNTIMES:
        path = shutil.which(name, path=search_path)
        if path is not None:
            yield Runtime(name, Path(path))


def look_around(*, in_user_namespace: bool, has_tty_group: bool) -> Surroundings:
    """What this process can give to a container."""
    return Surroundings(
        in_user_namespace=in_user_namespace,
        has_tty_group=has_tty_group,
        unified_cgroups=(_CGROUPS / "cgroup.controllers").exists(),
        bounding=_bounding_set(),
    )


def _bounding_set() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapBnd:"):
                return int(line.split()[1], 16)
    return 0


def hide_unified_cgroups(runtime: Runtime) -> None:
    """Make this mount namespace, which must be a private one, a place where crun works.

    It refuses the hybrid arrangement of cgroups, in which a unified hierarchy lies beside the
    others: that one is hidden from it.
    """
    unified = _CGROUPS / "unified"
    if runtime.name != "crun" or not (unified / "cgroup.procs").exists():
        return
    try:
        umount(os.fsencode(unified))
    except OSError:
        # In a user namespace, mounts made outside can be covered but not taken away.
        mount(b"none", os.fsencode(unified), b"tmpfs", 0, b"mode=755")


@dataclass(frozen=True)
class Finder:
    """Finds a runtime that works for this user in these ``surroundings``.

    ``cache`` is the file with earlier answers, kept under ``key``; ``scratch`` is a directory to
    probe in. ``prepare`` is called before a runtime is used. All of it must be done where the
    container will be: in the supervisor's namespaces.
    """

    cache: Path
    scratch: Path
    search_path: str
    surroundings: Surroundings
    key: str
    prepare: Callable[[Runtime], None]

    def find(self) -> Runtime:
        """A runtime that works. Raises :class:`RuntimeUnavailable`, saying why each does not."""
        candidates = list(installed(self.search_path))
        known = self._read().get(self.key)
        for runtime in candidates:
            if runtime.identity() == known:
                self.prepare(runtime)
                return runtime
        return self._probe_all(candidates)

    def forget(self) -> None:
        """Ask again next time: the runtime failed although it had worked before."""
        answers = self._read()
        if answers.pop(self.key, None) is not None:
            self._write(answers)

    def _probe_all(self, candidates: list[Runtime]) -> Runtime:
        reasons = []
        for runtime in candidates:
            reason = self._probe(runtime)
            if not reason:
                self._write({**self._read(), self.key: runtime.identity()})
                return runtime
            reasons.append(f"{runtime.path} does not work here: {reason}")
        if not candidates:
            raise RuntimeUnavailable(
                "no OCI runtime is installed: install the package runc or crun"
            )
        raise RuntimeUnavailable("; ".join(reasons))

    def _probe(self, runtime: Runtime) -> str:
        """Why the runtime does not work; empty if it does."""
        self.prepare(runtime)
        directory = self.scratch / f"probe-{runtime.name}"
        directory.mkdir()
        nowhere = os.open(os.devnull, os.O_RDWR)
        try:
            (directory / "rootfs").mkdir()
            instance = Instance(runtime, directory, f"lamina-probe-{os.getpid()}", self.search_path)
            instance.create(self._probe_config(directory), Streams(nowhere, nowhere, nowhere), None)
        except ContainerError as error:
            return "" if error.code == NOT_FOUND else str(error)
        except OSError as error:
            return f"{error.strerror}"
        finally:
            os.close(nowhere)
            shutil.rmtree(directory)
        instance.delete()
        return "it started a program that does not exist"

    def _probe_config(self, directory: Path) -> Document:
        return runtime_config(
            rootfs=directory / "rootfs",
            args=[_PROBE_PROGRAM],
            env=[],
            working_dir="/",
            user=User(0, 0),
            tty=False,
            hostname="probe",
            network="none",
            read_only=False,
            files=None,
            surroundings=self.surroundings,
            cgroup=None,
        )

    def _read(self) -> dict[str, str]:
        """The earlier answers. A file that cannot be read is as good as none."""
        try:
            answers = json.loads(self.cache.read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("%s: %s; runtimes are probed again", self.cache, error)
            return {}
        return answers if isinstance(answers, dict) else {}

    def _write(self, answers: dict[str, str]) -> None:
        temporary = self.cache.with_name(f"{self.cache.name}.{os.getpid()}")
        temporary.write_text(json.dumps(answers), encoding="utf-8")
        temporary.replace(self.cache)
