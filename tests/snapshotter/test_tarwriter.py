"""Tar headers, read back by tarfile and GNU tar."""

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from snapshotter import tarwriter

PART = st.binary(min_size=1, max_size=130).map(
    lambda raw: raw.replace(b"/", b"_").replace(b"\0", b"_").replace(b"\n", b"_")
)
NAMES = st.lists(PART, min_size=1, max_size=4).map(b"/".join).filter(lambda n: b"." not in n)
XATTRS = st.dictionaries(
    st.sampled_from([b"user.a", b"user.\xc3\xa9", b"security.capability"]), st.binary(max_size=300)
)


@given(
    name=NAMES,
    target=NAMES,
    numbers=st.tuples(*[st.integers(0, 2**32 - 1)] * 2),
    mtime=st.integers(-(2**40), 2**40),
    xattrs=XATTRS,
)
def test_tarfile_reads_what_was_written(
    name: bytes, target: bytes, numbers: tuple[int, int], mtime: int, xattrs: dict[bytes, bytes]
) -> None:
    uid, gid = numbers
    data = tarwriter.header(
        name,
        b"2",
        mode=0o7123,
        uid=uid,
        gid=gid,
        mtime=mtime,
        target=target,
        xattrs=xattrs,
    )
    assert len(data) % tarwriter.BLOCK == 0
    with tarfile.open(fileobj=io.BytesIO(data + tarwriter.END), errors="surrogateescape") as tar:
        (member,) = tar.getmembers()
    assert member.name.encode(errors="surrogateescape") == name
    assert member.linkname.encode(errors="surrogateescape") == target
    assert (member.mode, member.uid, member.gid, member.mtime) == (0o7123, uid, gid, mtime)
    # tarfile decodes every PAX value as UTF-8, so that only such values can be compared.
    read = {
        key.encode(): value.encode(errors="surrogateescape")
        for key, value in member.pax_headers.items()
        if key.startswith("SCHILY.xattr.")
    }
    assert read == {b"SCHILY.xattr." + key: value for key, value in xattrs.items()}


def test_sizes_beyond_the_octal_field_and_negative_times_are_exact() -> None:
    size = 9 * 2**30
    data = tarwriter.header(b"big", tarwriter.REGULAR, mode=0o600, size=size, mtime=-5)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        member = tar.next()
    assert member is not None
    assert (member.size, member.mtime) == (size, -5)


def test_plain_entries_need_one_block() -> None:
    name = b"d" * 150 + b"/" + b"f" * 99
    assert len(tarwriter.header(name, tarwriter.REGULAR, mode=0o644)) == tarwriter.BLOCK


def test_gnu_tar_lists_what_was_written(tmp_path: Path) -> None:
    names = [b"a", b"d/", b"x" * 300, "ü".encode(), b"p" * 140 + b"/" + b"q" * 90]
    archive = tmp_path / "a.tar"
    archive.write_bytes(
        b"".join(
            tarwriter.header(
                name,
                tarwriter.DIRECTORY if name.endswith(b"/") else tarwriter.REGULAR,
                mode=0o644,
                size=0,
                mtime=1700000000,
                xattrs={b"user.k": b"v"},
            )
            for name in names
        )
        + tarwriter.END
    )
    listed = subprocess.run(
        ["tar", "--quoting-style=literal", "-tf", archive],
        check=True,
        capture_output=True,
        env={"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"},
    ).stdout.splitlines()
    assert listed == names
