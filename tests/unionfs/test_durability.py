"""What reaches the disk, and when: fsync(2) through a mount, and copies before they show."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from pyfuse3 import FileHandleT

from tests.unionfs.trees import UnionSide, open_tree
from tests.unionfs.unions import plant
from unionfs import syscalls
from unionfs.operations import UnionOperations
from unionfs.options import Durability, TreeOptions

pytestmark = pytest.mark.usefixtures("no_umask")

Synced = list[tuple[str, int]]
"""What was brought to disk: how, and the inode number."""


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> Synced:
    """Notes instead of waiting for the disk."""
    done: Synced = []
    for module, name in ((os, "fsync"), (os, "fdatasync"), (syscalls, "start_writeback")):
        monkeypatch.setattr(
            module, name, lambda fd, name=name: done.append((name, os.fstat(fd).st_ino))
        )
    return done


@pytest.fixture
def low(tmp_path: Path) -> Path:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    plant(tmp_path / "low", "d/f", "d/g", "linked")
    os.link(tmp_path / "low/linked", tmp_path / "low/d/linked")
    return tmp_path / "low"


@pytest.fixture
def side(tmp_path: Path, low: Path) -> Iterator[UnionSide]:
    tree = open_tree([low], tmp_path / "upper", tmp_path / "work")
    yield UnionSide(tree)
    tree.close()


def number(path: Path) -> int:
    return path.lstat().st_ino


def test_fsync_is_that_of_the_file_in_the_upper(
    tmp_path: Path, side: UnionSide, synced: Synced
) -> None:
    side.write(b"d/f", 0, b"X")
    side.create(b"new", b"new")
    side.write(b"linked", 0, b"X")
    side.symlink(b"link", b"target")
    operations = UnionOperations(side.tree, cached_seconds=1)
    synced.clear()
    for path in (b"d/f", b"new", b"d/linked"):
        trio.run(operations.fsync, FileHandleT(side.node(path).number), True)
        trio.run(operations.fsync, FileHandleT(side.node(path).number), False)
    for path in (b"", b"d"):
        trio.run(operations.fsyncdir, FileHandleT(side.node(path).number), False)
    upper = tmp_path / "upper"
    files = [number(upper / "d/f"), number(upper / "new"), number(upper / "linked")]
    expected = [(how, file) for file in files for how in ("fdatasync", "fsync")]
    assert synced == [*expected, ("fsync", number(upper)), ("fsync", number(upper / "d"))]


def test_what_only_lower_layers_have_needs_no_fsync(side: UnionSide, synced: Synced) -> None:
    operations = UnionOperations(side.tree, cached_seconds=1)
    for path in (b"d", b"d/f", b"linked"):
        trio.run(operations.fsync, FileHandleT(side.node(path).number), False)
        assert side.tree.sync_fd(side.node(path)) is None
    assert synced == []


def test_an_open_file_without_a_name_can_still_be_brought_to_disk(
    side: UnionSide,
) -> None:
    for path in (b"d/f", b"d/g"):
        node = side.node(path)
        side.tree.open_file(node)
        if path == b"d/f":
            side.write(path, 0, b"X")
        side.unlink(path)
        side.tree.write(node, 0, b"more")
        fd = side.tree.sync_fd(node)
        assert fd is not None
        assert (os.fstat(fd).st_nlink, os.pread(fd, 9, 0)[:4]) == (0, b"more")
        os.close(fd)
        side.tree.close_file(node)


HOW = {
    Durability.VOLATILE: [],
    Durability.ORDERED: ["start_writeback"],
    Durability.SYNCED: ["fdatasync"],
}


@pytest.mark.parametrize("durability", list(Durability))
@pytest.mark.parametrize("metacopy", [False, True])
def test_a_copy_waits_for_the_disk_as_long_as_was_chosen(
    low: Path, synced: Synced, durability: Durability, metacopy: bool
) -> None:
    """As one without contents it has nothing to wait for."""
    upper = low.with_name("upper")
    options = TreeOptions(durability=durability, metacopy=metacopy)
    tree = open_tree([low], upper, low.with_name("work"), options)
    side = UnionSide(tree)
    side.chmod(b"d/f", 0o600)
    assert bool(synced) == (not metacopy and durability is not Durability.VOLATILE)
    side.write(b"d/f", 0, b"X")
    side.write(b"linked", 0, b"X")
    side.truncate(b"d/g", 0)
    index = low.with_name("work") / "links"
    files = [upper / "d/f", *index.iterdir()]
    assert synced == [(way, number(file)) for file in files for way in HOW[durability]]
    tree.close()


def test_a_copy_that_the_disk_refuses_is_not_there(
    tmp_path: Path, low: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fdatasync", refuse)
    options = TreeOptions(durability=Durability.SYNCED)
    tree = open_tree([low], tmp_path / "upper", tmp_path / "work", options)
    side = UnionSide(tree)
    for path in (b"d/f", b"linked"):
        with pytest.raises(OSError, match=os.strerror(errno.EIO)):
            side.write(path, 0, b"X")
        assert side.walk()[path].data == path
    assert not any(path.is_file() for path in tmp_path.rglob("upper/**/*"))
    assert not list((tmp_path / "work/work").iterdir())
    tree.close()
