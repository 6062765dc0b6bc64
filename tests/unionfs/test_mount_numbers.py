"""Hardlinks and inode numbers of real mounts, and what options make of them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pack.archives import take_in
from tests.unionfs.trees import PlainSide
from tests.unionfs.unions import (
    FUSE_OVERLAYFS,
    LAMINA,
    copy,
    forget,
    names,
    plant,
    sights,
    timeless,
    union,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]

# -- hardlinks -----------------------------------------------------------------------------------

Step = Callable[[PlainSide], None]


def make_linked(root: Path) -> None:
    """A file of four names, one of three, and one of two that are in one directory."""
    plant(root, "a/1", "a/x", "b/y", "b/sub/z", "pair", "other")
    for target, *others in (
        ("a/1", "a/2", "b/1", "c"), ("b/y", "b/sub/y", "y"), ("pair", "pair2"),
    ):  # fmt: skip
        for name in others:
            os.link(root / target, root / name)


def by_one_name(side: PlainSide) -> None:
    side.write(b"b/1", 0, b"W")
    side.chmod(b"a/2", 0o640)
    side.set_xattr(b"y", b"value")


def remove_and_rename(side: PlainSide) -> None:
    side.unlink(b"a/1")
    side.rename(b"c", b"b/sub/c")
    side.link(b"b/1", b"new")
    side.rename(b"pair2", b"pair3")
    side.rename(b"other", b"b/sub/y")
    side.unlink(b"pair")


def in_renamed_directories(side: PlainSide) -> None:
    side.rename(b"b", b"b2")
    side.rename(b"b2/sub", b"a/sub")
    side.write(b"a/sub/c", 1, b"X")
    side.link(b"y", b"a/sub/linked")
    side.chmod(b"pair3", 0o600)
    side.unlink(b"a/2")


def to_the_last(side: PlainSide) -> None:
    side.truncate(b"b2/y", 1)
    side.unlink(b"y")
    side.rename(b"b2/1", b"a/sub/z")
    side.unlink(b"new")
    side.unlink(b"b2/y")
    side.exchange(b"pair3", b"a/sub/c")
    side.create(b"new", b"another")


STEPS: list[Step] = [by_one_name, remove_and_rename, in_renamed_directories, to_the_last]


@pytest.mark.parametrize(("packed", "options"), [(False, ()), (True, ("metacopy=on",))])
def test_the_names_of_a_file_stay_one_file(
    tmp_path: Path, packed: bool, options: tuple[str, ...]
) -> None:
    """Whoever changes it by whichever name, over forgetting and a new mount."""
    make_linked(tmp_path / "low")
    copy(tmp_path / "low", tmp_path / "plain")
    lower = pack_of(tmp_path, "low") if packed else "low"
    plain = PlainSide(tmp_path / "plain")
    with union(LAMINA, tmp_path, *options, lowers=(lower,)) as mountpoint:
        number = (mountpoint / "c").stat().st_ino
    for step in STEPS:
        step(plain)
        with union(LAMINA, tmp_path, *options, lowers=(lower,)) as mountpoint:
            step(PlainSide(mountpoint))
            expected = timeless(sights(tmp_path / "plain"))
            assert timeless(sights(mountpoint)) == expected
            forget(mountpoint)
            assert timeless(sights(mountpoint)) == expected
    with union(LAMINA, tmp_path, *options, lowers=(lower,)) as mountpoint:
        assert timeless(sights(mountpoint)) == timeless(sights(tmp_path / "plain"))
        assert (mountpoint / "pair3").stat().st_ino == number
        for path in mountpoint.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert names(tmp_path / "work/links") == set()


def pack_of(base: Path, name: str) -> str:
    """Make a pack of a directory, as tar(1) sees it."""
    command = ["tar", "--numeric-owner", "--format=posix", "-cC", str(base / name), "."]
    tar = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return f"{take_in(base, tar).diff_id.hex()}.pack"


def test_names_in_several_layers_are_those_that_show(tmp_path: Path) -> None:
    """Some are hidden by layers above, as when a container removed them."""
    make_linked(tmp_path / "low")
    copy(tmp_path / "low", tmp_path / "plain")
    lowers = ("top", pack_of(tmp_path, "low"))
    with union(LAMINA, tmp_path, lowers=lowers[1:]) as mountpoint:
        for root in (mountpoint, tmp_path / "plain"):
            PlainSide(root).unlink(b"a/1")
            shutil.rmtree(root / "b")
    (tmp_path / "upper").rename(tmp_path / "top")
    shutil.rmtree(tmp_path / "work")
    with union(LAMINA, tmp_path, lowers=lowers) as mountpoint:
        assert timeless(sights(mountpoint)) == timeless(sights(tmp_path / "plain"))
        for root in (mountpoint, tmp_path / "plain"):
            PlainSide(root).write(b"c", 0, b"W")
            PlainSide(root).unlink(b"a/2")
            PlainSide(root).link(b"y", b"a/y")
        expected = timeless(sights(tmp_path / "plain"))
        assert timeless(sights(mountpoint)) == expected
    with union(LAMINA, tmp_path, lowers=lowers) as mountpoint:
        assert timeless(sights(mountpoint)) == expected


# -- numbers -------------------------------------------------------------------------------------


def numbers(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.lstat().st_ino for path in root.rglob("*")}


def test_short_numbers_fit_32_bits_and_stay(tmp_path: Path) -> None:
    """Also where layers are on several filesystems, and files are copied up and renamed."""
    make_linked(tmp_path / "low")
    (tmp_path / "memory").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", tmp_path / "memory"], check=True)
    try:
        plant(tmp_path / "memory", *(f"many/{count}" for count in range(200)))
        (tmp_path / "packed").mkdir()
        plant(tmp_path / "packed", *(f"p/{count}" for count in range(200)))
        lowers = (pack_of(tmp_path, "packed"), "memory", "low")
        with union(LAMINA, tmp_path, "ino32_t", lowers=lowers) as mountpoint:
            found = numbers(mountpoint)
            PlainSide(mountpoint).write(b"many/7", 0, b"X")
            PlainSide(mountpoint).chmod(b"p/7", 0o600)
            PlainSide(mountpoint).rename(b"p", b"q")
            (mountpoint / "new").touch()
        with union(LAMINA, tmp_path, "ino32_t", lowers=lowers) as mountpoint:
            again = numbers(mountpoint)
    finally:
        subprocess.run(["umount", tmp_path / "memory"], check=True)
    assert max(again.values()) < 2**32
    assert min(again.values()) > 1
    new = again.pop("new")
    assert new not in found.values()
    assert again == {
        path.replace("p/", "q/") if path != "p" else "q": number for path, number in found.items()
    }
    links = {"a/1": 3, "b/y": 2, "pair": 1}
    assert len(set(found.values())) == len(found) - sum(links.values())


@pytest.mark.peer(FUSE_OVERLAYFS)
def test_directories_of_one_link_tell_nothing_of_their_subdirectories(tmp_path: Path) -> None:
    plant(tmp_path / "low", "a/b/c/f", "a/d/g")
    links = {}
    for kind, options in (
        (LAMINA, ()),
        (LAMINA, ("static_nlink",)),
        (FUSE_OVERLAYFS, ("static_nlink",)),
    ):
        with union(kind, tmp_path, *options) as mountpoint:
            (mountpoint / "a/new").mkdir()
            links[kind, options] = [
                (mountpoint / name).stat().st_nlink for name in (".", "a", "a/b", "a/new", "a/d/g")
            ]
            (mountpoint / "a/new").rmdir()
    assert links[LAMINA, ()] == [3, 5, 3, 2, 1]
    assert links[LAMINA, ("static_nlink",)] == [1, 1, 1, 1, 1]
    assert links[FUSE_OVERLAYFS, ("static_nlink",)] == [1, 1, 1, 1, 1]


def test_without_writeback_a_write_is_in_the_upper_when_it_returns(tmp_path: Path) -> None:
    plant(tmp_path / "low", "f")
    with union(LAMINA, tmp_path, "writeback=0") as mountpoint:
        fd = os.open(mountpoint / "f", os.O_RDWR)
        for at in range(3):
            os.pwrite(fd, b"%d" % at, at)
            assert (tmp_path / "upper/f").read_bytes() == b"012"[: at + 1]
        os.close(fd)
