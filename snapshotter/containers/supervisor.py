"""The process that makes a container, waits for it, and takes it down.

It is the first process of a pid namespace, with a mount namespace of its own and, for ordinary
users, a user namespace. Its end is the end of every process it started and every mount it made,
so nothing is left over even if it is killed. It ends when its caller does.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from unionfs import mounting
from unionfs.errors import UnionError
from unionfs.syscalls import CLONE_NEWNS, CLONE_NEWPID, MS_REC, MS_SLAVE, mount, unshare

from . import bundle, skeleton
from .errors import FAILED, ContainerError
from .inside import Question, look
from .relay import Console, Relay
from .runtime import Finder, Instance, Streams, hide_unified_cgroups, look_around
from .userns import Mapping, current_mapping, enter

if TYPE_CHECKING:
    from ..store import ContainerConfig

_log = logging.getLogger(__name__)


FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
)
"""The signals that the caller's process passes on to the container."""


def cgroup_name(identity: str) -> str:
    """The name of a privileged container's cgroup, in every hierarchy."""
    return f"lamina-{identity}"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the supervisor needs to know. It never touches the store.

    ``mapping`` is the user namespace to enter, if any. ``union`` is what to mount, or None if the
    caller has mounted it already. ``rootfs`` is where.
    """

    identity: str
    config: ContainerConfig
    directory: Path
    rootfs: Path
    union: mounting.MountOptions | None
    mapping: Mapping | None
    runtime_cache: Path
    search_path: str
    streams: Streams


def fork_supervisor(plan: Plan) -> tuple[int, socket.socket]:
    """Start the supervisor: the pid to wait for, and the channel to it.

    Messages are JSON objects, one in each packet. From the supervisor: ``supervisor`` (its pid),
    ``created`` (the pid of the container), ``started``, and at the end ``exited`` (the code) or
    ``failed`` (the message) with ``code``. To it: ``go`` as the answer to ``created``, and
    ``signal`` (a number). Closing the channel ends the container and the supervisor.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid != 0:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        os.setsid()
        for number in FORWARDED:
            # Not SIG_IGN, which the container's program would inherit.
            signal.signal(number, _ignore)
        code = _isolate(plan, theirs)
    except BaseException as error:
        _fail(theirs, error)
    finally:
        os._exit(code)


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Signals come through the channel."""


def _isolate(plan: Plan, channel: socket.socket) -> int:
    """Make the namespaces, fork the supervisor proper into them, and wait for it."""
    if plan.mapping is not None:
        enter(plan.mapping, plan.search_path)
    unshare(CLONE_NEWNS | CLONE_NEWPID)
    child = os.fork()
    if child != 0:
        channel.close()
        os.waitpid(child, 0)
        return 0
    code = 1
    try:
        _Supervisor(plan, channel).run()
        code = 0
    except BaseException as error:
        _fail(channel, error)
    finally:
        os._exit(code)


def _fail(channel: socket.socket, error: BaseException) -> None:
    _log.debug("the supervisor failed", exc_info=error)
    code = error.code if isinstance(error, ContainerError) else FAILED
    if isinstance(error, OSError):
        names = [os.fsdecode(error.filename)] if error.filename else []
        message = ": ".join([*names, error.strerror or str(error)])
    elif isinstance(error, (ContainerError, UnionError)):
        message = str(error)
    else:
        message = f"internal error in the supervisor: {type(error).__name__}: {error}"
    _send(channel, {"failed": message, "code": code})


def _send(channel: socket.socket, message: dict[str, Any]) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except OSError as error:
        _log.debug("nobody listens: %s", error)


class _Supervisor:
    """The life of one container, from an empty mount namespace to its removal."""

    def __init__(self, plan: Plan, channel: socket.socket) -> None:
        self._plan = plan
        self._channel = channel
        # Not only the namespace of the plan: the caller may be in one as well.
        self._mapping = current_mapping()
        self._outside = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
        """The caller's /proc, which shows processes by the pids everybody else knows."""

    def run(self) -> None:
        """Do everything; the end is reported when all of it has been undone again."""
        plan = self._plan
        _send(self._channel, {"supervisor": int(os.readlink("self", dir_fd=self._outside))})
        mount(b"none", b"/", b"", MS_REC | MS_SLAVE, b"")
        mount(b"proc", b"/proc", b"proc", 0, b"")
        daemon = None
        if plan.union is not None:
            daemon = mounting.start(plan.union, plan.directory / "mount.log")
        try:
            code = self._run_container()
        finally:
            os.chdir("/")
            if daemon is not None:
                # Only an orderly end writes out what the kernel still holds for the daemon.
                mounting.unmount(os.fsencode(plan.rootfs))
                _wait_for(daemon)
        _send(self._channel, {"exited": code})

    def _run_container(self) -> int:
        plan = self._plan
        config = plan.config
        args = [*config.entrypoint, *config.cmd]
        hostname = skeleton.host_name(plan.identity, asked=config.hostname, network=config.network)
        path = dict(item.partition("=")[::2] for item in config.env).get("PATH")
        question = Question(
            user=config.user,
            program=args[0],
            path=bundle.DEFAULT_PATH if path is None else path,
            working_dir=config.working_dir,
        )
        user = look(os.fsencode(plan.rootfs), question, self._mapping)
        surroundings = look_around(
            in_user_namespace=self._mapping is not None,
            has_tty_group=self._mapping is None or self._mapping.has_gid(bundle.TTY_GROUP),
        )
        finder = Finder(
            cache=plan.runtime_cache,
            scratch=plan.directory,
            search_path=plan.search_path,
            surroundings=surroundings,
            key=_cache_key(self._mapping),
            prepare=hide_unified_cgroups,
        )
        document = bundle.runtime_config(
            rootfs=plan.rootfs,
            args=args,
            env=bundle.environment(config, user, hostname),
            working_dir=config.working_dir,
            user=user,
            tty=config.tty,
            hostname=hostname,
            network=config.network,
            read_only=config.read_only,
            files=plan.directory / "etc",
            surroundings=surroundings,
            cgroup=f"/{cgroup_name(plan.identity)}" if self._mapping is None else None,
        )
        instance = Instance(finder.find(), plan.directory, plan.identity, plan.search_path)
        try:
            return self._run_instance(instance, document)
        except ContainerError as error:
            if error.code == FAILED:
                finder.forget()
            raise
        finally:
            shutil.rmtree(plan.directory / "runtime", ignore_errors=True)

    def _run_instance(self, instance: Instance, document: bundle.Document) -> int:
        console = Console(self._plan.directory) if self._plan.config.tty else None
        try:
            relay = self._create(instance, document, console)
            try:
                _send(self._channel, {"created": self._outside_pid(relay.pid)})
                early = self._wait_for_go()
                instance.start()
                _send(self._channel, {"started": True})
                for number in early:
                    relay.kill(number)
                status = relay.wait()
            finally:
                instance.delete()
        finally:
            if console is not None:
                console.close()
        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + (status & 0x7F)

    def _wait_for_go(self) -> list[int]:
        """Wait until the caller is ready; the signals it has passed on before."""
        early: list[int] = []
        while packet := self._channel.recv(4096):
            message = json.loads(packet)
            if "go" in message:
                return early
            early.append(int(message["signal"]))
        raise ContainerError("interrupted before the container started")

    def _create(
        self, instance: Instance, document: bundle.Document, console: Console | None
    ) -> Relay:
        plan = self._plan
        nowhere = os.open(os.devnull, os.O_RDWR)
        given = plan.streams
        stdin = given.stdin if plan.config.interactive else nowhere
        streams = (
            Streams(nowhere, nowhere, nowhere)
            if console is not None
            else Streams(stdin, given.stdout, given.stderr)
        )
        pid = instance.create(document, streams, Console.NAME if console is not None else None)
        return Relay(
            pid=pid,
            channel=self._channel,
            terminal=console.receive() if console is not None else None,
            stdin=given.stdin if plan.config.interactive else None,
            stdout=given.stdout,
        )

    def _outside_pid(self, pid: int) -> int:
        """The pid by which the caller knows a process of this namespace."""
        pidfd = os.pidfd_open(pid)
        try:
            # A procfs shows a pidfd's process by the pid it has in that procfs.
            fd = os.open(f"self/fdinfo/{pidfd}", os.O_RDONLY, dir_fd=self._outside)
            with os.fdopen(fd, encoding="ascii") as lines:
                return next((int(line[4:]) for line in lines if line.startswith("Pid:")), 0)
        finally:
            os.close(pidfd)


def _cache_key(mapping: Mapping | None) -> str:
    """For whom the answer holds that a runtime works."""
    if mapping is None:
        kind = "privileged"
    else:
        kind = "single id" if mapping.is_single else "subordinate ids"
    uid = mapping.uids[0][1] if mapping is not None else os.geteuid()
    return f"uid {uid}, {kind}, kernel {os.uname().release}"


def _wait_for(pid: int) -> None:
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        _log.debug("process %d has ended already", pid)
