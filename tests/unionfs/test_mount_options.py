"""What the options of fuse-lamina do to a mount, beside fuse-overlayfs and kernel overlayfs."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from pyfuse3 import FileHandleT, FUSEError

from cli.fuse_lamina import read
from cli.mount_options import build_options
from tests.support.machine import REPOSITORY
from tests.support.mounts import mounted, mountpoints_below, unmount
from tests.unionfs.known_options import OPTIONS_OF_FUSE_OVERLAYFS
from tests.unionfs.trees import open_tree
from unionfs import mounting
from unionfs.errors import MountError
from unionfs.mounting import MountOptions
from unionfs.operations import UnionOperations

SOMEBODY = 1234


def places(base: Path) -> str:
    return f"lowerdir={base}/low,upperdir={base}/upper,workdir={base}/work"


def mount(base: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """``fuse-lamina -o ...``; what is not an option is added by the caller."""
    return subprocess.run(
        [sys.executable, "-m", "cli.fuse_lamina", "-o", places(base), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def shown(mountpoint: Path) -> tuple[str, str, set[str]]:
    """Source, type and flags of a mount, as the kernel says."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, kind, flags, *_ = line.split()
        if place == str(mountpoint):
            return source, kind, set(flags.split(","))
    raise AssertionError(f"nothing is mounted at {mountpoint}")


FUSE_WORDS = {"user_id=0", "group_id=0", "default_permissions", "allow_other"}


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw", {"rw", "noatime"}),
        ("ro", {"ro", "noatime"}),
        ("ro,rw,suid,dev,exec,async", {"rw", "noatime"}),
        ("nosuid,nodev,noexec", {"rw", "nosuid", "nodev", "noexec", "noatime"}),
        ("atime", {"rw", "relatime"}),
        ("noatime,relatime", {"rw", "relatime"}),
        ("strictatime,nodiratime", {"rw", "nodiratime"}),
        ("strictatime,noatime", {"rw", "noatime"}),
        ("sync,dirsync", {"rw", "sync", "dirsync", "noatime"}),
        ("lazytime", {"rw", "lazytime", "noatime"}),
        ("nosymfollow", {"rw", "nosymfollow", "noatime"}),
        ("defaults,noauto,user,nofail,mand,silent", {"rw", "noatime"}),
    ],
)
def test_flags_are_those_of_the_mount_table(base: Path, options: str, expected: set[str]) -> None:
    done = mount(base, "source", base / "mnt", "-o", options)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown(base / "mnt") == ("source", "fuse.lamina", expected | FUSE_WORDS)


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), {"rw", "noatime"}),
        (
            ("nosuid", "nodev", "noexec", "sync", "dirsync"),
            {"rw", "noexec", "noatime", "sync", "dirsync"},
        ),
        (("atime", "nodiratime", "lazytime"), {"rw", "relatime"}),
    ],
)
def test_fusermount3_is_told_the_flags_that_it_knows(
    base: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], expected: set[str]
) -> None:
    """As an ordinary user mounts: the same handshake, and the mount ends with its daemon."""
    monkeypatch.setattr("unionfs.syscalls.has_capability", lambda number: number != 21)
    options = MountOptions(
        lowers=(os.fsencode(base / "low"),),
        upper=os.fsencode(base / "upper"),
        work=os.fsencode(base / "work"),
        mountpoint=os.fsencode(base / "mnt"),
        fsname="a, b\\c",
        subtype="some,type",
        allow_other=True,
        flags=flags,
    )
    daemon = mounting.start(options)
    source, kind, words = shown(base / "mnt")
    assert (source, kind) == ("a,\\040b\\134c", "fuse.some,type")
    assert words == expected | {"nosuid", "nodev"} | FUSE_WORDS
    os.kill(daemon, 9)
    os.waitpid(daemon, 0)
    deadline = time.monotonic() + 20
    while mountpoints_below(base) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mountpoints_below(base) == []


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize(
    "option",
    [
        option
        for option in OPTIONS_OF_FUSE_OVERLAYFS
        if not option.startswith(("splice", "kernel_cache", "diratime", "nodiratime"))
    ],
)
@pytest.mark.peer("fuse-overlayfs")
def test_what_mounts_with_fuse_overlayfs_mounts_here(base: Path, option: str) -> None:
    """The same option string to both: files of the lower can be read, new ones be made.

    A few of the options make fuse-overlayfs 1.10 fail, which its version 2 takes.
    """
    for program in (
        ["fuse-overlayfs"],
        [sys.executable, "-m", "cli.fuse_lamina"],
    ):
        subprocess.run(
            [*program, "-o", f"{places(base)},{option}", base / "mnt"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            check=True,
            capture_output=True,
        )
        assert (base / "mnt/f").read_bytes() == b"lower"
        if option != "ro":
            (base / "mnt" / f"by-{program[0].rpartition('/')[2]}").touch()
        unmount(base / "mnt")
        _forget_volatile(base)


def _forget_volatile(base: Path) -> None:
    shutil.rmtree(base / "work/work/incompat/volatile", ignore_errors=True)


@pytest.mark.fuse
@pytest.mark.root
def test_the_same_as_with_debug_is_said_to_whoever_asks(base: Path) -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cli.fuse_lamina",
            base / "mnt",
            "-o",
            places(base) + ",kernel_cache,debug",
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        deadline = time.monotonic() + 20
        while not os.path.ismount(base / "mnt"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        unmount(base / "mnt")
        assert daemon.stderr is not None
        assert "INFO option kernel_cache changes nothing" in daemon.stderr.read()
    assert daemon.returncode == 0


@pytest.mark.fuse
@pytest.mark.root
def test_a_volatile_mount_marks_its_directories_as_kernel_overlayfs_does(base: Path) -> None:
    mark = base / "work/work/incompat/volatile"
    assert mount(base, base / "mnt", "-o", "volatile").returncode == 0
    assert [path.name for path in mark.iterdir()] == ["dirty"]
    with (base / "mnt/f").open("r+b") as file:
        os.fsync(file.fileno())
    unmount(base / "mnt")
    for options in ("rw", "volatile", "ro"):
        done = mount(base, base / "mnt", "-o", options)
        assert done.returncode == 1
        assert f"workdir {base}/work was used by a volatile mount" in done.stderr
        assert f"remove the directory {mark} if" in done.stderr
    assert mountpoints_below(base) == []
    kernel = ["mount", "-t", "overlay", "overlay", "-o", places(base), str(base / "mnt")]
    assert subprocess.run(kernel, capture_output=True, check=False).returncode != 0
    _forget_volatile(base)
    assert mount(base, base / "mnt").returncode == 0
    assert not mark.exists()


@pytest.mark.fuse
@pytest.mark.root
def test_a_volatile_mount_of_kernel_overlayfs_is_refused_too(base: Path) -> None:
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", places(base) + ",volatile", base / "mnt"],
        check=True,
    )
    unmount(base / "mnt")
    assert [path.name for path in (base / "work/work/incompat/volatile").iterdir()] == ["dirty"]
    assert "was used by a volatile mount" in mount(base, base / "mnt").stderr
    _forget_volatile(base)
    assert mount(base, base / "mnt").returncode == 0


@pytest.mark.fuse
@pytest.mark.root
def test_a_mount_that_fails_is_not_marked_as_volatile(base: Path) -> None:
    done = mount(base, base / "none", "-o", "volatile")
    assert done.returncode == 1
    assert list((base / "work").rglob("volatile")) == []


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize("options", ["fsync=1", "fsync=0", "volatile", "sync"])
def test_fsync_succeeds_whether_it_reaches_the_disk_or_not(base: Path, options: str) -> None:
    with mounted(
        base / "mnt", [base / "low"], base / "upper", base / "work", [options, "debug"]
    ) as union:
        (union / "new").write_bytes(b"1")
        for path in (union, union / "f", union / "new") * 2:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        with (union / "new").open("r+b") as file:
            file.write(b"2")
            os.fdatasync(file.fileno())
            os.sync()
    assert (base / "upper/new").read_bytes() == b"2"


@pytest.mark.parametrize("syncs", [True, False])
def test_a_daemon_that_does_not_wait_for_the_disk_says_so_once_and_for_all(
    base: Path, no_umask: None, syncs: bool
) -> None:
    """ENOSYS is what the kernel remembers, and shows as success."""
    tree = open_tree([base / "low"], base / "upper", base / "work")
    operations = UnionOperations(tree, cached_seconds=1, fsync=syncs)
    root = FileHandleT(tree.root.number)
    file = FileHandleT(tree.lookup(tree.root, b"f").number)
    for handler, handle in ((operations.fsync, file), (operations.fsyncdir, root)):
        if syncs:
            trio.run(handler, handle, False)
            continue
        with pytest.raises(FUSEError) as raised:
            trio.run(handler, handle, False)
        assert raised.value.errno == errno.ENOSYS
    tree.close()


def run_as(uid: int, directory: Path, code: str) -> str:
    """What a program prints that an ordinary user runs in a directory."""
    preamble = (
        "import os, sys\nos.chdir(sys.argv[1])\nos.setgroups([])\n"
        f"os.setgid({uid})\nos.setuid({uid})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", preamble + code, str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr.rpartition("Error: ")[2]


@pytest.mark.fuse
@pytest.mark.root
def test_allow_root_turns_everybody_else_away(base: Path) -> None:
    os.chmod(base, 0o755)
    os.chmod(base / "low/f", 0o666)
    code = "print(open('mnt/f').read()); open('mnt/f', 'a').close()"
    with mounted(
        base / "mnt", [base / "low"], base / "upper", base / "work", ["allow_root"]
    ) as union:
        assert "Permission denied" in run_as(SOMEBODY, base, code)
        assert "Permission denied" in run_as(SOMEBODY, base, "print(os.listdir('mnt'))")
        assert (union / "f").read_bytes() == b"lower"
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        assert run_as(SOMEBODY, base, code) == "lower\n"


@pytest.mark.fuse
@pytest.mark.root
def test_without_xattrs_there_are_none(base: Path) -> None:
    os.setxattr(base / "low/f", "user.x", b"1")
    attempts: list[Callable[[Path], object]] = [
        os.listxattr,
        lambda path: os.getxattr(path, "user.x"),
        lambda path: os.setxattr(path, "user.x", b"2"),
        lambda path: os.removexattr(path, "user.x"),
    ]
    options = ["noxattrs=1"]
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work", options) as union:
        for attempt in attempts * 2:
            with pytest.raises(OSError, match=os.strerror(errno.ENOTSUP)):
                attempt(union / "f")
        (union / "f").write_bytes(b"new")
    assert os.getxattr(base / "upper/f", "user.x") == b"1"


@pytest.mark.fuse
@pytest.mark.root
def test_a_timeout_lets_changes_behind_the_mount_be_seen(base: Path) -> None:
    options = ["timeout=0"]
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work", options) as union:
        (union / "new").write_bytes(b"1")
        assert os.stat(union / "new").st_mode & 0o777 == 0o644
        os.chmod(base / "upper/new", 0o600)
        assert os.stat(union / "new").st_mode & 0o777 == 0o600


@pytest.mark.fuse
@pytest.mark.root
def test_a_dead_mount_is_known_though_the_kernel_remembers_it(base: Path) -> None:
    line = read(["-o", places(base), str(base / "mnt")])
    options = build_options(line.given, line.places)
    daemon = mounting.start(options)
    os.stat(base / "mnt")
    os.kill(daemon, 9)
    os.waitpid(daemon, 0)
    assert os.stat(base / "mnt").st_mode & 0o777 == 0o755, "the kernel asks nobody"
    with pytest.raises(MountError, match=r"mountpoint .* holds a mount whose daemon died"):
        mounting.start(options)
    mounting.unmount(os.fsencode(base / "mnt"))
