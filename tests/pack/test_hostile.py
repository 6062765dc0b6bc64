"""Damaged and hostile packs and archives: a clear error or the right data, nothing else."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pack import archives
from tests.pack.archives import Entry, directory, file, link, symlink
from unionfs.entry import WHITEOUT
from unionfs.errors import LayerError, PackError
from unionfs.layers.packed import PackedLayer
from unionfs.pack import Limits, Pack, ingest, merge, rebuild, verify
from unionfs.pack.chunks import CACHE
from unionfs.pack.format import (
    BLOCK_SIZE,
    HEADER_SIZE,
    SECTIONS,
    SUM_ROW,
    decode_header,
    encode_header,
)

_ENTRIES = [
    directory("d", 0o1777),
    file("d/a", b"content of a " * 30),
    file("d/b", random.Random(5).randbytes(400)),
    link("c", "d/a"),
    symlink("e", "d/a"),
    file("z", bytes(1000)),
    file("d/.wh.gone"),
    Entry("fifo", tarfile.FIFOTYPE),
    file("d/sub/.wh..wh..opq"),
    link("f", "in/lower"),
]


@pytest.fixture(scope="module")
def tar() -> bytes:
    """A small layer with a bit of everything, one xattr included."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("x")
        member.pax_headers = {"SCHILY.xattr.user.a": "value", "mtime": "1.5"}
        archive.addfile(member)
    return out.getvalue()[: 3 * 512] + archives.tar_of(_ENTRIES)


@pytest.fixture(scope="module")
def original(tar: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The pack of that layer."""
    place = tmp_path_factory.mktemp("original")
    archives.take_in(place, tar, name="pack")
    return (place / "pack").read_bytes()


def _everything(path: Path) -> list[object]:
    """All that can be asked of a pack, without asking it to verify itself."""
    CACHE.__init__(1 << 20)  # type: ignore[misc]
    answers: list[object] = []
    with Pack(path) as pack:
        layer = PackedLayer(pack, 0, 0)
        waiting: list[tuple[bytes, int]] = [(b"", layer.root())]
        while waiting:
            prefix, row = waiting.pop()
            answers.append((prefix, layer.is_opaque(row), layer.is_implicit(row)))
            for name, kind in layer.names(row):
                entry = layer.lookup(row, name)
                answers.append((prefix + name, kind))
                if entry is None or entry.kind == WHITEOUT:
                    continue
                answers.append((layer.attributes(entry.handle), layer.xattrs(entry.handle)))
                answers.append(layer.links(entry.handle))
                answers += _content(layer, entry.kind, entry.handle)
                if kind == 0o040000:
                    waiting.append((prefix + name + b"/", entry.handle))
    return answers


def _content(layer: PackedLayer, kind: int, row: int) -> Iterator[object]:
    if kind == 0o120000:
        yield layer.target(row)
    elif kind == 0o100000:
        if layer.pack.inode(row).flags & 4:
            with pytest.raises(PackError, match="merged"):
                layer.open(row)
            return
        content = layer.open(row)
        yield list(content.extents())
        yield content.read(0, 1 << 20)


def _positions(original: bytes) -> list[int]:
    """Every byte that says something, and some of those that must be zero."""
    header = [*range(300), *range(300, HEADER_SIZE - 4, 97), *range(HEADER_SIZE - 4, HEADER_SIZE)]
    return [*header, *range(HEADER_SIZE, len(original))]


def _complaint(path: Path) -> str:
    """What verifying a pack says, empty if it finds nothing."""
    try:
        _verify(path)
    except PackError as error:
        return str(error)
    return ""


def test_no_byte_of_a_pack_can_change_unnoticed(tmp_path: Path, original: bytes) -> None:
    path = tmp_path / "pack"
    path.write_bytes(original)
    answers = _everything(path)
    chance = random.Random(6)
    with Pack(path) as pack:
        verify(pack)
        metadata = pack.header.metadata
    for position in _positions(original):
        damaged = bytearray(original)
        damaged[position] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        noticed = _complaint(path)
        assert not noticed or str(path) in noticed
        # lz4 can say some things in two ways: a repetition may be taken from another place.
        assert noticed or HEADER_SIZE <= position < metadata
        if position % 4 == 0 or not noticed:
            try:
                assert _everything(path) == answers
            except PackError:
                continue


def test_a_truncated_pack_is_refused_when_it_is_opened(tmp_path: Path, original: bytes) -> None:
    path = tmp_path / "pack"
    for size in [*range(0, len(original), 61), len(original) - 1]:
        path.write_bytes(original[:size])
        with pytest.raises(PackError, match=r"truncated|damaged|not a pack"):
            Pack(path)


def test_bytes_behind_a_pack_are_noticed(tmp_path: Path, original: bytes) -> None:
    (tmp_path / "pack").write_bytes(original + b"x")
    with Pack(tmp_path / "pack") as pack, pytest.raises(PackError, match="belong to nothing"):
        verify(pack)


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [(0, b"X", "not a pack"), (8, b"\2", "format version 2, this program reads version 1")],
)
def test_what_is_no_pack_of_this_version_is_told(
    tmp_path: Path, original: bytes, at: int, data: bytes, message: str
) -> None:
    (tmp_path / "pack").write_bytes(original[:at] + data + original[at + len(data) :])
    with pytest.raises(PackError, match=message):
        Pack(tmp_path / "pack")


# -- packs whose checksums are right -------------------------------------------------------------


def _resealed(data: bytearray, original: bytes) -> bytes:
    """A changed pack with all checksums made right again, as only an attacker would."""
    header = decode_header(original[:HEADER_SIZE], len(original))
    sums, _ = header.sections["sums"]
    blocks = [
        zlib.crc32(data[start : min(start + BLOCK_SIZE, sums)])
        for start in range(header.metadata, sums, BLOCK_SIZE)
    ]
    data[sums:] = b"".join(map(SUM_ROW.pack, blocks))
    data[:HEADER_SIZE] = encode_header(header._replace(sums_crc=zlib.crc32(data[sums:])))
    return bytes(data)


def _merge(path: Path) -> None:
    with Pack(path) as pack:
        merge([pack], path.parent / "merged", bytes(32), complete=False)
    with Pack(path.parent / "merged") as merged:
        merged.check_metadata()


def _verify(path: Path) -> None:
    with Pack(path) as pack:
        verify(pack)


def _rebuild(path: Path) -> None:
    with Pack(path) as pack:
        for _ in rebuild(pack):
            pass


@pytest.mark.parametrize("use", [_everything, _verify, _rebuild, _merge])
@settings(max_examples=250, deadline=None)
@given(data=st.data())
def test_a_hostile_pack_is_an_error_at_worst(
    tmp_path_factory: pytest.TempPathFactory,
    original: bytes,
    use: Callable[[Path], object],
    data: st.DataObject,
) -> None:
    header = decode_header(original[:HEADER_SIZE], len(original))
    changed = bytearray(original)
    for _ in range(data.draw(st.integers(1, 3))):
        section = data.draw(st.sampled_from([name for name in SECTIONS if name != "sums"]))
        start, length = header.sections[section]
        at = start + data.draw(st.integers(0, length - 1))
        value = data.draw(
            st.one_of(
                st.integers(0, 64).map(lambda number: bytes([number])),
                st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\xff" * 8, b"\x7f" * 8, b"../x"]),
            )
        )[: start + length - at]
        changed[at : at + len(value)] = value
    path = tmp_path_factory.getbasetemp() / "hostile.pack"
    path.write_bytes(_resealed(changed, original))
    with contextlib.suppress(PackError, LayerError):
        use(path)


# -- archives ------------------------------------------------------------------------------------


def test_a_truncated_archive_is_refused_at_every_length(tmp_path: Path, tar: bytes) -> None:
    end = len(tar.rstrip(b"\0")) // 512 * 512 + 512  # the first block of the end marker
    for size in [*range(0, end, 37), *range(end - 3, end + 512)]:
        with pytest.raises(LayerError, match="truncated"):
            ingest(io.BytesIO(tar[:size]), tmp_path / "pack")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_archive_is_refused_or_taken_as_it_is(tmp_path: Path, tar: bytes) -> None:
    chance = random.Random(7)
    path = tmp_path / "pack"
    refused = 0
    for position in [*range(0, len(tar) - 10240, 3), *range(len(tar) - 10240, len(tar), 501)]:
        changed = bytearray(tar)
        changed[position] ^= 1 << chance.randrange(8)
        try:
            ingest(io.BytesIO(changed), path)
        except LayerError:
            refused += 1
            assert not path.exists()
            continue
        with Pack(path) as pack:
            verify(pack)
            assert b"".join(rebuild(pack)) == changed
    assert refused


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20 * 512), st.binary(min_size=1, max_size=12)), max_size=4)
)
def test_an_archive_with_right_checksums_is_refused_or_taken_as_it_is(
    tmp_path_factory: pytest.TempPathFactory, tar: bytes, changes: list[tuple[int, bytes]]
) -> None:
    changed = bytearray(tar)
    for place, value in changes:
        at = min(place, len(changed) - len(value))
        changed[at : at + len(value)] = value
    for start in range(0, len(changed) - 511, 512):
        if changed[start + 257 : start + 262] == b"ustar":
            changed[start + 148 : start + 156] = b" " * 8
            checksum = b"%06o\0 " % sum(changed[start : start + 512])
            changed[start + 148 : start + 156] = checksum
    path = tmp_path_factory.getbasetemp() / "changed.pack"
    try:
        ingest(io.BytesIO(changed), path)
    except LayerError:
        return
    with Pack(path) as pack:
        verify(pack)
        assert b"".join(rebuild(pack)) == changed


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=3000))
def test_noise_is_no_archive(tmp_path_factory: pytest.TempPathFactory, noise: bytes) -> None:
    if noise[:1024].count(0) == len(noise[:1024]) >= 512:
        return
    with pytest.raises(LayerError):
        ingest(io.BytesIO(noise), tmp_path_factory.getbasetemp() / "noise.pack")


def test_directories_that_only_paths_tell_of_are_counted(tmp_path: Path) -> None:
    """A short path of a thousand names would take a thousand times the memory of its entry."""
    tar = archives.tar_of([file(f"{number}/" + "x/" * 99 + "f") for number in range(5)])
    ingest(io.BytesIO(tar), tmp_path / "pack", limits=Limits(entries=500))
    with pytest.raises(LayerError, match="limit of 499 directories"):
        ingest(io.BytesIO(tar), tmp_path / "pack", limits=Limits(entries=499))


def test_what_a_global_header_gives_every_entry_is_counted(tmp_path: Path) -> None:
    xattrs = {f"SCHILY.xattr.user.{number}": "value" for number in range(1000)}
    tar = tarfile.TarInfo.create_pax_global_header(xattrs)
    tar += archives.tar_of([file(str(number)) for number in range(10)])
    ingest(io.BytesIO(tar), tmp_path / "pack", limits=Limits(metadata=150_000))
    with pytest.raises(LayerError, match="names, targets and xattrs up to 7 are larger"):
        ingest(io.BytesIO(tar), tmp_path / "pack", limits=Limits(metadata=100_000))
