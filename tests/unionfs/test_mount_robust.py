"""Real mounts at their limits: big, long, deep, full, and with layers that change underneath.

Where a plain directory can do the same it does, in the same run, and must give the same.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.machine import REPOSITORY
from tests.support.mounts import mounted, mountpoints_below, unmount
from tests.unionfs.trees import PlainSide

pytestmark = pytest.mark.fuse

DROP_CACHES = Path("/proc/sys/vm/drop_caches")

_libc = ctypes.CDLL(None, use_errno=True)


class Pair(NamedTuple):
    """A union, and a plain directory that held the same at the start."""

    union: Path
    plain: Path

    def agree(self, act: Callable[[Path], object]) -> None:
        """Do the same in both, with the same result."""
        assert outcome(act, self.union) == outcome(act, self.plain)


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """A lower directory, to be filled before the mount."""
    (tmp_path / "low").mkdir()
    return tmp_path / "low"


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


def entries_read(fd: int, size: int) -> list[tuple[bytes, int]]:
    """(name, offset after it) of what one getdents64(2) with ``size`` bytes of buffer reads."""
    buffer = ctypes.create_string_buffer(size)
    count = _libc.getdents64(fd, buffer, size)
    if count < 0:
        raise OSError(ctypes.get_errno(), "getdents64")
    found, at, data = [], 0, buffer.raw[:count]
    while at < count:
        offset = int.from_bytes(data[at + 8 : at + 16], "little")
        length = int.from_bytes(data[at + 16 : at + 18], "little")
        name = data[at + 19 : at + length].split(b"\0", 1)[0]
        if name not in (b".", b".."):
            found.append((name, offset))
        at += length
    return found


def daemon_of(mountpoint: Path) -> int:
    """The process that serves a mount of this test."""
    children = Path("/proc/self/task").glob("*/children")
    for pid in " ".join(path.read_text() for path in children).split():
        if bytes(mountpoint) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"no daemon of {mountpoint}")


def resident(pid: int) -> int:
    """Memory that a process holds, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError(f"no VmRSS of {pid}")


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


# -- listings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.timeout(600)
def test_a_big_directory_is_emptied_while_it_is_listed(
    tmp_path: Path, low: Path, count: int
) -> None:
    (low / "many").mkdir()
    for number in range(count // 2):
        os.mknod(low / f"many/low{number}", 0o100644)
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        fd = os.open(union / "many", os.O_RDONLY | os.O_DIRECTORY)
        for number in range(count // 2):
            os.mknod(f"new{number}", 0o100644, dir_fd=fd)
        seen: list[bytes] = []
        while entries := entries_read(fd, 8192):
            for name, _ in entries:
                os.unlink(name, dir_fd=fd)
                seen.append(name)
        os.close(fd)
        assert len(seen) == len(set(seen)) == count
        assert os.listdir(union / "many") == []
        os.rmdir(union / "many")


def test_offsets_stay_while_names_come_and_go(tmp_path: Path, low: Path) -> None:
    for number in range(300):
        (low / f"low{number}").touch()
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        for number in range(300):
            (union / f"new{number}").touch()
        fd = os.open(union, os.O_RDONLY | os.O_DIRECTORY)
        entries: list[tuple[bytes, int]] = []
        while more := entries_read(fd, 512):
            entries.extend(more)
        assert len({name for name, _ in entries}) == len(entries) == 600
        gone = {name for name, _ in entries[::3]}
        for name in gone:
            os.unlink(name, dir_fd=fd)
        for number in range(100):
            os.mkdir(f"later{number}", dir_fd=fd)
        for at in (0, 1, 299, 450, 598):
            os.lseek(fd, entries[at][1], os.SEEK_SET)
            found: list[bytes] = []
            while more := entries_read(fd, 512):
                found.extend(name for name, _ in more)
            kept = [name for name, _ in entries[at + 1 :] if name not in gone]
            assert [name for name in found if not name.startswith(b"later")] == kept
            assert len(found) == len(set(found))
        os.lseek(fd, 0, os.SEEK_SET)
        names = {name for name, _ in iter_entries(fd)}
        assert names == {os.fsencode(name) for name in os.listdir(union)}
        assert len(names) == 500
        os.close(fd)


def iter_entries(fd: int) -> Iterator[tuple[bytes, int]]:
    while more := entries_read(fd, 4096):
        yield from more


# -- names and depth -----------------------------------------------------------------------------


def test_names_of_any_bytes(tmp_path: Path, low: Path) -> None:
    every_byte = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
    long_names = [b"\xff" * 255, b"\n" * 254 + b"x", b".wh" + b"a" * 252, b"-" * 255]
    for name in [*every_byte[::2], *long_names[::2]]:
        Path(os.fsdecode(bytes(low) + b"/" + name)).touch()
    with pair(tmp_path) as both:
        for name in [*every_byte[1::2], *long_names[1::2]]:
            both.agree(partial(make_directory, name))
        both.agree(lambda root: sorted(os.listdir(bytes(root))))
        for name in long_names:
            both.agree(partial(rename_and_back, name, b"\x80" + name[1:]))
        both.agree(lambda root: sorted(os.listdir(bytes(root))))
        too_long = "n" * 256
        for act in (
            lambda root: os.mkdir(root / too_long),
            lambda root: (root / too_long).touch(),
            lambda root: os.stat(root / too_long),
            lambda root: os.rename(root / ("-" * 255), root / too_long),
            lambda root: os.symlink("x", root / too_long),
            lambda root: os.unlink(root / too_long),
        ):
            both.agree(act)
        both.agree(lambda root: shutil.rmtree(bytes(root), ignore_errors=True))
        assert os.listdir(both.union) == []


def make_directory(name: bytes, root: Path) -> None:
    os.mkdir(bytes(root) + b"/" + name)


def rename_and_back(name: bytes, new: bytes, root: Path) -> bool:
    place, other = (bytes(root) + b"/" + one for one in (name, new))
    os.rename(place, other)
    there = os.path.lexists(other) and not os.path.lexists(place)
    os.rename(other, place)
    return there


def descend(root: Path, names: list[str], *, make: bool = False) -> int:
    """A descriptor of a directory deeper than any path can say."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for name in names:
        if make:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
    return fd


def write_at(fd: int, name: str, data: bytes) -> None:
    file = os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.write(file, data)
    os.close(file)


def read_at(fd: int, name: str) -> bytes:
    file = os.open(name, os.O_RDONLY, dir_fd=fd)
    try:
        return os.read(file, 100)
    finally:
        os.close(file)


def test_a_tree_deeper_than_path_max(tmp_path: Path, low: Path) -> None:
    names = [f"{depth:0100}" for depth in range(60)]
    fd = descend(low, names, make=True)
    write_at(fd, "lower", b"lower")
    os.close(fd)
    upper, work = tmp_path / "upper", tmp_path / "work"
    with mounted(tmp_path / "mnt", [low], upper, work) as union:
        fd = descend(union, [*names, *names], make=True)
        write_at(fd, "new", b"new")
        os.link("new", "link", src_dir_fd=fd, dst_dir_fd=fd)
        os.rename("link", "renamed", src_dir_fd=fd, dst_dir_fd=fd)
        os.close(fd)
        fd = descend(union, names)
        assert read_at(fd, "lower") == b"lower"
        write_at(fd, "lower", b"UPPER")
        os.symlink("lower", "symlink", dir_fd=fd)
        os.close(fd)
    with mounted(tmp_path / "mnt", [low], upper, work) as union:
        fd = descend(union, names)
        assert read_at(fd, "symlink") == b"UPPER"
        assert sorted(os.listdir(fd)) == sorted(["lower", "symlink", names[0]])
        os.close(fd)
        fd = descend(union, [*names, *names])
        assert read_at(fd, "renamed") == b"new"
        assert os.stat("new", dir_fd=fd).st_nlink == 2
        os.close(fd)
        subprocess.run(["rm", "-r", union / names[0]], check=True)
        assert os.listdir(union) == []
    fd = descend(low, names)
    assert read_at(fd, "lower") == b"lower"
    os.close(fd)


# -- memory and descriptors ----------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.parametrize("files", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_what_was_seen(tmp_path: Path, low: Path, files: int) -> None:
    """What the kernel forgets is given up: to see it all again needs no more than the last time."""
    for directory in range(300):
        (low / f"d{directory}").mkdir()
        for number in range(files):
            os.mknod(low / f"d{directory}/f{number}", 0o100644)
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        pid = daemon_of(union)
        at_start, peaks, opened = resident(pid), [], []
        for _ in range(3):
            assert sum(len(found) for _, _, found in os.walk(union)) == 300 * files
            peaks.append(resident(pid))
            DROP_CACHES.write_text("2")
            os.statvfs(union)  # answered when the daemon has read what the kernel forgot before
            opened.append(descriptors(pid))
        # Kept nodes of one round would need as much again as the first round did.
        assert peaks[2] - peaks[1] < (peaks[0] - at_start) / 3, (at_start, peaks)
        assert opened[2] <= opened[1], opened


@pytest.mark.root
def test_descriptors_are_given_up(tmp_path: Path, low: Path) -> None:
    for number in range(200):
        (low / f"f{number}").write_text("lower")
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        pid = daemon_of(union)
        at_start = descriptors(pid)
        for cycle in range(5):
            (union / "work").mkdir()
            for number in range(200):
                source, file = union / f"f{number}", union / f"work/{number}"
                held = os.open(source, os.O_RDONLY)
                if cycle == 0:
                    os.chmod(source, 0o600)  # copied up while it is open
                os.link(source, file)
                os.rename(file, union / "work/other")
                os.unlink(union / "work/other")
                file.write_text("new")
                new = os.open(file, os.O_RDWR)
                os.unlink(file)
                os.write(new, b"still there")
                os.close(new)
                os.close(held)
                with pytest.raises(FileExistsError):
                    os.mkdir(source)
            os.rmdir(union / "work")
        for number in range(200):
            os.unlink(union / f"f{number}")
        DROP_CACHES.write_text("2")
        os.statvfs(union)
        assert descriptors(pid) <= at_start + 2, os.listdir(f"/proc/{pid}/fd")
        assert os.listdir(tmp_path / "work/work") == []


# -- layers that change underneath ---------------------------------------------------------------


def remove(low: Path) -> None:
    (low / "d/f").unlink()


def become_a_directory(low: Path) -> None:
    (low / "d/f").unlink()
    (low / "d/f").mkdir()


def become_a_symlink(low: Path) -> None:
    (low / "d/f").unlink()
    (low / "d/f").symlink_to("/etc/passwd")


def truncate(low: Path) -> None:
    os.truncate(low / "d/f", 10)


def remove_directory(low: Path) -> None:
    shutil.rmtree(low / "d")


def directory_becomes_a_file(low: Path) -> None:
    shutil.rmtree(low / "d")
    (low / "d").write_text("no directory now")


def appear(low: Path) -> None:
    (low / "d/late").write_text("late")


@pytest.mark.parametrize(
    "change",
    [
        remove, truncate, become_a_directory, become_a_symlink, remove_directory,
        directory_becomes_a_file, appear,
    ],
)  # fmt: skip
@pytest.mark.parametrize("looked", [True, False], ids=["seen before", "not seen"])
def test_a_layer_that_changes_underneath_harms_only_what_changed(
    tmp_path: Path, low: Path, change: Callable[[Path], None], looked: bool
) -> None:
    """Stale or an error, but never made up, never the host's, and the mount lives on."""
    data = b"0123456789abcdef" * 60_000
    (low / "d/sub").mkdir(parents=True)
    (low / "d/f").write_bytes(data)
    (low / "d/sub/g").write_text("g")
    (low / "other").write_text("other")
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        acts: list[Callable[[], object]] = [
            (union / "d/f").read_bytes,
            lambda: os.listdir(union / "d"),
            lambda: os.stat(union / "d/sub/g"),
            (union / "d/late").read_text,
            lambda: os.chmod(union / "d/f", 0o600),
            lambda: (union / "d/f").write_text("written"),
            lambda: os.link(union / "d/f", union / "link"),
            lambda: os.rename(union / "d/f", union / "moved"),
            lambda: (union / "d/new").write_text("new"),
            lambda: os.unlink(union / "d/sub/g"),
            lambda: os.rmdir(union / "d/sub"),
            lambda: shutil.rmtree(union / "d"),
        ]
        with suppress(OSError), (union / "d/f").open("rb", buffering=0) as held:
            assert held.read(10) == data[:10]
            if looked:
                list(union.rglob("*"))
            change(low)
            for act in [held.readall, *acts]:
                with suppress(OSError):
                    found = act()
                    assert not isinstance(found, bytes) or found in data
        assert (union / "other").read_text() == "other"
        (union / "other").write_text("changed")
        (union / "fresh").mkdir()
        assert (union / "other").read_text() == "changed"
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        assert (union / "other").read_text() == "changed"
        list(os.walk(union))


# -- errors of the upper -------------------------------------------------------------------------


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
    assert (daemon.returncode, said) == (0, b"")
    with mounted(union, [low], tmp_path / "upper", tmp_path / "work"):
        assert os.listdir(tmp_path / "work/work") == []


def write_and_sync(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    try:
        os.write(fd, b"changed")
        os.fsync(fd)
    finally:
        os.close(fd)


# -- files ---------------------------------------------------------------------------------------


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
