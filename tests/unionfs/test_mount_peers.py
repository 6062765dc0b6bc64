"""lamina beside kernel overlayfs and fuse-overlayfs: the same sights, and each other's uppers."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounts import mounted
from tests.unionfs.trees import PlainSide, Seen

pytestmark = [pytest.mark.fuse, pytest.mark.root]

LAMINA, KERNEL, FUSE_OVERLAYFS = "lamina", "overlay", "fuse-overlayfs"
OTHERS = [
    KERNEL,
    pytest.param(FUSE_OVERLAYFS, marks=pytest.mark.peer(FUSE_OVERLAYFS)),
]


@contextmanager
def union(kind: str, base: Path) -> Iterator[Path]:
    """A union of some kind over base/top and base/low with base/upper."""
    for name in ("mnt", "upper", "work"):
        (base / name).mkdir(exist_ok=True)
    if kind == LAMINA:
        with mounted(
            base / "mnt", [base / "top", base / "low"], base / "upper", base / "work"
        ) as mountpoint:
            yield mountpoint
        return
    options = f"lowerdir={base}/top:{base}/low,upperdir={base}/upper,workdir={base}/work"
    command = ["mount", "-t", "overlay", "overlay"] if kind == KERNEL else [FUSE_OVERLAYFS]
    subprocess.run([*command, "-o", options, base / "mnt"], check=True)
    try:
        yield base / "mnt"
    finally:
        subprocess.run(["umount", base / "mnt"], check=True)


def make_lowers(base: Path) -> None:
    for path in ("low/d/a", "low/d/b", "low/d/deep/x", "low/e/f", "low/g", "top/d/c", "top/g"):
        (base / path).parent.mkdir(parents=True, exist_ok=True)
        (base / path).write_text(path)
        os.utime(base / path, ns=(10**18, 10**18))
    os.mknod(base / "top/d/b", 0o020000, 0)
    (base / "low/link").symlink_to("d/a")
    (base / "low/sub/empty").mkdir(parents=True)


SCRIPT = """
import os, subprocess
os.chdir({!r})
open("d/a", "a").write("more")
os.unlink("d/c")
os.rename("e/f", "d/f")
subprocess.run(["rm", "-r", "d/deep"], check=True)
os.makedirs("d/deep/new")
os.chmod("g", 0o4711)
os.setxattr("g", "user.test", b"1")
os.rename("link", "e/link")
os.rmdir("sub/empty")
open("sub/empty", "w").write("a file now")
os.mkdir("only")
open("only/1", "w").close()
os.link("only/1", "only/2")
os.rename("only", "renamed")
os.mkfifo("fifo", 0o600)
"""


def change(mountpoint: Path) -> None:
    """Do the same to every union, in a process of its own so that nothing stays open."""
    subprocess.run([sys.executable, "-c", SCRIPT.format(str(mountpoint))], check=True)


def sights(mountpoint: Path) -> dict[bytes, Seen]:
    """What a union shows, but for times of what was just written and directories' link counts."""
    return {
        path: seen._replace(mtime_ns=0, links=0 if seen.first == b"" else seen.links)
        for path, seen in PlainSide(mountpoint).walk().items()
    }


@pytest.mark.parametrize("other", OTHERS)
def test_the_same_operations_show_the_same(tmp_path: Path, other: str) -> None:
    seen = []
    for kind in (LAMINA, other):
        base = tmp_path / kind
        base.mkdir()
        make_lowers(base)
        with union(kind, base) as mountpoint:
            change(mountpoint)
            seen.append(sights(mountpoint))
    assert seen[0] == seen[1]
    assert b"d/deep/x" not in seen[0]


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("lamina_writes", [True, False], ids=["lamina writes", "lamina reads"])
def test_an_upper_written_by_one_is_read_by_the_other(
    tmp_path: Path, other: str, lamina_writes: bool
) -> None:
    writer, reader = (LAMINA, other) if lamina_writes else (other, LAMINA)
    make_lowers(tmp_path)
    with union(writer, tmp_path) as mountpoint:
        change(mountpoint)
        written = sights(mountpoint)
    with union(reader, tmp_path) as mountpoint:
        assert sights(mountpoint) == written
        (mountpoint / "d/again").write_text("x")
    with union(writer, tmp_path) as mountpoint:
        assert (mountpoint / "d/again").read_text() == "x"
