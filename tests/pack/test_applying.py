"""The rules of applying layers, by number, in the union over real packs and as other tools do it.

The rules are those of the OCI image specification (layer.md) and of the tools that apply layers:
A5 to A9 and A12 to A16 say what entries do to each other, A17 to A24 what a file is, A25 to A29 how
archives are read, A30 to A32 what is big. Those about digests, manifests and archives are tested
in tests/snapshotter/test_applying.py, some of these in test_ingest.py and test_tar.py.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import tarfile
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.pack.applied import (
    Made,
    Sight,
    Sights,
    applied,
    by_gnu_tar,
    by_umoci,
    entry,
    folder,
    hardlink,
    layer,
    opened,
    seen_in,
    symlink,
)
from tests.pack.archives import TIME
from unionfs.errors import LayerError
from unionfs.opening import open_union
from unionfs.pack import Pack, ingest, merge, rebuild, verify

Described = dict[str, str]
"""Paths with what is there: ``dir`` and its mode, ``-> target``, a kind, or a file's content."""


class Case(NamedTuple):
    """Layers, bottom first, and what they show together."""

    layers: list[list[Made]]
    expected: Described


BASE = [
    folder("d", mode=0o751),
    entry("d/keep", b"keep"),
    entry("d/gone", b"gone"),
    folder("d/sub"),
    entry("d/sub/deep", b"deep"),
    entry("f", b"below"),
    symlink("s", "d"),
]
_D = {"d": "dir 751", "d/keep": "keep", "d/gone": "gone", "d/sub": "dir 755", "d/sub/deep": "deep"}
_REST = {"f": "below", "s": "-> d"}
_ALL = {**_D, **_REST}
_EMPTY_D = {"d": "dir 751", **_REST}


def _without(*paths: str) -> Described:
    return {path: what for path, what in _ALL.items() if path not in paths}


CASES = {
    "a05-a directory over a directory": Case(
        [BASE, [folder("d", mode=0o1700)]], {**_ALL, "d": "dir 1700"}
    ),
    "a05-the root": Case([BASE, [folder(".", mode=0o711)]], {**_ALL, "": "dir 711"}),
    "a05-in one layer": Case(
        [[folder("d"), entry("d/a", b"1"), folder("d", mode=0o700)]],
        {"d": "dir 700", "d/a": "1"},
    ),
    "a06-a file over a directory": Case([BASE, [entry("d", b"new")]], {**_REST, "d": "new"}),
    "a06-a directory over a file": Case(
        [BASE, [folder("f"), entry("f/x", b"x")]], {**_ALL, "f": "dir 755", "f/x": "x"}
    ),
    "a06-a directory over a symlink to a directory": Case(
        [BASE, [folder("s"), entry("s/x", b"x")]], {**_ALL, "s": "dir 755", "s/x": "x"}
    ),
    "a06-a symlink over a directory": Case([BASE, [symlink("d", "f")]], {**_REST, "d": "-> f"}),
    "a06-a file over a symlink": Case([BASE, [entry("s", b"new")]], {**_ALL, "s": "new"}),
    "a06-a fifo over a file": Case(
        [BASE, [entry("f", kind=tarfile.FIFOTYPE)]], {**_ALL, "f": "fifo"}
    ),
    "a07-a whiteout": Case([BASE, [entry("d/.wh.gone")]], _without("d/gone")),
    "a07-a whiteout of a directory": Case([BASE, [entry(".wh.d")]], _REST),
    "a07-after the name of its own layer": Case(
        [BASE, [entry("f", b"new"), entry(".wh.f")]], {**_ALL, "f": "new"}
    ),
    "a07-before the name of its own layer": Case(
        [BASE, [entry(".wh.f"), entry("f", b"new")]], {**_ALL, "f": "new"}
    ),
    "a07-a directory made anew, whiteout last": Case(
        [BASE, [folder("d"), entry("d/new", b"new"), entry(".wh.d")]],
        {**_REST, "d": "dir 755", "d/new": "new"},
    ),
    "a07-a whiteout of two layers below": Case([BASE, [], [entry(".wh.f")]], _without("f")),
    "a08-an opaque directory": Case(
        [BASE, [folder("d", mode=0o751), entry("d/.wh..wh..opq"), entry("d/n", b"n")]],
        {**_EMPTY_D, "d/n": "n"},
    ),
    "a08-after the names of its own layer": Case(
        [BASE, [folder("d", mode=0o751), entry("d/n", b"n"), entry("d/.wh..wh..opq")]],
        {**_EMPTY_D, "d/n": "n"},
    ),
    "a08-whiteouts of each name instead": Case(
        [BASE, [entry(f"d/.wh.{name}") for name in ("keep", "gone", "sub")]], _EMPTY_D
    ),
    "a08-an opaque subdirectory": Case(
        [BASE, [entry("d/sub/.wh..wh..opq")]], _without("d/sub/deep")
    ),
    "a08-what a layer above adds": Case(
        [BASE, [folder("d", mode=0o751), entry("d/.wh..wh..opq")], [entry("d/n", b"n")]],
        {**_EMPTY_D, "d/n": "n"},
    ),
    "a12-leftovers of aufs": Case(
        [
            BASE,
            [
                entry(".wh..wh.aufs"),
                folder(".wh..wh.plnk"),
                entry(".wh..wh.plnk/1.2", b"x"),
                folder(".wh..wh.orph"),
            ],
        ],
        _ALL,
    ),
    "a13-a whiteout that is a directory": Case([BASE, [folder(".wh.f")]], _without("f")),
    "a13-a whiteout that is a symlink": Case([BASE, [symlink(".wh.f", "/etc")]], _without("f")),
    "a13-a whiteout with content": Case([BASE, [entry(".wh.f", b"x" * 600)]], _without("f")),
    "a13-a whiteout that is a hardlink": Case([BASE, [hardlink(".wh.f", "s")]], _without("f")),
    "a14-a whiteout of nothing": Case([BASE, [entry("d/.wh.never"), entry(".wh.nor")]], _ALL),
    "a14-in a directory that nobody has": Case(
        [BASE, [entry("no/where/.wh.x")]], {**_ALL, "no": "dir 755", "no/where": "dir 755"}
    ),
    "a15-parents without entries": Case(
        [[entry("a/b/c", b"c")]], {"a": "dir 755", "a/b": "dir 755", "a/b/c": "c"}
    ),
    "a15-parents that are below keep their attributes": Case(
        [BASE, [entry("d/new", b"n")]], {**_ALL, "d/new": "n"}
    ),
    "a16-below a file": Case([BASE, [entry("f/x", b"x")]], {**_ALL, "f": "dir 755", "f/x": "x"}),
    "a16-below a symlink": Case([BASE, [entry("s/x", b"x")]], {**_ALL, "s": "dir 755", "s/x": "x"}),
    "a16-below a symlink of the same layer": Case(
        [[folder("d"), symlink("s", "d"), entry("s/x", b"x")]],
        {"d": "dir 755", "s": "dir 755", "s/x": "x"},
    ),
    "a22-to an earlier entry": Case(
        [[entry("a", b"1"), hardlink("b", "a"), hardlink("c/d", "/b")]],
        {"a": "1", "b": "1", "c": "dir 755", "c/d": "1"},
    ),
    "a22-into the layer below": Case([BASE, [hardlink("d/l", "f")]], {**_ALL, "d/l": "below"}),
    "a22-to a symlink, which is not followed": Case([BASE, [hardlink("l", "s")]],
                                                    {**_ALL, "l": "-> d"}),
    "a22-to a file that was replaced": Case(
        [[entry("a", b"1"), hardlink("b", "a"), entry("a", b"2")]], {"a": "2", "b": "1"}
    ),
    "a23-as they are": Case(
        [[symlink("a", "/etc/passwd"), symlink("b", "../../x"), symlink("c", "no/where/"),
          symlink("d", "./a//b"), symlink("e", "e")]],
        {"a": "-> /etc/passwd", "b": "-> ../../x", "c": "-> no/where/", "d": "-> ./a//b",
         "e": "-> e"},
    ),
    "a25-ways to write a name": Case(
        [[folder("./x/"), entry("./x/a", b"1"), entry("/x/b", b"2"), entry("x//c", b"3")]],
        {"x": "dir 755", "x/a": "1", "x/b": "2", "x/c": "3"},
    ),
    "a29-the last of several wins": Case(
        [[entry("a", b"1"), entry("b", b"2"), entry("./a", b"3", mode=0o600)]],
        {"a": "3", "b": "2"},
    ),
    "a30-an empty layer": Case([BASE, [], BASE, []], _ALL),
}  # fmt: skip


def described(sights: Sights) -> Described:
    """A tree in short. The root is told where a layer gives it another mode."""
    found = {os.fsdecode(path): _describe(sight) for path, sight in sights.items()}
    if found[""] == "dir 755":
        del found[""]
    return found


def _describe(sight: Sight) -> str:
    if sight.kind == stat.S_IFDIR:
        return f"dir {sight.mode:o}"
    if sight.kind == stat.S_IFLNK:
        return "-> " + os.fsdecode(sight.content)
    other = {stat.S_IFIFO: "fifo", stat.S_IFCHR: "device"}
    return other.get(sight.kind, sight.content.decode())


@pytest.mark.parametrize("name", CASES)
def test_rule(tmp_path: Path, name: str) -> None:
    case = CASES[name]
    assert described(applied(tmp_path, *(layer(*each) for each in case.layers))) == case.expected


UMOCI_DIFFERS = {
    "a07-a directory made anew, whiteout last": "sets the time of the directory anew",
    "a12-leftovers of aufs": "keeps them as files",
    "a14-in a directory that nobody has": "does not make the directory",
    "a16-below a file": "fails; mended in later versions",
    "a16-below a symlink": "follows it, inside the image",
    "a16-below a symlink of the same layer": "follows it, inside the image",
}
"""What umoci 0.4.7 does otherwise."""


@pytest.mark.root
@pytest.mark.peer("umoci")
@pytest.mark.parametrize("name", [name for name in CASES if name not in UMOCI_DIFFERS])
def test_rule_as_umoci_has_it(tmp_path: Path, name: str) -> None:
    layers = [layer(*each) for each in CASES[name].layers]
    ours, theirs = applied(tmp_path / "ours", *layers), by_umoci(tmp_path / "theirs", *layers)
    assert described(theirs) == CASES[name].expected
    for path, sight in ours.items():
        assert theirs[path].names == sight.names
        if sight.mtime_ns:  # else the layers say nothing of it
            assert theirs[path] == sight


# -- whiteouts -----------------------------------------------------------------------------------


def test_a09_a_whiteout_is_not_to_be_seen(tmp_path: Path) -> None:
    above = [entry("d/.wh.gone"), entry("d/sub/.wh..wh..opq"), entry(".wh.f"), entry(".wh..wh.x")]
    for merged in (False, True):
        with opened(tmp_path / str(merged), [layer(*BASE), layer(*above)], merged=merged) as tree:
            directory = tree.lookup(tree.root, b"d")
            below = tree.lookup(directory, b"sub")
            for node, names in (
                (tree.root, (b"f", b".wh.f", b".wh..wh.x", b".wh.", b".wh..wh..opq")),
                (directory, (b"gone", b".wh.gone")),
                (below, (b"deep", b".wh..wh..opq")),
            ):
                assert not {*names} & {*tree.names(node)}
                for name in names:
                    with pytest.raises(FileNotFoundError):
                        tree.lookup(node, name)
            assert tree.attributes(directory).nlink == 3


@pytest.mark.parametrize("name", [".wh.", "d/.wh."])
def test_a10_a_whiteout_without_a_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LayerError, match=f"^{name} is a whiteout of nothing"):
        applied(tmp_path, layer(*BASE), layer(entry("ok"), entry(name)))


@pytest.mark.parametrize("name", [".wh..", ".wh...", "d/.wh..", "d/sub/.wh..."])
def test_a11_a_whiteout_of_a_dot_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(LayerError, match=f"^{name} is a whiteout of nothing"):
        applied(tmp_path, layer(*BASE), layer(entry("ok"), entry(name)))


# -- what a file is ------------------------------------------------------------------------------


def _everything() -> bytes:
    """A layer with every attribute that a layer can give a file."""
    nano = {"mtime": "1600000000.123456789"}
    capability = bytes.fromhex("0100000200200000000000000000000000000000").decode("latin-1")
    return layer(
        folder("d", mode=0o2775, uid=1000, gid=2000, pax_headers=nano),
        entry("d/setuid", b"x", mode=0o4755, uid=7, gid=8, uname="root", gname="root"),
        entry("d/setgid", b"x", mode=0o2711, uid=1_000_000, gid=2**31 + 5),
        folder("sticky", mode=0o1777, uname="nobody", gname="wheel"),
        entry("dated", b"x", pax_headers={"mtime": "-1.000000001", "atime": "5", "ctime": "6"}),
        symlink("link", "d/setuid"),
        entry("fifo", kind=tarfile.FIFOTYPE, mode=0o640),
        entry("char", kind=tarfile.CHRTYPE, mode=0o666, devmajor=1, devminor=3),
        entry("block", kind=tarfile.BLKTYPE, mode=0o600, devmajor=253, devminor=70000),
        entry("xattrs", b"x", uid=3, gid=3, pax_headers={
            "SCHILY.xattr.user.own": "value",
            "SCHILY.xattr.trusted.x": "y",
            "SCHILY.xattr.security.capability": capability,
        }),
        folder("on-directory", pax_headers={"SCHILY.xattr.user.own": "value"}),
        hardlink("z-link", "d/setuid"),
    )  # fmt: skip


def test_a17_to_a21_a_file_is_what_its_entry_says(tmp_path: Path) -> None:
    found = applied(tmp_path, _everything())
    assert {path: sight[1:4] for path, sight in found.items()} == {
        b"": (0o755, (0, 0), 0),
        b"d": (0o2775, (1000, 2000), 0),
        b"d/setuid": (0o4755, (7, 8), 0),
        b"z-link": (0o4755, (7, 8), 0),
        b"d/setgid": (0o2711, (1_000_000, 2**31 + 5), 0),
        b"sticky": (0o1777, (0, 0), 0),
        b"dated": (0o644, (0, 0), 0),
        b"link": (0o777, (0, 0), 0),
        b"fifo": (0o640, (0, 0), 0),
        b"char": (0o666, (0, 0), os.makedev(1, 3)),
        b"block": (0o600, (0, 0), os.makedev(253, 70000)),
        b"xattrs": (0o644, (3, 3), 0),
        b"on-directory": (0o755, (0, 0), 0),
    }
    # A17: a directory's time is its entry's, whatever was put into it later
    assert found[b"d"].mtime_ns == 1_600_000_000_123_456_789
    assert found[b"dated"].mtime_ns == -1_000_000_001
    assert [name for name, _ in found[b"xattrs"].xattrs] == [
        b"security.capability", b"trusted.x", b"user.own",
    ]  # fmt: skip
    assert found[b"on-directory"].xattrs == ((b"user.own", b"value"),)
    assert found[b"z-link"].names == {b"z-link", b"d/setuid"}


@pytest.mark.root
@pytest.mark.parametrize(
    "peer",
    [
        pytest.param(by_gnu_tar, id="GNU tar"),
        pytest.param(by_umoci, id="umoci", marks=pytest.mark.peer("umoci")),
    ],
)
def test_a17_to_a24_files_are_what_others_make_of_them(
    tmp_path: Path, peer: Callable[..., Sights]
) -> None:
    ours, theirs = applied(tmp_path / "ours", _everything()), peer(tmp_path, _everything())
    differing = {
        path: (sight, theirs.get(path))
        for path, sight in ours.items()
        if path and theirs.get(path) != sight
    }
    assert not differing
    assert theirs.keys() == ours.keys()


def test_a24_the_device_0_0_hides_nothing(tmp_path: Path) -> None:
    above = layer(
        entry("f", kind=tarfile.CHRTYPE), entry("d/gone", kind=tarfile.CHRTYPE), folder("d")
    )
    found = applied(tmp_path, layer(*BASE), above)
    for path in (b"f", b"d/gone"):
        assert (found[path].kind, found[path].device) == (stat.S_IFCHR, 0)


@pytest.mark.parametrize("name", ["user.overlay.whiteout", "trusted.overlay.whiteout"])
def test_a24_xattrs_of_a_union_hide_nothing(tmp_path: Path, name: str) -> None:
    marks = {f"SCHILY.xattr.{name}": "", "SCHILY.xattr.trusted.overlay.opaque": "y",
             "SCHILY.xattr.user.overlay.redirect": "/d/sub"}  # fmt: skip
    above = layer(folder("d", pax_headers=marks), entry("f", b"", pax_headers=marks))
    found = applied(tmp_path, layer(*BASE), above)
    assert found[b"f"].content == b""
    assert b"d/keep" in found


# -- hardlinks -----------------------------------------------------------------------------------


def test_a22_names_of_a_file_stay_together_over_layers(tmp_path: Path) -> None:
    found = applied(tmp_path, layer(*BASE), layer(hardlink("d/one", "f"), hardlink("two", "./f")))
    assert found[b"f"].names == {b"f", b"d/one", b"two"}
    assert found[b"two"] == found[b"f"]


@pytest.mark.parametrize(
    ("target", "message"),
    [("no/where", "no/where"), ("d", "hardlink"), ("s/keep", "s/keep"), ("../f", r"\.\.")],
    ids=["missing", "directory", "below-a-symlink", "outside"],
)
def test_a22_a_link_without_a_file_is_refused(tmp_path: Path, target: str, message: str) -> None:
    with pytest.raises(LayerError, match=message) as raised:
        applied(tmp_path, layer(*BASE), layer(hardlink("l", target)))
    assert "l" in str(raised.value)


def test_a22_a_link_to_what_its_own_layer_hides_leads_to_the_file_below(tmp_path: Path) -> None:
    found = applied(tmp_path, layer(*BASE), layer(entry(".wh.f"), hardlink("l", "f")))
    assert found[b"l"].content == b"below"
    assert b"f" not in found


# -- how archives are read -----------------------------------------------------------------------

NAMES = [
    "latin-\udce9", "\udcff\udcfe", "ü" * 120, "n" * 255, "p/" * 90 + "end",
    "/".join(["m" * 200] * 6), "a b\n\t\\", "-rf", "*?[", "~", " ",
]  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT], ids=["gnu", "pax"])
def test_a25_any_name_and_any_target_is_kept(tmp_path: Path, form: int) -> None:
    members = [entry(name, b"%d" % number) for number, name in enumerate(NAMES)]
    members += [symlink(f"to-{number}", name) for number, name in enumerate(NAMES)]
    members += [hardlink(f"link-{number}", name) for number, name in enumerate(NAMES)]
    archive = layer(*members, form=form)
    ours = applied(tmp_path / "ours", archive)
    for number, name in enumerate(NAMES):
        assert ours[os.fsencode(name)].content == b"%d" % number
        assert ours[b"to-%d" % number].content == os.fsencode(name)
        assert ours[b"link-%d" % number].names == {os.fsencode(name), b"link-%d" % number}
    theirs = by_gnu_tar(tmp_path, archive)
    assert ours.keys() == theirs.keys()
    assert all(sight.content == theirs[path].content for path, sight in ours.items())


def test_a26_extended_headers_decide_over_short_fields(tmp_path: Path) -> None:
    long = "x/" + "y" * 150
    made = entry("short", b"0123456789", pax_headers={"path": long, "uid": "70000", "gid": "70001"})
    (found,) = (
        sight for path, sight in applied(tmp_path, layer(made)).items() if path == long.encode()
    )
    assert (found.owner, found.content) == ((70000, 70001), b"0123456789")
    link = entry("l", kind=tarfile.SYMTYPE, linkname="short", pax_headers={"linkpath": "real"})
    assert applied(tmp_path / "links", layer(link))[b"l"].content == b"real"


@pytest.mark.slow
def test_a26_a_file_of_more_than_8_gib_is_read_to_its_end(tmp_path: Path) -> None:
    size = (8 << 30) + 5
    info = tarfile.TarInfo("big")
    info.size, info.mtime = size, TIME
    head = info.tobuf(tarfile.GNU_FORMAT)
    assert head[124] == 0x80  # base 256
    path = tmp_path / "pack"
    ingest(_Zeros(head, size, layer(entry("after", b"x"))), path)
    with Pack(path) as pack:
        assert (found := pack.lookup(0, b"big")) is not None
        assert pack.inode(found[1]).size == size
        assert pack.lookup(0, b"after") is not None


class _Zeros:
    """A header, so many zeros, their padding, and an end."""

    def __init__(self, head: bytes, zeros: int, end: bytes) -> None:
        self._head = io.BytesIO(head)
        self._zeros = zeros + -zeros % 512
        self._end = io.BytesIO(end)
        self.largest = 0

    def read(self, size: int = -1, /) -> bytes:
        """The next bytes."""
        self.largest = max(self.largest, size)
        if data := self._head.read(size):
            return data
        if self._zeros:
            data = bytes(min(size, self._zeros))
            self._zeros -= len(data)
            return data
        return self._end.read(size)


# -- what is big ---------------------------------------------------------------------------------


def test_a31_zeros_behind_the_end_are_not_held_in_memory(tmp_path: Path) -> None:
    zeros = 1 << 29
    tracemalloc.start()
    try:
        stream = _Zeros(layer(entry("a", b"1")), zeros, b"")
        ingested = ingest(stream, tmp_path / "pack")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ingested.tar_size > zeros
    assert peak < 24 << 20
    assert stream.largest <= 1 << 20
    assert ingested.stored < 1 << 20
    with Pack(tmp_path / "pack") as pack:
        verify(pack)
        digest = hashlib.sha256()
        for piece in rebuild(pack):
            digest.update(piece)
    assert digest.digest() == ingested.diff_id


@pytest.mark.parametrize("count", [128, 500])
def test_a32_many_layers_are_one_tree(tmp_path: Path, count: int) -> None:
    layers = [layer(entry("top", b"%d" % number), entry(f"n/{number}", b"%d" % number),
                    *([entry(f"n/.wh.{number - 2}")] if number % 3 == 2 else []))
              for number in range(count)]  # fmt: skip
    found = applied(tmp_path, *layers)
    kept = [number for number in range(count) if number % 3 or number + 2 >= count]
    assert found[b"top"].content == b"%d" % (count - 1)
    assert {path for path in found if path.startswith(b"n/")} == {b"n/%d" % each for each in kept}


def test_a32_layers_merged_one_after_the_other_show_the_same(tmp_path: Path) -> None:
    layers = [layer(*BASE)]
    layers += [layer(entry(f"d/{n}", b"%d" % n), entry(f"d/.wh.{n - 1}")) for n in range(40)]
    expected = applied(tmp_path / "whole", *layers)
    below = tmp_path / "0.index"
    for number, archive in enumerate(layers):
        ingested = ingest(io.BytesIO(archive), tmp_path / "new")
        path = (tmp_path / "new").rename(tmp_path / f"{ingested.diff_id.hex()}.pack")
        paths = [path] if not number else [below, path]
        packs = [Pack(each) for each in paths]
        below = tmp_path / f"{number + 1}.index"
        merge(packs, below, bytes(32), complete=True)
        for pack in packs:
            pack.close()
    with closing(open_union([os.fsencode(below)])) as tree:
        assert seen_in(tree) == expected
