"""Every form of "gone" and of "hides what is below": written in each, read from each."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unionfs.trees import UnionSide, open_tree
from unionfs import syscalls, whiteouts, xattrs
from unionfs.entry import NAME_MAX, WHITEOUT
from unionfs.layers.directory import DirectoryLayer

NAMES = st.binary(min_size=1, max_size=260).filter(
    lambda name: not set(name) & set(b"/\0") and name not in {b".", b".."}
)


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[DirectoryLayer]:
    """A layer whose directory ``d`` has the files a and b."""
    (tmp_path / "layer/d").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "layer/d" / name).write_text(name)
    opened = DirectoryLayer(os.fsencode(tmp_path / "layer"))
    yield opened
    opened.close()


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    """A directory to write whiteouts in."""
    (tmp_path / "new").mkdir()
    opened = os.open(tmp_path / "new", os.O_RDONLY | os.O_DIRECTORY)
    yield opened
    os.close(opened)


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@given(NAMES)
def test_a_marker_hides_the_name_it_was_made_for(name: bytes) -> None:
    marker = whiteouts.marker_for(name)
    if len(name) > NAME_MAX - len(whiteouts.PREFIX):
        assert marker is None
        return
    assert marker is not None
    assert len(marker) <= NAME_MAX
    assert whiteouts.is_marker(marker)
    assert whiteouts.hidden_by(marker) == (None if whiteouts.is_marker(name) else name)


@pytest.mark.parametrize("name", [b".wh.", b".wh..wh..opq", b".wh..wh.plnk", b".wh..wh.aufs"])
def test_bookkeeping_names_hide_nothing(name: bytes) -> None:
    assert whiteouts.hidden_by(name) is None
    assert whiteouts.is_marker(name)


@pytest.mark.parametrize("name", [b".whx", b"wh.", b".w", b"x.wh.", b".WH.x"])
def test_names_that_only_resemble_markers_are_names(name: bytes) -> None:
    assert not whiteouts.is_marker(name)


@pytest.mark.parametrize(
    ("name", "private"),
    [
        (b"trusted.overlay.opaque", True),
        (b"user.overlay.whiteout", True),
        (b"user.fuseoverlayfs.opaque", True),
        (b"user.overlay", False),
        (b"user.overlays.x", False),
        (b"security.capability", False),
    ],
)
def test_xattrs_of_unions_are_private(name: bytes, private: bool) -> None:
    assert (xattrs.stored_name(name) != name) == private


def device(directory: Path) -> None:
    os.mknod(directory / "gone", stat.S_IFCHR, 0)


def marker(directory: Path) -> None:
    (directory / ".wh.gone").touch()


def xattr(namespace: str) -> Callable[[Path], None]:
    def make(directory: Path) -> None:
        (directory / "gone").touch()
        os.setxattr(directory / "gone", f"{namespace}.overlay.whiteout", b"")
        os.setxattr(directory, f"{namespace}.overlay.opaque", b"x")

    return make


trusted = pytest.param(xattr("trusted"), id="trusted", marks=pytest.mark.root)


@pytest.mark.parametrize("make", [device, marker, pytest.param(xattr("user"), id="user"), trusted])
def test_a_whiteout_is_read(
    tmp_path: Path, layer: DirectoryLayer, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "layer/d")
    entry = layer.lookup(layer.root(), b"d")
    assert entry is not None
    found = layer.lookup(entry.handle, b"gone")
    assert found is not None
    assert found.kind == WHITEOUT
    names = dict(layer.names(entry.handle))
    assert names == {b"a": stat.S_IFREG, b"b": stat.S_IFREG, b"gone": WHITEOUT}
    assert not layer.is_opaque(entry.handle)


def test_what_is_no_whiteout_is_a_file(tmp_path: Path, layer: DirectoryLayer) -> None:
    """The xattr counts on an empty file in a directory that announces such files; nowhere else."""
    directory = tmp_path / "layer/d"
    os.setxattr(directory / "a", "user.overlay.whiteout", b"")
    (directory / "empty").touch()
    os.setxattr(directory / "empty", "user.overlay.whiteout", b"")
    os.mkfifo(directory / "fifo")
    entry = layer.lookup(layer.root(), b"d")
    assert entry is not None
    kinds = {b"a": stat.S_IFREG, b"b": stat.S_IFREG, b"empty": stat.S_IFREG, b"fifo": stat.S_IFIFO}
    assert dict(layer.names(entry.handle)) == kinds
    os.setxattr(directory, "user.overlay.opaque", b"x")
    assert dict(layer.names(entry.handle)) == kinds | {b"empty": WHITEOUT}
    for name, kind in layer.names(entry.handle):
        found = layer.lookup(entry.handle, name)
        assert found is not None
        assert found.kind == kind


@pytest.mark.root
def test_only_device_zero_is_a_whiteout(tmp_path: Path, layer: DirectoryLayer) -> None:
    os.mknod(tmp_path / "layer/null", stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(tmp_path / "layer/block", stat.S_IFBLK, 0)
    names = dict(layer.names(layer.root()))
    assert names == {b"d": stat.S_IFDIR, b"null": stat.S_IFCHR, b"block": stat.S_IFBLK}


def test_a_name_beside_its_marker_exists(tmp_path: Path, layer: DirectoryLayer) -> None:
    """The marker speaks of the layers below; a directory beside its own marker hides them."""
    (tmp_path / "layer/.wh.d").touch()
    (tmp_path / "layer/d/.wh.a").touch()
    entry = layer.lookup(layer.root(), b"d")
    assert entry is not None
    assert entry.kind == stat.S_IFDIR
    assert layer.is_opaque(entry.handle)
    assert dict(layer.names(layer.root())) == {b"d": stat.S_IFDIR}
    assert dict(layer.names(entry.handle)) == {b"a": stat.S_IFREG, b"b": stat.S_IFREG}


def test_a_device_whiteout_is_written(fd: int) -> None:
    assert whiteouts.create(fd, b"gone")
    assert whiteouts.is_device(os.stat("gone", dir_fd=fd, follow_symlinks=False))


@pytest.mark.parametrize("number", [errno.EPERM, errno.EINVAL, errno.ENOTSUP])
def test_no_device_where_none_may_be_made(
    fd: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "mknod", failing(number))
    assert not whiteouts.create(fd, b"gone")
    monkeypatch.setattr(syscalls, "renameat2", failing(number))
    assert not whiteouts.rename_leaving_whiteout(fd, b"a", fd, b"b")


def test_a_full_disk_is_not_taken_for_a_missing_permission(
    fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("mknod", "setxattr"):
        monkeypatch.setattr(os, name, failing(errno.ENOSPC))
    monkeypatch.setattr(syscalls, "renameat2", failing(errno.ENOSPC))
    for action in (
        lambda: whiteouts.create(fd, b"gone"),
        lambda: whiteouts.make_opaque(fd),
        lambda: whiteouts.rename_leaving_whiteout(fd, b"a", fd, b"b"),
    ):
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            action()
    assert os.listdir(fd) == []


@pytest.mark.parametrize("refused", [0, 1, 2])
def test_an_opaque_directory_is_written_in_the_best_form_allowed(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    original = os.setxattr
    forms = [b"trusted.overlay.opaque", b"user.overlay.opaque"]

    def setxattr(path: bytes, name: bytes, value: bytes, *, follow_symlinks: bool) -> None:
        if name in forms[:refused]:
            failing(errno.EPERM)()
        original(path, name, value, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "setxattr", setxattr)
    if os.geteuid() != 0 and refused == 0:
        refused = 1
    whiteouts.make_opaque(fd)
    assert [os.fsencode(name) for name in os.listxattr(fd)] == forms[refused : refused + 1]
    assert os.listdir(fd) == ([".wh..wh..opq"] if refused == 2 else [])
    layer = DirectoryLayer(os.fsencode(tmp_path / "new"))
    assert layer.is_opaque(layer.root())
    layer.close()


def test_a_rename_leaves_a_whiteout(fd: int, tmp_path: Path) -> None:
    (tmp_path / "new/a").write_text("a")
    assert whiteouts.rename_leaving_whiteout(fd, b"a", fd, b"b")
    assert whiteouts.is_device(os.stat("a", dir_fd=fd, follow_symlinks=False))
    assert (tmp_path / "new/b").read_text() == "a"


def test_xattr_whiteouts_of_an_upper_are_written_over_and_moved_onto(tmp_path: Path) -> None:
    """An upper may have come with them: nothing of them may be seen as an empty file later."""
    for name in ("low", "upper", "work"):
        (tmp_path / name).mkdir()
    for name in ("file", "taken", "dir"):
        (tmp_path / "low" / name).write_text("lower")
        (tmp_path / "upper" / name).touch()
        os.setxattr(tmp_path / "upper" / name, "user.overlay.whiteout", b"")
    os.setxattr(tmp_path / "upper", "user.overlay.opaque", b"x")
    (tmp_path / "low/sub").mkdir()
    (tmp_path / "low/sub/from").touch()
    (tmp_path / "upper/sub/from").mkdir(parents=True)
    (tmp_path / "upper/sub/file").write_text("moved")
    places = ([tmp_path / "low"], tmp_path / "upper", tmp_path / "work")
    side = UnionSide(open_tree(*places))
    assert list(side.walk()) == [b"sub", b"sub/file", b"sub/from"]
    side.create(b"file", b"new")
    side.rename(b"sub/file", b"taken")
    side.rename(b"sub/from", b"dir")
    expected = [b"dir", b"file", b"sub", b"taken"]
    assert list(side.walk()) == expected
    side.tree.close()
    side = UnionSide(open_tree(*places))
    assert list(side.walk()) == expected
    side.tree.close()
