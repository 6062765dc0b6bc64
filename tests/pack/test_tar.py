"""What the tar reader makes of headers, compared with tarfile and GNU tar."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import stat
import subprocess
import tarfile
import tempfile
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pack import archives
from tests.pack.archives import Shown
from unionfs.errors import LayerError
from unionfs.pack import CHUNK_SIZE, Pack, ingest, rebuild, verify
from unionfs.pack.headers import pax_time

_text = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]),
    min_size=1,
    max_size=40,
).filter(lambda name: name not in (".", "..") and not name.startswith(".wh."))
_long = st.sampled_from([1, 90, 99, 100, 101, 155, 200, 255]).map(lambda size: "n" * size)
_paths = st.lists(st.one_of(_text, _long), min_size=1, max_size=4).map("/".join)
_ids = st.one_of(st.integers(0, 70000), st.integers(0, (1 << 32) - 1))
_times = st.one_of(
    st.integers(0, 1 << 33),
    st.integers(-(1 << 40), 1 << 40),
)
_xattrs = st.dictionaries(
    st.from_regex(r"user\.[a-z]{1,5}", fullmatch=True), st.text(max_size=10), max_size=2
)
_contents = st.one_of(
    st.binary(max_size=600),
    st.integers(0, 3).map(lambda count: b"0123456789abcdef" * 8192 * count + b"x" * (count % 2)),
    st.just(bytes(CHUNK_SIZE + 5)),
)


@st.composite
def members(draw: st.DrawFn, dialect: int) -> tuple[tarfile.TarInfo, bytes]:
    """A member that the dialect can hold, and its content."""
    member = tarfile.TarInfo(draw(_paths))
    member.type = draw(
        st.sampled_from(
            [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]
        )
    )
    member.mode = draw(st.integers(0, 0o7777))
    small = dialect == tarfile.USTAR_FORMAT
    member.uid = draw(st.integers(0, 0o7777777) if small else _ids)
    member.gid = draw(st.integers(0, 0o7777777) if small else _ids)
    member.mtime = draw(st.integers(0, 1 << 32) if small else _times)
    content = b""
    if member.type == tarfile.REGTYPE:
        content = draw(_contents)
        member.size = len(content)
    elif member.type == tarfile.SYMTYPE:
        member.linkname = draw(_paths)
    elif member.type == tarfile.CHRTYPE:
        member.devmajor = draw(st.integers(0, 4095))
        member.devminor = draw(st.integers(0, 0xFFFFF))
    if dialect == tarfile.PAX_FORMAT:
        records = {f"SCHILY.xattr.{key}": value for key, value in draw(_xattrs).items()}
        if draw(st.booleans()):
            fraction = draw(st.integers(0, 999_999_999))
            records["mtime"] = f"{member.mtime}.{fraction:09}"
        member.pax_headers = records
    return member, content


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_headers_say_what_tarfile_says(data: st.DataObject) -> None:
    dialect = data.draw(
        st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    )
    drawn = data.draw(
        st.lists(members(dialect), max_size=5, unique_by=lambda item: item[0].name.split("/")[0])
    )
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for member, content in drawn:
            try:
                archive.addfile(member, io.BytesIO(content))
            except ValueError:  # a name that does not fit ustar
                continue
    tar = out.getvalue()
    with tempfile.TemporaryDirectory() as name, archives.pack_of(Path(name), tar) as pack:
        verify(pack)
        assert b"".join(rebuild(pack)) == tar
        found = archives.shown(pack)
        with tarfile.open(fileobj=io.BytesIO(tar)) as again:
            for member in again:
                path = os.fsencode(member.name).strip(b"/")
                assert found[path] == _expected(again, member, path)


def _expected(archive: tarfile.TarFile, member: tarfile.TarInfo, path: bytes) -> Shown:
    kind = {
        tarfile.REGTYPE: stat.S_IFREG,
        tarfile.DIRTYPE: stat.S_IFDIR,
        tarfile.SYMTYPE: stat.S_IFLNK,
        tarfile.FIFOTYPE: stat.S_IFIFO,
        tarfile.CHRTYPE: stat.S_IFCHR,
    }[member.type]
    content = os.fsencode(member.linkname) if kind == stat.S_IFLNK else b""
    if kind == stat.S_IFREG:
        stream = archive.extractfile(member)
        assert stream is not None
        content = stream.read()
    time = int(Decimal(member.pax_headers.get("mtime", str(int(member.mtime)))) * 10**9)
    return Shown(
        kind,
        0o777 if kind == stat.S_IFLNK else member.mode,
        member.uid,
        member.gid,
        divmod(time, 10**9),
        content,
        (member.devmajor, member.devminor) if kind == stat.S_IFCHR else (0, 0),
        tuple(
            sorted(
                (key.removeprefix("SCHILY.xattr.").encode(), os.fsencode(value))
                for key, value in member.pax_headers.items()
                if key.startswith("SCHILY.xattr.")
            )
        ),
        frozenset([path]),
    )


@given(st.integers(-(10**12), 10**12), st.integers(0, 10**12))
def test_a21_times_are_exact_to_the_nanosecond(seconds: int, fraction: int) -> None:
    value = f"{seconds}.{fraction:012}"
    exact = Decimal(value)
    sec, nsec = pax_time(value.encode())
    assert 0 <= nsec < 10**9
    assert abs(sec * 10**9 + nsec - exact * 10**9) < 1
    assert pax_time(str(seconds).encode()) == (seconds, 0)


@pytest.mark.parametrize(
    "value", [b"", b"-", b".", b"1e5", b"1.x", b"--1", b"+1", b"1_0", b"9" * 30]
)
def test_what_is_no_time_is_refused(value: bytes) -> None:
    with pytest.raises(LayerError, match="mtime"):
        pax_time(value)


def _make_tree(root: Path) -> None:
    (root / "d" / "e").mkdir(parents=True)
    (root / "empty").touch()
    (root / "text").write_text("some text\n" * 1000)
    os.link(root / "text", root / "d" / "text-again")
    os.link(root / "text", root / "d" / "e" / "third")
    (root / "link").symlink_to("../../outside/" + "x" * 120)
    (root / ("long" * 40)).write_bytes(b"long")
    os.mkfifo(root / "d" / "fifo", 0o640)
    (root / "d" / "setuid").write_bytes(b"#!")
    (root / "d" / "setuid").chmod(0o6755)
    (root / "d").chmod(0o1777)
    for name, size, runs in (
        ("sparse", 3_000_000, [(1_000_000, b"a" * 5000), (2_500_000, b"b")]),
        ("hole", 1 << 20, []),
        ("ragged", 700_001, [(4096 * step, b"%d" % step) for step in range(0, 120, 3)]),
    ):
        with (root / name).open("wb") as out:
            for offset, data in runs:
                out.seek(offset)
                out.write(data)
            out.truncate(size)
    for number, path in enumerate(sorted(root.rglob("*"))):
        os.utime(path, ns=(0, 1_600_000_000_123_456_789 + number), follow_symlinks=False)
        if os.geteuid() == 0:
            os.chown(path, 1000 + number, 3_000_000 + number, follow_symlinks=False)
            if (
                not path.is_symlink()
                and path.stat().st_mode & 0o6000 == 0
                and path.name == "setuid"
            ):
                path.chmod(0o6755)


_OPTIONS = [
    ["--format=gnu"],
    ["--format=gnu", "--sparse", "--hole-detection=raw"],
    ["--format=oldgnu", "--sparse", "--hole-detection=raw"],
    ["--format=pax"],
    *(["--format=pax", "--sparse", "--hole-detection=raw", f"--sparse-version={v}"]
      for v in ("0.0", "0.1", "1.0")),
]  # fmt: skip


@pytest.mark.parametrize("options", _OPTIONS, ids=" ".join)
def test_a28_what_gnu_tar_packs_is_shown_as_it_was(tmp_path: Path, options: list[str]) -> None:
    root = tmp_path / "root"
    root.mkdir()
    _make_tree(root)
    command = ["tar", *options, "-C", str(root), "-cf", "-", "."]
    tar = subprocess.run(command, check=True, capture_output=True).stdout
    if "--sparse" in options:
        assert len(tar) < 2_000_000
    with archives.pack_of(tmp_path, tar) as pack:
        verify(pack)
        assert hashlib.sha256(b"".join(rebuild(pack))).digest() == hashlib.sha256(tar).digest()
        found = archives.shown(pack)
    paths = [b"", *(os.fsencode(path.relative_to(root)) for path in root.rglob("*"))]
    assert sorted(found) == sorted(paths)
    exact = "--format=pax" in options
    for path, entry in found.items():
        on_disk = os.lstat(os.path.join(os.fsencode(root), path))
        assert entry is not None
        assert _summary(entry, exact) == _on_disk(os.fsencode(root), path, on_disk, exact)
        if not stat.S_ISDIR(on_disk.st_mode):
            assert len(entry.names) == on_disk.st_nlink


def _summary(entry: Shown, exact: bool) -> tuple[object, ...]:
    time = entry.mtime if exact else entry.mtime[:1]
    return (entry.kind | entry.mode, entry.uid, entry.gid, time, entry.content)


def _on_disk(root: bytes, path: bytes, found: os.stat_result, exact: bool) -> tuple[object, ...]:
    time = divmod(found.st_mtime_ns, 10**9)
    full = os.path.join(root, path)
    content = b""
    if stat.S_ISREG(found.st_mode):
        content = Path(os.fsdecode(full)).read_bytes()
    elif stat.S_ISLNK(found.st_mode):
        content = os.readlink(full)
    return (
        found.st_mode, found.st_uid, found.st_gid, time if exact else time[:1], content
    )  # fmt: skip


def test_old_v7_archives_are_read(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "file").write_bytes(b"v7")
    command = ["tar", "--format=v7", "-C", str(tmp_path), "-cf", "-", "dir"]
    tar = subprocess.run(command, check=True, capture_output=True).stdout
    with archives.pack_of(tmp_path, tar) as pack:
        found = archives.shown(pack)
    assert sorted(found) == [b"", b"dir", b"dir/file"]
    assert (file := found[b"dir/file"]) is not None
    assert file.content == b"v7"


# -- headers made by hand -------------------------------------------------------------------------


def _header(
    name: bytes, kind: bytes = b"0", size: bytes = b"00000000000\0", **fields: Any
) -> bytes:
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"0000644\0"
    block[108:116] = fields.get("uid", b"0000000\0")
    block[116:124] = b"0000000\0"
    block[124:136] = size
    block[136:148] = fields.get("mtime", b"00000000000\0")
    block[156:157] = kind
    block[157 : 157 + len(fields.get("link", b""))] = fields.get("link", b"")
    block[257:265] = fields.get("magic", b"ustar\x0000")
    block[329:337] = fields.get("major", b"0000000\0")
    block[345 : 345 + len(fields.get("prefix", b""))] = fields.get("prefix", b"")
    block[148:156] = b" " * 8
    total = sum(block)
    if fields.get("signed"):
        total = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % total
    return bytes(block)


def _record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    while len(b"%d" % length) + len(key) + len(value) + 3 != length:
        length = len(b"%d" % length) + len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length, key, value)


def _extended(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    data = b"".join(_record(*record) for record in records)
    padding = bytes(-len(data) % 512)
    return _header(b"pax", kind, b"%011o\0" % len(data)) + data + padding


END = bytes(1024)


def _shown(tmp_path: Path, tar: bytes) -> dict[bytes, Shown | None]:
    with archives.pack_of(tmp_path, tar) as pack:
        verify(pack)
        return archives.shown(pack)


def test_a27_a_global_header_holds_for_all_that_follow(tmp_path: Path) -> None:
    tar = b"".join(
        [
            _extended((b"comment", b"x"), (b"uid", b"77"), (b"mtime", b"5.25"), kind=b"g"),
            _header(b"a"),
            _extended((b"uid", b"78")),
            _header(b"b"),
            _extended((b"uid", b""), kind=b"g"),
            _header(b"c"),
            END,
        ]
    )
    found = _shown(tmp_path, tar)
    assert [(entry.uid, entry.mtime) for _, entry in sorted(found.items()) if entry][1:] == [
        (77, (5, 250_000_000)),
        (78, (5, 250_000_000)),
        (0, (5, 250_000_000)),
    ]


@pytest.mark.parametrize("key", [b"path", b"linkpath", b"size"])
def test_a27_a_global_header_cannot_name_all_entries(tmp_path: Path, key: bytes) -> None:
    with pytest.raises(LayerError, match="global"):
        _shown(tmp_path, _extended((key, b"1"), kind=b"g") + _header(b"a") + END)


def test_a26_the_size_of_an_extended_header_decides_where_the_next_is(tmp_path: Path) -> None:
    inner = _header(b"not-a-file")
    tar = _extended((b"size", b"512")) + _header(b"a") + inner + _header(b"b") + END
    found = _shown(tmp_path, tar)
    assert sorted(found) == [b"", b"a", b"b"]
    assert (entry := found[b"a"]) is not None
    assert entry.content == inner


@pytest.mark.parametrize("kind", list(b"123456"))
def test_types_without_content_have_none_whatever_their_size_says(
    tmp_path: Path, kind: int
) -> None:
    tar = _header(b"t") + _header(b"x", bytes([kind]), b"%011o\0" % 512, link=b"t") + END
    assert sorted(_shown(tmp_path, tar)) == [b"", b"t", b"x"]


def test_a20_xattrs_come_in_two_dialects(tmp_path: Path) -> None:
    value = b"\x01\0\n=binary"
    tar = b"".join(
        [
            _extended(
                (b"SCHILY.xattr.security.capability", value),
                (b"SCHILY.xattr.user.empty", b""),
                (b"LIBARCHIVE.xattr.user.%c3%a9", base64.b64encode(value).rstrip(b"=")),
            ),
            _header(b"a"),
            END,
        ]
    )
    entry = _shown(tmp_path, tar)[b"a"]
    assert entry is not None
    assert dict(entry.xattrs) == {
        b"security.capability": value,
        b"user.empty": b"",
        "user.é".encode(): value,
    }


def test_a26_numbers_may_be_in_base_256(tmp_path: Path) -> None:
    tar = _header(b"a", uid=b"\x80\0\0\0\xff\xff\xff\xfe", mtime=b"\xff" * 11 + b"\xfe") + END
    entry = _shown(tmp_path, tar)[b"a"]
    assert entry is not None
    assert (entry.uid, entry.mtime) == (0xFFFFFFFE, (-2, 0))


def test_a_checksum_over_signed_bytes_is_accepted(tmp_path: Path) -> None:
    assert b"\xff\xfe" in _shown(tmp_path, _header(b"\xff\xfe", signed=True) + END)


def test_the_prefix_counts_only_in_ustar_headers(tmp_path: Path) -> None:
    tar = _header(b"a", prefix=b"p/q") + _header(b"b", prefix=b"junk", magic=b"ustar  \0") + END
    assert sorted(_shown(tmp_path, tar)) == [b"", b"b", b"p", b"p/q", b"p/q/a"]


def test_a_regular_file_with_a_link_name_is_a_regular_file(tmp_path: Path) -> None:
    tar = _header(b"a", size=b"%011o\0" % 3, link=b"junk") + b"abc" + bytes(509) + END
    assert (entry := _shown(tmp_path, tar)[b"a"]) is not None
    assert (entry.kind, entry.content) == (stat.S_IFREG, b"abc")


def test_a_volume_label_is_no_file(tmp_path: Path) -> None:
    assert sorted(_shown(tmp_path, _header(b"label", b"V") + _header(b"a") + END)) == [b"", b"a"]


def test_a31_what_follows_the_end_is_kept_but_not_read(tmp_path: Path) -> None:
    tar = _header(b"a") + END + _header(b"b") + os.urandom(300_000)
    with archives.pack_of(tmp_path, tar) as pack:
        assert sorted(archives.shown(pack)) == [b"", b"a"]
        assert b"".join(rebuild(pack)) == tar


@pytest.mark.parametrize(
    ("tar", "message"),
    [
        (b"", "end marker"),
        (bytes(511), "end marker"),
        (_header(b"a"), "end marker"),
        (_header(b"a") + bytes(512) + _header(b"b"), "zero block"),
        (_header(b"a", size=b"00000001000\0") + bytes(100), "content of a"),
        (_header(b"a", size=b"-0000000001\0") + END, "size"),
        (_header(b"a", size=b"\xff" * 12) + END, "negative"),
        (_header(b"a", size=b"0000000000z\0") + END, "size"),
        (_header(b"a", uid=b"\x81" + b"\0" * 7) + END, "uid"),
        (_extended((b"path", b"a")) + _header(b"a", b"3", major=b"0010000\0") + END, "major"),
        (_header(b"a", b"Q") + END, "unknown type"),
        (_header(b"a", b"M") + END, "unknown type"),
        (_header(b"../a") + END, r"\.\."),
        (_header(b"a/../../b") + END, r"\.\."),
        (_header(b"a", b"1", link=b"../x") + END, r"\.\."),
        (_header(b"a", b"1", link=b"/") + END, "target"),
        (_header(b"a", b"1") + END, "target"),
        (_header(b"a", b"2") + END, "no target"),
        (_header(b".") + END, "root"),
        (_header(b"") + END, "root"),
        (_header(b"d", b"5") + _header(b"h", b"1", link=b"d") + END, "directory"),
        (_extended((b"path", b"x")) + END, "extended header"),
        (_extended((b"path", b"a\0b")) + _header(b"a") + END, "NUL"),
        (_extended((b"path", b"n" * 256)) + _header(b"a") + END, "longer than 255"),
        (_extended((b"path", b"n/" * 3000)) + _header(b"a") + END, "limit of 4096"),
        (_extended((b"path", b"n/" * 2000)) + _header(b"a") + END, "limit of 1024"),
        (_extended((b"size", b"-1")) + _header(b"a") + END, "size"),
        (_extended((b"uid", b"1_0")) + _header(b"a") + END, "uid"),
        (_extended((b"LIBARCHIVE.xattr.a", b"\xff")) + _header(b"a") + END, "base64"),
        (_header(b"p", b"x", b"%011o\0" % 5) + b"9 a=b" + bytes(507) + END, "malformed"),
        (_header(b"p", b"x", b"%011o\0" % 5) + b"aaaa\n" + bytes(507) + END, "malformed"),
        (_header(b"p", b"x", b"%011o\0" % (1 << 21)) + bytes(1 << 21) + END, "limit of 1048576"),
        (_extended((b"GNU.sparse.map", b"0,5"), (b"GNU.sparse.size", b"9")) + _header(b"a") + END,
         "sparse map"),
        (_extended((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"),
                   (b"GNU.sparse.realsize", b"9")) + _header(b"a") + END, "sparse map"),
        (_header(b".wh.") + END, "whiteout"),
        (_header(b".wh..") + END, "whiteout"),
        (_header(b"d/.wh...") + END, "whiteout"),
        (_header(b".wh.a/b") + END, "whiteout"),
    ],
)  # fmt: skip
def test_a_bad_archive_is_refused_with_a_reason(tmp_path: Path, tar: bytes, message: str) -> None:
    path = tmp_path / "pack"
    with pytest.raises(LayerError, match=message):
        ingest(io.BytesIO(tar), path)
    assert not path.exists()


def test_an_error_says_after_which_entry(tmp_path: Path) -> None:
    tar = _header(b"good/name") + b"x" * 512
    with pytest.raises(LayerError, match="byte 512, after good/name"):
        ingest(io.BytesIO(tar), tmp_path / "pack")


def test_a28_a_huge_hole_costs_little(tmp_path: Path) -> None:
    size = b"%d" % (1 << 36)
    tar = _extended((b"GNU.sparse.map", b""), (b"GNU.sparse.size", size)) + _header(b"a") + END
    with archives.pack_of(tmp_path, tar) as pack:
        found = pack.lookup(0, b"a")
        assert found is not None
        assert pack.inode(found[1]).size == 1 << 36
        assert pack.read(found[1], (1 << 36) - 5, 10) == bytes(5)
        assert list(pack.extents(found[1])) == []
        assert b"".join(rebuild(pack)) == tar


class _Drip:
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        self._stream = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        return self._stream.read(min(size, 77) if size >= 0 else 77)


def test_the_stream_may_come_in_any_pieces(tmp_path: Path) -> None:
    tar = archives.tar_of([archives.file("a", b"x" * 300_000), archives.file("b", b"y")])
    first = ingest(_Drip(tar), tmp_path / "drip")
    second = ingest(io.BytesIO(tar), tmp_path / "whole")
    assert first == second
    assert (tmp_path / "drip").read_bytes() == (tmp_path / "whole").read_bytes()
    with Pack(tmp_path / "drip") as pack:
        verify(pack)
