"""A pack behind the protocol of layers."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.pack import archives
from tests.pack.archives import Entry, directory, file, link, symlink
from unionfs.entry import WHITEOUT, Attributes
from unionfs.errors import PackError
from unionfs.layers import Content, Layer
from unionfs.layers.packed import PackedLayer
from unionfs.pack import CHUNK_SIZE, Pack, merge

DATA = b"0123456789" * 40_000


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[PackedLayer]:
    """A layer with a bit of everything."""
    tar = archives.tar_of(
        [
            directory("d", 0o1777),
            file("d/a", DATA),
            link("b", "d/a"),
            link("d/sub/c", "b"),
            symlink("s", "../d"),
            file("d/.wh.gone"),
            directory("new"),
            file(".wh.new"),
            link("below", "in/lower"),
            Entry("fifo", tarfile.FIFOTYPE),
            file("sparse", bytes(3 * CHUNK_SIZE) + b"x" + bytes(2 * CHUNK_SIZE - 1) + b"y"),
        ]
    )
    packed = PackedLayer(archives.pack_of(tmp_path, tar), space=7, base=1000)
    yield packed
    packed.close()


def _at(layer: Layer, path: bytes) -> int:
    handle = layer.root()
    for name in path.split(b"/"):
        entry = layer.lookup(handle, name)
        assert entry is not None
        handle = entry.handle
    row: int = handle
    return row


def test_it_is_a_layer(layer: PackedLayer) -> None:
    protocol: Layer = layer
    content: Content = layer.open(_at(layer, b"b"))
    assert protocol.path.endswith(b".pack")
    assert content.read(5, 10) == b"5678901234"
    content.close()


def test_names_come_with_their_kinds(layer: PackedLayer) -> None:
    assert dict(layer.names(layer.root())) == {
        b"b": stat.S_IFREG,
        b"below": stat.S_IFREG,
        b"d": stat.S_IFDIR,
        b"fifo": stat.S_IFIFO,
        b"new": stat.S_IFDIR,
        b"s": stat.S_IFLNK,
        b"sparse": stat.S_IFREG,
    }
    gone = layer.lookup(_at(layer, b"d"), b"gone")
    assert gone == (WHITEOUT, None)
    assert layer.lookup(_at(layer, b"d"), b".wh.gone") is None
    assert layer.lookup(layer.root(), b"nothing") is None


def test_directories_know_what_they_hide_and_whether_they_are_meant(layer: PackedLayer) -> None:
    flags = {
        path: (layer.is_opaque(_at(layer, path)), layer.is_implicit(_at(layer, path)))
        for path in (b"d", b"d/sub", b"new")
    }
    assert flags == {b"d": (False, False), b"d/sub": (False, True), b"new": (True, False)}
    assert layer.is_implicit(layer.root())


def test_attributes_say_what_the_archive_said(layer: PackedLayer) -> None:
    row = _at(layer, b"b")
    time = archives.TIME * 10**9
    assert layer.attributes(row) == Attributes(
        space=7,
        number=1000 + row + 1,
        mode=stat.S_IFREG | 0o644,
        nlink=3,
        uid=0,
        gid=0,
        rdev=0,
        size=len(DATA),
        blocks=-(-len(DATA) // 512),
        atime_ns=time,
        mtime_ns=time,
        ctime_ns=time,
    )
    assert layer.attributes(layer.root()).number == 1001
    assert layer.attributes(_at(layer, b"d/a")) == layer.attributes(row)


def test_all_names_of_a_file_are_known(layer: PackedLayer) -> None:
    expected = {(b"b",), (b"d", b"a"), (b"d", b"sub", b"c")}
    assert set(layer.links(_at(layer, b"d/sub/c"))) == expected
    assert layer.links(_at(layer, b"s")) == [(b"s",)]
    assert layer.links(_at(layer, b"d")) == [(b"d",)]
    assert layer.links(layer.root()) == []


def test_holes_are_not_among_the_extents(layer: PackedLayer) -> None:
    row = _at(layer, b"sparse")
    size = 5 * CHUNK_SIZE + 1
    extents = list(layer.open(row).extents())
    assert extents == [(3 * CHUNK_SIZE, CHUNK_SIZE), (5 * CHUNK_SIZE, 1)]
    assert layer.open(row).read(0, 2 * size)[3 * CHUNK_SIZE] == ord("x")


def test_what_is_no_file_cannot_be_opened(layer: PackedLayer) -> None:
    for path in (b"d", b"s", b"fifo"):
        with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
            layer.open(_at(layer, path))
    assert layer.target(_at(layer, b"s")) == b"../d"
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        layer.target(_at(layer, b"b"))


def test_a_link_into_a_lower_layer_needs_a_merge(layer: PackedLayer) -> None:
    with pytest.raises(PackError, match="merged"):
        layer.open(_at(layer, b"below"))


def test_xattrs_are_the_files_own_whatever_their_names(tmp_path: Path) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("a")
        member.pax_headers = {
            "SCHILY.xattr.user.mine": "1",
            "SCHILY.xattr.trusted.overlay.opaque": "y",
            "SCHILY.xattr.user.overlay.whiteout": "",
            "SCHILY.xattr.security.capability": "\x01",
        }
        archive.addfile(member)
    layer = PackedLayer(archives.pack_of(tmp_path, out.getvalue()), 0, 0)
    assert layer.xattrs(_at(layer, b"a")) == {
        b"user.mine": b"1",
        b"trusted.overlay.opaque": b"y",
        b"user.overlay.whiteout": b"",
        b"security.capability": b"\x01",
    }
    assert not layer.is_opaque(layer.root())
    layer.close()


def test_a_layer_outlives_its_file(tmp_path: Path) -> None:
    ingested = archives.take_in(tmp_path, archives.tar_of([file("a", DATA)]))
    path = tmp_path / f"{ingested.diff_id.hex()}.pack"
    layer = PackedLayer(Pack(path), 0, 0)
    path.unlink()
    assert layer.open(_at(layer, b"a")).read(0, len(DATA)) == DATA
    layer.close()


def test_a_layer_whose_data_is_missing_is_refused_at_once(tmp_path: Path) -> None:
    with archives.pack_of(tmp_path, archives.tar_of([file("a", DATA)])) as pack:
        merge([pack], tmp_path / "m", bytes(32), complete=True)
        pack.file.unlink()
    with Pack(tmp_path / "m") as merged, pytest.raises(PackError, match="does not exist"):
        PackedLayer(merged, 0, 0)
