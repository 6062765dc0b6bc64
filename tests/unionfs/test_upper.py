"""The writable layer: whatever moment the process is killed at, the union is as before or after."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.unionfs.trees import OWNER, Seen, UnionSide, open_tree
from unionfs import syscalls, whiteouts
from unionfs.entry import Owner
from unionfs.errors import MountError
from unionfs.layers.upper import Upper
from unionfs.options import TreeOptions

pytestmark = pytest.mark.usefixtures("no_umask")

STEPS = [
    (os, "open"), (os, "mkdir"), (os, "mknod"), (os, "symlink"), (os, "link"), (os, "unlink"),
    (os, "rmdir"), (os, "rename"), (os, "chmod"), (os, "chown"), (os, "utime"), (os, "setxattr"),
    (os, "removexattr"), (os, "pwrite"), (os, "ftruncate"), (syscalls, "renameat2"),
    (syscalls, "clone_file"),
]  # fmt: skip
"""Everything that changes something on disk."""

KILLED, REFUSED = 9, 3
STRANGER = Owner(OWNER.uid + 7, OWNER.gid + 7) if OWNER.uid == 0 else OWNER


class State(NamedTuple):
    """What a union shows, with the owners that a walk leaves out."""

    seen: dict[bytes, Seen]
    owners: dict[bytes, tuple[int, int]]


class World(NamedTuple):
    """The directories of one union."""

    base: Path

    def open(self) -> UnionSide:
        places = (self.base / "upper", self.base / "work")
        return UnionSide(open_tree([self.base / "low"], *places, TreeOptions(metacopy=True)))

    def state(self, *, with_times: bool) -> State:
        side = self.open()
        seen = side.walk()
        owners = {}
        for path in seen:
            found = side.tree.attributes(side.node(path))
            owners[path] = (found.uid, found.gid)
        side.tree.close()
        assert os.listdir(self.base / "work/work") == []
        if not with_times:
            seen = {path: one._replace(mtime_ns=0) for path, one in seen.items()}
        return State(seen, owners)


def make_world(base: Path) -> World:
    """A union that has one of everything, partly below and partly changed before."""
    for name in ("low/d/sub", "low/emptied", "low/over", "low/setgid", "low/m", "upper", "work"):
        (base / name).mkdir(parents=True)
    for name in ("f", "d/g", "gone", "emptied/x", "over/y", "setgid/z", "m/h1", "m/meta"):
        (base / "low" / name).write_text("lower " + name)
        os.utime(base / "low" / name, ns=(10**18, 10**18 + 1))
    os.setxattr(base / "low/f", "user.mine", b"1")
    (base / "low/link").symlink_to("f")
    for name in ("low/m/h2", "low/d/h3"):
        os.link(base / "low/m/h1", base / name)
    os.utime(base / "low/link", ns=(10**18, 10**18 + 2), follow_symlinks=False)
    os.chmod(base / "low/setgid", 0o2775)
    if OWNER.uid == 0:
        os.chown(base / "low/f", *STRANGER)
    world = World(base)
    side = world.open()
    side.chmod(b"m/meta", 0o600)
    side.unlink(b"gone")
    side.unlink(b"emptied/x")
    side.unlink(b"over/y")
    side.mkdir(b"new")
    side.create(b"new/file", b"upper")
    side.create(b"own", b"upper")
    for path in (b"new/file", b"own"):
        side.utime(path, 10**18 + 3)
    side.tree.close()
    return world


def stop_at(step: int, stop: Callable[[], None]) -> None:
    """Replace every call of STEPS: the one numbered ``step`` calls ``stop`` instead."""
    left = step

    def wrap(original: Callable[..., object]) -> Callable[..., object]:
        def counted(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                stop()
            return original(*arguments, **options)

        return counted

    for module, name in STEPS:
        setattr(module, name, wrap(getattr(module, name)))


def only_markers() -> None:
    """A filesystem that takes neither devices nor xattrs for whiteouts."""

    def make_opaque(directory_fd: int, *, aufs: bool = False) -> None:
        assert not aufs
        os.close(
            os.open(whiteouts.OPAQUE_MARKER, os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=directory_fd)
        )

    whiteouts.create = lambda directory_fd, name: False
    whiteouts.rename_leaving_whiteout = lambda *_: False
    whiteouts.make_opaque = make_opaque


def run_stopped(
    world: World, change: Callable[[UnionSide], None], step: int, stop: Callable[[], None],
    prepare: Callable[[], None] | None,
) -> int:  # fmt: skip
    """Make a change in a process of its own that is stopped at one system call; its exit code."""
    child = os.fork()
    if child == 0:
        try:
            if prepare is not None:
                prepare()
            side = world.open()
            stop_at(step, stop)
            change(side)
        except OSError as error:
            # a directory that cannot be given a redirect is not renamed, but mv(1) may copy it
            os._exit(REFUSED if error.errno in (errno.ENOSPC, errno.EXDEV) else 1)
        except BaseException:
            os._exit(2)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill() -> None:
    os._exit(KILLED)


def fill_disk() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


CHANGES: dict[str, Callable[[UnionSide], None]] = {
    "create": lambda side: side.create(b"fresh", b""),
    "create over a whiteout": lambda side: side.create(b"gone", b""),
    "create for a stranger": lambda side: _create_for(side, b"fresh", STRANGER),
    "mkdir for a stranger": lambda side: _mkdir_for(side, b"fresh", STRANGER),
    "mkdir in a setgid directory": lambda side: side.mkdir(b"setgid/fresh"),
    "mkdir over a whiteout": lambda side: side.mkdir(b"gone"),
    "symlink": lambda side: side.symlink(b"d/fresh", b"target"),
    "chmod a lower file": lambda side: side.chmod(b"d/g", 0o4711),
    "chown a lower file": lambda side: side.tree.chown(side.node(b"f"), *OWNER),
    "set an xattr": lambda side: side.set_xattr(b"f", b"2"),
    "set times": lambda side: side.utime(b"link", 5),
    "write a lower file": lambda side: side.write(b"f", 0, b"WRITE"),
    "truncate a lower file": lambda side: side.truncate(b"f", 0),
    "link a lower file": lambda side: side.link(b"d/g", b"linked"),
    "unlink a lower file": lambda side: side.unlink(b"f"),
    "unlink an upper file": lambda side: side.unlink(b"own"),
    "rmdir a merged directory": lambda side: side.rmdir(b"emptied"),
    "rmdir a lower directory": lambda side: side.rmdir(b"d/sub"),
    "rename a lower file": lambda side: side.rename(b"f", b"d/moved"),
    "rename over a lower file": lambda side: side.rename(b"own", b"f"),
    "rename over a whiteout": lambda side: side.rename(b"own", b"gone"),
    "rename a directory over a whiteout": lambda side: side.rename(b"new", b"gone"),
    "rename a directory over an emptied one": lambda side: side.rename(b"new", b"emptied"),
    "rename a merged directory": lambda side: side.rename(b"d", b"elsewhere"),
    "rename a merged directory into another": lambda side: side.rename(b"d", b"new/d"),
    "rename a merged directory over an emptied one": lambda side: side.rename(b"d", b"emptied"),
    "exchange merged directories": lambda side: side.exchange(b"d", b"m"),
    "write one of several names": lambda side: side.write(b"m/h1", 0, b"LOWER"),
    "chmod one of several names": lambda side: side.chmod(b"m/h1", 0o4711),
    "unlink one of several names": lambda side: side.unlink(b"m/h2"),
    "rename one of several names": lambda side: side.rename(b"m/h2", b"d/moved"),
    "rename over one of several names": lambda side: side.rename(b"own", b"m/h2"),
    "rename a metacopy": lambda side: side.rename(b"m/meta", b"new/meta"),
    "link a metacopy": lambda side: side.link(b"m/meta", b"linked"),
    "write a metacopy": lambda side: side.write(b"m/meta", 0, b"LOWER"),
    "truncate a metacopy": lambda side: side.truncate(b"m/meta", 3),
    "exchange": lambda side: side.exchange(b"f", b"own"),
    "exchange with a directory": lambda side: side.exchange(b"f", b"new"),
}


def _create_for(side: UnionSide, name: bytes, owner: Owner) -> None:
    side.tree.create(side.tree.root, name, 0o644, owner)


def _mkdir_for(side: UnionSide, name: bytes, owner: Owner) -> None:
    side.tree.mkdir(side.tree.root, name, 0o755, owner)


@pytest.mark.parametrize("forms", ["devices", "markers"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_whole_or_not_there(
    tmp_path: Path, name: str, forms: str, record_property: Callable[[str, object], None]
) -> None:
    """Killed, or out of space, at each system call in turn, until the change comes through."""
    with_times = name not in {
        "write a lower file", "truncate a lower file", "create", "create over a whiteout",
        "create for a stranger", "symlink", "write one of several names", "write a metacopy",
        "truncate a metacopy",
    }  # fmt: skip
    prepare = only_markers if forms == "markers" else None
    finished = make_world(tmp_path / "finished")
    before = finished.state(with_times=with_times)
    assert run_stopped(finished, CHANGES[name], 10**6, kill, prepare) == 0
    after = finished.state(with_times=with_times)
    assert before != after
    step = 0
    while True:
        codes = []
        for number, stop in enumerate((kill, fill_disk)):
            world = make_world(tmp_path / f"{step}.{number}")
            codes.append(run_stopped(world, CHANGES[name], step, stop, prepare))
            state = world.state(with_times=with_times)
            allowed = [after] if codes[-1] == 0 else [before, after]
            assert state in allowed, (step, codes)
        step += 1
        if codes == [0, 0]:
            break
        assert set(codes) <= {0, KILLED, REFUSED}, codes
    record_property("steps", step)


@pytest.mark.peer("setfacl")
def test_default_acls_are_inherited_however_a_file_is_made(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (tmp_path / "upper/acl").mkdir()
    for directory in (tmp_path / "upper/acl", tmp_path / "upper"):
        subprocess.run(["setfacl", "-d", "-m", "u:33:rwx", directory], check=True)
    side = world.open()
    side.create(b"acl/direct", b"")
    _create_for(side, b"aside", STRANGER)
    side.create(b"gone", b"")
    side.chmod(b"d/g", 0o600)
    expected = os.getxattr(tmp_path / "upper/acl/direct", "system.posix_acl_access")
    for name in ("aside", "gone"):
        assert os.getxattr(tmp_path / "upper" / name, "system.posix_acl_access") == expected
    assert os.listxattr(tmp_path / "upper/d") == []
    side.tree.close()


def test_what_a_killed_process_left_is_taken_away(tmp_path: Path) -> None:
    world = make_world(tmp_path)
    (tmp_path / "work/work/#1/x").mkdir(parents=True)
    os.mkfifo(tmp_path / "work/work/#2")
    (tmp_path / "work/mine").touch()
    world.open().tree.close()
    assert os.listdir(tmp_path / "work/work") == []
    assert (tmp_path / "work/mine").exists(), "only what is lamina's own"


def test_a_symlink_in_place_of_the_work_directory_is_not_followed(tmp_path: Path) -> None:
    for name in ("upper", "work", "precious"):
        (tmp_path / name).mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "work/work").symlink_to(tmp_path / "precious")
    with pytest.raises(NotADirectoryError):
        Upper(os.fsencode(tmp_path / "upper"), os.fsencode(tmp_path / "work"))
    assert (tmp_path / "precious/file").exists()


def test_a_failed_opening_leaves_nothing_open(tmp_path: Path) -> None:
    (tmp_path / "upper").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for work, error in ((tmp_path / "upper", MountError), (tmp_path / "none", FileNotFoundError)):
        with pytest.raises(error):
            Upper(os.fsencode(tmp_path / "upper"), os.fsencode(work))
    assert len(os.listdir("/proc/self/fd")) == before


def test_closing_gives_up_every_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    world = make_world(tmp_path)
    side = world.open()
    side.walk()
    side.write(b"f", 0, b"x")
    side.tree.open_file(side.node(b"f"))
    side.unlink(b"f")
    side.rmdir(b"emptied")
    side.tree.close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_whiteouts_are_devices_where_they_can_be(tmp_path: Path) -> None:
    make_world(tmp_path)
    assert whiteouts.is_device(os.lstat(tmp_path / "upper/gone"))
    assert stat.S_ISDIR(os.lstat(tmp_path / "upper/emptied").st_mode)
