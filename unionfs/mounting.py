"""From options to a served mount: checking, building the union, foreground or background, the end.

The mount is made by :mod:`unionfs.attach`; the daemon gets a descriptor of ``/dev/fuse`` from it
and hands it to libfuse as ``/dev/fd/N``.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from . import syscalls
from .attach import (
    FILESYSTEM,
    FLAGS,
    MountOptions,
    attach,
    may_mount_directly,
    mounted_at,
    unmount,
)
from .errors import MountError, UnionError, display
from .opening import open_union
from .options import Durability

__all__ = [
    "MountOptions",
    "check",
    "may_mount_directly",
    "mounted_at",
    "serve",
    "start",
    "unmount",
]

log = logging.getLogger(__name__)

_READY = b"ready"

_INCOMPATIBLE = b"work/incompat"
_VOLATILE = _INCOMPATIBLE + b"/volatile"
"""In the work directory: what kernel overlayfs marks it with that no other mount may ignore, and
its mark of a volatile mount (Documentation/filesystems/overlayfs.rst, "Volatile mount")."""


def start(options: MountOptions, log_file: Path | None = None) -> int:
    """Mount, and serve from a daemon in the background; returns its process id.

    Returns once the mount answers. The daemon logs to ``log_file``, or nowhere. Raises
    :class:`MountError` with what the daemon said if it could not start; nothing is then mounted.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _become_daemon(options, writer, log_file)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    if said != _READY:
        os.waitpid(child, 0)
        raise MountError(said.decode("utf-8", "replace") or "the mount daemon died while starting")
    try:
        os.stat(options.mountpoint)  # is answered by the daemon
    except OSError as error:
        raise MountError(
            f"the mount at {display(options.mountpoint)} does not answer: {error.strerror}"
        ) from error
    return child


def serve(options: MountOptions, ready: Callable[[], None] | None = None) -> None:
    """Mount and serve in this process until the mount ends or a signal asks to end it.

    ``ready`` is called when the mount is about to answer. Raises :class:`MountError`,
    :class:`UnionError` and :class:`OSError` before anything is mounted, never after.
    """
    check(options)
    syscalls.raise_descriptor_limit()
    os.umask(0)
    tree = open_union(
        options.lowers,
        options.upper,
        options.work,
        options=options.tree,
        uid_map=options.uid_map,
        gid_map=options.gid_map,
    )
    try:
        # here, where it is needed: importing pyfuse3 takes longer than everything before
        from .operations import UnionOperations  # noqa: PLC0415
        from .session import run  # noqa: PLC0415

        operations = UnionOperations(
            tree,
            cached_seconds=options.cached_seconds,
            writeback=options.writeback,
            acls=options.acls,
            xattrs=options.xattrs,
            fsync=options.tree.durability is not Durability.VOLATILE,
        )
        fd, channel = attach(options)
        ours = mounted_at(options.mountpoint)
        gc.collect()
        gc.freeze()

        def begin() -> None:
            if options.volatile and options.work is not None:
                _mark_volatile(options.work)
            if ready is not None:
                ready()

        try:
            run(operations, fd, begin, only_root=options.allow_root)
        finally:
            if channel is not None:
                channel.close()  # fusermount3 then takes the mount away
            elif mounted_at(options.mountpoint) == ours:
                _detach_mount(options.mountpoint)
    finally:
        tree.close()


def _detach_mount(mountpoint: bytes) -> None:
    """Take away a mount that a signal, not an unmount, has ended."""
    try:
        syscalls.umount(mountpoint, syscalls.MNT_DETACH | syscalls.UMOUNT_NOFOLLOW)
    except OSError as error:
        log.warning("unmounting %s: %s", display(mountpoint), error.strerror)


def _become_daemon(options: MountOptions, writer: int, log_file: Path | None) -> NoReturn:
    """The child's whole life: serve, report through the pipe how starting went, and exit."""
    status = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _detach(writer, log_file)

        def ready() -> None:
            os.write(writer, _READY)
            os.close(writer)

        serve(options, ready)
        status = 0
    except (UnionError, OSError) as error:
        os.write(writer, describe(error).encode())
    except BaseException:
        log.exception("the mount daemon ends")
        raise
    finally:
        logging.shutdown()
        os._exit(status)


def _detach(writer: int, log_file: Path | None) -> None:
    """Let go of the starter's descriptors, its locks with them, and of its terminal."""
    null = os.open(os.devnull, os.O_RDWR)
    target = null
    if log_file is not None:
        target = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    for fd, source in ((0, null), (1, target), (2, target)):
        os.dup2(source, fd)
    os.closerange(3, writer)
    os.closerange(writer + 1, (1 << 31) - 1)
    root = logging.getLogger()
    root.handlers = [logging.StreamHandler(open(2, "w", closefd=False))]  # noqa: SIM115
    root.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))


def describe(error: BaseException) -> str:
    """An error as one line for a user."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{display(error.filename)}: {error.strerror}"
    return str(error)


# -- checking and building ---------------------------------------------------------------------


def check(options: MountOptions) -> None:
    """Find what is wrong with the options while the user is still there to be told."""
    if not options.lowers:
        raise MountError("no lower layer: say lowerdir=DIR[:DIR...]")
    if (options.upper is None) != (options.work is None):
        given, missing = (
            ("upperdir", "workdir") if options.work is None else ("workdir", "upperdir")
        )
        raise MountError(f"{given} without {missing}: a writable mount needs both")
    for name in options.flags:
        if name not in FLAGS:
            raise MountError(f"unknown mount option: {name}")
    _check_places(options)


def _check_places(options: MountOptions) -> None:
    for name, path in (("upperdir", options.upper), ("workdir", options.work)):
        if path is not None:
            _expect_directory(name, path)
    if options.work is not None:
        _expect_compatible(options.work)
    for path in options.lowers:
        if not os.path.isfile(path):
            _expect_directory("lowerdir", path)
    _expect_directory("mountpoint", options.mountpoint)
    there = mounted_at(options.mountpoint)
    if there is not None and there.kind == FILESYSTEM:
        raise MountError(
            f"{display(options.mountpoint)} is already a lamina mount; unmount it first"
        )


def _expect_directory(name: str, path: bytes) -> None:
    try:
        info = os.stat(path)
        os.statvfs(path)  # always asks the daemon of a FUSE mount, while stat may be cached
    except FileNotFoundError:
        raise MountError(f"{name} {display(path)} does not exist; create it first") from None
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise MountError(
                f"{name} {display(path)} holds a mount whose daemon died; unmount it first"
            ) from None
        raise MountError(f"{name} {display(path)}: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode):
        raise MountError(f"{name} {display(path)} is not a directory")


def _expect_compatible(work: bytes) -> None:
    """Refuse the directories of a volatile mount, whose changes a crash may have spoilt."""
    marks = os.path.join(work, _INCOMPATIBLE)
    try:
        found = os.listdir(marks)
    except (FileNotFoundError, NotADirectoryError):
        return
    if found:
        mark = display(os.path.join(marks, found[0]))
        raise MountError(
            f"workdir {display(work)} was used by a {display(found[0])} mount, and what is in its "
            "upperdir may be incomplete: begin with an empty upperdir and workdir, or remove "
            f"the directory {mark} if the system has not crashed since"
        )


def _mark_volatile(work: bytes) -> None:
    os.makedirs(os.path.join(work, _VOLATILE), 0o700)
    os.mknod(os.path.join(work, _VOLATILE, b"dirty"), 0o600)
