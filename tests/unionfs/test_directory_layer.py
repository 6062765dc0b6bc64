"""A directory as a layer: what it says is what lstat says, and nothing leads out of it."""

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unionfs.entry import WHITEOUT, Handle
from unionfs.layers.directory import DirectoryLayer


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[DirectoryLayer]:
    (tmp_path / "layer").mkdir()
    opened = DirectoryLayer(os.fsencode(tmp_path / "layer"))
    yield opened
    opened.close()


def find(layer: DirectoryLayer, *names: bytes) -> Handle:
    handle = layer.root()
    for name in names:
        entry = layer.lookup(handle, name)
        assert entry is not None, name
        handle = entry.handle
    return handle


def test_every_kind_of_file_is_as_lstat_says(
    tmp_path: Path, layer: DirectoryLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "layer"
    (base / "dir").mkdir(mode=0o1777)
    (base / "file").write_text("content")
    os.link(base / "file", base / "hardlink")
    (base / "link").symlink_to("/etc/passwd")
    os.mkfifo(base / "fifo")
    monkeypatch.chdir(base)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
    if os.geteuid() == 0:
        os.mknod(base / "null", stat.S_IFCHR, os.makedev(1, 3))
        os.chown(base / "link", 5, 6, follow_symlinks=False)
    (base / os.fsdecode(b"\xff\n")).touch()
    for name, kind in layer.names(layer.root()):
        info = os.lstat(os.fsencode(base) + b"/" + name)
        found = layer.attributes(find(layer, name))
        assert kind == found.kind == stat.S_IFMT(info.st_mode)
        assert found == (
            info.st_dev, info.st_ino, info.st_mode, info.st_nlink, info.st_uid, info.st_gid,
            info.st_rdev, info.st_size, info.st_blocks, info.st_atime_ns, info.st_mtime_ns,
            info.st_ctime_ns,
        )  # fmt: skip
    assert {name for name, _ in layer.names(layer.root())} == set(os.listdir(os.fsencode(base)))
    assert layer.target(find(layer, b"link")) == b"/etc/passwd"
    assert layer.lookup(layer.root(), b"missing") is None
    assert layer.attributes(layer.root()).number == base.stat().st_ino
    assert not layer.is_opaque(layer.root())
    assert not layer.is_implicit(layer.root())


@given(
    st.dictionaries(
        st.sampled_from([b"a", b"b", b".wh.a", b".wh.b", b".wh.c", b".wh..wh.x", b".wh..wh..opq"]),
        st.sampled_from(["file", "directory", "device"]),
    )
)
@settings(max_examples=60, deadline=None)
def test_a_listing_and_lookups_say_the_same(entries: dict[bytes, str]) -> None:
    with tempfile.TemporaryDirectory() as base:
        for name, kind in entries.items():
            path = os.path.join(os.fsencode(base), name)
            if kind == "directory":
                os.mkdir(path)
            else:
                os.mknod(path, stat.S_IFREG | 0o644 if kind == "file" else stat.S_IFCHR, 0)
        layer = DirectoryLayer(os.fsencode(base))
        listed = dict(layer.names(layer.root()))
        for name in (b"a", b"b", b"c", *entries):
            entry = layer.lookup(layer.root(), name)
            assert (entry.kind if entry else None) == listed.get(name)
        assert layer.is_opaque(layer.root()) == (b".wh..wh..opq" in entries)
        assert (b"c" in listed) == (b".wh.c" in entries)
        if b"c" in listed:
            assert listed[b"c"] == WHITEOUT
        layer.close()


def test_a_directory_that_became_a_symlink_is_not_followed(
    tmp_path: Path, layer: DirectoryLayer
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/secret").touch()
    (tmp_path / "layer/d").mkdir()
    (tmp_path / "layer/f").touch()
    directory, file = find(layer, b"d"), find(layer, b"f")
    (tmp_path / "layer/d").rmdir()
    (tmp_path / "layer/d").symlink_to(tmp_path / "outside")
    (tmp_path / "layer/f").unlink()
    (tmp_path / "layer/f").symlink_to(tmp_path / "outside/secret")
    for attempt in (
        lambda: layer.lookup(directory, b"secret"),
        lambda: list(layer.names(directory)),
        lambda: layer.open(file),
    ):
        with pytest.raises(OSError) as raised:  # noqa: PT011 - either of two errors, see below
            attempt()
        assert raised.value.errno in (errno.ELOOP, errno.ENOTDIR)


def test_the_layer_itself_may_be_reached_by_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/f").touch()
    (tmp_path / "link").symlink_to("real")
    layer = DirectoryLayer(os.fsencode(tmp_path / "link"))
    assert [name for name, _ in layer.names(layer.root())] == [b"f"]
    layer.close()
    with pytest.raises(FileNotFoundError):
        DirectoryLayer(os.fsencode(tmp_path / "none"))
    with pytest.raises(NotADirectoryError):
        DirectoryLayer(os.fsencode(tmp_path / "real/f"))


def test_opening_a_fifo_does_not_wait_for_its_writer(tmp_path: Path, layer: DirectoryLayer) -> None:
    os.mkfifo(tmp_path / "layer/fifo")
    layer.open(find(layer, b"fifo")).close()


def test_xattrs_without_bookkeeping(tmp_path: Path, layer: DirectoryLayer) -> None:
    file = tmp_path / "layer/f"
    file.touch()
    for name in ("user.a", "user.overlay.origin", "user.fuseoverlayfs.origin"):
        os.setxattr(file, name, b"\0value")
    assert layer.xattrs(find(layer, b"f")) == {b"user.a": b"\0value"}
    os.setxattr(tmp_path / "layer", "user.root", b"")
    os.setxattr(tmp_path / "layer", "user.overlay.opaque", b"y")
    assert layer.xattrs(layer.root()) == {b"user.root": b""}
    assert layer.is_opaque(layer.root())


def test_contents_and_their_holes(tmp_path: Path, layer: DirectoryLayer) -> None:
    file = tmp_path / "layer/sparse"
    with file.open("wb") as writer:
        for offset in (1 << 20, 5 << 20):
            writer.seek(offset)
            writer.write(b"data" * 1024)
        writer.truncate(9 << 20)
    content = layer.open(find(layer, b"sparse"))
    runs = list(content.extents())
    assert runs == [(1 << 20, 4096), (5 << 20, 4096)]
    assert content.read((1 << 20) - 2, 6) == b"\0\0data"
    assert content.read((9 << 20) - 1, 10) == b"\0"
    assert content.read(9 << 20, 10) == b""
    content.close()
    (tmp_path / "layer/empty").touch()
    empty = layer.open(find(layer, b"empty"))
    assert list(empty.extents()) == []
    empty.close()


def test_few_directories_are_open_at_a_time(tmp_path: Path, layer: DirectoryLayer) -> None:
    """However many there are and however deep: paths longer than PATH_MAX are reached as well."""
    before = len(os.listdir("/proc/self/fd"))
    for number in range(600):
        (tmp_path / f"layer/{number}").mkdir()
    places = [find(layer, b"%d" % number) for number in range(600)]
    layer.pin(places[0])
    for place in places:
        assert list(layer.names(place)) == []
    pinned = places[0].fd
    assert len(os.listdir("/proc/self/fd")) - before <= 514
    depth = 700
    fd = os.open(tmp_path / "layer", os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("deep-name", dir_fd=fd)
        inner = os.open("deep-name", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    bottom = find(layer, *[b"deep-name"] * depth, b"bottom")
    assert layer.attributes(bottom).size == 0
    for place in places[1:]:
        layer.fd(place)
    assert layer.attributes(bottom).kind == stat.S_IFREG, "reached again from the root"
    assert len(os.listdir("/proc/self/fd")) - before <= 514
    assert places[0].fd == pinned
    layer.drop(places[0])


def test_closing_gives_up_every_descriptor(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "a/b/c").mkdir(parents=True)
    layer = DirectoryLayer(os.fsencode(tmp_path))
    assert list(layer.names(find(layer, b"a", b"b", b"c"))) == []
    layer.close()
    assert len(os.listdir("/proc/self/fd")) == before
