"""Writing a file that is there whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


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
