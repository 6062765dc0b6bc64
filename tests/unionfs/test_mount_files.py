"""What programs may do with open files, on a mount and on a plain directory: the same comes out."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.support.mounts import mounted
from tests.unionfs.pairs import outcome, pair

pytestmark = pytest.mark.fuse

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """A lower directory, to be filled before the mount."""
    (tmp_path / "low").mkdir()
    return tmp_path / "low"


def test_two_that_append(tmp_path: Path, low: Path) -> None:
    (low / "f").write_bytes(b"start\n")

    def act(root: Path) -> bytes:
        one, other = (os.open(root / "f", os.O_WRONLY | os.O_APPEND) for _ in range(2))
        for number in range(50):
            os.write(one, b"one %d\n" % number)
            os.write(other, b"other %d\n" % number)
            if number == 20:
                os.truncate(root / "f", 10)
        os.close(one)
        os.close(other)
        return (root / "f").read_bytes()

    with pair(tmp_path) as both:
        both.agree(act)


@pytest.mark.parametrize("first", [os.O_RDONLY, os.O_RDWR])
def test_direct_io(tmp_path: Path, low: Path, first: int) -> None:
    """What is written past the page cache and what is in it are the same file."""
    (low / "f").write_bytes(b"lower " * 10_000)
    os.utime(low / "f", (10**9, 10**9))

    def act(root: Path) -> object:
        block = mmap.mmap(-1, 8192)
        block.write(b"D" * 8192)
        cached = os.open(root / "f", first)
        seen = [os.pread(cached, 20_000, 0)]
        fd = os.open(root / "f", os.O_RDWR | os.O_DIRECT)
        os.pwritev(fd, [block], 4096)
        seen.append(os.pread(cached, 20_000, 0))
        if first == os.O_RDWR:
            os.pwrite(cached, b"cached", 5000)
        os.preadv(fd, [block], 4096)
        seen.append(block[:])
        os.close(fd)
        os.close(cached)
        return seen, os.stat(root / "f").st_size, os.stat(root / "f").st_mtime > 10**9

    with pair(tmp_path) as both:
        both.agree(act)


def test_what_is_not_offered_is_refused_and_harms_nothing(tmp_path: Path, low: Path) -> None:
    (low / "f").write_bytes(b"lower")
    with pair(tmp_path) as both:
        with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
            os.open(both.union, os.O_TMPFILE | os.O_RDWR)
        fd = os.open(both.union / "f", os.O_RDWR)
        for mode in (0, 1, 3, 16):  # plain, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE
            done = _libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(100_000))
            assert (done, ctypes.get_errno()) == (-1, errno.EOPNOTSUPP)
        os.close(fd)
        assert (both.union / "f").read_bytes() == b"lower"

        def reserve(root: Path) -> tuple[int, bytes]:
            fd = os.open(root / "f", os.O_RDWR)
            os.posix_fallocate(fd, 0, 100_000)
            os.close(fd)
            return os.stat(root / "f").st_size, (root / "f").read_bytes()

        both.agree(reserve)


def test_ranges_are_copied(tmp_path: Path, low: Path) -> None:
    data = bytes(range(256)) * 1000
    (low / "source").write_bytes(data)
    (low / "target").write_bytes(b"t" * 1000)

    def act(root: Path) -> bytes:
        with (root / "source").open("rb") as source, (root / "target").open("r+b") as target:
            left = 200_000
            while left:
                left -= os.copy_file_range(source.fileno(), target.fileno(), left)
            os.lseek(target.fileno(), 0, os.SEEK_END)
            os.sendfile(target.fileno(), source.fileno(), 0, 50_000)
        return (root / "target").read_bytes()

    with pair(tmp_path) as both:
        both.agree(act)
        assert (low / "target").read_bytes() == b"t" * 1000


def test_holes_are_told_sanely_and_not_filled(tmp_path: Path, low: Path) -> None:
    size = 64 << 20
    with (low / "sparse").open("wb") as file:
        file.truncate(size)
        os.pwrite(file.fileno(), b"middle", 32 << 20)
    (low / "all hole").touch()
    os.truncate(low / "all hole", size)
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        for changed in (False, True):
            with (union / "sparse").open("rb") as file:
                data = os.lseek(file.fileno(), 0, os.SEEK_DATA)
                assert data <= 32 << 20
                assert (32 << 20) + 6 <= os.lseek(file.fileno(), 32 << 20, os.SEEK_HOLE) <= size
                assert os.lseek(file.fileno(), size - 1, os.SEEK_HOLE) <= size
                with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
                    os.lseek(file.fileno(), size, os.SEEK_DATA)
                assert os.pread(file.fileno(), 10, (32 << 20) - 2) == b"\0\0middle\0\0"
            for name in ("sparse", "all hole"):
                blocks = os.stat(low / name).st_blocks
                assert os.stat(union / name).st_blocks <= blocks + 16
                if not changed:
                    os.chmod(union / name, 0o640)
                    (union / name).open("r+b").close()
                assert os.stat(tmp_path / "upper" / name).st_blocks <= blocks + 16


def test_files_without_a_name_live_until_they_are_closed(tmp_path: Path, low: Path) -> None:
    """Some were copied up while they had a name, some after it had gone, some never."""
    for name in ("chmod", "read", "write", "renamed over", "truncate", "twice"):
        (low / name).write_text(f"lower {name}")

    def act(root: Path) -> list[object]:
        names = ["chmod", "read", "twice"]
        fds = {name: os.open(root / name, os.O_RDONLY) for name in names}
        for name in ("write", "truncate", "renamed over"):
            fds[name] = os.open(root / name, os.O_RDWR)
        os.chmod(root / "twice", 0o640)
        for name in ("chmod", "read", "write", "truncate", "twice"):
            os.unlink(root / name)
        (root / "new").write_text("new")
        os.rename(root / "new", root / "renamed over")
        os.fchmod(fds["chmod"], 0o604)
        os.pwrite(fds["write"], b"UPPER", 0)
        os.pwrite(fds["renamed over"], b"!", 100)
        os.ftruncate(fds["truncate"], 3)
        os.utime(fds["read"], (5, 5))
        os.setxattr(fds["twice"], "user.x", b"1")
        facts: list[object] = []
        for name, fd in sorted(fds.items()):
            info = os.fstat(fd)
            facts.append((name, os.pread(fd, 200, 0), info.st_nlink, info.st_size, info.st_mode))
            facts.append(outcome(partial(link_again, fd), root))
        facts.append(os.fstat(fds["read"]).st_mtime)
        facts.append(os.getxattr(fds["twice"], "user.x"))
        for fd in fds.values():
            os.close(fd)
        facts.append(sorted((p.name, p.read_bytes(), p.stat().st_nlink) for p in root.iterdir()))
        return facts

    with pair(tmp_path) as both:
        both.agree(act)
        assert os.listdir(tmp_path / "work/work") == []
        assert stat.S_ISREG(os.stat(low / "read").st_mode)


def test_an_open_file_that_lost_one_of_two_names(tmp_path: Path, low: Path) -> None:
    """The other name was never looked up before, and is the same file all the same."""
    (low / "one").write_text("lower")
    (low / "other").hardlink_to(low / "one")

    def act(root: Path) -> list[object]:
        fd = os.open(root / "one", os.O_RDONLY)
        os.unlink(root / "one")
        facts: list[object] = [os.fstat(fd).st_nlink]
        os.fchmod(fd, 0o600)
        facts.append(os.fstat(fd).st_nlink)
        (root / "other").write_text("written")
        facts.extend((os.pread(fd, 100, 0), os.fstat(fd).st_mode))
        os.close(fd)
        return facts

    with pair(tmp_path) as both:
        both.agree(act)
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        assert (union / "other").read_text() == "written"
        assert os.listdir(union) == ["other"]


def link_again(fd: int, root: Path) -> None:
    """Give an open file a name: linkat(2) refuses one whose last name has gone."""
    os.link(f"/proc/self/fd/{fd}", root / "again", follow_symlinks=True)
    os.unlink(root / "again")
