"""An OCI layout in a directory, read as if it were an archive (image-spec, image-layout.md)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ..errors import ArchiveError
from .members import MEMBERS_MAX, Member

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def directory_members(path: Path) -> Iterator[Member]:
    """Each regular file at the top and among the blobs; symlinks in there are not followed.

    Raises :class:`ArchiveError` for more files than an archive may have, :class:`OSError`.
    """
    fds = [os.open(path, _FLAGS)]
    try:
        yield from _files(fds[0], "")
        for name in ("blobs", "sha256"):
            try:
                fds.append(os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=fds[-1]))
            except (FileNotFoundError, NotADirectoryError):
                return  # then the documents name blobs that are missing
        yield from _files(fds[-1], "blobs/sha256/")
    finally:
        for fd in fds:
            os.close(fd)


def _files(directory: int, prefix: str) -> Iterator[Member]:
    names = sorted(os.listdir(directory))
    if len(names) > MEMBERS_MAX:
        raise ArchiveError(f"the directory has more than {MEMBERS_MAX} files")
    for name in names:
        yield from _file(directory, prefix + name, name)


def _file(directory: int, shown: str, name: str) -> Iterator[Member]:
    info = os.stat(name, dir_fd=directory, follow_symlinks=False)
    if not stat.S_ISREG(info.st_mode):
        return
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    with os.fdopen(fd, "rb") as stream:
        size = os.fstat(fd).st_size
        yield Member(shown, True, None, size, size, stream)
