"""The rules of applying layers that are about archives, digests and documents, by number.

A1 to A4 are about digests, A30 and A32 about empty and many layers, A33 and A34 about what need not
be understood. What entries do to each other is tested in tests/pack/test_applying.py, and here
once more beside Docker.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from copy import copy
from pathlib import Path

import pytest
from backports import zstd

from snapshotter import digest
from snapshotter.archive import load, save_oci
from snapshotter.errors import ArchiveError
from snapshotter.images import commit
from snapshotter.store import Store
from tests.pack.applied import Made, layer
from tests.pack.test_applying import CASES
from tests.peers.docker import Docker
from tests.snapshotter.helpers import (
    config_of,
    docker_archive,
    members_of,
    new_container,
    tar,
    tree_of,
)
from tests.snapshotter.layouts import LAYER, Layout
from unionfs.errors import LayerError

FIRST, SECOND = tar({"a": b"1", "b": b"1"}), tar({"a": b"2", ".wh.b": b""})

FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "zstd": zstd.compress,
    "gzip in two members": lambda data: gzip.compress(data[:700]) + gzip.compress(data[700:]),
    "zstd behind a skippable frame": lambda data: (
        b"\x50\x2a\x4d\x18\x04\0\0\0name" + zstd.compress(data)
    ),
}


@pytest.mark.parametrize("kind", ["", "+gzip", "+zstd"])
@pytest.mark.parametrize("form", FORMS)
def test_a01_a_layer_is_read_by_its_content_whatever_its_type_says(
    store: Store, form: str, kind: str
) -> None:
    layout = Layout()
    image = layout.image([layout.blob(FORMS[form](FIRST), LAYER + kind)], [FIRST])
    (loaded,) = load(store, io.BytesIO(layout.archive(image)))
    assert tree_of(store, loaded.image) == {"a": b"1", "b": b"1"}


@pytest.mark.parametrize("form", ["gzip", "zstd"])
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:-1], "truncated"),
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: data + b"more", "other data after"),
    ],
    ids=["short by one", "half", "more"],
)
def test_a01_a_layer_that_is_short_or_goes_on_is_refused(
    store: Store, form: str, spoil: Callable[[bytes], bytes], message: str
) -> None:
    layout = Layout()
    image = layout.image([layout.blob(spoil(FORMS[form](FIRST)), LAYER)], [FIRST])
    with pytest.raises(LayerError, match=message):
        load(store, io.BytesIO(layout.archive(image)))


def test_a02_sizes_are_compared_before_digests(store: Store) -> None:
    layout = Layout()
    packed = gzip.compress(FIRST)
    for fields, message in (
        ({"size": len(packed) + 1}, f"has {len(packed)} bytes, but should have {len(packed) + 1}"),
        ({"size": -1}, "bytes, but should have -1"),
        ({"digest": "sha256:" + "0" * 64}, "has no blob sha256:000"),
        ({"digest": "sha256:" + "A" * 64}, "unsupported digest"),
        ({"digest": "md5:" + "0" * 32}, "unsupported digest"),
    ):
        image = layout.image([layout.blob(packed, LAYER, **fields)], [FIRST])
        with pytest.raises(ArchiveError, match=message):
            load(store, io.BytesIO(layout.archive(image)))
    assert store.images() == []


def test_a02_a_blob_must_be_what_its_name_says(store: Store) -> None:
    layout = Layout()
    packed = gzip.compress(FIRST)
    descriptor = layout.blob(packed, LAYER)
    other = gzip.compress(SECOND).ljust(len(packed), b"\0")[: len(packed)]
    layout.entries[f"blobs/{descriptor['digest'].replace(':', '/')}"] = other
    image = layout.image([descriptor], [FIRST])
    with pytest.raises((ArchiveError, LayerError), match=r"damaged|other data|truncated"):
        load(store, io.BytesIO(layout.archive(image)))


def test_a02_the_plain_archive_must_be_the_one_of_the_configuration(store: Store) -> None:
    layout = Layout()
    image = layout.image([layout.blob(gzip.compress(SECOND), LAYER)], [FIRST])
    with pytest.raises(ArchiveError, match=r"invalid diffID: config sha256:.* expects layer"):
        load(store, io.BytesIO(layout.archive(image)))


def test_a02_a_root_filesystem_of_another_type_is_refused(store: Store) -> None:
    rootfs = {"type": "layers+base", "diff_ids": []}
    with pytest.raises(ArchiveError, match=r"rootfs type 'layers\+base' is not supported"):
        load(store, io.BytesIO(docker_archive(config_of([], rootfs=rootfs), [])))


def test_a03_layers_are_applied_in_their_order(store: Store) -> None:
    for layers, expected in (
        ([FIRST, SECOND], {"a": b"2"}),
        ([SECOND, FIRST], {"a": b"1", "b": b"1"}),
    ):
        (loaded,) = load(store, io.BytesIO(docker_archive(config_of(layers), layers)))
        assert tree_of(store, loaded.image) == expected


@pytest.mark.parametrize("listed", [[], [FIRST], [FIRST, SECOND, FIRST]])
def test_a03_as_many_layers_as_the_configuration_has(store: Store, listed: list[bytes]) -> None:
    archive = docker_archive(config_of([FIRST, SECOND]), listed)
    with pytest.raises(ArchiveError, match=f"lists 2 layers, but the manifest has {len(listed)}"):
        load(store, io.BytesIO(archive))


def test_a04_layers_are_known_by_what_is_below_them(store: Store) -> None:
    """The same layer upon others is another tree: the chain ID names it."""
    loaded = []
    for layers in ([FIRST, SECOND], [SECOND]):
        loaded += load(store, io.BytesIO(docker_archive(config_of(layers), layers)))
    trees = [tree_of(store, each.image) for each in loaded]
    assert trees == [{"a": b"2"}, {"a": b"2"}]
    (above, alone) = (
        list(digest.chain(info.diff_id for info in each.image.layers)) for each in loaded
    )
    assert above[1] == digest.of(f"{digest.of(FIRST)} {digest.of(SECOND)}".encode())
    assert alone == [digest.of(SECOND)]


def test_a30_an_empty_layer_may_be_listed_or_left_to_the_history(store: Store) -> None:
    history = [{"created_by": "a"}, {"created_by": "b", "empty_layer": True}, {"created_by": "c"}]
    layers = [FIRST, bytes(1024)]
    archive = docker_archive(config_of(layers, history=history), layers, "made:1")
    (loaded,) = load(store, io.BytesIO(archive))
    assert [info.diff_id for info in loaded.image.layers] == [digest.of(FIRST), digest.EMPTY_TAR]
    assert digest.EMPTY_TAR.startswith("sha256:5f70bf18a086")
    assert tree_of(store, loaded.image) == {"a": b"1", "b": b"1"}


def test_a32_an_image_of_more_than_127_layers(store: Store) -> None:
    layers = [tar({f"n/{number}": b"%d" % number, "top": b"%d" % number}) for number in range(200)]
    (loaded,) = load(store, io.BytesIO(docker_archive(config_of(layers), layers)))
    container = new_container(store, loaded.image)
    (container.upper / "more").write_bytes(b"x")
    tree = tree_of(store, commit(store, container))
    assert (tree["top"], tree["more"], len(tree)) == (b"199", b"x", 203)


FOREIGN = [
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
]


@pytest.mark.parametrize("kind", FOREIGN)
def test_a33_a_foreign_layer_is_a_layer_if_it_is_there_and_never_fetched(
    store: Store, kind: str
) -> None:
    layout = Layout()
    packed = gzip.compress(FIRST)
    descriptor = layout.blob(packed, kind, urls=["http://127.0.0.1:1/layer.tar.gz"])
    archive = layout.archive(layout.image([descriptor], [FIRST]))
    (loaded,) = load(store, io.BytesIO(archive))
    assert tree_of(store, loaded.image) == {"a": b"1", "b": b"1"}
    out = io.BytesIO()
    save_oci(store, [loaded.image.id], out)
    assert packed in members_of(out.getvalue()).values()
    store.remove_image(loaded.image.id)
    del layout.entries[f"blobs/{descriptor['digest'].replace(':', '/')}"]
    with pytest.raises(ArchiveError, match="has no blob"):
        load(store, io.BytesIO(layout.archive(layout.image([descriptor], [FIRST]))))


def test_a34_what_is_unknown_is_passed_over(store: Store) -> None:
    layout = Layout()
    unknown = [
        layout.blob(b'{"layers": 5, "manifests": 7}', "application/vnd.example.thing.v1+json"),
        {"mediaType": "application/vnd.example.v9", "digest": "sha512:" + "0" * 128, "size": 1},
        layout.image([layout.blob(b"{}", "text/x")], [], config=layout.blob(b"{}", "text/x")),
    ]
    known = layout.image([layout.blob(FIRST, LAYER)], [FIRST], subject={"x": 1}, new=[None])
    (loaded,) = load(store, io.BytesIO(layout.archive(*unknown, known, new={"x": 1})))
    assert tree_of(store, loaded.image) == {"a": b"1", "b": b"1"}
    with pytest.raises(ArchiveError, match="no image for"):
        load(store, io.BytesIO(layout.archive(*unknown)))


def test_a34_unknown_fields_of_a_configuration_stay(store: Store) -> None:
    config = json.loads(config_of([FIRST]))
    config |= {"config": {"Env": None, "New": [1.50]}, "os.features": ["x"], "ü": {"n": None}}
    data = json.dumps(config, indent=3).encode()
    (loaded,) = load(store, io.BytesIO(docker_archive(data, [FIRST])))
    assert loaded.image.config_bytes == data
    made = json.loads(commit(store, new_container(store, loaded.image)).config_bytes)
    assert (made["os.features"], made["config"]["New"]) == (["x"], [1.5])


# -- Docker --------------------------------------------------------------------------------------

DOCKER_DIFFERS = {  # what Docker 20.10 with overlay2 cannot be asked, or does otherwise
    "a05-the root": "the cases share the root",
    "a12-leftovers of aufs": "those are in the root",
    "a05-in one layer": "Docker refuses duplicates",
    "a07-after the name of its own layer": "Docker fails: it makes the whiteout's device there",
    "a07-a directory made anew, whiteout last": "Docker fails, likewise",
    "a16-below a symlink of the same layer": "Docker follows it, inside the image",
    "a22-into the layer below": "overlay2 links within one layer only",
    "a22-to a symlink, which is not followed": "likewise",
    "a22-to a file that was replaced": "Docker refuses duplicates",
    "a29-the last of several wins": "Docker refuses duplicates",
}


def _in(directory: str, entry: Made) -> Made:
    """An entry with all it names in a directory."""
    info = copy(entry.info)
    info.name = f"{directory}/{info.name}"
    if info.islnk():
        info.linkname = f"{directory}/{info.linkname}"
    return Made(info, entry.content)


@pytest.mark.root
@pytest.mark.peer("runc")
def test_a05_to_a30_docker_shows_the_same(
    store: Store, busybox_tar: Path, docker: Docker, tmp_path: Path
) -> None:
    cases = [name for name in CASES if name not in DOCKER_DIFFERS]
    depth = max(len(case.layers) for case in CASES.values())
    layers = [
        layer(
            *(
                _in(f"case{number}", entry)
                for number, name in enumerate(cases)
                for entry in (CASES[name].layers[level : level + 1] or [[]])[0]
            )
        )
        for level in range(depth)
    ]
    (tmp_path / "image.tar").write_bytes(docker_archive(config_of(layers), layers, "cases:1"))
    with (tmp_path / "image.tar").open("rb") as stream:
        (loaded,) = load(store, stream)
    docker("load", "--input", tmp_path / "image.tar")
    container = docker("create", "cases:1", "none").strip()
    docker("export", "--output", tmp_path / "tree.tar", container)
    docker("rm", container)
    theirs = _cases(tmp_path / "tree.tar", cases)
    ours = {
        name: {
            path.removeprefix(f"case{number}/"): content
            for path, content in tree_of(store, loaded.image).items()
            if path.startswith(f"case{number}/")
        }
        for number, name in enumerate(cases)
    }
    assert {name: (ours[name], theirs[name]) for name in cases if ours[name] != theirs[name]} == {}


def _cases(path: Path, cases: list[str]) -> dict[str, dict[str, str | bytes]]:
    found: dict[str, dict[str, str | bytes]] = {name: {} for name in cases}
    with tarfile.open(path, errors="surrogateescape") as archive:
        for member in archive:
            top, _, name = member.name.partition("/")
            if not top.startswith("case") or not name:
                continue
            what: str | bytes = "directory" if member.isdir() else f"{member.type!r}"
            if member.isreg() or member.islnk():
                content = archive.extractfile(member)
                assert content is not None
                what = content.read()
            elif member.issym():
                what = "120000"
            elif member.isfifo():
                what = "10000"
            found[cases[int(top.removeprefix("case"))]][name] = what
    return found
