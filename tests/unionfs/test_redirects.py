"""Renamed directories with lower parts, files whose attributes alone went up, and hardlinks."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unionfs.trees import Union, UnionSide, open_tree, plant
from unionfs import xattrs
from unionfs.errors import LayerError
from unionfs.options import Redirects, TreeOptions
from unionfs.redirects import Redirect, parse

pytestmark = pytest.mark.usefixtures("no_umask")


@pytest.fixture
def tree_options() -> TreeOptions:
    return TreeOptions(metacopy=True)


def twice(side: UnionSide, union: Union) -> Iterator[UnionSide]:
    """A union as it is, and opened anew."""
    yield side
    yield union()


def attempt(action: Callable[[], None]) -> int:
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def mark(path: Path, name: bytes) -> bytes | None:
    return xattrs.marks(os.fsencode(path)).get(name)


# -- redirects -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"name", Redirect(is_absolute=False, names=(b"name",))),
        (b"/a/b", Redirect(is_absolute=True, names=(b"a", b"b"))),
    ],
)
def test_a_redirect_is_a_name_or_a_path(value: bytes, expected: Redirect) -> None:
    assert parse(value, b"layer", b"d") == expected
    assert expected.format() == value


@pytest.mark.parametrize("value", [b"", b"/", b"a/b", b"..", b"/a/../b", b"//a", b"/a/", b"."])
def test_a_redirect_that_leads_nowhere_names_layer_and_file(value: bytes) -> None:
    with pytest.raises(LayerError, match="d in layer layer has the redirect"):
        parse(value, b"layer", b"d")


def test_a_merged_directory_is_renamed(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "d/low", "d/deep/x", "other/y")
    plant(tmp_path / "top", "d/top")
    side = union()
    side.create(b"d/mine", b"mine")
    number = side.node(b"d").number
    side.rename(b"d", b"e")
    expected = [b"e", b"e/deep", b"e/deep/x", b"e/low", b"e/mine", b"e/top", b"other", b"other/y"]
    assert list(side.walk()) == expected
    assert mark(tmp_path / "upper/e", b"redirect") == b"d"
    side = union()
    assert list(side.walk()) == expected
    assert side.node(b"e").number == number
    side.rename(b"e", b"other/f")
    assert mark(tmp_path / "upper/other/f", b"redirect") == b"/d"
    side.write(b"other/f/low", 0, b"D")
    side = union()
    assert side.walk()[b"other/f/low"].data == b"D/low"
    assert side.walk()[b"other/f/deep/x"].data == b"d/deep/x"


def test_a_redirect_below_a_renamed_directory_is_a_path_of_the_lower_layer(
    tmp_path: Path, union: Union
) -> None:
    plant(tmp_path / "low", "a/b/c/f", "x/y")
    side = union()
    side.rename(b"a", b"renamed")
    side.rename(b"renamed/b/c", b"x/c")
    side.rename(b"renamed/b", b"renamed/b2")
    assert mark(tmp_path / "upper/x/c", b"redirect") == b"/a/b/c"
    assert mark(tmp_path / "upper/renamed/b2", b"redirect") == b"b"
    side.rename(b"renamed/b2", b"b3")
    assert mark(tmp_path / "upper/b3", b"redirect") == b"/a/b"
    for again in twice(side, union):
        assert list(again.walk()) == [b"b3", b"renamed", b"x", b"x/c", b"x/c/f", b"x/y"]


def test_a_name_made_again_shows_nothing_of_what_was_renamed(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "d/f")
    side = union()
    side.rename(b"d", b"e")
    side.mkdir(b"d")
    side.rename(b"e/f", b"d/g")
    assert list(union().walk()) == [b"d", b"d/g", b"e"]


def test_redirects_in_lower_layers_are_followed(tmp_path: Path, union: Union) -> None:
    """An upper that has become a lower layer."""
    plant(tmp_path / "low", "a/f", "b/g")
    side = union()
    side.rename(b"a", b"b/moved")
    side.chmod(b"b/g", 0o600)
    side.rename(b"b/g", b"h")
    expected = side.walk()
    (tmp_path / "new").mkdir()
    (tmp_path / "new work").mkdir()
    lowers = [tmp_path / "upper", tmp_path / "top", tmp_path / "low"]
    side = UnionSide(open_tree(lowers, tmp_path / "new", tmp_path / "new work"))
    assert side.walk() == expected
    side.write(b"h", 0, b"B")
    side.rename(b"b/moved", b"again")
    seen = side.walk()
    assert seen[b"h"].data == b"B/g"
    assert seen[b"again/f"].data == b"a/f"
    assert mark(tmp_path / "new/again", b"redirect") == b"/b/moved"
    side.tree.close()


def test_a_redirect_with_no_room_is_no_rename(tmp_path: Path, union: Union) -> None:
    """ext4 keeps 4 KiB of xattrs; mv(1) copies then."""
    deep = "/".join(["n" * 200] * 30)
    parts = deep.split("/")
    here = os.open(tmp_path / "low", os.O_RDONLY)
    for name in parts:
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    side = union()
    if attempt(lambda: side.rename(os.fsencode(deep), b"up")) == errno.EXDEV:
        assert side.node(os.fsencode(deep)).is_directory
    else:  # a filesystem that has room for it
        assert side.node(b"up").is_directory


# -- metacopy ------------------------------------------------------------------------------------


def test_attributes_go_up_without_contents(tmp_path: Path, union: Union) -> None:
    (tmp_path / "low/big").write_bytes(os.urandom(1 << 20))
    before = (tmp_path / "low/big").stat()
    side = union()
    side.chmod(b"big", 0o4711)
    side.set_xattr(b"big", b"v")
    upper = (tmp_path / "upper/big").stat()
    assert upper.st_size == 1 << 20
    assert upper.st_blocks < 16
    found = side.tree.attributes(side.node(b"big"))
    assert (found.size, found.blocks) == (1 << 20, before.st_blocks)
    assert stat.S_IMODE(found.mode) == 0o4711
    assert found.mtime_ns == before.st_mtime_ns
    for again in twice(side, union):
        assert again.walk()[b"big"].data == (tmp_path / "low/big").read_bytes()
    assert mark(tmp_path / "upper/big", b"metacopy") == b""


@pytest.mark.parametrize("moved", [False, True])
@pytest.mark.parametrize("again", [False, True])
def test_contents_follow_when_they_are_written(
    tmp_path: Path, union: Union, moved: bool, again: bool
) -> None:
    plant(tmp_path / "low", "d/f")
    side = union()
    side.chmod(b"d/f", 0o640)
    side.set_xattr(b"d/f", b"kept")
    number = side.node(b"d/f").number
    path = b"g" if moved else b"d/f"
    if moved:
        side.rename(b"d/f", b"g")
        assert mark(tmp_path / "upper/g", b"redirect") == b"/d/f"
    side = union() if again else side
    side.write(path, 0, b"D")
    assert mark(tmp_path / "upper" / os.fsdecode(path), b"metacopy") is None
    for anew in twice(side, union):
        seen = anew.walk()[path]
        assert (seen.data, seen.mode) == (b"D/f", 0o640)
        assert (b"user.test", b"kept") in seen.xattrs
        assert anew.node(path).number == number


def test_a_truncated_metacopy_copies_no_more_than_needed(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "f")
    side = union()
    side.chmod(b"f", 0o600)
    side.truncate(b"f", 0)
    assert side.walk()[b"f"].data == b""
    assert mark(tmp_path / "upper/f", b"metacopy") is None


def test_an_open_metacopy_without_a_name_can_be_written(tmp_path: Path, union: Union) -> None:
    plant(tmp_path / "low", "f")
    side = union()
    side.chmod(b"f", 0o600)
    node = side.node(b"f")
    side.tree.open_file(node)
    side.unlink(b"f")
    assert side.tree.read(node, 0, 9) == b"f"
    side.tree.write(node, 1, b"more")
    assert side.tree.read(node, 0, 9) == b"fmore"
    assert side.tree.attributes(node).nlink == 0
    side.tree.close_file(node)


def test_a_metacopy_of_another_program_with_two_names_stays_one_file(
    tmp_path: Path, union: Union
) -> None:
    plant(tmp_path / "low", "f")
    upper = tmp_path / "upper/f"
    upper.touch()
    os.truncate(upper, 1)
    assert xattrs.set_mark(os.fsencode(upper), b"metacopy", b"")
    assert xattrs.set_mark(os.fsencode(upper), b"redirect", b"/f")
    os.link(upper, tmp_path / "upper/g")
    side = union()
    assert side.walk()[b"g"].data == b"f"
    side.write(b"g", 1, b"!")
    assert {seen.data for seen in side.walk().values()} == {b"f!"}
    assert {seen.data for seen in union().walk().values()} == {b"f!"}


def test_a_metacopy_without_contents_is_an_error_that_names_it(
    tmp_path: Path, union: Union
) -> None:
    (tmp_path / "top/f").touch()
    assert xattrs.set_mark(os.fsencode(tmp_path / "top/f"), b"metacopy", b"")
    with pytest.raises(LayerError, match=r"f in layer .*top is a metacopy"):
        union().node(b"f")


def test_a_file_that_makes_no_sense_keeps_nobody_from_the_others(
    tmp_path: Path, union: Union
) -> None:
    plant(tmp_path / "top", "broken", "whole")
    assert xattrs.set_mark(os.fsencode(tmp_path / "top/broken"), b"metacopy", b"")
    tree = union().tree
    assert [name for name, *_ in tree.list(tree.root, 0)] == [b"whole"]


def test_what_is_redirected_is_not_shown_without_its_lower_parts(
    tmp_path: Path, union: Union
) -> None:
    """Kernel overlayfs refuses it as well: something else may be under the same name below."""
    plant(tmp_path / "low", "d/f", "g")
    side = union()
    side.chmod(b"g", 0o600)
    side.rename(b"g", b"g2")
    side.rename(b"d", b"d2")
    for name in ("new", "new work"):
        (tmp_path / name).mkdir()
    lowers = [tmp_path / "upper", tmp_path / "top", tmp_path / "low"]
    options = TreeOptions(redirects=Redirects.NOFOLLOW)
    tree = open_tree(lowers, tmp_path / "new", tmp_path / "new work", options)
    for moved, lower in ((b"g2", "g"), (b"d2", "d")):
        with pytest.raises(LayerError, match=f"redirected to {lower}, and redirect_dir=nofollow"):
            tree.lookup(tree.root, moved)
    tree.close()


# -- hardlinks -----------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path, union: Union) -> Union:
    """A lower file with the names a, b and d/c."""
    plant(tmp_path / "low", "a", "d/x")
    os.link(tmp_path / "low/a", tmp_path / "low/b")
    os.link(tmp_path / "low/a", tmp_path / "low/d/c")
    return union


def links(side: UnionSide) -> dict[bytes, tuple[int, bytes]]:
    return {path: (seen.links, seen.data) for path, seen in side.walk().items() if seen.first}


def test_the_names_of_a_file_stay_together_over_a_new_mount(tmp_path: Path, linked: Union) -> None:
    side = linked()
    number = side.node(b"a").number
    side.write(b"b", 0, b"A")
    assert len(os.listdir(tmp_path / "upper")) == 1
    for again in twice(side, linked):
        found = links(again)
        assert {found[path] for path in (b"a", b"b", b"d/c")} == {(3, b"A")}
        assert {again.node(path).number for path in (b"a", b"b", b"d/c")} == {number}


def test_the_links_of_a_file_are_counted_whatever_becomes_of_them(linked: Union) -> None:
    side = linked()
    side.unlink(b"a")
    assert links(side)[b"b"] == links(linked())[b"b"] == (2, b"a")
    side = linked()
    side.link(b"d/c", b"e")
    side.rename(b"b", b"d/b")
    assert links(linked())[b"e"] == (3, b"a")
    side = linked()
    side.rename(b"d/x", b"d/c")
    assert links(linked())[b"e"] == (2, b"a")


def test_a_file_leaves_the_index_with_its_last_name(tmp_path: Path, linked: Union) -> None:
    side = linked()
    node = side.node(b"a")
    side.tree.open_file(node)
    for name in (b"a", b"b", b"d/c"):
        side.unlink(name)
    assert os.listdir(tmp_path / "work/links") == []
    assert side.tree.attributes(node).nlink == 0
    assert side.tree.read(node, 0, 9) == b"a"
    side.tree.close_file(node)
    assert list(linked().walk()) == [b"d", b"d/x"]


def test_links_are_found_in_a_renamed_directory(linked: Union) -> None:
    side = linked()
    side.rename(b"d", b"e")
    side.write(b"e/c", 0, b"A")
    found = links(linked())
    assert found[b"a"] == found[b"e/c"] == (3, b"A")


def test_what_a_killed_process_left_in_the_index_goes(tmp_path: Path, linked: Union) -> None:
    side = linked()
    side.write(b"a", 0, b"A")
    (tmp_path / "work/links/0badbad").write_text("left")
    side = linked()
    assert len(os.listdir(tmp_path / "work/links")) == 1
    assert links(side)[b"b"] == (3, b"A")


def test_without_the_index_the_upper_still_opens(tmp_path: Path, linked: Union) -> None:
    """Somebody has emptied the work directory: names that were not changed are as they were."""
    side = linked()
    side.write(b"a", 0, b"A")
    (entry,) = (tmp_path / "work/links").iterdir()
    entry.unlink()
    side = linked()
    assert links(side)[b"a"] == (1, b"A")
    assert links(side)[b"b"] == (3, b"a")


@pytest.mark.root
def test_links_in_a_filesystem_inside_of_a_layer_fall_apart_when_they_are_copied_up(
    tmp_path: Path, union: Union
) -> None:
    """Nothing says which filesystem it was when it is mounted again."""
    (tmp_path / "low/inner").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "inner", tmp_path / "low/inner"], check=True)
    try:
        plant(tmp_path / "low", "inner/a")
        os.link(tmp_path / "low/inner/a", tmp_path / "low/inner/b")
        side = union()
        assert side.node(b"inner/a") is side.node(b"inner/b")
        side.write(b"inner/b", 0, b"B")
        for again in twice(side, union):
            seen = {path: one.data for path, one in again.walk().items() if one.first}
            assert sorted(seen.values()) == [b"Bnner/a", b"inner/a"]
        side = union()
        side.unlink(b"inner/a")
        side.unlink(b"inner/b")
        assert list(union().walk()) == [b"inner"]
    finally:
        subprocess.run(["umount", "-l", tmp_path / "low/inner"], check=True)
