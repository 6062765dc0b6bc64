"""Modes of new files: the umask, and the default ACLs that take its place, as on any filesystem."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.mounts import mounted

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.peer("setfacl")]

SOMEBODY = 1234

ACLS = {
    "none": "",
    "named": f"u:{SOMEBODY}:rwx,g:4321:r-x",
    "tight": "u::rw-,g::---,o::---",
    "open": "u::rwx,g::rwx,o::rwx",
    "masked": f"u::rwx,u:{SOMEBODY}:rwx,g::rwx,m::r-x,o::-wx",
}
UMASKS = (0o000, 0o022, 0o027, 0o077)
DIRECTORY_MODES = (0o755, 0o2775)

Seen = tuple[int, int, int, tuple[tuple[str, bytes], ...]]


@pytest.fixture(params=["here", "tmpfs"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A directory on the filesystem that the tests are on, or on a tmpfs."""
    if request.param == "here":
        yield tmp_path
        return
    (tmp_path / "tmpfs").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "tmpfs"], check=True)
    yield tmp_path / "tmpfs"
    subprocess.run(["umount", tmp_path / "tmpfs"], check=True)


@contextmanager
def side(kind: str, base: Path) -> Iterator[Path]:
    """A plain directory, or a union with the directories of :func:`make_places` below."""
    names = ("low", "upper", "work", "mnt")
    low, upper, work, mountpoint = (base / kind / name for name in names)
    for path in (low, upper, work, mountpoint):
        path.mkdir(parents=True)
    make_places(low)
    if kind == "plain":
        yield low
    elif kind == "lamina":
        with mounted(mountpoint, [low], upper, work) as union:
            yield union
    else:
        options = f"lowerdir={low},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, mountpoint], check=True)
        try:
            yield mountpoint
        finally:
            subprocess.run(["umount", mountpoint], check=True)


def places() -> Iterator[tuple[str, str, int]]:
    """A name, a default ACL and a mode for each kind of directory to make files in."""
    for (name, acl), mode in itertools.product(ACLS.items(), DIRECTORY_MODES):
        yield f"{name}-{mode:o}", acl, mode


def make_places(parent: Path) -> None:
    """Directories with a group of their own, with every kind of default ACL, and a file in each."""
    for name, acl, mode in places():
        place = parent / name
        place.mkdir()
        os.chown(place, 0, 77)
        place.chmod(mode)
        (place / "gone").touch()
        if acl:
            subprocess.run(["setfacl", "-d", "-m", acl, place], check=True)
            subprocess.run(["setfacl", "-m", f"u:{SOMEBODY}:rwx", place], check=True)


def _make_file(path: Path, mode: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))


def _make_nested(path: Path, mode: int) -> None:
    os.mkdir(path, mode)
    os.mkdir(path / "inner", mode)
    _make_file(path / "inner/file", 0o666)


def _make_again(path: Path, mode: int) -> None:
    (path.parent / "gone").unlink(missing_ok=True)
    _make_file(path.parent / "gone", mode)
    os.rename(path.parent / "gone", path)


MAKERS: dict[str, tuple[Callable[[Path, int], None], int]] = {
    "file": (_make_file, 0o666),
    "program": (_make_file, 0o777),
    "secret": (_make_file, 0o600),
    "setuid": (_make_file, 0o4755),
    "directory": (os.mkdir, 0o777),
    "sticky": (os.mkdir, 0o1775),
    "nested": (_make_nested, 0o777),
    "again": (_make_again, 0o666),
    "fifo": (os.mkfifo, 0o666),
    "socket": (lambda path, mode: os.mknod(path, stat.S_IFSOCK | mode), 0o777),
    "device": (lambda path, mode: os.mknod(path, stat.S_IFCHR | mode, os.makedev(1, 3)), 0o666),
    "regular": (lambda path, mode: os.mknod(path, stat.S_IFREG | mode), 0o664),
    "symlink": (lambda path, mode: os.symlink("file", path), 0),
}


def make_everything(parent: Path) -> None:
    """Make every kind of file under every umask in every directory."""
    for (name, _, _), umask in itertools.product(places(), UMASKS):
        before = os.umask(umask)
        try:
            for kind, (make, mode) in MAKERS.items():
                make(parent / name / f"{kind}-{umask:03o}", mode)
        finally:
            os.umask(before)


def walk(parent: Path) -> dict[str, Seen]:
    """The mode, owner and ACLs of everything below a directory."""
    found = {}
    for path in sorted(parent.rglob("*")):
        info = path.lstat()
        acls = [
            (name, os.getxattr(path, name, follow_symlinks=False))
            for name in sorted(os.listxattr(path, follow_symlinks=False))
            if name.startswith("system.posix_acl_")
        ]
        seen = (info.st_mode, info.st_uid, info.st_gid, tuple(acls))
        found[str(path.relative_to(parent))] = seen
    return found


def differences(one: dict[str, Seen], other: dict[str, Seen]) -> dict[str, tuple[object, object]]:
    names = one.keys() | other.keys()
    return {
        name: (one.get(name), other.get(name)) for name in names if one.get(name) != other.get(name)
    }


def test_new_files_have_the_modes_and_acls_that_they_have_anywhere(base: Path) -> None:
    seen = {}
    for kind in ("plain", "overlay", "lamina"):
        with side(kind, base) as directory:
            make_places_again(directory)
            make_everything(directory)
            make_everything(directory / "made")
            seen[kind] = walk(directory)
    count = 2 * len(list(places())) * len(UMASKS) * len(MAKERS)
    assert len(seen["plain"]) > count
    assert differences(seen["plain"], seen["overlay"]) == {}
    assert differences(seen["plain"], seen["lamina"]) == {}


def make_places_again(directory: Path) -> None:
    """The same directories, but made on the union and not in a layer."""
    (directory / "made").mkdir(mode=0o755)
    make_places(directory / "made")


ATTEMPTS = """
import errno, os, sys
os.chdir(sys.argv[1])
os.setgroups([])
os.setgid(int(sys.argv[3]))
os.setuid(int(sys.argv[2]))
os.umask(0o027)
def attempt(what, *arguments):
    try:
        result = what(*arguments)
        if isinstance(result, int):
            os.close(result)
        return "ok"
    except OSError as error:
        return errno.errorcode[error.errno]
for place in sorted(os.listdir(".")):
    print(place, attempt(os.listdir, place), attempt(os.mkdir, place + "/of-user", 0o777))
    print(attempt(os.open, place + "/new-by-user", os.O_CREAT | os.O_WRONLY, 0o666))
    for name in ("file", "program", "secret", "directory", "nested/inner/file"):
        for umask in ("000", "022", "077"):
            path = "/".join([place, name.replace("/", "-" + umask + "/", 1)
                             if "/" in name else name + "-" + umask])
            print(path, attempt(os.open, path, os.O_RDONLY), attempt(os.open, path, os.O_WRONLY),
                  os.access(path, os.X_OK))
"""


@pytest.mark.parametrize(("uid", "gid"), [(SOMEBODY, 4), (5, 4321), (5, 77), (5, 6)])
def test_another_user_may_do_what_the_acls_say(tmp_path: Path, uid: int, gid: int) -> None:
    said, seen = {}, {}
    for kind in ("plain", "overlay", "lamina"):
        with side(kind, tmp_path) as directory:
            make_everything(directory)
            command = [sys.executable, "-c", ATTEMPTS, str(directory), str(uid), str(gid)]
            said[kind] = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            seen[kind] = walk(directory)
    assert "EACCES" in said["plain"]
    assert "ok" in said["plain"]
    assert said["lamina"] == said["plain"] == said["overlay"]
    assert differences(seen["plain"], seen["overlay"]) == {}
    assert differences(seen["plain"], seen["lamina"]) == {}


def test_an_acl_that_is_changed_or_taken_away_counts_at_once(tmp_path: Path) -> None:
    for kind in ("plain", "lamina"):
        modes = []
        with side(kind, tmp_path) as directory:
            place = directory / "none-755"
            before = os.umask(0o077)
            try:
                for number, change in enumerate(
                    (["-d", "-m", "g::rwx"], ["-k"], ["-d", "-m", "o::r"])
                ):
                    subprocess.run(["setfacl", *change, place], check=True)
                    _make_file(place / str(number), 0o666)
                    modes.append(stat.S_IMODE((place / str(number)).stat().st_mode))
            finally:
                os.umask(before)
        assert modes == [0o664, 0o600, 0o644]


@pytest.mark.parametrize("options", [["noacl"], ["noxattrs=1"], ["noacl", "noxattrs=1"]])
def test_without_acls_there_are_none_and_the_umask_counts(
    tmp_path: Path, options: list[str]
) -> None:
    for name in ("low", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/f").touch()
    subprocess.run(["setfacl", "-m", "u:5:rwx", tmp_path / "low/f"], check=True)
    with mounted(
        tmp_path / "mnt", [tmp_path / "low"], tmp_path / "upper", tmp_path / "work", options
    ) as union:
        done = subprocess.run(
            ["setfacl", "-m", "u:6:r", union / "f"], capture_output=True, check=False
        )
        assert b"Operation not supported" in done.stderr
        with contextlib.suppress(OSError):
            assert not [name for name in os.listxattr(union / "f") if "posix_acl" in name]
        before = os.umask(0o027)
        try:
            _make_file(union / "new", 0o666)
        finally:
            os.umask(before)
        assert stat.S_IMODE((union / "new").stat().st_mode) == 0o640
