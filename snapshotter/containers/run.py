"""Running a container: the part in the caller's process, which keeps the record and waits."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from unionfs import mounting
from unionfs.errors import MountError
from unionfs.locks import lock_within
from unionfs.options import TreeOptions

from ..errors import Conflict, NoSuchContainer
from ..store import Container, ContainerConfig, Image, Store
from . import skeleton
from .errors import FAILED, ContainerError
from .runtime import Streams
from .supervisor import FORWARDED, Plan, cgroup_name, fork_supervisor
from .userns import Mapping, best_mapping, call_inside, single_mapping

_log = logging.getLogger(__name__)

_KILLED = 128 + signal.SIGKILL
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_CGROUPS = Path("/sys/fs/cgroup")
_RUNTIME_CACHE = "runtimes.json"
_KILL_PATIENCE_SECONDS = 10.0
_END_PATIENCE_SECONDS = 30.0


class Interrupted(ContainerError):
    """A signal came before the container had started; ``code`` is 128 and its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}", 128 + number)


@dataclass(frozen=True)
class Route:
    """How this process may mount.

    ``mapping`` is the user namespace to do it in, None for a privileged process. ``outside``: the
    union is mounted before that namespace is entered, by the program fusermount3, because this
    process may not open /dev/fuse.
    """

    mapping: Mapping | None
    outside: bool


def choose_route(search_path: str) -> Route:
    """The best way this process has. Trying it shows whether it works."""
    if mounting.may_mount_directly():
        return Route(None, outside=False)
    if os.access("/dev/fuse", os.R_OK | os.W_OK):
        return Route(best_mapping(search_path), outside=False)
    # A mount made by fusermount3 is for its user alone, so other ids would be of no use.
    return Route(single_mapping(), outside=True)


def run(
    store: Store,
    image: Image,
    *,
    image_name: str,
    config: ContainerConfig,
    name: str | None,
    streams: Streams,
    search_path: str,
    on_start: Callable[[], None] = lambda: None,
) -> int:
    """Run a new container until it ends; its exit code, 128 and more for a signal.

    ``search_path`` is where programs are looked for. ``on_start`` is called when the container's
    program runs. Signals are passed on to it meanwhile. A container that did not start is removed.
    Raises :class:`ContainerError` and whatever the store, a mount or a system call raises.
    """
    keeper = _Keeper(store, choose_route(search_path), search_path)
    with keeper.forwarding_signals():
        try:
            container = store.create_container(
                image, image_name=image_name, config=config, name=name
            )
            keeper.container = container
            keeper.check_interrupt()
            code = keeper.run(_lowers(store, image, container), streams, on_start)
        except BaseException:
            if not keeper.has_started:
                keeper.remove()
            raise
        if config.auto_remove:
            keeper.remove()
    return code


def _lowers(store: Store, image: Image, container: Container) -> tuple[bytes, ...]:
    """The layers below the container's upper: the image's, and the mount points it lacks."""
    config = container.config
    hostname = skeleton.host_name(container.id, asked=config.hostname, network=config.network)
    skeleton.make_files(container.directory / "etc", hostname=hostname, network=config.network)
    skeleton.make_skeleton(container.skeleton)
    return tuple(store.lowers(container, image))


class _Keeper:
    """Keeps the record of one container while its supervisor works."""

    def __init__(self, store: Store, route: Route, search_path: str) -> None:
        self._store = store
        self._route = route
        self._search_path = search_path
        self._channel: socket.socket | None = None
        self._supervisor: int | None = None
        self._is_forwarding = False
        self._interrupted_by: int | None = None
        self.container: Container | None = None
        self.has_started = False

    @contextmanager
    def forwarding_signals(self) -> Iterator[None]:
        """Pass signals on; while nothing has started, remember one that asks for the end.

        The handler raises nothing: what it interrupts may be anything, and is always finished.
        """

        def handle(number: int, _frame: FrameType | None) -> None:
            channel = self._channel
            if self._is_forwarding and channel is not None:
                _send(channel, {"signal": number})
            elif number in _ENDING and self._interrupted_by is None:
                self._interrupted_by = number
                if channel is not None:
                    channel.shutdown(socket.SHUT_RD)  # wakes up who listens

        previous = {number: signal.signal(number, handle) for number in FORWARDED}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def check_interrupt(self) -> None:
        """Raise :class:`Interrupted` if a signal asked for the end before anything started."""
        if self._interrupted_by is not None:
            raise Interrupted(self._interrupted_by)

    @property
    def _made(self) -> Container:
        assert self.container is not None
        return self.container

    @property
    def _rootfs(self) -> Path:
        return self._made.directory / "rootfs"

    def run(self, lowers: tuple[bytes, ...], streams: Streams, on_start: Callable[[], None]) -> int:
        """Run the container, and leave nothing mounted or locked behind."""
        self._rootfs.mkdir()
        union = self._union(lowers)
        lock = self._store.hold_container(self._made)
        try:
            if not self._route.outside:
                return self._supervise(self._plan(union, streams), on_start)
            self._mount_outside(union)
            try:
                return self._supervise(self._plan(None, streams), on_start)
            finally:
                mounting.unmount(os.fsencode(self._rootfs))
        finally:
            os.close(lock)

    def _mount_outside(self, union: mounting.MountOptions) -> None:
        try:
            mounting.start(union, self._made.directory / "mount.log")
        except MountError as error:
            # The usual fusermount3 opens the device with the rights of the user who calls it, so
            # only another one, such as a proxy into the host, can have succeeded.
            raise ContainerError(
                f"{error}; ordinary users need a /dev/fuse that they may open (mode 0666)"
            ) from error

    def _union(self, lowers: tuple[bytes, ...]) -> mounting.MountOptions:
        outside = self._route.outside
        return mounting.MountOptions(
            lowers=lowers,
            upper=os.fsencode(self._made.upper),
            work=os.fsencode(self._made.work),
            mountpoint=os.fsencode(self._rootfs),
            allow_other=not outside,
            uid_map=((0, os.geteuid(), 1),) if outside else (),
            gid_map=((0, os.getegid(), 1),) if outside else (),
            # what a mount outside of the namespace keeps beside files would be wrong within it
            tree=TreeOptions(metacopy=True, override=b"" if outside else None),
            flags=("noatime",),
        )

    def _plan(self, union: mounting.MountOptions | None, streams: Streams) -> Plan:
        return Plan(
            identity=self._made.id,
            config=self._made.config,
            directory=self._made.directory,
            rootfs=self._rootfs,
            union=union,
            mapping=self._route.mapping,
            runtime_cache=self._store.root / _RUNTIME_CACHE,
            search_path=self._search_path,
            streams=streams,
        )

    def _supervise(self, plan: Plan, on_start: Callable[[], None]) -> int:
        child, self._channel = fork_supervisor(plan)
        try:
            with self._channel as channel:
                return self._listen(channel, on_start)
        finally:
            self._channel = None
            self._wait_for(child)

    def _wait_for(self, child: int) -> None:
        """Wait until everything is taken down: it begins when the channel is closed."""
        pidfd = os.pidfd_open(child)
        try:
            if not select.select([pidfd], [], [], _END_PATIENCE_SECONDS)[0]:
                _log.warning("the supervisor does not end; it is killed")
                _kill(self._supervisor or child)
            os.waitpid(child, 0)
        finally:
            os.close(pidfd)

    def _listen(self, channel: socket.socket, on_start: Callable[[], None]) -> int:
        self.check_interrupt()
        while packet := channel.recv(1 << 16):
            message = json.loads(packet)
            if "supervisor" in message:
                self._supervisor = message["supervisor"]
            elif "created" in message:
                self.check_interrupt()
                self._record(status="running", pid=message["created"], started=datetime.now(UTC))
                on_start()
                self._is_forwarding = True
                _send(channel, {"go": True})
            elif "started" in message:
                self.has_started = True
            elif "exited" in message:
                return self._ended(message["exited"])
            else:
                if self.has_started:
                    self._ended(message["code"])
                raise ContainerError(message["failed"], message["code"])
        self.check_interrupt()
        if not self.has_started:
            raise ContainerError("the supervisor of the container was killed", FAILED)
        return self._ended(_KILLED)

    def _ended(self, code: int) -> int:
        self._record(status="exited", pid=None, exit_code=code, finished=datetime.now(UTC))
        return code

    def _record(self, **changes: object) -> None:
        try:
            self._store.update_container(self._made, **changes)
        except NoSuchContainer:
            _log.debug("container %s was removed meanwhile", self._made.short_id)

    def remove(self) -> None:
        """Remove the container, if it was made, as the one that its files belong to."""
        if self.container is None:
            return
        try:
            remove(self._store, self.container, self._search_path)
        except NoSuchContainer:
            _log.debug("container %s was removed meanwhile", self._made.short_id)


def _send(channel: socket.socket, message: dict[str, int]) -> None:
    try:
        channel.send(json.dumps(message).encode())
    except OSError as error:
        _log.debug("%s came too late: %s", message, error)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        _log.debug("process %d is gone already", pid)


def remove(store: Store, container: Container, search_path: str) -> None:
    """Remove a container that does not run, also one whose supervisor was killed.

    For an ordinary user it is done in a user namespace, where the files of all the container's
    users can be removed. Raises :class:`Conflict` if it runs, :class:`NoSuchContainer`.
    """
    if store.container(container.id).status != "running":
        _end_leftover_mount(container.directory / "rootfs")
        _remove_leftover_cgroups(container)
    if os.geteuid() == 0:
        store.remove_container(container.id)
        return
    root = store.root

    def remove_inside() -> None:
        with Store.open(root) as own:
            own.remove_container(container.id)

    call_inside(best_mapping(search_path), search_path, remove_inside)


def _end_leftover_mount(rootfs: Path) -> None:
    """Unmount what the killed supervisor of an ordinary user could not take with it."""
    # Not os.path.ismount(), which does not see a mount whose daemon is dead.
    if mounting.mounted_at(os.fsencode(rootfs)) is not None:
        mounting.unmount(os.fsencode(rootfs), lazy=True)


def _remove_leftover_cgroups(container: Container) -> None:
    """Remove the empty cgroups that are left when a supervisor was killed."""
    name = cgroup_name(container.id)
    for path in (*_CGROUPS.glob(name), *_CGROUPS.glob(f"*/{name}")):
        path.rmdir()


def kill(store: Store, container: Container) -> None:
    """Kill a running container, and wait until it has been taken down.

    Raises :class:`Conflict` if it does not end. One that does not run is left as it is.
    """
    if container.pid is None or container.status != "running":
        return
    try:
        pidfd = os.pidfd_open(container.pid)
    except ProcessLookupError:
        pidfd = -1
    try:
        # Looked up again with the process at hand: so it is not another one with the same pid.
        current = store.container(container.id)
        if pidfd >= 0 and current.status == "running" and current.pid == container.pid:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except NoSuchContainer:
        return
    finally:
        if pidfd >= 0:
            os.close(pidfd)
    _wait_until_free(container)


def _wait_until_free(container: Container) -> None:
    try:
        lock = container.lock.open("rb")
    except FileNotFoundError:
        return  # it was removed meanwhile
    with lock:
        if not lock_within(lock.fileno(), fcntl.LOCK_SH, _KILL_PATIENCE_SECONDS):
            raise Conflict(f"container {container.short_id} was killed but does not end")
