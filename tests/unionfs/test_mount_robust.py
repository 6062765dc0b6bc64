"""Real mounts at their limits: big, long, deep, and with layers that change underneath.

Where a plain directory can do the same it does, in the same run, and must give the same.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.support.mounts import mounted
from tests.unionfs.pairs import pair
from tests.unionfs.sights import entries_read

pytestmark = pytest.mark.fuse

DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@pytest.fixture
def low(tmp_path: Path) -> Path:
    """A lower directory, to be filled before the mount."""
    (tmp_path / "low").mkdir()
    return tmp_path / "low"


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
