"""Archives come compressed in several ways, damaged in more."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import random
import struct
import subprocess
import zlib

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from unionfs.errors import LayerError
from unionfs.pack import decompress

DATA = random.Random(4).randbytes(3000) + b"text " * 40_000


def _all(data: bytes, step: int = 1 << 16) -> bytes:
    stream = decompress(io.BytesIO(data))
    pieces = iter(lambda: stream.read(step), b"")
    return b"".join(pieces)


def _skippable(size: int) -> bytes:
    return struct.pack("<II", 0x184D2A53, size) + bytes(size)


@pytest.mark.parametrize(
    "data",
    [
        DATA,
        gzip.compress(DATA),
        gzip.compress(DATA[:1000]) + gzip.compress(b"") + gzip.compress(DATA[1000:]),
        gzip.compress(DATA) + bytes(3000),
        zstd.compress(DATA),
        zstd.compress(DATA[:1000]) + zstd.compress(DATA[1000:]),
        _skippable(5) + zstd.compress(DATA) + _skippable(300_000),
    ],
    ids=["plain", "gzip", "members", "padded", "zstd", "frames", "skippable"],
)
@pytest.mark.parametrize("step", [777, 4096, 1 << 20, -1])
def test_what_was_compressed_comes_back(data: bytes, step: int) -> None:
    assert _all(data, step) == DATA


@pytest.mark.parametrize("data", [b"", b"a", b"\x1f", b"\x28\xb5"])
def test_what_is_too_short_to_be_compressed_is_plain(data: bytes) -> None:
    assert _all(data) == data


def test_the_program_gzip_is_understood() -> None:
    packed = subprocess.run(["gzip", "-9c"], input=DATA, capture_output=True, check=True).stdout
    assert _all(packed) == DATA


@pytest.mark.parametrize("packed", [gzip.compress(DATA), zstd.compress(DATA)], ids=["gzip", "zstd"])
def test_truncated_data_is_refused_at_every_length(packed: bytes) -> None:
    step = max(1, len(packed) // 200)
    for size in [*range(5, len(packed), step), *range(len(packed) - 20, len(packed))]:
        with pytest.raises(LayerError, match=r"truncated|damaged"):
            _all(packed[:size])


@pytest.mark.parametrize("packed", [gzip.compress(DATA), zstd.compress(DATA)], ids=["gzip", "zstd"])
@pytest.mark.parametrize("garbage", [b"x", b"garbage after the end", bytes(5) + b"x"])
def test_other_data_behind_is_refused(packed: bytes, garbage: bytes) -> None:
    with pytest.raises(LayerError, match="other data after"):
        _all(packed + garbage)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damage_is_an_error_or_harmless(data: st.DataObject) -> None:
    packed = bytearray(
        data.draw(st.sampled_from([gzip.compress(DATA, mtime=0), zstd.compress(
            DATA, options={zstd.CompressionParameter.checksum_flag: 1})]))
    )  # fmt: skip
    at = data.draw(st.integers(4, len(packed) - 1))
    packed[at] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(LayerError):
        assert _all(bytes(packed)) == DATA  # such as the time in a gzip header


def _frame(window_log: int) -> bytes:
    """A zstd frame of one raw block (RFC 8878, 3.1.1)."""
    block = (3 << 3 | 1).to_bytes(3, "little") + b"abc"
    return b"\x28\xb5\x2f\xfd\x00" + bytes([(window_log - 10) << 3]) + block


def test_a_window_that_takes_too_much_memory_is_refused() -> None:
    assert _all(_frame(27)) == b"abc"
    with pytest.raises(LayerError, match="damaged"):
        _all(_frame(28))


def test_a_bomb_is_only_blown_up_as_far_as_it_is_read() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = packer.compress(bytes(1 << 26)) + packer.flush()
    stream = decompress(io.BytesIO(bomb))
    assert stream.read(100) == bytes(100)
    assert len(stream.read(1 << 16)) <= 1 << 16


def test_a_pipe_is_read_to_its_end() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as out:
        out.write(gzip.compress(b"short"))
    with os.fdopen(reading, "rb", buffering=0) as raw:
        stream = decompress(raw)
        assert stream.read(-1) == b"short"
        assert stream.read(10) == b""
