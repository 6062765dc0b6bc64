"""Reading the outer tar of an archive, also when it is damaged."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.archive.members import members
from snapshotter.errors import ArchiveError
from tests.snapshotter.helpers import tar

CONTENT = {
    "./a": b"1" * 700,
    "long/" + "n" * 150: b"2",
    "ü" * 200: b"",
    "d": None,
    "d/link": (tarfile.SYMTYPE, "../a"),
    "d/hard": (tarfile.LNKTYPE, "./d/link"),
}


def read(archive: bytes) -> dict[str, bytes | str | None]:
    found: dict[str, bytes | str | None] = {}
    for member in members(io.BytesIO(archive)):
        content = b"".join(iter(member.read, b""))
        found[member.name] = content if member.is_file else member.target
    return found


EXPECTED = {
    "a": b"1" * 700,
    "long/" + "n" * 150: b"2",
    "ü" * 200: b"",
    "d": None,
    "d/link": "a",
    "d/hard": "d/link",
}


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_pax_and_gnu_archives_read_the_same(form: int) -> None:
    out = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar(CONTENT))) as source,
        tarfile.open(fileobj=out, mode="w", format=form) as target,
    ):
        for member in source.getmembers():
            target.addfile(member, source.extractfile(member) if member.isreg() else None)
    assert read(out.getvalue()) == EXPECTED


@pytest.mark.parametrize("form", ["ustar", "gnu", "posix", "v7", "oldgnu"])
def test_every_format_of_gnu_tar_is_read(tmp_path: Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_text("content")
    command = ["tar", "-C", str(tmp_path), f"--format={form}", "-cf", "-", "d"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    assert read(archive) == {"d": None, "d/f": b"content"}


@given(cut=st.integers(0, 6000))
def test_a_truncated_archive_is_an_error(cut: int) -> None:
    whole = tar(CONTENT)
    end = len(whole.rstrip(b"\0")) + 512
    with pytest.raises(ArchiveError):
        read(whole[: min(cut, end - 512)])


@given(st.data())
def test_damage_is_an_error_or_a_different_reading_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(tar(CONTENT))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, 6000))] = data.draw(st.integers(0, 255))
    try:
        found = read(bytes(damaged))
    except ArchiveError:
        return
    assert not any(name.startswith(("/", "../")) for name in found)


def test_headers_that_promise_too_much_are_refused() -> None:
    member = tarfile.TarInfo("x")
    member.type, member.size = tarfile.XHDTYPE, 1 << 30
    with pytest.raises(ArchiveError, match="larger than 1048576 bytes"):
        read(member.tobuf())
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 0
    with pytest.raises(ArchiveError, match="has no place in an archive"):
        read(member.tobuf())


def test_a_header_of_many_records_takes_time_once_for_each() -> None:
    """Read anew from each record on, these would take minutes."""
    records = b"6 a=b\n" * ((1 << 20) // 6 - 2) + b"10 path=x\n"
    member = tarfile.TarInfo("h")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    block = member.tobuf() + records + bytes(-len(records) % 512) + tarfile.TarInfo("y").tobuf()
    assert read(block * 20 + bytes(1024)) == {"x": b""}


@pytest.mark.parametrize(
    "records",
    [b"6 a=b\nxx", b"6 a=b\n6 a=b", b"6 a=b\n 6a=b\n", b"6 a=b\n0 a=b\n", b"3 a=b\n",
     b"7 a=b\n", b"6 a-b\n", b"6 a=bx", b"99999999999999999999999 a=b\n", b" ", b"2 ", b"1"],
)  # fmt: skip
def test_a_malformed_record_is_an_error(records: bytes) -> None:
    member = tarfile.TarInfo("h")
    member.type, member.size = tarfile.XHDTYPE, len(records)
    with pytest.raises(ArchiveError, match=r"malformed|is not a size"):
        read(member.tobuf() + records.ljust(512, b"\0") + bytes(1024))
