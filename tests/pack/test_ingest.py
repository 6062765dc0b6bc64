"""What a layer's entries do to each other, what is stored, and what is refused."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pack import archives
from tests.pack.archives import Entry, directory, file, link, symlink
from unionfs.errors import LayerError
from unionfs.pack import CHUNK_SIZE, Limits, Location, Pack, ingest, rebuild, verify
from unionfs.pack.format import IMPLICIT, RAW, UNRESOLVED, ZERO


def _paths(directory: Path, entries: Sequence[Entry]) -> dict[str, str]:
    """What a layer shows, with the flags in words."""
    with archives.pack_of(directory, archives.tar_of(entries)) as pack:
        verify(pack)
        opaque = archives.opaque_paths(pack)
        found = {}
        for path, row in [(b"", 0), *archives.walk(pack)]:
            if row is None:
                found[path.decode()] = "whiteout"
                continue
            inode = pack.inode(row)
            words = [{stat.S_IFDIR: "dir", stat.S_IFREG: "file", stat.S_IFLNK: "link"}.get(
                stat.S_IFMT(inode.mode), "special")]  # fmt: skip
            words += ["implicit"] * bool(inode.flags & IMPLICIT)
            words += ["opaque"] * (path in opaque)
            words += ["unresolved"] * bool(inode.flags & UNRESOLVED)
            found[path.decode()] = " ".join(words)
        return found


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([], {"": "dir implicit"}),
        ([directory("./")], {"": "dir"}),
        ([directory("/a/")], {"": "dir implicit", "a": "dir"}),
        ([file("/a//./b")], {"a": "dir implicit", "a/b": "file"}),
        ([file(".wh.a")], {"a": "whiteout"}),
        ([directory(".wh.a")], {"a": "whiteout"}),
        ([symlink("d/.wh.a", "x")], {"d": "dir implicit", "d/a": "whiteout"}),
        ([file(".wh.a"), file("a")], {"a": "file"}),
        ([file("a"), file(".wh.a")], {"a": "file"}),
        ([file(".wh.a"), directory("a")], {"a": "dir opaque"}),
        ([directory("a"), file("a/b"), file(".wh.a")], {"a": "dir opaque", "a/b": "file"}),
        ([file("a/b"), file("a/.wh..wh..opq")], {"a": "dir implicit opaque", "a/b": "file"}),
        ([file("a/.wh..wh..opq"), file("a/.wh.b")], {"a": "dir implicit opaque"}),
        ([file(".wh..wh..opq")], {"": "dir implicit opaque"}),
        ([file(".wh..wh.aufs"), directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2")], {}),
        ([directory("a"), file("a")], {"a": "file"}),
        ([file("a"), directory("a")], {"a": "dir opaque"}),
        ([symlink("a", "/etc"), file("a/b")], {"a": "dir implicit opaque", "a/b": "file"}),
        ([file("a/b"), symlink("a", "b"), directory("a")], {"a": "dir opaque"}),
        ([link("b", "/lower/a")], {"b": "file unresolved"}),
        ([file("a"), link("b", "./a")], {"a": "file", "b": "file"}),
        ([link("b", "a"), file("a")], {"a": "file", "b": "file unresolved"}),
        ([symlink("a", "x"), link("b", "a")], {"a": "link", "b": "link"}),
        ([symlink("d", "e"), file("e/f"), link("l", "d/f")], {
            "d": "link", "e": "dir implicit", "e/f": "file", "l": "file unresolved"}),
    ],
)  # fmt: skip
def test_entries_meet(tmp_path: Path, entries: list[Entry], expected: dict[str, str]) -> None:
    assert _paths(tmp_path, entries) == {"": "dir implicit", **expected}


def test_a_directory_entry_gives_new_attributes_and_keeps_what_is_inside(tmp_path: Path) -> None:
    tar = archives.tar_of([directory("a", 0o700), file("a/b"), directory("a", 0o1777)])
    with archives.pack_of(tmp_path, tar) as pack:
        found = archives.shown(pack)
    assert (entry := found[b"a"]) is not None
    assert (entry.mode, b"a/b" in found) == (0o1777, True)


def test_a29_the_last_of_several_entries_wins_and_all_are_rebuilt(tmp_path: Path) -> None:
    tar = archives.tar_of([file("a", b"one"), file("a", b"two" * 50_000), file("a", b"three")])
    with archives.pack_of(tmp_path, tar) as pack:
        verify(pack)
        assert (entry := archives.shown(pack)[b"a"]) is not None
        assert entry.content == b"three"
        assert b"".join(rebuild(pack)) == tar


def test_a_hardlink_shares_one_row_with_its_target(tmp_path: Path) -> None:
    tar = archives.tar_of([file("d/a", b"x"), link("b", "d/a"), link("c", "b"), file("d/a", b"y")])
    with archives.pack_of(tmp_path, tar) as pack:
        found = archives.shown(pack)
    assert (old := found[b"b"]) is not None
    assert (new := found[b"d/a"]) is not None
    assert (old.content, old.names) == (b"x", frozenset([b"b", b"c"]))
    assert (new.content, new.names) == (b"y", frozenset([b"d/a"]))


def test_a24_the_device_0_0_is_a_device_and_no_whiteout(tmp_path: Path) -> None:
    tar = archives.tar_of([Entry("dev", tarfile.CHRTYPE)])
    with archives.pack_of(tmp_path, tar) as pack:
        assert (entry := archives.shown(pack)[b"dev"]) is not None
        assert (entry.kind, entry.device) == (stat.S_IFCHR, (0, 0))


def test_directories_count_their_subdirectories(tmp_path: Path) -> None:
    tar = archives.tar_of([directory("a/b"), directory("a/c"), file("a/d"), file("a/.wh.e")])
    with archives.pack_of(tmp_path, tar) as pack:
        assert (found := pack.lookup(0, b"a")) is not None
        assert (pack.inode(0).nlink, pack.inode(found[1]).nlink) == (3, 4)


def test_a30_the_empty_layer_is_the_one_everybody_knows(tmp_path: Path) -> None:
    ingested = archives.take_in(tmp_path, bytes(1024))
    assert ingested.diff_id.hex().startswith("5f70bf18a086007016e948b04aed3b82")
    assert (ingested.entries, ingested.tar_size) == (0, 1024)


@settings(max_examples=60, deadline=None)
@given(st.lists(archives.entries(), max_size=8), st.binary(max_size=2000))
def test_every_archive_is_rebuilt_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], tail: bytes
) -> None:
    tar = archives.tar_of(entries) + tail
    place = tmp_path_factory.mktemp("rebuilt")
    try:
        pack = archives.pack_of(place, tar)
    except LayerError:  # a hardlink to a directory
        return
    with pack:
        verify(pack)
        assert b"".join(rebuild(pack)) == tar
        assert pack.identity == hashlib.sha256(tar).digest()
        assert pack.tar_size == len(tar)


def test_a_big_archive_is_rebuilt_bit_for_bit(tmp_path: Path, debian_tar: Path) -> None:
    with debian_tar.open("rb") as stream:
        ingested = ingest(stream, tmp_path / "pack")
    digest = hashlib.sha256()
    with debian_tar.open("rb") as stream, Pack(tmp_path / "pack") as pack:
        assert pack.is_complete
        for piece in rebuild(pack):
            digest.update(piece)
            assert piece == stream.read(len(piece))
        assert stream.read() == b""
    assert digest.digest() == ingested.diff_id


def test_a_big_archive_shows_what_tarfile_shows(tmp_path: Path, debian_tar: Path) -> None:
    with debian_tar.open("rb") as stream:
        ingest(stream, tmp_path / "pack")
    with Pack(tmp_path / "pack") as pack:
        found = archives.shown(pack)
    with tarfile.open(debian_tar) as archive:
        for member in archive:
            entry = found.pop(member.name.strip("./").encode() if member.name == "." else
                              os.fsencode(member.name.removeprefix("./")), None)  # fmt: skip
            assert entry is not None
            assert (entry.uid, entry.gid) == (member.uid, member.gid)
            assert entry.mtime[0] == int(member.mtime)
            if member.isreg():
                stream_of = archive.extractfile(member)
                assert stream_of is not None
                assert entry.content == stream_of.read()
            elif member.issym():
                assert entry.content == member.linkname.encode()
            elif member.islnk():
                assert os.fsencode(member.linkname.removeprefix("./")) in entry.names
            if not member.issym():
                assert entry.mode == member.mode
    assert found == {}


# -- chunks --------------------------------------------------------------------------------------


class _Store:
    """Chunks a store has, by digest."""

    def __init__(self) -> None:
        self.known: dict[bytes, Location] = {}

    def find(self, digest: bytes) -> Location | None:
        """See :class:`unionfs.pack.Chunks`."""
        return self.known.get(digest)


def test_chunks_the_store_has_are_not_stored_again(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3 * CHUNK_SIZE + 100)
    store = _Store()
    first = archives.take_in(tmp_path, archives.tar_of([file("a", data)]))
    store.known = dict(first.new_chunks)
    assert all(location.source == first.diff_id for location in store.known.values())
    tar = archives.tar_of([file("b", data[: 2 * CHUNK_SIZE] + b"other")])
    second = ingest(io.BytesIO(tar), tmp_path / "second", store)
    assert second.sources == (first.diff_id,)
    assert second.stored < 10_000
    with Pack(tmp_path / "second") as pack:
        verify(pack)
        assert pack.sources == (second.diff_id, first.diff_id)
        assert b"".join(rebuild(pack)) == tar


def test_a_missing_pack_is_named(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(1000)
    store = _Store()
    first = archives.take_in(tmp_path, archives.tar_of([file("a", data)]))
    store.known = dict(first.new_chunks)
    tar = archives.tar_of([file("b", data)])
    ingest(io.BytesIO(tar), tmp_path / "second", store)
    other = tmp_path / f"{first.diff_id.hex()}.pack"
    moved = other.rename(tmp_path / "moved")
    with Pack(tmp_path / "second") as pack:
        with pytest.raises(Exception, match=f"{other.name}, which does not exist"):
            pack.open_sources()
        archives.take_in(tmp_path, archives.tar_of([file("c", data)]), name=other.name)
        with pytest.raises(Exception, match="another layer than its name says"):
            pack.open_sources()
        moved.rename(other)
        pack.open_sources()
        other.unlink()
        (tmp_path / "second").unlink()
        verify(pack)


def test_what_the_store_says_of_another_length_is_not_believed(tmp_path: Path) -> None:
    class Liar:
        def find(self, digest: bytes) -> Location | None:
            return Location(bytes(32), 4096, 10, 1, 0)

    tar = archives.tar_of([file("a", b"some content")])
    assert ingest(io.BytesIO(tar), tmp_path / "pack", Liar()).sources == ()
    with Pack(tmp_path / "pack") as pack:
        verify(pack)


def test_zeros_are_not_stored_and_noise_is_not_compressed(tmp_path: Path) -> None:
    noise = random.Random(2).randbytes(CHUNK_SIZE)
    tar = archives.tar_of([file("a", bytes(10 * CHUNK_SIZE + 7) + b"\1"), file("b", noise)])
    with archives.pack_of(tmp_path, tar) as pack:
        (a, b) = (pack.lookup(0, name) for name in (b"a", b"b"))
        assert a is not None
        assert b is not None
        flags = [pack.chunk(pack.ref(ref)).flags for ref in pack.refs(a[1])]
        assert [flag & ZERO for flag in flags] == [ZERO] * 10 + [0]
        assert [pack.chunk(pack.ref(ref)).flags for ref in pack.refs(b[1])] == [RAW]
        assert list(pack.extents(a[1])) == [(10 * CHUNK_SIZE, 8)]
        assert list(pack.extents(b[1])) == [(0, CHUNK_SIZE)]


@given(st.integers(0, 700_000), st.integers(0, 400_000))
@settings(max_examples=80, deadline=None)
def test_any_range_can_be_read(
    tmp_path_factory: pytest.TempPathFactory, offset: int, size: int
) -> None:
    place = tmp_path_factory.getbasetemp()
    data = _ranged()
    if not (place / "ranged").exists():
        archives.take_in(place, archives.tar_of([file("a", data)]), name="ranged")
    with Pack(place / "ranged") as pack:
        assert (found := pack.lookup(0, b"a")) is not None
        assert pack.read(found[1], offset, size) == data[offset : offset + size]


def _ranged() -> bytes:
    return random.Random(3).randbytes(300_000) + bytes(200_000) + b"end" * 50_000


def test_lookup_finds_every_name_of_a_big_directory_and_no_other(tmp_path: Path) -> None:
    names = [f"n{number:05}" for number in range(0, 4000, 2)]
    tar = archives.tar_of([file(name) for name in names])
    with archives.pack_of(tmp_path, tar) as pack:
        assert [name.decode() for name, _, _ in pack.names(0)] == names
        for name in names:
            assert pack.lookup(0, name.encode()) is not None
        for other in (b"", b"a", b"n00001", b"n0000", b"n000000", b"n03998x", b"z"):
            assert pack.lookup(0, other) is None


# -- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        (Limits(entries=2), "2 entries"),
        (Limits(path=4), "limit of 4 bytes"),
        (Limits(depth=1), "limit of 1 names"),
        (Limits(tar=2048), "limit of 2048 bytes"),
        (Limits(content=5), "limit of 5 bytes"),
        (Limits(metadata=10), "names, targets and xattrs up to f are .* limit of 10 bytes"),
    ],
)
def test_limits_are_named(tmp_path: Path, limits: Limits, message: str) -> None:
    tar = archives.tar_of([file("d/abc", b"123"), file("e", b"456"), symlink("f", "12345")])
    with pytest.raises(LayerError, match=message):
        ingest(io.BytesIO(tar), tmp_path / "pack", limits=limits)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 3_000_000])
def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, size: int) -> None:
    (tmp_path / "pack").symlink_to("/dev/full")
    tar = archives.tar_of([file("a", random.Random(8).randbytes(size))])
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        ingest(io.BytesIO(tar), tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_was_there_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "pack").write_bytes(bytes(1 << 20))
    ingest(io.BytesIO(bytes(1024)), tmp_path / "pack")
    with Pack(tmp_path / "pack") as pack:
        verify(pack)


def test_the_same_archive_gives_the_same_pack(tmp_path: Path) -> None:
    tar = archives.tar_of([file("a", b"x" * 500_000), link("b", "a"), symlink("c", "d")])
    ingest(io.BytesIO(tar), tmp_path / "one")
    ingest(io.BytesIO(tar), tmp_path / "two")
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
