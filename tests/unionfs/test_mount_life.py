"""How a mount starts, fails to start, lives on after errors, and ends."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.machine import REPOSITORY
from tests.support.mounts import mounted, mountpoints_below, unmount
from unionfs import mounting
from unionfs.errors import MountError
from unionfs.layers import upper
from unionfs.mounting import MountOptions

pytestmark = pytest.mark.fuse


def options(
    base: Path, mountpoint: str = "mnt", upper: str = "upper", lower: str = "low"
) -> MountOptions:
    return MountOptions(
        lowers=(os.fsencode(base / lower),),
        upper=os.fsencode(base / upper),
        work=os.fsencode(base / "work"),
        mountpoint=os.fsencode(base / mountpoint),
        fsname="a name, with a comma",
    )


def wait_until_gone(pid: int) -> None:
    """The daemon is a child of this process."""
    deadline = time.monotonic() + 20
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        assert time.monotonic() < deadline, "the daemon is still there"
        time.sleep(0.01)


def test_a_daemon_answers_when_start_returns_and_ends_with_the_mount(base: Path) -> None:
    pid = mounting.start(options(base), base / "log")
    assert (base / "mnt/f").read_bytes() == b"lower"
    assert os.getsid(pid) == pid, "no signal of the terminal reaches it"
    said = subprocess.run(
        ["findmnt", "-no", "SOURCE,FSTYPE", base / "mnt"], capture_output=True, check=True
    )
    assert said.stdout.split(b"fuse.")[1].strip() == b"lamina"
    mounting.unmount(os.fsencode(base / "mnt"))
    wait_until_gone(pid)
    assert (base / "log").read_bytes() == b""
    assert mountpoints_below(base) == []


def test_a_busy_mount_says_so_and_can_be_detached(base: Path) -> None:
    pid = mounting.start(options(base))
    mountpoint = os.fsencode(base / "mnt")
    with (base / "mnt/f").open("rb") as file:
        with pytest.raises(MountError, match=r"mnt: it is busy: a process has a file"):
            mounting.unmount(mountpoint)
        mounting.unmount(mountpoint, lazy=True)
        assert mountpoints_below(base) == []
        assert file.read() == b"lower"
    wait_until_gone(pid)


def test_only_lamina_mounts_are_unmounted(base: Path) -> None:
    for path in (base / "mnt", base / "none", Path("/proc")):
        with pytest.raises(MountError, match=f"{path} is not a lamina mount"):
            mounting.unmount(os.fsencode(path))


def test_a_mount_does_not_hide_another(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper, "_PATIENCE", 0.1)
    pid = mounting.start(options(base))
    with pytest.raises(MountError, match="already a lamina mount"):
        mounting.start(options(base))
    (base / "other").mkdir()
    (base / "second").mkdir()
    for place in ("upper", "other"):
        with pytest.raises(MountError, match="in use by another mount"):
            mounting.start(options(base, "second", place))
    assert mountpoints_below(base) == [base / "mnt"]
    mounting.unmount(os.fsencode(base / "mnt"))
    wait_until_gone(pid)


def test_an_upper_without_workdir_and_unknown_flags_are_named(base: Path) -> None:
    lower = (os.fsencode(base / "low"),)
    here = os.fsencode(base / "mnt")
    for wrong, said in (
        (MountOptions(lowers=(), upper=None, work=None, mountpoint=here), "no lower layer"),
        (
            MountOptions(lowers=lower, upper=here, work=None, mountpoint=here),
            "upperdir without workdir",
        ),
        (
            MountOptions(lowers=lower, upper=None, work=here, mountpoint=here),
            "workdir without upperdir",
        ),
        (
            MountOptions(lowers=lower, upper=None, work=None, mountpoint=here, flags=("x",)),
            "unknown mount option: x",
        ),
    ):
        with pytest.raises(MountError, match=said):
            mounting.start(wrong)


def test_a_dead_mount_is_named(base: Path) -> None:
    pid = mounting.start(options(base))
    os.kill(pid, 9)
    wait_until_gone(pid)
    if os.geteuid() != 0:
        return  # fusermount3 has taken it away
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        os.stat(base / "mnt/f")
    with pytest.raises(MountError, match=r"mnt .* mount.*; unmount it first"):
        mounting.start(options(base))
    with pytest.raises(MountError, match=r"lowerdir .* holds a mount whose daemon died"):
        mounting.start(options(base, "low", lower="mnt/d"))
    mounting.unmount(os.fsencode(base / "mnt"))
    pid = mounting.start(options(base))
    mounting.unmount(os.fsencode(base / "mnt"))
    wait_until_gone(pid)


def test_an_unforeseen_error_is_eio_and_the_mount_lives_on(base: Path) -> None:
    code = """if True:
        import logging, os, sys
        from unionfs.changes import WritableTree
        from unionfs.mounting import MountOptions, serve
        def broken(*_):
            raise ZeroDivisionError("a mistake")
        WritableTree.symlink = broken
        logging.basicConfig()
        low, mountpoint = map(os.fsencode, sys.argv[1:3])
        upper, work = map(os.fsencode, sys.argv[3:5])
        serve(MountOptions(lowers=(low,), upper=upper, work=work, mountpoint=mountpoint))
    """
    places = [base / name for name in ("low", "mnt", "upper", "work")]
    daemon = subprocess.Popen(
        [sys.executable, "-c", code, *places],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 20
    while not mountpoints_below(base) and time.monotonic() < deadline:
        time.sleep(0.01)
    for _ in range(2):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            (base / "mnt/link").symlink_to("f")
    assert (base / "mnt/f").read_bytes() == b"lower"
    unmount(base / "mnt")
    _, said = daemon.communicate(timeout=20)
    assert daemon.returncode == 0
    assert said.count(b"unforeseen error in symlink") == 2
    assert b"ZeroDivisionError: a mistake" in said


@pytest.mark.parametrize("with_upper", [True, False], ids=["with an upper", "without"])
def test_a_read_only_mount_refuses_every_change(base: Path, with_upper: bool) -> None:
    upper_place = base / "upper" if with_upper else None
    work = base / "work" if with_upper else None
    with mounted(base / "mnt", [base / "low"], upper_place, work, ["ro"]) as union:
        for change in (
            (union / "new").touch,
            lambda: (union / "f").open("r+b"),
            lambda: os.unlink(union / "f"),
            lambda: os.chmod(union / "f", 0o600),
            lambda: os.rename(union / "f", union / "g"),
            lambda: os.setxattr(union / "f", "user.x", b""),
        ):
            with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
                change()
        assert os.listdir(union) == ["f"]
    assert os.listdir(base / "upper") == []


def test_paths_of_any_spelling_can_be_mounted(base: Path) -> None:
    names = ["a:b", "c,d", "e\\", "f g\n"]
    for number, name in enumerate(names):
        (base / name).mkdir()
        (base / name / str(number)).touch()
    (base / "m \\x").mkdir()
    escaped = ":".join(
        str(base / name).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
        for name in names
    )
    command = [sys.executable, "-m", "cli.fuse_lamina", "-o", f"lowerdir={escaped}"]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    subprocess.run([*command, base / "m \\x"], env=environment, check=True)
    assert sorted(os.listdir(base / "m \\x")) == ["0", "1", "2", "3"]
    mounting.unmount(os.fsencode(base / "m \\x"))


def test_private_xattrs_do_not_exist_on_a_mount(base: Path) -> None:
    os.setxattr(base / "low/f", "user.overlay.origin", b"x")
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        os.chmod(union / "f", 0o640)
        assert os.listxattr(union / "f") == []
        for name in ("user.overlay.origin", "user.fuseoverlayfs.opaque"):
            with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
                os.getxattr(union / "f", name)
            with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
                os.removexattr(union / "f", name)
        with pytest.raises(PermissionError):
            os.setxattr(union / "f", "user.fuseoverlayfs.opaque", b"y")
        os.setxattr(union / "f", "user.overlay.origin", b"mine")
        assert os.listxattr(union / "f") == ["user.overlay.origin"]
    assert os.getxattr(base / "upper/f", "user.overlay.overlay.origin") == b"mine"


def test_a_mode_cannot_be_changed_through_a_symlink(base: Path) -> None:
    (base / "host").touch(0o600)
    (base / "low/link").symlink_to(base / "host")
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        fd = os.open(union / "link", os.O_PATH | os.O_NOFOLLOW)
        with contextlib.suppress(OSError):
            os.chmod(f"/proc/self/fd/{fd}", 0o666)
        libc = ctypes.CDLL(None)
        libc.fchmodat(-100, os.fsencode(union / "link"), 0o666, 0x100)  # AT_SYMLINK_NOFOLLOW
        os.close(fd)
    assert os.stat(base / "host").st_mode & 0o777 == 0o600


def test_a_shared_map_of_a_lower_file_can_be_written(base: Path) -> None:
    (base / "low/big").write_bytes(b"-" * 20_000)
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        reader = (union / "big").open("rb")
        early = mmap.mmap(reader.fileno(), 0, mmap.MAP_SHARED, mmap.PROT_READ)
        with (union / "big").open("r+b") as writer, mmap.mmap(writer.fileno(), 0) as view:
            view[9000:9004] = b"here"
            assert early[9000:9004] == b"here"
            assert os.pread(reader.fileno(), 4, 9000) == b"here"
            os.unlink(union / "big")
            view[9004:9009] = b"-also"
            view.flush()
        assert os.pread(reader.fileno(), 9, 9000) == b"here-also"
        early.close()
        reader.close()
    assert (base / "low/big").read_bytes() == b"-" * 20_000


def test_truncating_at_opening_counts_as_a_change(base: Path) -> None:
    os.utime(base / "low/f", (5, 5))
    before = time.time() - 1
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        with (union / "f").open("rb") as reader:
            os.close(os.open(union / "f", os.O_WRONLY | os.O_TRUNC))
            assert reader.read() == b""
        assert os.stat(union / "f").st_mtime > before
    assert os.stat(base / "upper/f").st_mtime > before


@pytest.mark.slow
def test_a_big_lower_directory_is_emptied_while_it_is_listed(base: Path) -> None:
    (base / "low/many").mkdir()
    for number in range(20_000):
        os.mknod(base / f"low/many/{number}", 0o100644)
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        subprocess.run(["rm", "-r", union / "many"], check=True)
        assert os.listdir(union) == ["f"]
    assert len(os.listdir(base / "low/many")) == 20_000
