"""The parsers of unionfs: 300 cases each, 5,000 in a long run; whole archives and packs fewer."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from backports import zstd

from tests.fuzz.cases import COUNTS, allowing, fuzz, inputs, mutations
from tests.pack import applied, archives
from unionfs import overrides, redirects, whiteouts, xattrs
from unionfs.errors import LayerError, PackError
from unionfs.layers.links import parse_record
from unionfs.layers.packed import PackedLayer
from unionfs.opening import open_union
from unionfs.pack import Limits, Pack, decompress, ingest, merge, rebuild, verify
from unionfs.pack.format import (
    BLOCK_SIZE,
    HEADER_SIZE,
    SUM_ROW,
    decode_header,
    decode_xattrs,
    encode_header,
)
from unionfs.pack.headers import apply_pax, parse_header, parse_pax, pax_sparse, xattrs_of
from unionfs.reading import ReadableTree

_PAX = (
    b"30 mtime=1600000000.123456789\n11 path=ab\n16 linkpath=abc\n12 size=1234\n11 uid=700\n"
    b"32 SCHILY.xattr.user.name=value\n36 LIBARCHIVE.xattr.user.%c3=AbCdEf\n"
    b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"
)
_SPARSE = b"24 GNU.sparse.size=1000\n27 GNU.sparse.map=0,5,10,9\n26 GNU.sparse.numblocks=2\n"


def _trimmed(tar: bytes) -> bytes:
    """An archive without what fills its last record."""
    used = len(tar.rstrip(b"\0"))
    return tar[: used + -used % 512 + 1024]


_LAYER = _trimmed(
    applied.layer(
        applied.folder("d", pax_headers={"SCHILY.xattr.user.a": "value", "mtime": "1.5"}),
        applied.entry("d/a", b"content" * 90),
        applied.hardlink("l", "d/a"),
        applied.hardlink("below", "in/lower"),
        applied.symlink("s", "d" * 120),
        applied.entry("d/.wh.gone"),
        applied.entry("e/.wh..wh..opq"),
        applied.entry("n" * 150, b"x"),
        applied.entry("dev", kind=b"3", devmajor=5, devminor=1),
    )
)
_GNU = _trimmed(
    applied.layer(
        applied.entry("n" * 150, b"x"),
        applied.symlink("s", "t" * 150),
        form=tarfile.GNU_FORMAT,
    )
)


def _header(block: bytes) -> None:
    header = parse_header(block.ljust(512, b"\0")[:512])
    assert header.size >= 0
    assert 0 <= header.uid < 2**32


def _with_checksum(block: bytes) -> None:
    made = bytearray(block.ljust(512, b"\0")[:512])
    made[148:156] = b" " * 8
    made[148:156] = b"%06o\0 " % sum(made)
    _header(bytes(made))


def _pax(data: bytes) -> None:
    records = parse_pax(data)
    apply_pax(parse_header(archives.tar_of([archives.file("a")])[:512]), records)
    xattrs_of(records)
    if (found := pax_sparse(records)) is not None:
        runs, size = found
        assert size >= 0
        assert all(offset >= 0 and length >= 0 for offset, length in runs)


@pytest.mark.parametrize("count", COUNTS)
def test_headers(count: int) -> None:
    seeds = (_LAYER[:512], _LAYER[1024:1536], _GNU[:512])
    fuzz(allowing(_header, LayerError), inputs(*seeds, largest=600), count)
    fuzz(allowing(_with_checksum, LayerError), inputs(*seeds, largest=600), count)


@pytest.mark.parametrize("count", COUNTS)
def test_extended_headers(count: int) -> None:
    fuzz(allowing(_pax, LayerError), inputs(_PAX, _SPARSE, _PAX + _SPARSE, largest=200), count)


def _fixed(data: bytes) -> bytes:
    """An archive with the checksums of whatever looks like a header made right."""
    fixed = bytearray(data)
    for start in range(0, len(fixed) - 511, 512):
        if fixed[start + 257 : start + 262] == b"ustar":
            fixed[start + 148 : start + 156] = b" " * 8
            fixed[start + 148 : start + 156] = b"%06o\0 " % sum(fixed[start : start + 512])
    return bytes(fixed)


@pytest.mark.parametrize("count", COUNTS)
def test_layers(tmp_path: Path, count: int) -> None:
    """Whatever is taken in is rebuilt to the byte, and shown without an error."""
    limits = Limits(content=1 << 30)

    def run(data: bytes) -> None:
        ingested = ingest(io.BytesIO(data), tmp_path / "pack", limits=limits)
        with Pack(tmp_path / "pack") as pack:
            verify(pack)
            digest = hashlib.sha256()
            for piece in rebuild(pack):
                digest.update(piece)
            assert digest.digest() == hashlib.sha256(data).digest() == ingested.diff_id
        if not ingested.unresolved:
            with closing(open_union([os.fsencode(tmp_path / "pack")])) as tree:
                names = {name for path in _paths(tree) for name in path.split(b"/")}
            assert not any(name.startswith(b".wh.") or name in (b".", b"..") for name in names)

    seeds = (_LAYER, _GNU)
    fuzz(allowing(lambda data: run(_fixed(data)), LayerError), mutations(*seeds), count)
    fuzz(allowing(run, LayerError), inputs(*seeds), count // 3)


def _paths(tree: ReadableTree) -> list[bytes]:
    found, waiting = [], [(b"", tree.root)]
    while waiting:
        above, node = waiting.pop()
        for name in tree.names(node):
            child = tree.lookup(node, name)
            tree.attributes(child)
            found.append(above + name)
            if child.is_directory:
                waiting.append((above + name + b"/", child))
    return found


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_compressed_layers(form: str, count: int) -> None:
    packed = gzip.compress(_LAYER, mtime=0) if form == "gzip" else zstd.compress(_LAYER)

    def run(data: bytes) -> None:
        stream = decompress(io.BytesIO(data))
        left = 1 << 26
        while left > 0 and (piece := stream.read(1 << 16)):
            left -= len(piece)

    fuzz(allowing(run, LayerError), inputs(packed, packed + packed), count)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a pack."""
    place = tmp_path_factory.mktemp("packed")
    ingest(io.BytesIO(_LAYER), place / "pack")
    return (place / "pack").read_bytes()


def _resealed(data: bytes) -> bytes:
    """A pack with its checksums made right, where its header still makes sense."""
    try:
        header = decode_header(data[:HEADER_SIZE], len(data))
    except PackError:
        return data
    changed = bytearray(data)
    sums, length = header.sections["sums"]
    blocks = [
        SUM_ROW.pack(zlib.crc32(changed[start : min(start + BLOCK_SIZE, sums)]))
        for start in range(header.metadata, sums, BLOCK_SIZE)
    ]
    changed[sums : sums + length] = b"".join(blocks)[:length]
    fixed = header._replace(sums_crc=zlib.crc32(changed[sums : sums + length]))
    changed[:HEADER_SIZE] = encode_header(fixed)
    return bytes(changed)


def _use(path: Path) -> None:
    with Pack(path) as pack:
        verify(pack)
    merged = path.with_name("merged")
    with Pack(path) as pack:
        merge([pack, pack], merged, bytes(32), complete=False)
    with Pack(merged) as pack:
        pack.check_metadata()
    layer = PackedLayer(Pack(path), 0, 0)
    with closing(layer):
        waiting = [layer.root()]
        while waiting:
            directory = waiting.pop()
            for name, _ in layer.names(directory):
                entry = layer.lookup(directory, name)
                if entry is None or entry.handle is None:
                    continue
                layer.attributes(entry.handle)
                layer.xattrs(entry.handle)
                if entry.is_directory:
                    waiting.append(entry.handle)


@pytest.mark.parametrize("count", COUNTS)
def test_packs(tmp_path: Path, packed: bytes, count: int) -> None:
    def run(data: bytes) -> None:
        (tmp_path / "pack").write_bytes(data)
        _use(tmp_path / "pack")

    def resealed(data: bytes) -> None:
        run(_resealed(data))

    fuzz(allowing(resealed, (PackError, LayerError)), mutations(packed), count)
    fuzz(allowing(run, (PackError, LayerError)), inputs(packed), count // 3)


@pytest.mark.parametrize("count", COUNTS)
def test_pack_headers(packed: bytes, count: int) -> None:
    def run(data: bytes) -> None:
        page = bytearray(data[:HEADER_SIZE].ljust(HEADER_SIZE, b"\0"))
        page[-4:] = SUM_ROW.pack(zlib.crc32(page[:-4]))
        header = decode_header(bytes(page), len(packed))
        for offset, length in header.sections.values():
            assert HEADER_SIZE <= offset <= offset + length <= len(packed)

    fuzz(allowing(run, PackError), mutations(packed[:300], packed[:4096]), count)


@pytest.mark.parametrize("count", COUNTS)
def test_small_values(count: int) -> None:
    """Xattrs of a pack, redirects, kept owners, records of links, names of markers."""
    fuzz(
        allowing(decode_xattrs, ValueError),
        inputs(b"\x06\0\x05\0\0\0user.avalue" * 2, largest=60), count,
    )  # fmt: skip

    def redirect(data: bytes) -> None:
        found = redirects.parse(data, b"layer", b"name")
        assert found.format() == data
        assert not {b"", b".", b".."} & set(found.names)
        assert found.is_absolute or len(found.names) == 1

    fuzz(allowing(redirect, LayerError), inputs(b"/a/b/c", b"name", largest=40), count)

    def override(data: bytes) -> None:
        found = overrides.parse(data)
        if found is not None:
            assert overrides.parse(overrides.format(found)) == found

    seeds = (b"0:0:0755", b"1000:-5:100644:file", b"0:0:0600:block-7-0", b"1:2:644:char-1-3:more")
    fuzz(allowing(override, ()), inputs(*seeds, largest=70), count)

    def record(data: bytes) -> None:
        found = parse_record(data)
        if found is not None:
            assert parse_record(found.format()) == found
            assert b"/" not in found.key

    fuzz(allowing(record, ()), inputs(b"1f+2", b"ffff0000=12", largest=40), count)

    def marker(data: bytes) -> None:
        hidden = whiteouts.hidden_by(data) if whiteouts.is_marker(data) else None
        if hidden is not None:
            assert whiteouts.PREFIX + hidden == data
        shown = xattrs.shown_name(data)
        if shown is not None:
            assert xattrs.stored_name(shown) == data

    seeds = (b".wh.a", b".wh..wh..opq", b"trusted.overlay.overlay.x", b"user.overlay.opaque")
    fuzz(allowing(marker, ()), inputs(*seeds, largest=40), count)
