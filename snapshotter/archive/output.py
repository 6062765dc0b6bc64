"""Where archives go: a file that is there whole or not at all, a directory, a stream."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from .. import tarwriter
from ..errors import ArchiveError
from ..store.locks import remove_tree, sync_directory


class Writable(Protocol):
    """A stream that is only written forward."""

    def write(self, data: bytes, /) -> int:
        """Write all of ``data``."""
        ...


class Output(Protocol):
    """What takes the files of an archive, in order."""

    def directory(self, name: str) -> None:
        """Make a directory; its name ends in a slash."""
        ...

    def file(self, name: str, size: int, pieces: Iterable[bytes]) -> None:
        """Write a file of ``size`` bytes."""
        with self.open(name, size) as out:
            for piece in pieces:
                out.write(piece)

    def open(self, name: str, size: int) -> AbstractContextManager[Writable]:
        """A file of ``size`` bytes, to be written in the block."""
        ...

    def finish(self) -> None:
        """All files are written."""
        ...


class TarOutput(Output):
    """A tar archive."""

    def __init__(self, out: Writable) -> None:
        self._out = out

    def directory(self, name: str) -> None:
        """See :class:`Output`."""
        self._out.write(tarwriter.header(name.encode(), tarwriter.DIRECTORY, mode=0o755))

    @contextmanager
    def open(self, name: str, size: int) -> Iterator[Writable]:
        """See :class:`Output`."""
        header = tarwriter.header(name.encode(), tarwriter.REGULAR, mode=0o644, size=size)
        self._out.write(header)
        yield self._out
        self._out.write(tarwriter.padding(size))

    def finish(self) -> None:
        """See :class:`Output`."""
        self._out.write(tarwriter.END)


class DirectoryOutput(Output):
    """The files below a directory, brought to the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def directory(self, name: str) -> None:
        """See :class:`Output`."""
        (self._root / name).mkdir()

    @contextmanager
    def open(self, name: str, size: int) -> Iterator[Writable]:
        """See :class:`Output`."""
        with (self._root / name).open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())

    def finish(self) -> None:
        """See :class:`Output`."""
        for name in ("blobs/sha256", "blobs", "."):
            sync_directory(self._root / name)


@contextmanager
def atomic_output(path: Path) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file ``path``, readable by its owner only.

    It is written beside ``path`` under another name, which is renamed when the block ends and
    removed if an exception ends it. A device or pipe at ``path`` is written directly. Raises
    :class:`OSError`.
    """
    if path.exists() and not path.is_file():
        with path.open("wb") as stream:
            yield stream
        return
    # A symlink keeps pointing where it does; its target is replaced.
    target = path.resolve()
    fd, name = tempfile.mkstemp(prefix=".lamina-", dir=target.parent)
    try:
        with os.fdopen(fd, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(name, target)
    except BaseException:
        os.unlink(name)
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A directory that becomes ``path`` when the block ends, and is removed if it fails.

    Raises :class:`ArchiveError` if there is something at ``path`` but an empty directory, and
    :class:`OSError`.
    """
    target = path.resolve()
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ArchiveError(f"{path} exists already, and is no empty directory")
    made = Path(tempfile.mkdtemp(prefix=".lamina-", dir=target.parent))
    try:
        yield made
        os.rename(made, target)
    except BaseException:
        remove_tree(made)
        raise
