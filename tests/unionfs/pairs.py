"""A union and a plain directory that do the same."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.mounts import mounted


class Pair(NamedTuple):
    """A union, and a plain directory that held the same at the start."""

    union: Path
    plain: Path

    def agree(self, act: Callable[[Path], object]) -> None:
        """Do the same in both, with the same result."""
        assert outcome(act, self.union) == outcome(act, self.plain)


@contextmanager
def pair(base: Path) -> Iterator[Pair]:
    """A writable mount over base/low, and a copy of base/low."""
    subprocess.run(["cp", "-a", base / "low", base / "plain"], check=True)
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        yield Pair(union, base / "plain")


def outcome(act: Callable[[Path], object], root: Path) -> object:
    try:
        return act(root)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
