"""Real mounts whose upper is full or fails: the caller is told, and the tree stays true."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.machine import REPOSITORY
from tests.support.mounts import mounted, mountpoints_below, unmount
from tests.unionfs.trees import PlainSide

pytestmark = pytest.mark.fuse


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """A lower directory, to be filled before the mount."""
    (tmp_path / "low").mkdir()
    return tmp_path / "low"


@contextmanager
def small_disk(place: Path, options: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_no_space_for_data_is_told_and_passes(tmp_path: Path, low: Path) -> None:
    (low / "f").write_bytes(b"lower" * 100)
    with (
        small_disk(tmp_path / "small", "size=1m") as small,
        mounted(tmp_path / "mnt", [low], small / "upper", small / "work") as union,
    ):
        fd = os.open(union / "big", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            write_much_and_sync(fd)
        os.close(fd)
        assert (union / "f").read_bytes() == b"lower" * 100
        os.unlink(union / "big")
        deadline = time.monotonic() + 20
        while os.statvfs(small).f_bavail < 100 and time.monotonic() < deadline:
            time.sleep(0.01)  # the kernel forgets a removed file a moment later
        (union / "f").write_bytes(b"again" * 20_000)
        assert (union / "f").read_bytes() == b"again" * 20_000
        assert os.listdir(small / "work/work") == []


def write_much_and_sync(fd: int) -> None:
    for _ in range(64):
        os.write(fd, b"x" * 65536)
    os.fsync(fd)


@pytest.mark.root
def test_no_inodes_left_is_told_and_leaves_the_tree_as_it_is(tmp_path: Path, low: Path) -> None:
    (low / "d").mkdir()
    for name in ("f", "d/g", "over"):
        (low / name).write_text(name)
    with (
        small_disk(tmp_path / "small", "size=4m,nr_inodes=30") as small,
        mounted(tmp_path / "mnt", [low], small / "upper", small / "work") as union,
    ):
        fillers = [union / f"fill{number}" for number in range(40)]
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            touch_all(fillers)
        fillers = [path for path in fillers if path.exists()]
        before = PlainSide(union).walk()
        for act in (
            (union / "new").touch,
            (union / "new").mkdir,
            lambda: (union / "new").symlink_to("f"),
            lambda: os.mkfifo(union / "new"),
            lambda: os.chmod(union / "f", 0o600),
            lambda: os.unlink(union / "f"),
            lambda: os.unlink(union / "d/g"),
            lambda: os.rename(union / "f", union / "moved"),
            lambda: os.rename(union / "f", union / "over"),
            lambda: os.link(union / "f", union / "link"),
            lambda: (union / "d/g").write_text("changed"),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                act()
            assert PlainSide(union).walk() == before
        for filler in fillers[-6:]:
            filler.unlink()
        os.unlink(union / "d/g")
        os.rename(union / "f", union / "over")
        assert (union / "over").read_text() == "f"
        assert os.listdir(union / "d") == []


def touch_all(paths: list[Path]) -> None:
    for path in paths:
        path.touch()


FAILING_DAEMON = """if True:
    import errno, os, sys
    from unionfs import syscalls
    from unionfs.mounting import MountOptions, serve
    low, mountpoint, upper, work, flag = map(os.fsencode, sys.argv[1:6])
    number = int(sys.argv[6])
    access = os.access
    def failing(original):
        def call(*arguments, **options):
            if access(flag, os.F_OK):
                raise OSError(number, os.strerror(number))
            return original(*arguments, **options)
        return call
    for name in sys.argv[7].split(","):
        module = syscalls if hasattr(syscalls, name) else os
        setattr(module, name, failing(getattr(module, name)))
    serve(MountOptions(lowers=(low,), upper=upper, work=work, mountpoint=mountpoint))
"""

CHANGES = (
    "mkdir,mknod,symlink,link,unlink,rmdir,rename,chmod,chown,utime,setxattr,removexattr,"
    "pwrite,ftruncate,fsync,renameat2"
)


@pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT, errno.ENOSPC, errno.EROFS])
def test_errors_of_the_upper_reach_the_caller(tmp_path: Path, low: Path, number: int) -> None:
    """Every change fails with what the filesystem said, and afterwards all is as before."""
    for name in ("mnt", "upper", "work"):
        (tmp_path / name).mkdir()
    (low / "f").write_text("f")
    (low / "d").mkdir()
    places = [low, *(tmp_path / name for name in ("mnt", "upper", "work", "flag"))]
    daemon = subprocess.Popen(
        [sys.executable, "-c", FAILING_DAEMON, *places, str(number), CHANGES],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
    )
    union = tmp_path / "mnt"
    deadline = time.monotonic() + 20
    try:
        while not mountpoints_below(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        (union / "mine").write_text("mine")
        (union / "dir").mkdir()
        os.setxattr(union / "mine", "user.x", b"1")
        os.sync()
        before = PlainSide(union).walk()
        (tmp_path / "flag").touch()
        acts: list[Callable[[], None]] = [
            (union / "new").mkdir,
            lambda: (union / "new").symlink_to("f"),
            lambda: os.mkfifo(union / "new"),
            lambda: os.link(union / "mine", union / "new"),
            lambda: os.unlink(union / "mine"),
            lambda: os.unlink(union / "f"),
            lambda: os.rmdir(union / "dir"),
            lambda: os.rmdir(union / "d"),
            lambda: os.rename(union / "mine", union / "new"),
            lambda: os.rename(union / "f", union / "mine"),
            lambda: os.chmod(union / "mine", 0o600),
            lambda: os.chmod(union / "f", 0o600),
            lambda: os.utime(union / "mine", (1, 1)),
            lambda: os.setxattr(union / "mine", "user.y", b"2"),
            lambda: os.removexattr(union / "mine", "user.x"),
            lambda: os.truncate(union / "mine", 1),
            lambda: write_and_sync(union / "mine"),
        ]
        for act in acts:
            with pytest.raises(OSError, match=os.strerror(number)):
                act()
        (tmp_path / "flag").unlink()
        after = PlainSide(union).walk()
        # What write(2) took and fsync(2) could not bring to disk shows, as on any filesystem.
        assert before.pop(b"mine").links == after.pop(b"mine").links
        assert after == before
        write_and_sync(union / "mine")
        assert (union / "mine").read_text() == "changed"
    finally:
        unmount(union)
        _, said = daemon.communicate(timeout=20)
    assert daemon.returncode == 0
    # What a failing disk did not let go is named, and goes at the next start.
    assert all(b" is left in the work directory: " in line for line in said.splitlines())
    with mounted(union, [low], tmp_path / "upper", tmp_path / "work"):
        assert os.listdir(tmp_path / "work/work") == []


def write_and_sync(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"changed")
        os.fsync(fd)
    finally:
        os.close(fd)
