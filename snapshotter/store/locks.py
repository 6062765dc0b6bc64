"""What keeps several processes on one store out of each other's way, and ``kill -9`` harmless.

Whoever adds to the store works in a *session*: a shared lock on ``ROOT/lock`` and a directory of
its own in ``ROOT/tmp``, in which files are made before they are renamed to their place. Whoever
removes files takes the lock exclusively, and so knows that nothing it finds in ``tmp``, and no file
that the database does not mention, belongs to anybody alive.

The lock is flock(2): it ends with the process. It is taken on a descriptor of its own each time.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import StoreError


@contextmanager
def locked(path: Path, *, exclusive: bool, wait: bool = True) -> Iterator[bool]:
    """Hold a lock for the block; gives False, and does not hold it, if it would have to wait."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        try:
            fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(fd)


@contextmanager
def workspace(tmp: Path) -> Iterator[Path]:
    """A new directory in ``tmp``, removed with all it holds at the end of the block."""
    path = Path(tempfile.mkdtemp(dir=tmp))
    try:
        yield path
    finally:
        remove_tree(path)


def sync_directory(path: Path) -> None:
    """Wait until the names in a directory are on the disk."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory and all below it, whatever its depth and the modes of its directories.

    Symlinks are removed, not followed. Raises :class:`StoreError` at a mount point, without
    entering it, and :class:`OSError`. A tree that is gone already is no error.
    """
    parent = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _Removal(path).remove(parent)
    except FileNotFoundError:
        return
    finally:
        os.close(parent)


class _Removal:
    """The removal of one tree. What uses the store chooses the depth, so nothing recurses."""

    DEPTH = 200
    """How many descriptors may be open; directories deeper than this are first moved up."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._device = 0
        self._moved = 0

    def remove(self, parent: int) -> None:
        """Remove the tree, a name in the directory ``parent``."""
        self._device = os.fstat(parent).st_dev
        top = os.fsencode(self._path.name)
        stack = [(self._enter(parent, top), top, list[bytes]())]
        try:
            stack[0][2].extend(_remove_files(stack[0][0]))
            while stack:
                fd, name, directories = stack[-1]
                if not directories:
                    stack.pop()
                    os.close(fd)
                    os.rmdir(name, dir_fd=stack[-1][0] if stack else parent)
                    continue
                child = directories.pop()
                inside = self._enter(fd, child)
                if len(stack) < self.DEPTH:
                    stack.append((inside, child, _remove_files(inside)))
                else:
                    os.close(inside)
                    stack[0][2].append(self._move(fd, child, stack[0][0]))
        finally:
            for fd, _, _ in stack:
                os.close(fd)

    def _move(self, fd: int, child: bytes, top: int) -> bytes:
        """Rename a directory into the topmost one; its new name."""
        self._moved += 1
        name = b"%s-%d" % (secrets.token_hex(8).encode(), self._moved)
        os.rename(child, name, src_dir_fd=fd, dst_dir_fd=top)
        return name

    def _enter(self, parent: int, name: bytes) -> int:
        """A descriptor of a directory that its owner may change."""
        info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        if info.st_dev != self._device:
            raise StoreError(f"{self._path}: something is still mounted in it; unmount it first")
        if info.st_mode & 0o700 != 0o700:
            # Not a symlink, as it was just seen; and nobody else works in this tree any more.
            os.chmod(name, 0o700, dir_fd=parent)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=parent)


def _remove_files(fd: int) -> list[bytes]:
    """Remove what is not a directory; the names of the directories."""
    directories = []
    with os.scandir(fd) as entries:
        items = list(entries)
    for item in items:
        if item.is_dir(follow_symlinks=False):
            directories.append(os.fsencode(item.name))
        else:
            os.unlink(item.name, dir_fd=fd)
    return directories
