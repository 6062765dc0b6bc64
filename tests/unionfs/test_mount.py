"""Real mounts: what programs see through the kernel."""

from __future__ import annotations

import errno
import mmap
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import REPOSITORY
from tests.support.mounts import mounted, mountpoints_below, unmount
from unionfs import syscalls
from unionfs.pack import ingest

pytestmark = pytest.mark.fuse


@pytest.fixture
def low(tmp_path: Path) -> Path:
    (tmp_path / "low/d").mkdir(parents=True)
    (tmp_path / "low/f").write_bytes(b"lower" * 2000)
    (tmp_path / "low/d/g").write_text("g")
    return tmp_path / "low"


@pytest.fixture
def union(tmp_path: Path, low: Path) -> Iterator[Path]:
    """A writable mount over ``low``."""
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as mountpoint:
        yield mountpoint


def fuse_lamina(*arguments: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cli.fuse_lamina", *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert not check or done.returncode == 0, done.stderr
    return done


def test_a_map_made_before_the_copy_up_sees_what_is_written_after_it(union: Path) -> None:
    with (union / "f").open("rb") as before:
        view = mmap.mmap(before.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        assert view[:5] == b"lower"
        with (union / "f").open("r+b") as writer:
            writer.write(b"UPPER")
        assert view[:5] == b"UPPER"
        assert os.pread(before.fileno(), 5, 0) == b"UPPER"
        assert os.fstat(before.fileno()).st_ino == os.stat(union / "f").st_ino
        view.close()


def test_opening_with_flags(union: Path, low: Path) -> None:
    with pytest.raises(FileExistsError):
        os.open(union / "f", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with (union / "f").open("ab") as file:
        file.write(b"end")
    assert (union / "f").read_bytes() == (low / "f").read_bytes() + b"end"
    (union / "d/g").write_text("short")
    with (union / "d/g").open("wb") as file:
        assert os.fstat(file.fileno()).st_size == 0
    assert (union / "d/g").read_bytes() == b""
    os.truncate(union / "f", 3)
    assert (union / "f").read_bytes() == b"low"
    assert (low / "d/g").read_text() == "g"


def test_an_unlinked_file_lives_until_it_is_closed(union: Path) -> None:
    fd = os.open(union / "f", os.O_RDWR)
    os.unlink(union / "f")
    os.pwrite(fd, b"still here", 0)
    os.fsync(fd)
    assert os.pread(fd, 10, 0) == b"still here"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)
    assert os.listdir(union) == ["d"]


def test_rename_flags(union: Path) -> None:
    (union / "new").write_text("new")
    at = syscalls.AT_FDCWD
    old, new = bytes(union / "f"), bytes(union / "new")
    with pytest.raises(FileExistsError):
        syscalls.renameat2(at, old, at, new, syscalls.RENAME_NOREPLACE)
    syscalls.renameat2(at, old, at, new, syscalls.RENAME_EXCHANGE)
    assert (union / "f").read_text() == "new"
    assert (union / "new").read_bytes().startswith(b"lower")
    syscalls.renameat2(at, old, at, bytes(union / "g"), syscalls.RENAME_WHITEOUT)
    assert sorted(os.listdir(union)) == ["d", "g", "new"]
    flags = syscalls.RENAME_WHITEOUT | syscalls.RENAME_EXCHANGE
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        syscalls.renameat2(at, bytes(union / "g"), at, new, flags)


def test_times_have_nanoseconds_and_xattrs_their_flags(union: Path) -> None:
    os.utime(union / "f", ns=(10**18 + 1, 10**18 + 2))
    assert os.stat(union / "f").st_mtime_ns == 10**18 + 2
    os.setxattr(union / "f", "user.a", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(union / "f", "user.a", b"2", os.XATTR_CREATE)
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        os.setxattr(union / "f", "user.b", b"2", os.XATTR_REPLACE)
    assert os.listxattr(union / "f") == ["user.a"]
    os.removexattr(union / "f", "user.a")
    assert os.listxattr(union / "f") == []


def test_fifos_and_sockets(union: Path) -> None:
    os.mkfifo(union / "fifo", 0o640)
    assert stat.S_ISFIFO(os.stat(union / "fifo").st_mode)
    directory = os.open(union, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{directory}/socket")
    os.close(directory)
    assert stat.S_ISSOCK(os.stat(union / "socket").st_mode)


@pytest.mark.root
def test_devices_owners_and_setgid_directories(union: Path) -> None:
    os.mknod(union / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    assert os.stat(union / "null").st_rdev == os.makedev(1, 3)
    with pytest.raises(PermissionError):
        os.mknod(union / "whiteout", stat.S_IFCHR, 0)
    os.chown(union / "f", 12, 34)
    assert (os.stat(union / "f").st_uid, os.stat(union / "f").st_gid) == (12, 34)
    os.chown(union / "d", 0, 50)
    os.chmod(union / "d", 0o2775)
    (union / "d/sub").mkdir()
    assert os.stat(union / "d/sub").st_gid == 50
    assert os.stat(union / "d/sub").st_mode & stat.S_ISGID
    command = [sys.executable, "-c", "import os; os.setgid(9); os.setuid(9); open('mine', 'w')"]
    (union / "open").mkdir()
    os.chmod(union / "open", 0o777)
    subprocess.run(command, cwd=union / "open", check=True)
    assert os.stat(union / "open/mine").st_uid == 9
    refused = subprocess.run(command, cwd=union, capture_output=True, check=False)
    assert b"PermissionError" in refused.stderr


def test_many_names_are_removed_while_they_are_listed(union: Path) -> None:
    (union / "many").mkdir()
    for number in range(3000):
        (union / f"many/{number}").touch()
    removed = 0
    with os.scandir(union / "many") as entries:
        for entry in entries:
            os.unlink(entry.path)
            removed += 1
    assert removed == 3000
    assert os.listdir(union / "many") == []
    os.rmdir(union / "many")


def test_numbers_in_listings_and_attributes_agree(union: Path) -> None:
    for directory in (union, union / "d"):
        with os.scandir(directory) as entries:
            for entry in entries:
                info = os.lstat(entry.path)
                assert entry.inode() == info.st_ino
                assert info.st_dev == os.stat(union).st_dev
    assert os.statvfs(union).f_namemax == 255


def test_the_kernel_may_forget(union: Path, low: Path) -> None:
    """What was dropped from the kernel's caches is found again as it was."""
    before = os.stat(union / "d/g")
    (union / "d/new").write_text("x")
    os.link(union / "d/new", union / "other")
    with (union / "d/g").open("rb") as held:
        if os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("2")
        assert os.stat(union / "d/g").st_ino == before.st_ino
        assert os.stat(union / "other").st_nlink == 2
        assert held.read() == (low / "d/g").read_bytes()


def test_a_damaged_pack_is_an_error_and_the_mount_lives_on(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "bad").write_bytes(os.urandom(50_000))
    (source / "good").write_bytes(b"good")
    tar = tmp_path / "layer.tar"
    subprocess.run(["tar", "-C", source, "-cf", tar, "."], check=True)
    with tar.open("rb") as stream:
        diff_id = ingest(stream, tmp_path / "pack").diff_id
    pack = tmp_path / f"{diff_id.hex()}.pack"
    (tmp_path / "pack").rename(pack)
    data = bytearray(pack.read_bytes())
    data[data.index((source / "bad").read_bytes()[1000:1010])] ^= 1
    pack.write_bytes(data)
    with mounted(tmp_path / "mnt", [pack]) as union:
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (union / "bad").read_bytes()
        assert (union / "good").read_bytes() == b"good"
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            (union / "good").write_bytes(b"")
    log = (tmp_path / "mnt.daemon.log").read_text()
    assert pack.name in log


def test_the_background_daemon_answers_at_once_and_ends_with_the_mount(
    tmp_path: Path, low: Path
) -> None:
    for name in ("mnt", "upper", "work"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={low},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    for arguments in (["-o", options], ["lamina", "-o", "rw", "-o", options]):
        fuse_lamina(*arguments, tmp_path / "mnt")
        assert sorted(os.listdir(tmp_path / "mnt")) == ["d", "f"]
        refused = fuse_lamina("-o", options, tmp_path / "mnt", check=False)
        assert refused.returncode == 1
        assert "already a lamina mount" in refused.stderr
        with (tmp_path / "mnt/f").open("rb"), pytest.raises(subprocess.CalledProcessError):
            unmount(tmp_path / "mnt")
        unmount(tmp_path / "mnt")
        assert mountpoints_below(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_mount_cleanly(tmp_path: Path, low: Path, number: int) -> None:
    (tmp_path / "mnt").mkdir()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "cli.fuse_lamina", "-f", "-o", f"lowerdir={low}", tmp_path / "mnt"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 20
    while not mountpoints_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert sorted(os.listdir(tmp_path / "mnt")) == ["d", "f"]
    daemon.send_signal(number)
    _, said = daemon.communicate(timeout=20)
    assert (daemon.returncode, said) == (0, b"")
    while mountpoints_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.02)  # fusermount3 takes it away a moment later
    assert mountpoints_below(tmp_path) == []


def test_a_killed_daemon_leaves_old_or_new(tmp_path: Path, low: Path) -> None:
    """``kill -9`` while files are copied up: each is whole afterwards, and nothing is left."""
    for number in range(200):
        (low / f"file{number}").write_bytes(b"%d" % number * 20_000)
    options = f"lowerdir={low},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    for name in ("mnt", "upper", "work"):
        (tmp_path / name).mkdir()
    for delay in (0.01, 0.03, 0.06):
        daemon = subprocess.Popen(
            [sys.executable, "-m", "cli.fuse_lamina", "-f", "-o", options, tmp_path / "mnt"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        )
        deadline = time.monotonic() + 20
        while not mountpoints_below(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.01)
        os.listdir(tmp_path / "mnt")
        chmod = subprocess.Popen(
            ["chmod", "-R", "u=r", tmp_path / "mnt"], stderr=subprocess.DEVNULL
        )
        time.sleep(delay)
        daemon.kill()
        daemon.wait()
        chmod.wait()
        while mountpoints_below(tmp_path) and time.monotonic() < deadline:
            subprocess.run(["umount", "-l", tmp_path / "mnt"], capture_output=True, check=False)
            time.sleep(0.05)
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as union:
        assert len(os.listdir(union)) == 202
        for number in range(200):
            assert (union / f"file{number}").read_bytes() == b"%d" % number * 20_000
        assert os.listdir(tmp_path / "work/work") == []


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        ("lowerdir=/nonexistent", "lowerdir /nonexistent does not exist", 1),
        ("lowerdir=/etc/passwd", "not a pack", 1),
        ("upperdir=/tmp,workdir=/tmp", "no lower layer", 1),
        ("lowerdir=LOW,upperdir=LOW", "upperdir without workdir", 1),
        ("lowerdir=LOW,upperdir=LOW,workdir=/dev/shm", "different filesystems", 1),
        ("lowerdir=LOW,upperdir=LOW,workdir=LOW", "the same directory", 1),
        ("lowerdir=LOW,frobnicate", "unknown option: frobnicate", 2),
    ],
)
def test_wrong_options_are_named(
    tmp_path: Path, low: Path, options: str, said: str, code: int
) -> None:
    (tmp_path / "mnt").mkdir()
    done = fuse_lamina("-o", options.replace("LOW", str(low)), tmp_path / "mnt", check=False)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert mountpoints_below(tmp_path) == []


def test_a_missing_mountpoint_is_named(tmp_path: Path, low: Path) -> None:
    done = fuse_lamina("-o", f"lowerdir={low}", tmp_path / "nowhere", check=False)
    assert done.returncode == 1
    assert done.stderr == (
        f"fuse-lamina: mountpoint {tmp_path}/nowhere does not exist; create it first\n"
    )


@pytest.mark.root
def test_a_full_disk_is_an_error_and_nothing_is_lost(tmp_path: Path, low: Path) -> None:
    (tmp_path / "small").mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "small", tmp_path / "small"], check=True
    )
    try:
        (low / "big").write_bytes(b"b" * 1_000_000)
        places = (tmp_path / "small/upper", tmp_path / "small/work")
        with mounted(tmp_path / "mnt", [low], *places) as union:
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                os.chmod(union / "big", 0o600)
            assert (union / "big").read_bytes() == b"b" * 1_000_000
            (union / "f").write_text("fits")
            assert sorted(os.listdir(tmp_path / "small/upper")) == ["f"]
    finally:
        subprocess.run(["umount", tmp_path / "small"], check=True)


def listing(root: Path) -> list[tuple[object, ...]]:
    """Everything that can be said of each file below a directory."""
    found: list[tuple[object, ...]] = []
    for path in [root, *sorted(root.rglob("*"))]:
        info = path.lstat()
        size = 0 if stat.S_ISDIR(info.st_mode) else info.st_size
        xattrs = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        target = os.readlink(path) if path.is_symlink() else ""
        found.append(
            (path.relative_to(root), info.st_mode, info.st_uid, info.st_gid, info.st_nlink,
             info.st_rdev, size, info.st_mtime_ns, xattrs, target)
        )  # fmt: skip
    return found


@pytest.mark.root
@pytest.mark.parametrize("image", ["busybox_tar", "debian_tar"])
def test_an_image_looks_as_gnu_tar_unpacks_it(
    tmp_path: Path, image: str, request: pytest.FixtureRequest
) -> None:
    tar = request.getfixturevalue(image)
    with tar.open("rb") as stream:
        diff_id = ingest(stream, tmp_path / "pack").diff_id
    pack = tmp_path / f"{diff_id.hex()}.pack"
    (tmp_path / "pack").rename(pack)
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    command = ["tar", "-C", str(unpacked), "--numeric-owner", "--xattrs", "--xattrs-include=*"]
    # Absolute links at once, times of directories at last: each would change directories' times.
    subprocess.run([*command, "-P", "--delay-directory-restore", "-xpf", tar], check=True)
    with mounted(tmp_path / "mnt", [pack]) as union:
        assert listing(union) == listing(unpacked)
        files = [path for path in unpacked.rglob("*") if path.is_file() and not path.is_symlink()]
        for path in files:
            assert (union / path.relative_to(unpacked)).read_bytes() == path.read_bytes(), path
