"""The containers of a store: their rows and their directories.

A container's directory holds ``upper`` and ``work`` for its mount, ``pristine`` to compare the
upper with, and ``lock``, which its supervisor holds for as long as the container runs. So a
container whose supervisor was killed is seen to have exited, whatever its row says.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from unionfs.locks import lock_within

from .. import digest, names
from ..errors import AmbiguousId, Conflict, InvalidName, NoSuchContainer, NoSuchImage, StoreError
from .database import Database, Row
from .layers import RootAttributes

CREATED, RUNNING, EXITED = "created", "running", "exited"
KILLED = 137
"""The exit code shown for a container whose supervisor died: 128 + SIGKILL."""

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_COLUMNS = "id, name, image, image_name, config, created, started, finished, exit_code, status, pid"
_CHANGEABLE = ("name", "started", "finished", "exit_code", "status", "pid")
_ATTEMPTS = 10


class ContainerConfig(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How a container's process runs, image and command line already put together.

    ``env`` holds what was asked for, without what the runtime adds; a commit writes it into the
    new image, like ``cmd``, ``entrypoint``, ``working_dir``, ``user``, ``labels``,
    ``stop_signal``.
    """

    cmd: list[str] = []
    entrypoint: list[str] = []
    env: list[str] = []
    working_dir: str = ""
    user: str = ""
    labels: dict[str, str] = {}
    stop_signal: str = ""
    tty: bool = False
    interactive: bool = False
    hostname: str = ""
    network: str = ""
    read_only: bool = False
    auto_remove: bool = False
    volumes: list[str] = []


@dataclass(frozen=True, slots=True)
class Container:
    """A container of the store. ``image`` is an image ID, ``image_name`` what the user typed."""

    id: str
    name: str
    image: str
    image_name: str
    config: ContainerConfig
    created: datetime
    started: datetime | None
    finished: datetime | None
    exit_code: int | None
    status: str
    pid: int | None
    directory: Path

    @property
    def short_id(self) -> str:
        """The 12 hex digits users see."""
        return self.id[:12]

    @property
    def upper(self) -> Path:
        """The directory that takes the container's changes."""
        return self.directory / "upper"

    @property
    def pristine(self) -> Path:
        """An empty directory that looks as ``upper`` did when the container was made."""
        return self.directory / "pristine"

    @property
    def skeleton(self) -> Path:
        """The lowest layer: mount points, for images that lack them."""
        return self.directory / "skeleton"

    @property
    def work(self) -> Path:
        """The work directory beside it."""
        return self.directory / "work"

    @property
    def lock(self) -> Path:
        """The file its supervisor holds a lock on."""
        return self.directory / "lock"


class Containers:
    """The containers of one store."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory

    def all(self) -> list[Container]:
        """All containers, newest first."""
        rows = self._database.rows(
            f"SELECT {_COLUMNS} FROM container ORDER BY created DESC, id"  # noqa: S608
        )
        return [self._build(row) for row in rows]

    def get(self, name: str) -> Container:
        """The container with this name, ID, or beginning of an ID.

        Raises :class:`NoSuchContainer` and :class:`AmbiguousId`.
        """
        rows = self._select("name = ? OR id = ?", name.removeprefix("/"), name)
        if not rows and re.fullmatch(r"[0-9a-f]+", name):
            rows = self._select("id LIKE ?", name + "%")
            if len(rows) > 1:
                raise AmbiguousId(name)
        if not rows:
            raise NoSuchContainer(name)
        return self._build(rows[0])

    def _select(self, condition: str, *values: str) -> list[Row]:
        return self._database.rows(
            f"SELECT {_COLUMNS} FROM container WHERE {condition} LIMIT 2",  # noqa: S608
            *values,
        )

    def _build(self, row: Row) -> Container:
        directory = self._directory / row[0]
        container = Container(
            id=row[0],
            name=row[1],
            image=digest.text(row[2]),
            image_name=row[3],
            config=msgspec.json.decode(row[4], type=ContainerConfig),
            created=datetime.fromisoformat(row[5]),
            started=datetime.fromisoformat(row[6]) if row[6] else None,
            finished=datetime.fromisoformat(row[7]) if row[7] else None,
            exit_code=row[8],
            status=row[9],
            pid=row[10],
            directory=directory,
        )
        if container.status == RUNNING and not _is_held(container.lock):
            return replace(container, status=EXITED, exit_code=KILLED, pid=None)
        return container

    def create(
        self,
        image_id: str,
        *,
        image_name: str,
        config: ContainerConfig,
        name: str | None,
        created: datetime | None,
        root: RootAttributes,
        workspace: Path,
    ) -> Container:
        """Make a container and its directories. Raises :class:`Conflict` for a name in use."""
        if name is not None:
            _check_name(name)
        container_id = secrets.token_hex(32)
        made = workspace / "container"
        _make_directories(made, root)
        with self._database.transaction():
            chosen = self._free_name() if name is None else name
            self._refuse_taken(chosen)
            image = digest.raw(image_id)
            if not self._database.row("SELECT 1 FROM image WHERE id = ?", image):
                raise NoSuchImage(image_id)
            self._database.run(
                "INSERT INTO container (id, name, image, image_name, config, created, status)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                container_id,
                chosen,
                image,
                image_name,
                msgspec.json.encode(config),
                (created or datetime.now(UTC)).isoformat(),
                CREATED,
            )
            os.rename(made, self._directory / container_id)
        return self.get(container_id)

    def _free_name(self) -> str:
        for attempt in range(_ATTEMPTS):
            name = names.suggest(attempt)
            if not self._select("name = ?", name):
                return name
        raise StoreError("no free name was found for the container: choose one")

    def _refuse_taken(self, name: str) -> None:
        rows = self._select("name = ?", name)
        if rows:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container '
                f'"{rows[0][0]}". You have to remove (or rename) that container to be able to '
                "reuse that name."
            )

    def update(self, container_id: str, changes: Mapping[str, object]) -> Container:
        """Change columns of a row. Raises :class:`NoSuchContainer` if it is gone meanwhile."""
        unknown = set(changes) - set(_CHANGEABLE)
        if unknown:
            raise TypeError(f"a container's {', '.join(sorted(unknown))} cannot be changed")
        with self._database.transaction():
            current = self.get(container_id)
            if "name" in changes and changes["name"] != current.name:
                _check_name(str(changes["name"]))
                self._refuse_taken(str(changes["name"]))
            for column, value in changes.items():
                stored = value.isoformat() if isinstance(value, datetime) else value
                self._database.run(
                    f"UPDATE container SET {column} = ? WHERE id = ?",  # noqa: S608
                    stored,
                    current.id,
                )
        return self.get(current.id)

    def remove(self, name: str, workspace: Path) -> Container:
        """Remove a container that does not run; its directory goes with the ``workspace``.

        Raises :class:`Conflict` if it runs, :class:`NoSuchContainer`.
        """
        with self._database.transaction():
            container = self.get(name)
            if container.status == RUNNING:
                raise Conflict(
                    f'cannot remove container "/{container.name}": container is running: stop the '
                    "container before removing or force remove"
                )
            _refuse_mounted(container)
            self._database.run("DELETE FROM container WHERE id = ?", container.id)
        # Only now: a process killed before the commit must leave the directory where it is.
        if container.directory.exists():
            os.rename(container.directory, workspace / "container")
        return container


def hold(container: Container, patience: float = 1.0) -> int:
    """Lock a container for its supervisor; the descriptor that holds the lock until it is closed.

    Raises :class:`Conflict` if another process holds it for longer than ``patience`` seconds;
    those who merely look whether it is held do so for a moment only.
    """
    fd = os.open(container.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not lock_within(fd, fcntl.LOCK_EX, patience):
        os.close(fd)
        raise Conflict(f"container {container.short_id} is already running")
    return fd


def _is_held(lock: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )


def _make_directories(path: Path, root: RootAttributes) -> None:
    """The directories of a container; the upper looks like the root of the image."""
    path.mkdir(0o700)
    (path / "work").mkdir(0o700)
    (path / "skeleton").mkdir()
    (path / "lock").touch(0o600)
    # Made twice: how much of the image's root could be set here, and how it looks from inside a
    # user namespace, only another directory of the same origin can tell.
    for name in ("upper", "pristine"):
        make_root(path / name, root)


def make_root(path: Path, root: RootAttributes) -> None:
    """A directory that looks like the root of an image, as far as this user may make one."""
    path.mkdir(0o700)
    # Without privileges files cannot be given away: the directory stays the user's own.
    with _allowing(errno.EPERM, errno.EINVAL):
        os.chown(path, root.uid, root.gid)
    path.chmod(root.mode)
    for name, value in root.xattrs.items():
        with _allowing(errno.EPERM, errno.ENOTSUP):
            os.setxattr(path, name, value)


@contextmanager
def _allowing(*numbers: int) -> Iterator[None]:
    """Go on after an :class:`OSError` with one of these numbers."""
    try:
        yield
    except OSError as error:
        if error.errno not in numbers:
            raise


def _refuse_mounted(container: Container) -> None:
    """Raise :class:`Conflict` if something is mounted in the container's directory."""
    if not container.directory.exists():
        return
    device = container.directory.lstat().st_dev
    for path in container.directory.iterdir():
        if path.lstat().st_dev != device:
            raise Conflict(f'cannot remove container "/{container.name}": {path} is still mounted')
