"""What docs/conformance.md lists and no other module holds, beside a peer where there is one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cli.mount_options import Given, UsageError, build_options
from tests.support.machine import REASON_PREFIX
from tests.support.mounts import mounted
from tests.unionfs.pairs import pair
from tests.unionfs.unions import KERNEL, LAMINA, names, plant, union
from unionfs import syscalls

pytestmark = [pytest.mark.fuse, pytest.mark.root]

TWO = ("top", "low")

_libc = ctypes.CDLL(None, use_errno=True)


def both(
    base: Path,
    prepare: Callable[[Path], object],
    act: Callable[[Path, Path], object],
    *,
    lowers: tuple[str, ...] = TWO,
) -> list[object]:
    """What an action, given mountpoint and upper, finds on lamina and on kernel overlayfs."""
    found = []
    for kind in (LAMINA, KERNEL):
        here = base / kind
        for name in lowers:
            (here / name).mkdir(parents=True)
        prepare(here)
        with union(kind, here, lowers=lowers) as mountpoint:
            found.append(act(mountpoint, here / "upper"))
    return found


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """A directory on another filesystem."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as path:
        yield Path(path)


# -- what is shown -------------------------------------------------------------------------------


def test_a_merged_directory_has_the_attributes_of_the_topmost_layer(tmp_path: Path) -> None:
    def prepare(here: Path) -> None:
        for layer, mode in (("top", 0o710), ("low", 0o755)):
            plant(here, f"{layer}/d/{layer}")
            (here / layer / "d").chmod(mode)
            os.chown(here / layer / "d", mode, 7)
            os.setxattr(here / layer / "d", f"user.{layer}", b"1")
            os.utime(here / layer / "d", ns=(10**18, 10**18 + mode))

    def act(mountpoint: Path, upper: Path) -> object:
        info = (mountpoint / "d").stat()
        return (
            info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns,
            os.listxattr(mountpoint / "d"), sorted(os.listdir(mountpoint / "d")),
        )  # fmt: skip

    lamina, kernel = both(tmp_path, prepare, act)
    assert lamina == kernel
    assert lamina == (
        stat.S_IFDIR | 0o710, 0o710, 7, 10**18 + 0o710, ["user.top"], ["low", "top"],
    )  # fmt: skip


def test_nothing_is_whited_out_in_an_opaque_directory(tmp_path: Path) -> None:
    def prepare(here: Path) -> None:
        plant(here, "low/d/old")

    def act(mountpoint: Path, upper: Path) -> object:
        shutil.rmtree(mountpoint / "d")
        (mountpoint / "d").mkdir()
        (mountpoint / "d/old").touch()
        (mountpoint / "d/old").unlink()
        return sorted(names(upper))

    assert both(tmp_path, prepare, act) == [["d"], ["d"]]


def test_a_listing_that_is_rewound_has_what_came_meanwhile(tmp_path: Path) -> None:
    def act(mountpoint: Path, upper: Path) -> object:
        fd = os.open(mountpoint, os.O_RDONLY)
        before = sorted(os.listdir(fd))
        (mountpoint / "new").touch()
        (mountpoint / "f").unlink()
        after = sorted(os.listdir(fd))
        os.close(fd)
        return before, after

    seen = both(tmp_path, lambda here: plant(here, "low/f", "top/g"), act)
    assert seen == [(["f", "g"], ["g", "new"])] * 2


def test_a_name_that_nobody_asked_for_may_come_behind_the_mount(tmp_path: Path) -> None:
    def act(mountpoint: Path, upper: Path) -> object:
        (upper / "behind").write_text("mount")
        return (mountpoint / "behind").read_text()

    assert both(tmp_path, lambda here: None, act) == ["mount", "mount"]


def test_the_size_of_the_filesystem_is_that_of_the_upper(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "small", small], check=True)
    try:
        (tmp_path / "low").mkdir()
        places = (small / "upper", small / "work")
        with mounted(tmp_path / "mnt", [tmp_path / "low"], *places) as mountpoint:
            shown, there = os.statvfs(mountpoint), os.statvfs(small)
            sizes = ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax")
            assert [getattr(shown, size) for size in sizes] == [getattr(there, s) for s in sizes]
    finally:
        subprocess.run(["umount", small], check=True)


@pytest.mark.parametrize("option", ["static_nlink", "ino32_t"])
def test_counts_and_numbers_for_programs_of_old(
    tmp_path: Path, elsewhere: Path, option: str
) -> None:
    plant(tmp_path / "low", "d/e/f")
    plant(elsewhere, "g")
    with mounted(tmp_path / "mnt", [elsewhere, tmp_path / "low"], options=[option]) as mountpoint:
        found = [path.lstat() for path in [mountpoint, *mountpoint.rglob("*")]]
    assert len({info.st_ino for info in found}) == 5
    if option == "static_nlink":
        assert {info.st_nlink for info in found} == {1}
    else:
        assert all(info.st_ino < 1 << 32 for info in found)


# -- what is copied up ---------------------------------------------------------------------------


def _close_after(flags: int) -> Callable[[Path], object]:
    return lambda path: os.close(os.open(path, flags))


TOUCHES: dict[str, Callable[[Path], object]] = {
    "stat": os.stat,
    "read": Path.read_bytes,
    "open to read": _close_after(os.O_RDONLY),
    "list xattrs": os.listxattr,
    "open to write": _close_after(os.O_WRONLY),
    "open to read and write": _close_after(os.O_RDWR),
    "open to append": _close_after(os.O_WRONLY | os.O_APPEND),
    "truncate": lambda path: os.truncate(path, 1),
    "chmod": lambda path: path.chmod(0o600),
    "chown": lambda path: os.chown(path, 5, 5),
    "utime": lambda path: os.utime(path, ns=(5, 5)),
    "set an xattr": lambda path: os.setxattr(path, "user.test", b"1"),
    "link": lambda path: os.link(path, path.with_name("linked")),
    "rename": lambda path: path.rename(path.with_name("renamed")),
}


@pytest.mark.parametrize("touch", TOUCHES)
def test_what_copies_a_file_up(tmp_path: Path, touch: str) -> None:
    def act(mountpoint: Path, upper: Path) -> object:
        TOUCHES[touch](mountpoint / "a/b/f")
        return sorted(names(upper))

    lamina, kernel = both(tmp_path, lambda here: plant(here, "low/a/b/f"), act)
    assert lamina == kernel


def test_reading_leaves_the_access_times_of_lower_files(tmp_path: Path) -> None:
    def prepare(here: Path) -> None:
        plant(here, "low/d/f")
        for path in ("low/d/f", "low/d"):
            os.utime(here / path, ns=(10**17, 10**18))

    def act(mountpoint: Path, upper: Path) -> object:
        (mountpoint / "d/f").read_bytes()
        os.listdir(mountpoint / "d")
        low = upper.parent / "low"
        return (low / "d/f").stat().st_atime_ns, (low / "d").stat().st_atime_ns

    assert both(tmp_path, prepare, act) == [(10**17, 10**17)] * 2


@pytest.mark.peer("mkfs.xfs")
def test_contents_are_shared_where_the_filesystem_can(tmp_path: Path) -> None:
    with (tmp_path / "image").open("wb") as image:
        image.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", tmp_path / "image"], check=True)
    (tmp_path / "fs").mkdir()
    done = subprocess.run(
        ["mount", "-o", "loop", tmp_path / "image", tmp_path / "fs"],
        capture_output=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"{REASON_PREFIX}xfs cannot be mounted: {done.stderr.decode().strip()}")
    base = tmp_path / "fs"
    try:
        (base / "low").mkdir()
        (base / "low/f").write_bytes(os.urandom(64 << 20))
        subprocess.run(["sync", "-f", base], check=True)
        with mounted(tmp_path / "mnt", [base / "low"], base / "upper", base / "work") as mountpoint:
            before = os.statvfs(base).f_bfree
            (mountpoint / "f").chmod(0o600)
            subprocess.run(["sync", "-f", base], check=True)
            taken = (before - os.statvfs(base).f_bfree) * os.statvfs(base).f_frsize
        assert taken < 8 << 20
        assert (base / "upper/f").read_bytes() == (base / "low/f").read_bytes()
    finally:
        subprocess.run(["umount", base], check=True)


@pytest.mark.parametrize("how", ["write", "truncate", "chown"])
@pytest.mark.peer("setcap")
def test_a_change_takes_setuid_setgid_and_capabilities(tmp_path: Path, how: str) -> None:
    low = tmp_path / "low"
    low.mkdir()
    low.chmod(0o755)
    (low / "f").write_text("program")
    subprocess.run(["setcap", "cap_net_raw+ep", low / "f"], check=True)
    (low / "f").chmod(0o6777)

    def act(root: Path) -> object:
        if how == "chown":
            os.chown(root / "f", 5, 5)
        else:
            script = "printf x >>f" if how == "write" else "truncate -s 1 f"
            command = ["sh", "-c", script]
            subprocess.run(command, cwd=root, user=5, group=5, extra_groups=[], check=True)
        return oct((root / "f").stat().st_mode), os.listxattr(root / "f")

    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o755)
    with pair(tmp_path) as two:
        two.agree(act)
        assert act(two.union) == ("0o100777", [])


# -- numbers -------------------------------------------------------------------------------------


def test_numbers_of_several_filesystems_are_different_and_stay(
    tmp_path: Path, elsewhere: Path
) -> None:
    assert elsewhere.stat().st_dev != tmp_path.stat().st_dev
    low = tmp_path / "low"
    plant(elsewhere, *(f"there{i}" for i in range(30)))
    plant(low, *(f"here{i}" for i in range(30)))
    seen = []
    for _ in range(2):
        with mounted(
            tmp_path / "mnt", [elsewhere, low], tmp_path / "upper", tmp_path / "work"
        ) as mountpoint:
            found = {path.name: path.stat() for path in mountpoint.iterdir()}
            seen.append({name: info.st_ino for name, info in found.items()})
            assert len({info.st_dev for info in found.values()}) == 1
            (mountpoint / "there3").chmod(0o600)
    assert len(set(seen[0].values())) == 60
    assert seen[0] == seen[1]


def test_a_file_has_a_handle(tmp_path: Path) -> None:
    plant(tmp_path / "low", "f")
    handle = ctypes.create_string_buffer(8 + 128)
    ctypes.memmove(handle, (128).to_bytes(4, sys.byteorder), 4)
    with mounted(tmp_path / "mnt", [tmp_path / "low"]) as mountpoint:
        file = bytes(mountpoint / "f")
        result = _libc.name_to_handle_at(-100, file, handle, ctypes.byref(ctypes.c_int()), 0)
        assert result == 0, os.strerror(ctypes.get_errno())


# -- beside other mounts -------------------------------------------------------------------------


def test_lower_layers_serve_several_mounts(tmp_path: Path) -> None:
    plant(tmp_path / "low", "f", "g")
    places = [tmp_path / "one", tmp_path / "other"]
    for place in places:
        place.mkdir()
    with (
        union(LAMINA, places[0], lowers=("../low",)) as one,
        union(LAMINA, places[1], lowers=("../low",)) as other,
    ):
        (one / "f").write_text("one")
        (other / "g").unlink()
        assert (other / "f").read_text() == "f"
        assert sorted(os.listdir(one)) == ["f", "g"]


def test_a_lower_layer_may_change_between_mounts(tmp_path: Path) -> None:
    plant(tmp_path / "low", "d/f", "d/g", "d/gone")
    with union(LAMINA, tmp_path) as mountpoint:
        (mountpoint / "d/f").chmod(0o600)
    (tmp_path / "low/d/g").write_text("another")
    (tmp_path / "low/d/gone").unlink()
    plant(tmp_path / "low", "d/new")
    with union(LAMINA, tmp_path) as mountpoint:
        assert sorted(os.listdir(mountpoint / "d")) == ["f", "g", "new"]
        assert (mountpoint / "d/g").read_text() == "another"
        assert (mountpoint / "d/f").read_text() == "d/f"


# -- open files ----------------------------------------------------------------------------------


def test_a_program_that_runs_cannot_be_written(tmp_path: Path) -> None:
    """As on a plain directory; kernel overlayfs lets lower programs be written while they run."""
    (tmp_path / "low").mkdir()
    sleep = shutil.which("sleep") or "sleep"
    shutil.copy(sleep, tmp_path / "low/sleep")

    def act(root: Path) -> int:
        with subprocess.Popen([root / "sleep", "100"]) as running:
            try:
                os.close(os.open(root / "sleep", os.O_WRONLY))
            except OSError as error:
                return error.errno or -1
            finally:
                running.kill()
        return 0

    with pair(tmp_path) as two:
        assert act(two.union) == act(two.plain) == errno.ETXTBSY


def test_locks_hold_between_programs(tmp_path: Path) -> None:
    plant(tmp_path / "low", "f")

    def act(root: Path) -> list[int]:
        """What a second opening, in another process, is told of each kind of lock."""
        ask = (
            "import fcntl, sys\n"
            "f = open(sys.argv[1], 'r+')\n"
            "getattr(fcntl, sys.argv[2])(f, fcntl.LOCK_EX | fcntl.LOCK_NB)"
        )
        codes = []
        for kind in ("flock", "lockf"):
            with (root / "f").open("r+") as held:
                for operation in (fcntl.LOCK_EX, fcntl.LOCK_UN):
                    getattr(fcntl, kind)(held, operation)
                    command = [sys.executable, "-c", ask, str(root / "f"), kind]
                    done = subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
                    codes.append(done.returncode)
        return codes

    with pair(tmp_path) as two:
        assert act(two.union) == act(two.plain) == [1, 0, 1, 0]


def test_there_are_no_flags_of_files_to_ask_for(tmp_path: Path) -> None:
    """lsattr(1) and chattr(1) say so; the FUSE binding hands no ioctl on."""
    plant(tmp_path / "low", "f")
    with mounted(tmp_path / "mnt", [tmp_path / "low"]) as mountpoint:
        with (mountpoint / "f").open() as file, pytest.raises(OSError) as caught:  # noqa: PT011
            fcntl.ioctl(file, 0x80086601, bytearray(8))  # FS_IOC_GETFLAGS
        assert caught.value.errno == errno.ENOTTY


def test_exchange_with_itself_and_over_a_link_of_itself(tmp_path: Path) -> None:
    plant(tmp_path / "low", "f")
    os.link(tmp_path / "low/f", tmp_path / "low/g")

    def act(root: Path) -> object:
        at = syscalls.AT_FDCWD
        os.rename(root / "f", root / "g")
        syscalls.renameat2(at, bytes(root / "f"), at, bytes(root / "g"), syscalls.RENAME_EXCHANGE)
        return sorted(os.listdir(root)), (root / "f").stat().st_nlink

    with pair(tmp_path) as two:
        two.agree(act)


# -- options that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    ["verity=require", "nfs_export=on", "lowerdir+=/", "datadir+=/", "override_creds",
     "add:1:/", "del:/", "udba=reval", "br:/"],
)  # fmt: skip
def test_what_would_be_promised_in_vain_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match="unknown option"):
        build_options(Given(["lowerdir=/", option]), ["/mnt"])


def test_the_marker_of_data_only_layers_is_a_colon_more(tmp_path: Path) -> None:
    """As for fuse-overlayfs: what kernel overlayfs would hide is a layer like the others."""
    found = build_options(Given(["lowerdir=/a:/b::/c"]), ["/mnt"])
    assert found.lowers == (b"/a", b"/b", b"/c")
