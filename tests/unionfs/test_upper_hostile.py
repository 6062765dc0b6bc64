"""Uppers and work directories that others have filled, and changes that fail half way."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unionfs.trees import UnionSide, open_tree
from unionfs import syscalls
from unionfs.layers.links import LinkIndex, Record
from unionfs.layers.upper import Upper
from unionfs.options import TreeOptions

pytestmark = pytest.mark.usefixtures("no_umask")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in ("low", "upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path


def open_union(base: Path, *, metacopy: bool = False) -> UnionSide:
    options = TreeOptions(metacopy=metacopy)
    return UnionSide(open_tree([base / "low"], base / "upper", base / "work", options))


def test_a_symlink_in_place_of_the_index_is_not_followed(base: Path) -> None:
    (base / "precious").mkdir()
    (base / "precious/file").write_text("precious")
    (base / "work/links").symlink_to(base / "precious")
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NotADirectoryError):
        Upper(os.fsencode(base / "upper"), os.fsencode(base / "work"))
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert (base / "precious/file").read_text() == "precious"


def test_what_is_none_of_the_index_stays_and_means_nothing(base: Path) -> None:
    (base / "low/f").write_text("f")
    os.link(base / "low/f", base / "low/g")
    side = open_union(base)
    key = side.tree.link_key(side.node(b"f"))
    assert key is not None
    side.tree.close()
    index = base / "work/links"
    (index / "sub/dir").mkdir(parents=True)
    (index / "1_0").touch()
    os.mkfifo(index / "fifo")
    (index / os.fsdecode(key)).mkdir()
    side = open_union(base)
    assert side.walk()[b"f"].data == b"f"
    side.tree.close()
    assert sorted(os.listdir(index)) == sorted(["sub", "1_0", "fifo", os.fsdecode(key)])


def test_names_are_counted_right_after_a_kill_between_link_and_count(base: Path) -> None:
    (base / "low/a").write_text("a")
    os.link(base / "low/a", base / "low/b")
    os.link(base / "low/a", base / "low/c")
    side = open_union(base)
    side.write(b"a", 0, b"A")
    index = side.tree.links
    assert isinstance(index, LinkIndex)
    key = side.node(b"a").link_key
    assert key is not None
    side.tree.close()
    index = LinkIndex(os.fsencode(base / "work/links"))
    index.write_record(Record(key, total=3))  # as it is while a name moves to the upper
    index.close()
    side = open_union(base)
    side.link(b"a", b"d")
    side.tree.close()
    side = open_union(base)
    assert side.walk()[b"d"].links == 4
    side.tree.close()


def test_names_stay_together_where_there_are_no_xattrs(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b", "c"):
        (base / "low/a").touch()
        os.link(base / "low/a", base / "low" / name)
    (base / "low/a").write_text("a")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    monkeypatch.setattr(os, "setxattr", refuse)
    side = open_union(base)
    for _ in range(2):
        side.write(b"b", 0, b"B")
        side.forget()
        assert [(seen.data, seen.links) for seen in side.walk().values()] == [(b"B", 3)] * 3
        side.forget()
        side.write(b"a", 0, b"B")
    side.unlink(b"c")
    side.tree.close()
    side = open_union(base)
    assert {seen.data for seen in side.walk().values()} == {b"B"}
    side.tree.close()


@pytest.mark.parametrize("call", ["renameat2", "rename"])
@pytest.mark.parametrize("metacopy", [False, True])
def test_a_copy_that_cannot_be_shown_takes_no_space(
    base: Path, monkeypatch: pytest.MonkeyPatch, call: str, metacopy: bool
) -> None:
    (base / "low/f").write_text("f")
    side = open_union(base, metacopy=metacopy)
    if metacopy:
        side.chmod(b"f", 0o600)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(syscalls if call == "renameat2" else os, call, full)
        if call == ("rename" if metacopy else "renameat2"):
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                side.write(b"f", 0, b"F")
            assert os.listdir(base / "work/work") == []
    side.write(b"f", 0, b"F")
    assert side.walk()[b"f"].data == b"F"
    side.tree.close()


def test_a_metacopy_whose_removal_failed_can_be_written(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "low/f").write_text("lower")
    side = open_union(base, metacopy=True)
    side.chmod(b"f", 0o600)

    def full(*arguments: object, **options: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "mknod", full)
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            side.unlink(b"f")
    side.write(b"f", 0, b"UPPER")
    side.tree.close()
    assert (base / "upper/f").read_bytes() == b"UPPER"


def test_what_cannot_be_tidied_up_is_no_error(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The change has been made by then; what is left aside goes at the next start."""
    (base / "low/f").write_text("lower")
    side = open_union(base)
    side.write(b"f", 0, b"U")

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refuse)
        side.unlink(b"f")
    assert side.walk() == {}
    side.create(b"f", b"new")
    assert side.walk()[b"f"].data == b"new"
    side.tree.close()


@pytest.mark.parametrize("name", ["link", "rename", "exchange"])
def test_a_change_between_two_deep_directories_finds_both(
    base: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Few descriptors are kept, and reaching one directory may cost that of the other."""
    monkeypatch.setattr("unionfs.layers.directory._OPEN_DIRECTORIES", 1)
    (base / "low/a/b").mkdir(parents=True)
    (base / "low/c/d").mkdir(parents=True)
    (base / "low/a/b/f").write_text("f")
    (base / "low/c/d/g").write_text("g")
    side = open_union(base)
    side.write(b"a/b/f", 0, b"F")
    side.write(b"c/d/g", 0, b"G")
    side.walk()
    changes: dict[str, Callable[[], None]] = {
        "link": lambda: side.link(b"a/b/f", b"c/d/f"),
        "rename": lambda: side.rename(b"a/b/f", b"c/d/f"),
        "exchange": lambda: side.exchange(b"a/b/f", b"c/d/g"),
    }
    changes[name]()
    seen = side.walk()
    if name == "exchange":
        assert (seen[b"a/b/f"].data, seen[b"c/d/g"].data) == (b"G", b"F")
    else:
        assert seen[b"c/d/f"].data == b"F"
    side.tree.close()
