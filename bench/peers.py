"""The filesystems that are compared: how each one shows the same tree, writable, and goes away."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.mounts import mounted

PLAIN = "plain directory"
KERNEL = "kernel overlayfs"
FUSE_OVERLAYFS = "fuse-overlayfs"
LAMINA = "lamina, pack"
LAMINA_DIRECTORY = "lamina, directory"


@dataclass(frozen=True)
class Tree:
    """The tree under test in the forms the peers take it in."""

    tar: Path
    directory: Path
    pack: Path


Shown = AbstractContextManager[Path]


@dataclass(frozen=True)
class Peer:
    """``show(tree, scratch)`` gives a directory with the tree while it is entered.

    ``missing`` says why the peer cannot run here, or is None.
    """

    name: str
    show: Callable[[Tree, Path], Shown]
    missing: str | None = None


@contextmanager
def _plain(tree: Tree, scratch: Path) -> Iterator[Path]:
    copy = scratch / "copy"
    subprocess.run(["cp", "-a", tree.directory, copy], check=True)
    yield copy


def _prepare(scratch: Path) -> tuple[Path, Path, Path]:
    places = scratch / "upper", scratch / "work", scratch / "merged"
    for place in places:
        place.mkdir()
    return places


@contextmanager
def _command(tree: Tree, scratch: Path, command: list[str], unmount: list[str]) -> Iterator[Path]:
    upper, work, merged = _prepare(scratch)
    options = f"lowerdir={tree.directory},upperdir={upper},workdir={work}"
    mount = subprocess.run(
        [*command, "-o", options, merged], stderr=subprocess.PIPE, text=True, check=False
    )
    if mount.returncode:
        raise SystemExit(f"{command[0]} cannot mount: {mount.stderr}")
    try:
        yield merged
    finally:
        subprocess.run([*unmount, merged], check=True)


def _kernel(tree: Tree, scratch: Path) -> Shown:
    return _command(tree, scratch, ["mount", "-t", "overlay", "overlay"], ["umount"])


def _fuse_overlayfs(tree: Tree, scratch: Path) -> Shown:
    return _command(tree, scratch, ["fuse-overlayfs"], ["fusermount3", "-u"])


def _lamina(tree: Tree, scratch: Path) -> Shown:
    return mounted(scratch / "merged", [tree.pack], scratch / "upper", scratch / "work")


def _lamina_directory(tree: Tree, scratch: Path) -> Shown:
    return mounted(scratch / "merged", [tree.directory], scratch / "upper", scratch / "work")


def peers() -> list[Peer]:
    """All peers, those that cannot run on this machine too."""
    no_root = None if os.geteuid() == 0 else "needs root"
    no_program = None if shutil.which("fuse-overlayfs") else "not installed"
    return [
        Peer(PLAIN, _plain),
        Peer(KERNEL, _kernel, no_root),
        Peer(FUSE_OVERLAYFS, _fuse_overlayfs, no_program),
        Peer(LAMINA, _lamina),
        Peer(LAMINA_DIRECTORY, _lamina_directory),
    ]


def versions() -> dict[str, str]:
    """What ran: for the record of a measurement."""
    found = {"kernel": os.uname().release, "python": sys.version.split()[0]}
    if shutil.which("fuse-overlayfs"):
        text = subprocess.check_output(["fuse-overlayfs", "--version"], text=True)
        (found["fuse-overlayfs"],) = re.findall(r"fuse-overlayfs: version (\S+)", text)
    return found
