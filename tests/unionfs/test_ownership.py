"""Owners and modes kept beside files: by choice, and for a mount by an ordinary user."""

from __future__ import annotations

import codecs
import os
import stat
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unionfs.trees import OWNER, UnionSide, open_tree
from unionfs import overrides
from unionfs.entry import Owner
from unionfs.options import TreeOptions
from unionfs.owners import Owners

pytestmark = pytest.mark.usefixtures("no_umask")

NOBODY = 65534


def as_nobody(action: Callable[[], None]) -> None:
    """Run in a process without privileges; what fails there fails here."""
    codecs.lookup("ascii")  # modules may be where an ordinary user reads nothing
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.stdout)
            sys.stdout.flush()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Directories of an ordinary user, who can reach them: low, upper, work."""
    for parent in (tmp_path, *tmp_path.parents):
        if not parent.stat().st_mode & stat.S_ISVTX and parent.is_relative_to("/tmp"):
            parent.chmod(0o755)
    for name in ("low", "upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


def give(base: Path) -> None:
    if os.geteuid() == 0:
        for path in [base, *base.rglob("*")]:
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)


def open_union(base: Path, override: bytes | None = None) -> UnionSide:
    options = TreeOptions(override=override)
    return UnionSide(open_tree([base / "low"], base / "upper", base / "work", options))


def shown(side: UnionSide, path: bytes) -> tuple[int, int, int]:
    found = side.tree.attributes(side.node(path))
    return found.uid, found.gid, stat.S_IMODE(found.mode)


@pytest.mark.root
@pytest.mark.parametrize("name", [overrides.CONTAINERS, overrides.PRIVILEGED])
def test_owners_and_modes_are_kept_in_the_xattr_that_was_chosen(base: Path, name: bytes) -> None:
    (base / "low/f").write_text("f")
    side = open_union(base, name)
    side.tree.chown(side.node(b"f"), 12, 34)
    side.chmod(b"f", 0o4711)
    assert shown(side, b"f") == (12, 34, 0o4711)
    assert side.tree.xattrs(side.node(b"f")) == {}
    side.tree.close()
    host = os.stat(base / "upper/f")
    assert (host.st_uid, host.st_gid) == OWNER
    assert not host.st_mode & stat.S_ISUID
    assert os.getxattr(base / "upper/f", name).startswith(b"12:34:4711")


@pytest.mark.root
def test_an_ordinary_user_gives_files_away_beside_them(base: Path) -> None:
    (base / "low/f").write_text("f")
    give(base)

    def change() -> None:
        side = open_union(base)
        side.tree.chown(side.node(b"f"), 0, 5)
        side.tree.create(side.tree.root, b"new", 0o640, Owner(0, 0))
        side.tree.mknod(side.tree.root, b"null", stat.S_IFCHR | 0o666, os.makedev(1, 3), OWNER)
        side.tree.close()
        side = open_union(base)
        assert shown(side, b"f")[:2] == (0, 5)
        assert shown(side, b"new") == (0, 0, 0o640)
        device = side.node(b"null")
        assert device.kind == stat.S_IFCHR
        assert side.tree.attributes(device).rdev == os.makedev(1, 3)
        side.tree.close()

    as_nobody(change)


@pytest.mark.root
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o444, 0o200, 0o555])
def test_an_ordinary_user_may_close_his_own_files_and_directories(base: Path, mode: int) -> None:
    """The union's own marks are on them, and must stay readable and writable for it."""
    for path in ("f", "g", "d/x", "e/y", "gone/z"):
        (base / "low" / path).parent.mkdir(exist_ok=True)
        (base / "low" / path).write_text(path)
    os.link(base / "low/g", base / "low/linked")
    give(base)

    def change() -> None:
        owner = Owner(os.geteuid(), os.getegid())
        side = open_union(base)
        tree = side.tree
        number = side.node(b"f").number
        for path in (b"f", b"g", b"d"):
            side.chmod(path, mode)
        side.write(b"g", 0, b"G")
        side.rename(b"linked", b"link")
        side.write(b"d/x", 0, b"D")
        side.rename(b"d", b"moved")
        tree.create(tree.root, b"new", mode, owner)
        side.unlink(b"gone/z")
        side.rmdir(b"gone")
        tree.mkdir(tree.root, b"gone", mode, owner)
        side.mkdir(b"into")
        side.unlink(b"e/y")
        side.chmod(b"e", mode)
        side.rename(b"into", b"e")
        tree.close()
        side = open_union(base)
        for path in (b"f", b"g", b"link", b"moved", b"new", b"gone"):
            assert shown(side, path)[2] == mode, path
        assert side.node(b"f").number == number
        assert side.node(b"g") is side.node(b"link")
        assert side.tree.attributes(side.node(b"g")).nlink == 2
        seen = side.walk()
        assert seen[b"link"].data == b"G"
        assert seen[b"moved/x"].data == b"D/x"
        assert b"gone/z" not in seen
        side.rmdir(b"gone")
        side.chmod(b"f", 0o644)
        assert shown(side, b"f")[2] == 0o644
        side.tree.close()

    as_nobody(change)


@pytest.mark.root
@pytest.mark.parametrize("name", [overrides.CONTAINERS, overrides.PRIVILEGED])
def test_a_symlink_has_the_owner_that_the_host_says(base: Path, name: bytes) -> None:
    """It takes no such xattr; and what it leads to is none of the union's."""
    (base / "outside").touch(mode=0o400)
    (base / "low/link").symlink_to(base / "outside")
    side = open_union(base, name)
    side.tree.chown(side.node(b"link"), 12, 34)
    side.symlink(b"new", os.fsencode(base / "outside"))
    side.tree.chown(side.node(b"new"), 56, -1)
    assert shown(side, b"link")[:2] == (12, 34)
    assert shown(side, b"new")[:2] == (56, OWNER.gid)
    side.tree.close()
    outside = os.stat(base / "outside")
    assert (outside.st_uid, outside.st_gid, stat.S_IMODE(outside.st_mode)) == (*OWNER, 0o400)
    assert os.listxattr(base / "outside") == []


@pytest.mark.root
def test_an_upper_goes_on_with_the_name_that_fuse_overlayfs_gave_the_xattr(base: Path) -> None:
    """Before its version 1.14 that was another name for the same choice."""
    for path in ("", "f"):
        (base / "upper" / path).mkdir(exist_ok=True)
        os.setxattr(base / "upper" / path, overrides.FUSE_OVERLAYFS, b"12:34:40750")
    side = open_union(base, overrides.CONTAINERS)
    assert shown(side, b"f") == (12, 34, 0o750)
    side.chmod(b"f", 0o700)
    side.tree.close()
    assert os.getxattr(base / "upper/f", overrides.FUSE_OVERLAYFS).startswith(b"12:34:0700")


@pytest.mark.root
@pytest.mark.parametrize(
    "owners", [Owners(squash_uid=0, squash_gid=0), Owners(gids=((5, 1005, 1),)), Owners()]
)
def test_a_group_is_inherited_as_it_is_and_not_as_it_is_shown(base: Path, owners: Owners) -> None:
    (base / "low/d").mkdir()
    os.chown(base / "low/d", 0, 5)
    os.chmod(base / "low/d", 0o2777)
    options = TreeOptions(owners=owners)
    side = UnionSide(open_tree([base / "low"], base / "upper", base / "work", options))
    side.mkdir(b"d/new")
    side.create(b"d/new/f", b"")
    assert shown(side, b"d/new/f")[1] == owners.shown(0, 5)[1]
    side.tree.close()
    assert os.stat(base / "upper/d/new/f").st_gid == 5
    assert os.stat(base / "upper/d/new").st_mode & stat.S_ISGID
