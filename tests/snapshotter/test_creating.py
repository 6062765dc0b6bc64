"""The rules of creating layers, by number, over uppers that different unions wrote.

C1 to C6 say what entries there are, C7 to C13 what becomes of things that layers do not have, C14
to C17 that the same tree gives the same bytes, C18 and C19 what an image says, and C20 and C21 when
a file is in the layer. test_creating_docker.py compares with what Docker writes.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import socket
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from snapshotter import compression, digest
from snapshotter.archive import save_oci
from snapshotter.diff import Difference
from snapshotter.images import commit, import_rootfs
from snapshotter.store import ContainerConfig, Store
from tests.pack.applied import Sights, applied, seen_on_disk
from tests.snapshotter.helpers import members_of, new_container, saved, small_image, tar
from tests.unionfs.trees import UnionSide
from tests.unionfs.unions import FUSE_OVERLAYFS, KERNEL, LAMINA, union
from unionfs.errors import LayerError
from unionfs.opening import open_finished, open_union
from unionfs.pack import ingest

TIME = 1_700_000_000
WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A lower layer with things to change, an upper and a work directory."""
    for name in ("low", "upper", "work"):
        (tmp_path / name).mkdir()
    low = tmp_path / "low"
    for path in ("d/a", "d/b", "d/sub/c", "e/a", "e/sub/b", "f", "hard", "mode", "owner", "same"):
        (low / path).parent.mkdir(parents=True, exist_ok=True)
        (low / path).write_text(f"{path} of the lower layer")
    os.link(low / "hard", low / "hard2")
    (low / "s").symlink_to("d")
    (low / "xattr").write_text("x")
    for place in (low, *low.rglob("*")):
        os.utime(place, (TIME, TIME), follow_symlinks=False)
    return tmp_path


def difference(base: Path, lowers: Sequence[str] = ("low",), *, clamp: int | None = None) -> bytes:
    """The layer of the upper in a directory over its lowers."""
    places = [os.fsencode(base / name) for name in ("upper", "work", *lowers)]
    with closing(open_finished(places[0], places[1], places[2:])) as tree:
        return Difference(tree, clamp=clamp).read()


def entries(layer: bytes) -> list[tarfile.TarInfo]:
    """The entries of a layer."""
    with tarfile.open(fileobj=io.BytesIO(layer), errors="surrogateescape") as archive:
        return archive.getmembers()


def names(layer: bytes) -> list[str]:
    """The names of the entries, as written: directories end in a slash."""
    return [each.name + "/" * each.isdir() for each in entries(layer)]


def whole(directory: Path) -> bytes:
    """A directory as a layer, by GNU tar."""
    command = [
        "tar",
        "--numeric-owner",
        "--format=posix",
        "--xattrs",
        "-C",
        str(directory),
        "-cf",
        "-",
    ]
    return subprocess.run([*command, "."], check=True, capture_output=True).stdout


def changed(base: Path, change: str, kind: str = LAMINA, *options: str) -> Sights:
    """Run a script in a union; what it showed at the end, in whole seconds."""
    lowers = ("low.pack",) if kind == LAMINA else ("low",)
    with union(kind, base, *options, lowers=lowers) as mountpoint:
        subprocess.run(["sh", "-eu", "-c", change], cwd=mountpoint, check=True)
        return in_seconds(seen_on_disk(mountpoint))


def in_seconds(sights: Sights) -> Sights:
    """Times as a layer has them; the root, which need not be an entry, left out."""
    return {
        path: sight._replace(mtime_ns=sight.mtime_ns // 10**9)
        for path, sight in sights.items()
        if path
    }


# -- over real mounts ----------------------------------------------------------------------------

CHANGES = {
    "c01-c02-added": "mkdir -p n/o; echo x >n/o/p; echo y >d/sub/new",
    "c01-modified": "echo more >>d/a; truncate -s 3 e/sub/b; : >f",
    "c03-removed": "rm d/a f; rm -r e; rm s",
    "c03-removed and made anew": "rm -r d; mkdir d; echo n >d/n; rm f; mkdir f; rm -r e; echo e >e",
    "c03-emptied": "rm d/* -r; rm e/sub/b",
    "c08-hardlinks": "echo 1 >x; ln x y; ln x d/z; ln d/a linked; echo 2 >>hard2; ln s s2",
    "c13-a renamed directory": "mv d moved; echo x >moved/new; rm moved/a",
    "c13-renamed twice and below another": "mv d e/d; mv e f.d; mkdir d; mv f.d/sub d/sub",
    "c13-a directory renamed over another": "rm -r d; mv e d",
    "c13-c20-attributes alone": "chmod 600 mode; chown 5:6 owner; touch -d @5 same; chmod 700 d",
    "c13-c20-attributes of a renamed file": "chmod 600 mode; mv mode e/renamed; ln owner again;"
                                            "chown 7 again",
    "c07-sparse": "truncate -s 1000001 hole; echo end >>hole",
    "c16-odd names": "echo 1 >'a b'; echo 2 >\"$(printf 'x\\351\\n')\"; mkdir -- -d; echo >-d/-f",
    "kinds": "mkfifo p; mknod c c 1 3; mknod b b 7 0; ln -s /no/where l; rm hard; mkfifo hard",
}  # fmt: skip

UNIONS = {
    "lamina": (LAMINA, ()),
    "lamina with metacopy": (LAMINA, ("metacopy=on",)),
    "lamina in the dialect of AUFS": (LAMINA, ("whiteout=aufs",)),
    "overlayfs": (KERNEL, ()),
    "overlayfs with redirects": (KERNEL, ("redirect_dir=on", "index=off")),
    "overlayfs with metacopy": (KERNEL, ("redirect_dir=on", "metacopy=on", "index=off")),
    "fuse-overlayfs": (FUSE_OVERLAYFS, ()),
}


NOT_SO = {
    ("c08-hardlinks", "fuse-overlayfs"),  # it forgets the other names of a copied-up file
    ("c13-a directory renamed over another", "fuse-overlayfs"),  # mv fails in it
}


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.peer("fuse-overlayfs")
@pytest.mark.parametrize(
    ("change", "which"),
    [(change, which) for change in CHANGES for which in UNIONS if (change, which) not in NOT_SO],
)
def test_a_layer_over_its_lowers_shows_what_the_union_showed(
    base: Path, change: str, which: str
) -> None:
    kind, options = UNIONS[which]
    lower = whole(base / "low")
    ingest(io.BytesIO(lower), base / "low.pack")
    seen = changed(base, CHANGES[change], kind, *options)
    layer = difference(base, ("low.pack",))
    listed = names(layer)
    assert len(set(listed)) == len(listed), "C6: no name twice"
    assert not any(name.startswith(("./", "/")) for name in listed)
    shown = in_seconds(applied(base / "applied", lower, layer))
    if kind != LAMINA:  # others part the names of a file when one of them is changed
        shown, seen = _without_links(shown), _without_links(seen)
    assert shown == seen


def _without_links(sights: Sights) -> Sights:
    return {path: sight._replace(names=frozenset([path])) for path, sight in sights.items()}


# -- which entries there are ---------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.fuse
def test_c01_to_c04_a_layer_is_what_changed_its_parents_and_whiteouts_first(base: Path) -> None:
    change = "echo x >>d/sub/c; rm d/a f; rm -r e; mkdir e; echo n >e/a; mkdir -p z/y; ln -s x Z"
    changed(base, change, KERNEL)
    assert names(difference(base)) == [
        ".wh.f", "Z", "d/", "d/.wh.a", "d/sub/", "d/sub/c", "e/", "e/.wh..wh..opq", "e/a", "z/",
        "z/y/",
    ]  # fmt: skip


@pytest.mark.root
def test_c03_a_name_as_long_as_names_may_be_can_be_removed(base: Path) -> None:
    """The marker is longer than a name on disk may be, but not than one in an archive."""
    long = "n" * 255
    (base / "low" / long).write_text("x")
    lower = whole(base / "low")
    os.mknod(base / "upper" / long, stat.S_IFCHR)
    layer = difference(base)
    assert names(layer) == [".wh." + long]
    shown = applied(base / "applied", lower, layer)
    assert long.encode() not in shown
    assert b"f" in shown


@pytest.mark.root
def test_c05_whiteouts_are_always_the_same_entry(base: Path) -> None:
    changed(base, "rm f; rm -r d; mkdir d", KERNEL)
    layer = difference(base)
    markers = [each for each in entries(layer) if ".wh." in each.name]
    assert [each.name for each in markers] == [".wh.f", "d/.wh..wh..opq"]
    for each in markers:
        each.name, each.chksum, each.offset, each.offset_data = "", 0, 0, 0
    assert {each.tobuf() for each in markers} == {tarfile.TarInfo().replace(mode=0).tobuf()}
    assert difference(base, clamp=5)[:512] == layer[:512]


@pytest.mark.root
def test_c07_holes_are_written_out(base: Path) -> None:
    changed(base, "truncate -s 1000001 hole", KERNEL)
    layer = difference(base)
    (entry,) = entries(layer)
    assert (entry.size, entry.issparse(), len(layer)) == (1_000_001, False, 512 + 1_000_448 + 1024)


@pytest.mark.root
def test_c08_links_lead_to_the_first_name_and_into_no_other_layer(base: Path) -> None:
    changed(base, "echo 1 >y; ln y x; ln y z; ln f linked; chmod 600 hard", KERNEL, "index=off")
    found = {each.name: (each.type, each.linkname, each.size) for each in entries(difference(base))}
    assert found["x"] == (tarfile.REGTYPE, "", 2)
    assert found["y"] == (tarfile.LNKTYPE, "x", 0)
    assert found["z"] == (tarfile.LNKTYPE, "x", 0)
    assert found["f"] == (tarfile.REGTYPE, "", 20)
    assert found["linked"] == (tarfile.LNKTYPE, "f", 0)
    assert found["hard"] == (tarfile.REGTYPE, "", 23)
    assert "hard2" not in found


def test_c09_sockets_are_left_out(base: Path) -> None:
    (base / "upper" / "file").touch()
    with closing(socket.socket(socket.AF_UNIX)) as unix:
        unix.bind(str(base / "upper" / "socket"))
    assert names(difference(base)) == ["file"]


# -- what layers do not have ---------------------------------------------------------------------


@pytest.mark.parametrize("name", [b".wh.x", b".wh..wh.x", b".wh.", b".wh..wh..opq"])
@pytest.mark.usefixtures("no_umask")
def test_c10_no_file_with_the_name_of_a_marker_is_made(base: Path, name: bytes) -> None:
    places = [os.fsencode(base / each) for each in ("low", "upper", "work")]
    with closing(open_union(places[:1], *places[1:])) as tree:
        side = UnionSide(tree)
        for make in (
            partial(side.create, name, b""),
            partial(side.mkdir, name),
            partial(side.rename, b"f", name),
            partial(side.link, b"f", name),
        ):
            with pytest.raises(OSError, match=os.strerror(22)):
                make()
    assert names(difference(base)) == []


@pytest.mark.parametrize("name", [".wh..", ".wh..."])
def test_c10_a_marker_of_nothing_is_named(base: Path, name: str) -> None:
    """Only a hand, or another program, makes such a file."""
    (base / "upper" / name).touch()
    with pytest.raises(LayerError, match=f"{name} is a whiteout of nothing"):
        applied(base / "applied", difference(base))


@pytest.mark.root
def test_c11_a_unions_xattrs_stay_and_those_of_a_union_inside_go(base: Path) -> None:
    (base / "upper" / "d").mkdir()
    for name in ("trusted.overlay.origin", "trusted.overlay.impure", "user.overlay.uuid",
                 "user.fuseoverlayfs.opaque", "trusted.overlay.lamina"):  # fmt: skip
        os.setxattr(base / "upper" / "d", name, b"n")
    kept = {"trusted.overlay.overlay.opaque": b"y", "user.overlay.overlay.redirect": b"/q",
            "trusted.overlay.overlay.overlay.x": b"twice", "user.mine": b"1"}  # fmt: skip
    for name, value in kept.items():
        os.setxattr(base / "upper" / "d", name, value)
    (entry,) = entries(difference(base))
    assert entry.pax_headers == {
        "SCHILY.xattr.trusted.overlay.opaque": "y",
        "SCHILY.xattr.user.overlay.redirect": "/q",
        "SCHILY.xattr.trusted.overlay.overlay.x": "twice",
        "SCHILY.xattr.user.mine": "1",
    }


def _device(upper: Path) -> None:
    os.mknod(upper / "f", stat.S_IFCHR, 0)
    os.setxattr(upper / "d", "trusted.overlay.opaque", b"y")


def _by_xattr(space: str, upper: Path) -> None:
    (upper / "f").touch()
    os.setxattr(upper / "f", f"{space}.overlay.whiteout", b"")
    os.setxattr(upper, f"{space}.overlay.opaque", b"x")
    os.setxattr(upper / "d", f"{space}.overlay.opaque", b"y")


def _markers(upper: Path) -> None:
    (upper / ".wh.f").touch()
    (upper / "d" / ".wh..wh..opq").touch()


def _fuse_overlayfs(upper: Path) -> None:
    (upper / ".wh.f").touch()
    os.setxattr(upper / "d", "user.fuseoverlayfs.opaque", b"y")


@pytest.mark.root
@pytest.mark.parametrize(
    "dialect",
    [
        _device,
        pytest.param(lambda upper: _by_xattr("trusted", upper), id="trusted xattrs"),
        pytest.param(lambda upper: _by_xattr("user", upper), id="user xattrs"),
        _markers,
        _fuse_overlayfs,
    ],
)
def test_c12_every_dialect_gives_the_same_layer(base: Path, dialect: object) -> None:
    assert callable(dialect)
    (base / "upper" / "d").mkdir()
    dialect(base / "upper")
    assert names(difference(base)) == [".wh.f", "d/", "d/.wh..wh..opq"]


@pytest.mark.root
@pytest.mark.parametrize("value", [b"", b"/", b"a/b", b"../d", b"/d/../e", b"/d//x"])
def test_c13_a_redirect_to_nowhere_is_refused(base: Path, value: bytes) -> None:
    (base / "upper" / "moved").mkdir()
    os.setxattr(base / "upper" / "moved", "trusted.overlay.redirect", value)
    with pytest.raises(LayerError, match=r"moved in layer .* has the redirect"):
        difference(base)


@pytest.mark.root
def test_c13_a_metacopy_without_its_lower_is_refused(base: Path) -> None:
    (base / "upper" / "only").touch()
    os.setxattr(base / "upper" / "only", "trusted.overlay.metacopy", b"")
    with pytest.raises(LayerError, match=r"only in layer .* is a metacopy"):
        difference(base)


# -- the same bytes everywhere -------------------------------------------------------------------


def test_c14_times_are_clamped_cut_and_never_set(base: Path) -> None:
    for name, moment in (("new", TIME * 10**9 + 999_999_999), ("old", 5 * 10**9 + 1), ("pre", -1)):
        (base / "upper" / name).touch()
        os.utime(base / "upper" / name, ns=(0, moment))
    times = {each.name: each.mtime for each in entries(difference(base, clamp=1000))}
    assert times == {"new": 1000, "old": 5, "pre": -1}


@pytest.mark.usefixtures("no_umask")
def test_c15_the_same_tree_is_the_same_layer_whoever_made_it(base: Path) -> None:
    layers = []
    for number, order in enumerate((("b", "a/é", "a/z", "A"), ("A", "a/z", "a/é", "b"))):
        upper = base / f"upper-{number}"
        for name in order:
            (upper / name).parent.mkdir(parents=True, exist_ok=True)
            (upper / name).write_text(name)
        for path in (upper, *upper.rglob("*")):
            os.utime(path, ns=(number, TIME * 10**9 + number))
            os.setxattr(path, "user.one" if number else "user.two", b"1")
            os.setxattr(path, "user.two" if number else "user.one", b"1")
        (base / "upper").rmdir() if not number else (base / "upper").unlink()
        (base / "upper").symlink_to(upper)
        layers.append(difference(base))
    assert layers[0] == layers[1]
    assert names(layers[0]) == ["A", "a/", "a/z", "a/é", "b"]
    for each in entries(layers[0]):
        assert (each.uname, each.gname) == ("", "")
        assert not {"atime", "ctime", "mtime"} & set(each.pax_headers)


def test_c15_extended_headers_are_written_where_they_are_needed_alone(base: Path) -> None:
    (base / "upper" / ("d" * 99)).mkdir()
    (base / "upper" / ("d" * 99) / ("f" * 99)).touch()
    assert len(difference(base)) == 2 * 512 + 1024


def test_c17_compressed_layers_say_nothing_of_machine_and_time(store: Store) -> None:
    image = small_image(store, "made")
    out = io.BytesIO()
    save_oci(store, ["made"], out)
    blobs = members_of(out.getvalue())
    (layer,) = [data for data in blobs.values() if data.startswith(b"\x1f\x8b")]
    assert layer[:10] == b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    plain = b"".join(store.layers.rebuilt(image.layers[0].diff_id))
    assert layer == b"".join(compression.compress_layer([plain[:999], plain[999:]]))


# -- what an image says --------------------------------------------------------------------------


def test_c18_an_image_tells_its_layers_and_what_made_them(store: Store) -> None:
    image = small_image(store)
    for step in range(3):
        container = new_container(store, image)
        if step != 1:
            (container.upper / f"{step}").touch()
        image = commit(store, container, author="me", created=WHEN, message=f"step {step}")
    document = json.loads(image.config_bytes)
    history = document["history"]
    assert [entry.get("empty_layer", False) for entry in history] == [False, False, True, False]
    assert len(document["rootfs"]["diff_ids"]) == sum(
        not entry.get("empty_layer") for entry in history
    )
    assert document["rootfs"]["type"] == "layers"
    assert document["author"] == "me"
    assert document["created"] == history[-1]["created"] == "2024-05-06T07:08:09Z"


def test_c19_an_image_id_is_the_digest_of_the_bytes_that_are_saved(store: Store) -> None:
    base = import_rootfs(store, io.BytesIO(tar({"f": b"1"})), reference="base:1")
    config = ContainerConfig(cmd=["sh"], labels={"b": "é<>&", "a": "\u2028"})
    container = store.create_container(base, image_name="base:1", config=config)
    (container.upper / "x").touch()
    image = commit(store, container, reference="made:1")
    (data,) = [
        data for name, data in members_of(saved(store, "made:1")).items()
        if name == f"blobs/{image.id.replace(':', '/')}"
    ]  # fmt: skip
    assert data == image.config_bytes
    assert image.id == digest.of(data) == f"sha256:{hashlib.sha256(data).hexdigest()}"


# -- when a file is in the layer -----------------------------------------------------------------


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.parametrize("which", ["lamina", "lamina with metacopy", "overlayfs with metacopy"])
@pytest.mark.parametrize(
    "change", ["chmod 600 f", "chown 5 f", "touch -d @5 f", "setfattr -n user.k -v v f"]
)
def test_c20_a_file_with_other_attributes_is_written_whole(
    base: Path, which: str, change: str
) -> None:
    kind, options = UNIONS[which]
    ingest(io.BytesIO(whole(base / "low")), base / "low.pack")
    changed(base, change, kind, *options)
    (entry,) = entries(difference(base, ("low.pack",)))
    assert (entry.name, entry.size) == ("f", len("f of the lower layer"))


@pytest.mark.root
@pytest.mark.fuse
def test_c21_a_file_written_with_what_it_had_is_in_the_layer(base: Path) -> None:
    changed(base, "cat same >x; cat x >same; rm x; cp -p f g; mv g f", KERNEL)
    assert names(difference(base)) == ["f", "same"]
