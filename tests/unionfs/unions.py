"""Unions of three kinds over the same directories, and what they show."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.support.mounts import mounted
from tests.unionfs.trees import PlainSide, Seen

LAMINA, KERNEL, FUSE_OVERLAYFS = "lamina", "overlay", "fuse-overlayfs"


@contextmanager
def union(
    kind: str, base: Path, *options: str, lowers: Sequence[str] = ("low",), writable: bool = True
) -> Iterator[Path]:
    """A union of some kind at ``base/mnt``, of directories below ``base`` and with ``base/upper``.

    Directories that are missing are made.
    """
    below = [base / name for name in lowers]
    upper, work = (base / "upper", base / "work") if writable else (None, None)
    for directory in (base / "mnt", upper, work):
        if directory is not None:
            directory.mkdir(exist_ok=True)
    if kind == LAMINA:
        with mounted(base / "mnt", below, upper, work, options) as mountpoint:
            yield mountpoint
        return
    words = ["lowerdir=" + ":".join(map(str, below)), *options]
    words += [f"upperdir={upper}", f"workdir={work}"] if writable else []
    command = ["mount", "-t", "overlay", "overlay"] if kind == KERNEL else [FUSE_OVERLAYFS]
    subprocess.run([*command, "-o", ",".join(words), base / "mnt"], check=True)
    try:
        yield base / "mnt"
    finally:
        subprocess.run(["umount", base / "mnt"], check=True)


def plant(root: Path, *paths: str) -> None:
    """Make old files that hold their own paths, with their directories."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
        os.utime(root / path, ns=(10**18, 10**18))


def sights(root: Path) -> dict[bytes, Seen]:
    """What a directory shows, but for directories' link counts, which kernel overlayfs invents."""
    return {
        path: seen._replace(links=seen.links if seen.first else 0)
        for path, seen in PlainSide(root).walk().items()
    }


def timeless(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """The same without times."""
    return {path: found._replace(mtime_ns=0) for path, found in seen.items()}


class Stat(NamedTuple):
    """What lstat(2) says of who may do what with a file."""

    mode: int
    uid: int
    gid: int
    rdev: int


def owners(root: Path) -> dict[str, Stat]:
    """Type, mode, owner and device number of all that is below a directory, but for markers."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.name.startswith(".wh."):
            continue
        info = path.lstat()
        found[str(path.relative_to(root))] = Stat(
            info.st_mode, info.st_uid, info.st_gid, info.st_rdev
        )
    return found


def copy(source: Path, target: Path) -> None:
    """Copy a directory with everything that it is."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True)


def refusal(action: Callable[..., object], *arguments: object) -> int:
    """The errno of an action that fails, 0 of one that does not."""
    try:
        action(*arguments)
    except OSError as error:
        return error.errno or -1
    return 0


def names(root: Path) -> set[str]:
    """All paths below a directory."""
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def forget(mountpoint: Path) -> None:
    """Have the kernel drop the names and attributes that it remembers of a mount."""
    subprocess.run(["sync", "-f", mountpoint], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("2")
