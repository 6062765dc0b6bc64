"""What a union is, rule by rule, on a tree without a mount."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unionfs.trees import OWNER, PlainSide, Union, UnionSide, open_tree, plant
from unionfs import syscalls, whiteouts
from unionfs.changes import WritableTree
from unionfs.errors import MountError
from unionfs.layers.directory import DirectoryLayer
from unionfs.layers.upper import Upper
from unionfs.options import Redirects, TreeOptions

pytestmark = pytest.mark.usefixtures("no_umask")


def test_directories_merge_and_files_hide(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "d/low", "d/both", "f/x")
    plant(tmp_path / "top", "d/top", "f")
    (tmp_path / "top/d/both").write_text("top wins")
    seen = union().walk()
    assert list(seen) == [b"d", b"d/both", b"d/low", b"d/top", b"f"]
    assert seen[b"d/both"].data == b"top wins"


@pytest.mark.parametrize("form", ["device", "marker", "xattr"])
def test_every_form_of_whiteout_is_read(tmp_path: Path, union: Union, form: str) -> None:
    plant(tmp_path / "low", "d/gone", "d/stays")
    plant(tmp_path / "top", "d/new")
    if form == "device":
        os.mknod(tmp_path / "top/d/gone", stat.S_IFCHR, 0)
    elif form == "marker":
        (tmp_path / "top/d/.wh.gone").touch()
    else:
        (tmp_path / "top/d/gone").touch()
        os.setxattr(tmp_path / "top/d/gone", "user.overlay.whiteout", b"")
        os.setxattr(tmp_path / "top/d", "user.overlay.opaque", b"x")
    assert list(union().walk()) == [b"d", b"d/new", b"d/stays"]


@pytest.mark.parametrize("form", ["overlay", "fuse-overlayfs", "marker", "own whiteout"])
def test_every_form_of_opaque_is_read(tmp_path: Path, union: Union, form: str) -> None:
    plant(tmp_path / "low", "d/old")
    plant(tmp_path / "top", "d/new")
    if form == "marker":
        (tmp_path / "top/d/.wh..wh..opq").touch()
    elif form == "own whiteout":
        (tmp_path / "top/.wh.d").touch()
    else:
        name = "user.overlay.opaque" if form == "overlay" else "user.fuseoverlayfs.opaque"
        os.setxattr(tmp_path / "top/d", name, b"y")
    assert list(union().walk()) == [b"d", b"d/new"]


def test_bookkeeping_is_never_shown(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "f", ".wh..wh.plnk/x", ".wh..wh.aufs")
    os.setxattr(tmp_path / "low/f", "user.overlay.origin", b"x")
    os.setxattr(tmp_path / "low/f", "user.mine", b"1")
    side = union()
    assert list(side.walk()) == [b"f"]
    assert side.tree.xattrs(side.node(b"f")) == {b"user.mine": b"1"}
    with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
        side.tree.xattr(side.node(b"f"), b"user.overlay.origin")
    with pytest.raises(PermissionError):
        side.tree.set_xattr(side.node(b"f"), b"user.fuseoverlayfs.opaque", b"y")
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        side.create(b".wh.f", b"")


def test_directories_of_aufs_are_no_links_of_the_root(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", ".wh..wh.plnk/x", ".wh..wh.orph/y", "d/z")
    tree = union().tree
    assert tree.attributes(tree.root).nlink == 3


def test_lower_layers_are_never_written(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "a", "b", "d/c", "d/e/f")
    before = PlainSide(tmp_path / "low").walk()
    side = union()
    side.write(b"a", 0, b"changed")
    side.chmod(b"d/c", 0o600)
    side.unlink(b"b")
    side.rename(b"d/c", b"d/e/moved")
    side.set_xattr(b"d", b"v")
    assert PlainSide(tmp_path / "low").walk() == before


def test_numbers_stay_across_copy_up_rename_and_reopening(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "d/f", "d/g")
    side = union()
    before = {path: side.node(path).number for path in (b"d", b"d/f", b"d/g")}
    side.write(b"d/f", 0, b"x")
    side.rename(b"d/g", b"d/h")
    for reopen in (False, True):
        again = union() if reopen else side
        assert again.node(b"d").number == before[b"d"]
        assert again.node(b"d/f").number == before[b"d/f"]
        assert again.node(b"d/h").number == before[b"d/g"]


def test_an_open_file_sees_what_is_written_after_it_was_copied_up(
    tmp_path: Path, union: Union
) -> None:
    plant(tmp_path / "low", "f")
    side = union()
    node = side.node(b"f")
    side.tree.open_file(node)
    assert side.tree.read(node, 0, 9) == b"f"
    side.write(b"f", 0, b"new")
    assert side.tree.read(node, 0, 9) == b"new"


@pytest.mark.parametrize("changed_before", [True, False])
def test_an_open_file_lives_without_a_name(
    tmp_path: Path, union: Union, changed_before: bool
) -> None:
    plant(tmp_path / "low", "f")
    side = union()
    node = side.node(b"f")
    node.lookups += 1
    if changed_before:
        side.write(b"f", 0, b"F")
    side.unlink(b"f")
    assert side.tree.attributes(node).nlink == 0
    side.tree.write(node, 1, b"more")
    assert side.tree.read(node, 0, 9) == (b"F" if changed_before else b"f") + b"more"
    assert side.walk() == {}
    side.create(b"f", b"another")
    assert side.tree.read(node, 0, 9).endswith(b"more")
    number = node.number
    side.tree.forget(node, 1)
    with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
        side.tree.node(number)
    assert os.listdir(tmp_path / "work/work") == []


def test_hardlinks_of_a_lower_file_stay_together(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "one")
    os.link(tmp_path / "low/one", tmp_path / "low/two")
    side = union()
    assert side.node(b"one") is side.node(b"two")
    side.write(b"one", 0, b"both")
    assert side.walk()[b"two"].data == b"both"
    assert side.tree.attributes(side.node(b"two")).nlink == 2
    side.unlink(b"one")
    assert side.walk()[b"two"][:4][2] == 1
    assert side.walk()[b"two"].data == b"both"
    assert union().walk()[b"two"].data == b"both", "the last name took the file over"


def test_a_name_found_after_the_known_one_was_removed_leads_to_the_same_open_file(
    tmp_path: Path, union: Union
) -> None:
    """A lower directory says that a file has more names, but not which."""
    plant(tmp_path / "low", "one")
    os.link(tmp_path / "low/one", tmp_path / "low/two")
    side = union()
    node = side.node(b"one")
    node.lookups += 1
    side.write(b"one", 0, b"ONE")
    side.unlink(b"one")
    assert side.node(b"two") is node
    assert side.tree.attributes(node).nlink == 1
    side.unlink(b"two")
    assert side.tree.attributes(node).nlink == 0
    assert side.tree.read(node, 0, 9) == b"ONE"
    descriptors = len(os.listdir("/proc/self/fd"))
    side.tree.forget(node, 1)
    assert len(os.listdir("/proc/self/fd")) == descriptors - 2, "the pin and the content"
    assert union().walk() == {}


def test_changing_the_mode_of_a_symlink_does_not_reach_what_it_points_to(
    tmp_path: Path, union: Union
) -> None:
    (tmp_path / "host").touch(0o600)
    (tmp_path / "low/link").symlink_to(tmp_path / "host")
    side = union()
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        side.chmod(b"link", 0o666)
    side.tree.chown(side.node(b"link"), *OWNER)
    side.utime(b"link", 5)
    info = os.stat(tmp_path / "host")
    assert stat.S_IMODE(info.st_mode) == 0o600
    assert info.st_mtime_ns != 5


def test_a_listing_keeps_positions_while_names_come_and_go(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", *(f"low{i}" for i in range(50)))
    side = union()
    for i in range(50):
        side.create(b"up%d" % i, b"")
    root = side.tree.root
    side.tree.open_directory(root)
    seen = []
    position = 0
    while entry := next(side.tree.list(root, position), None):
        name, _, position = entry
        seen.append(name)
        side.unlink(name)
        if len(seen) <= 10:
            side.create(b"late%d" % len(seen), b"")
    side.tree.close_directory(root)
    assert len(seen) == len(set(seen)) == 110
    assert side.walk() == {}


def test_a_directory_made_anew_is_empty(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "d/old")
    side = union()
    side.unlink(b"d/old")
    side.rmdir(b"d")
    side.mkdir(b"d")
    for reopen in (False, True):
        again = union() if reopen else side
        assert list(again.walk()) == [b"d"]
        assert again.tree.attributes(again.node(b"d")).nlink == 2
    assert whiteouts.opaque_value(os.open(tmp_path / "upper/d", os.O_RDONLY)) == b"y"


def test_a_directory_renamed_to_where_lower_layers_have_one_stays_itself(
    tmp_path: Path, union: Union
) -> None:
    plant(tmp_path / "low", "d/old")
    side = union()
    side.mkdir(b"new")
    side.create(b"new/mine", b"")
    side.unlink(b"d/old")
    side.rename(b"new", b"d")
    assert list(union().walk()) == [b"d", b"d/mine"]


@pytest.mark.parametrize("redirects", [Redirects.FOLLOW, Redirects.NOFOLLOW])
def test_a_lower_directory_cannot_be_renamed_without_redirects(
    tmp_path: Path, redirects: Redirects
) -> None:
    for name in ("low", "upper", "work"):
        (tmp_path / name).mkdir()
    plant(tmp_path / "low", "d/old")
    places = (tmp_path / "upper", tmp_path / "work")
    side = UnionSide(open_tree([tmp_path / "low"], *places, TreeOptions(redirects=redirects)))
    with pytest.raises(OSError, match=os.strerror(errno.EXDEV)):
        side.rename(b"d", b"e")
    assert list(side.walk()) == [b"d", b"d/old"]
    assert os.listdir(tmp_path / "upper") == []
    side.tree.close()


def test_exchange_swaps_files_and_directories(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "f", "name/below")
    side = union()
    side.unlink(b"name/below")
    side.rmdir(b"name")
    side.mkdir(b"d")
    side.create(b"d/x", b"x")
    side.create(b"name", b"file")
    flags = syscalls.RENAME_EXCHANGE
    side.tree.rename(side.parent(b"d"), side.parent(b"name"), flags)
    side.tree.rename(side.parent(b"f"), side.parent(b"d"), flags)
    for reopen in (False, True):
        again = union() if reopen else side
        found = again.walk()
        assert list(found) == [b"d", b"f", b"name", b"name/x"]
        assert (found[b"d"].data, found[b"f"].data) == (b"f", b"file")


def test_holes_stay_holes_in_copy_up(tmp_path: Path, union: Union) -> None:
    with (tmp_path / "low/sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    side = union()
    side.chmod(b"sparse", 0o600)
    copy = os.stat(tmp_path / "upper/sparse")
    assert copy.st_size == 64 << 20
    assert copy.st_blocks * 512 < 1 << 20
    assert side.tree.read(side.node(b"sparse"), 32 << 20, 4) == b"data"


def test_copy_up_keeps_everything(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "d/f")
    file = tmp_path / "low/d/f"
    os.setxattr(file, "user.mine", b"1")
    file.chmod(0o4751)
    os.utime(file, ns=(10**18 + 1, 10**18 + 987654321))
    os.utime(tmp_path / "low/d", ns=(1, 2))
    side = union()
    side.set_xattr(b"d/f", b"v")
    copy = os.stat(tmp_path / "upper/d/f")
    assert stat.S_IMODE(copy.st_mode) == 0o4751
    assert copy.st_mtime_ns == 10**18 + 987654321
    assert (copy.st_uid, copy.st_gid) == OWNER
    assert os.getxattr(tmp_path / "upper/d/f", "user.mine") == b"1"
    assert os.stat(tmp_path / "low/d").st_mtime_ns == 2


def test_times_told_again_copy_nothing(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "f")
    side = union()
    side.utime(b"f", os.stat(tmp_path / "low/f").st_mtime_ns)
    assert os.listdir(tmp_path / "upper") == []


def test_names_and_depths_without_limit(tmp_path: Path, union: Union) -> None:
    side = union()
    longest = b"\xff" * 255
    side.create(longest, b"x")
    path = b""
    for depth in range(60):
        path += (b"/" if path else b"") + b"%03d" % depth + b"n" * 200
        side.mkdir(path)
    side.create(path + b"/f", b"deep")
    assert side.tree.read(side.node(path + b"/f"), 0, 9) == b"deep"
    side.unlink(path + b"/f")
    for _ in range(60):
        side.rmdir(path)
        path = path.rpartition(b"/")[0]
    with pytest.raises(OSError, match=os.strerror(errno.ENAMETOOLONG)):
        side.create(b"n" * 256, b"")


def test_without_upper_nothing_can_be_changed(tmp_path: Path) -> None:
    plant(tmp_path / "low", "f", "d/g")
    side = UnionSide(WritableTree([DirectoryLayer(os.fsencode(tmp_path / "low"))]))
    refusals: list[Callable[[], None]] = [
        lambda: side.create(b"new", b""),
        lambda: side.write(b"f", 0, b"x"),
        lambda: side.truncate(b"f", 0),
        lambda: side.mkdir(b"new"),
        lambda: side.unlink(b"f"),
        lambda: side.rename(b"f", b"h"),
        lambda: side.link(b"f", b"h"),
        lambda: side.chmod(b"f", 0),
        lambda: side.utime(b"f", 1),
        lambda: side.set_xattr(b"f", b""),
    ]
    for refused in refusals:
        with pytest.raises(OSError, match=os.strerror(errno.EROFS)):
            refused()
    side.tree.close()


def test_an_upper_serves_one_union_at_a_time(
    tmp_path: Path, union: Union, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unionfs.layers.upper._PATIENCE", 0.1)
    union()
    (tmp_path / "other").mkdir()
    for upper, work in (("upper", "work"), ("upper", "other"), ("other", "work")):
        with pytest.raises(MountError, match="in use by another mount"):
            Upper(os.fsencode(tmp_path / upper), os.fsencode(tmp_path / work))


def test_what_a_killed_daemon_left_aside_goes(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "work/work", "#1", "#2/x/y")
    side = union()
    assert os.listdir(tmp_path / "work/work") == []
    assert side.walk() == {}


STEPS = ["rename", "renameat2", "mknod", "setxattr", "chown", "utime", "pwrite", "link"]


@pytest.mark.parametrize("call", STEPS)
@pytest.mark.parametrize("nth", range(3))
def test_a_change_that_fails_midway_leaves_the_old_state(
    tmp_path: Path, union: Union, monkeypatch: pytest.MonkeyPatch, call: str, nth: int
) -> None:
    """Whatever system call of a change fails, the union is as it was before or as after it."""
    plant(tmp_path / "low", "d/f", "d/g", "gone")
    os.link(tmp_path / "low/d/f", tmp_path / "low/d/link")
    side = union()
    side.unlink(b"gone")
    changes: list[Callable[[UnionSide], None]] = [
        lambda s: s.write(b"d/f", 0, b"changed"),
        lambda s: s.mkdir(b"gone"),
        lambda s: s.rename(b"d/g", b"d/h"),
        lambda s: s.unlink(b"d/h"),
        lambda s: s.link(b"d/f", b"linked"),
    ]
    where = syscalls if call == "renameat2" else os
    original = getattr(where, call)
    for change in changes:
        before = union().walk()
        side = union()
        left = nth

        def failing(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left == -1:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(where, call, failing)
            failed = None
            try:
                change(side)
            except OSError as error:
                failed = error.errno
        if failed is not None:
            assert failed == errno.ENOSPC
            after = union().walk()
            assert {path: seen.data for path, seen in after.items()} == {
                path: seen.data for path, seen in before.items()
            }
            assert os.listdir(tmp_path / "work/work") == []
            change(union())
