"""Archives of images made to do harm: each is refused for what is wrong with it, and soon."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from snapshotter import models
from snapshotter.archive import contents, load, manifests, members, save
from snapshotter.errors import ArchiveError
from snapshotter.images import commit
from snapshotter.store import Store
from tests.snapshotter.helpers import config_of, docker_archive, new_container, sha256, tar
from tests.snapshotter.layouts import CONFIG, INDEX, LAYER, MANIFEST, Layout
from unionfs.errors import LayerError

SMALL = tar({"a": b"1"})
ZEROS = bytes(1 << 20)


@pytest.fixture(autouse=True)
def _nothing_else_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever an archive says, only the store is written to."""
    (tmp_path / "secret").write_text("secret")
    monkeypatch.chdir(tmp_path)
    yield
    assert {path.name for path in tmp_path.iterdir()} == {"secret", "store"}
    assert (tmp_path / "secret").read_text() == "secret"


def refused(store: Store, archive: bytes, message: str) -> None:
    """The archive is refused, and nothing stays of it."""
    with pytest.raises((ArchiveError, LayerError), match=message):
        load(store, io.BytesIO(archive))
    assert store.images() == []
    assert list((store.root / "layers").iterdir()) == []
    assert list((store.root / "tmp").iterdir()) == []


# -- names and digests that are paths ------------------------------------------------------------

OUTSIDE = ["../secret", "/../secret", "a/../../secret", "../" * 30 + "etc/passwd"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("where", ["Config", "Layers"])
def test_cve_2014_9358_a_name_in_a_manifest_is_no_path(store: Store, where: str, name: str) -> None:
    entry: dict[str, Any] = {"Config": "c.json", "RepoTags": None, "Layers": ["l.tar"]}
    entry[where] = name if where == "Config" else [name]
    files = {"c.json": config_of([SMALL]), "l.tar": SMALL}
    refused(
        store, tar({**files, "manifest.json": json.dumps([entry]).encode()}), "leads out of the"
    )


@pytest.mark.parametrize("name", ["/etc/passwd", "secret", "./secret", "store/store.db"])
def test_a_file_of_the_host_is_no_member(store: Store, name: str) -> None:
    entry: dict[str, Any] = {"Config": name, "Layers": []}
    refused(store, tar({"manifest.json": json.dumps([entry]).encode()}), "has no document")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.parametrize("target", ["/etc/passwd", "secret"])
def test_a_link_leads_to_members_alone(store: Store, kind: bytes, target: str) -> None:
    entry: list[dict[str, Any]] = [{"Config": "c.json", "Layers": []}]
    archive = tar({"c.json": (kind, target), "manifest.json": json.dumps(entry).encode()})
    refused(store, archive, "has no document c.json")


@pytest.mark.parametrize(
    "digest",
    ["sha256:../../../secret", "../../secret", "sha256:" + "0" * 63, "sha256:" + "0" * 65,
     "sha256:" + "0" * 64 + "/../x", "sha256:" + "0" * 64 + "\n", "SHA256:" + "0" * 64,
     "sha256:" + "٠" * 64, "", "sha512:" + "0" * 128],
)  # fmt: skip
@pytest.mark.parametrize("where", ["index", "config", "layer", "diff_id"])
def test_cve_2024_3727_a_digest_is_checked_before_it_names_anything(
    store: Store, where: str, digest: str
) -> None:
    layout = Layout()
    fields = {"digest": digest}
    layer = layout.blob(SMALL, LAYER, **(fields if where == "layer" else {}))
    document = {"rootfs": {"type": "layers", "diff_ids": [
        digest if where == "diff_id" else f"sha256:{sha256(SMALL)}"]}}  # fmt: skip
    config = layout.document(document, CONFIG, **(fields if where == "config" else {}))
    manifest = {"schemaVersion": 2, "config": config, "layers": [layer]}
    top = layout.document(manifest, MANIFEST, **(fields if where == "index" else {}))
    refused(store, layout.archive(top), "unsupported digest|invalid diffID")


@pytest.mark.parametrize(
    "name", ["../x:1", "a/../b:1", "/x:1", "x:../1", "a\x00b:1", "x:1\n", "-x"]
)
def test_a_name_that_is_no_reference_is_refused(store: Store, name: str) -> None:
    refused(store, docker_archive(config_of([SMALL]), [SMALL], name), "invalid reference")
    layout = Layout()
    top = layout.image([layout.blob(SMALL, LAYER)], [SMALL])
    top["annotations"] = {"io.containerd.image.name": name + "/:"}
    refused(store, layout.archive(top), "invalid reference")


# -- documents that are not what they seem -------------------------------------------------------


def _confused(**fields: Any) -> Callable[[Layout], dict[str, Any]]:
    def make(layout: Layout) -> dict[str, Any]:
        return layout.image([layout.blob(SMALL, LAYER)], [SMALL], **fields)

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_confused(manifests=[]), "a manifest and an index at once"),
        (_confused(manifests=None), "a manifest and an index at once"),
        (_confused(mediaType=INDEX), "says it is"),
        (_confused(mediaType=["x"]), "says it is"),
        (_confused(config=None), "Expected `object`, got `null`"),
        (_confused(layers=None), "Expected `array`, got `null`"),
        (_confused(layers={"0": {}}), "Expected `array`, got `object`"),
        (_confused(schemaVersion="2"), "Expected `int`"),
        (lambda layout: layout.index([], layers=[]), "a manifest and an index at once"),
        (lambda layout: layout.index([], config={}), "a manifest and an index at once"),
        (lambda layout: layout.index([], mediaType=MANIFEST), "no image for|says it is"),
        (lambda layout: layout.document([], INDEX), "Expected `object`"),
        (lambda layout: layout.blob(b"{", INDEX), "JSON|truncated"),
        (lambda layout: layout.blob(b'{"a": 1, "a": 2}', MANIFEST), "missing required"),
        (lambda layout: layout.blob(b'{"a":' * 9**6, INDEX), "recursion|malformed"),
        (lambda layout: layout.blob(b'{"schemaVersion": 1e999}', INDEX), "Number out of range"),
        (lambda layout: layout.blob(b'{"manifests": [\xff]}', INDEX), "utf-8|malformed|invalid"),
    ],
)
def test_cve_2021_41190_a_document_is_one_thing(
    store: Store, make: Callable[[Layout], dict[str, Any]], message: str
) -> None:
    layout = Layout()
    refused(store, layout.archive(make(layout)), message)


@pytest.mark.parametrize(
    "process",
    [
        {"Volumes": {"/../../../etc": {}, "../secret": {}}},
        {"WorkingDir": "/proc/self/fd/7", "User": "../../root"},
        {"Labels": {"io.kubernetes.x": "../secret", "containerd.io/restart.status": "running"}},
        {"Env": ["LD_PRELOAD=/secret", "", "="], "Entrypoint": ["/proc/self/exe"]},
        {"Healthcheck": {"Test": ["CMD", "x"] * 1000}, "OnBuild": ["RUN x"]},
    ],
    ids=["CVE-2022-23648", "CVE-2024-21626", "CVE-2026-53488", "variables", "instructions"],
)
def test_a_configuration_is_kept_and_nothing_of_it_is_done(
    store: Store, process: dict[str, Any]
) -> None:
    """Loading, saving and committing take it for data."""
    archive = docker_archive(config_of([SMALL], config=process), [SMALL], "x:1")
    (loaded,) = load(store, io.BytesIO(archive))
    save(store, ["x:1"], io.BytesIO())
    made = commit(store, new_container(store, loaded.image))
    for key, value in process.items():
        assert json.loads(loaded.image.config_bytes)["config"][key] == value
    assert store.image(made.id).layers == loaded.image.layers


@pytest.mark.parametrize(
    "time", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59.999999999-23:59", "x", "", "-"]
)
def test_a_time_that_no_calendar_has_is_the_epoch(store: Store, time: str) -> None:
    (loaded,) = load(store, io.BytesIO(docker_archive(config_of([SMALL], created=time), [SMALL])))
    assert loaded.image.created == datetime(1970, 1, 1, tzinfo=UTC)
    assert models.format_time(loaded.image.created) == "1970-01-01T00:00:00Z"


# -- too much ------------------------------------------------------------------------------------


def test_cve_2023_25153_a_document_is_read_up_to_a_limit(store: Store) -> None:
    big = b'{"manifests": [' + b" " * models.JSON_MAX + b"]}"
    refused(store, tar({"oci-layout": b"{}", "index.json": big}), "no document|neither")
    refused(store, tar({"manifest.json": big}), "neither manifest.json")


def test_all_documents_together_are_limited(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contents, "DOCUMENTS_MAX", 5000)
    archive = tar({f"{number}.json": b"{" + b" " * 999 for number in range(6)})
    refused(store, archive, "more than 5000 bytes of documents")


def test_members_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "MEMBERS_MAX", 10)
    refused(store, tar({str(number): None for number in range(11)}), "more than 10 members")


def test_images_are_counted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests, "IMAGES_MAX", 10)
    entry = {"Config": "c.json", "RepoTags": None, "Layers": ["l"]}
    files = {"c.json": config_of([SMALL]), "l": SMALL}
    many = json.dumps([entry] * 11).encode()
    refused(store, tar({**files, "manifest.json": many}), "more than 10 images")
    layout = Layout()
    tops = [layout.index([], n=number) for number in range(11)]
    refused(store, layout.archive(*tops), "more than 10 images")


def test_layers_are_counted(store: Store) -> None:
    count = manifests.LAYERS_MAX + 1
    config = config_of([SMALL] * count)
    entry = {"Config": "c.json", "RepoTags": None, "Layers": ["l"] * count}
    files = {"c.json": config, "l": SMALL, "manifest.json": json.dumps([entry]).encode()}
    refused(store, tar(files), "c.json: an image of 1001 layers, 1000 are allowed")
    layout = Layout()
    top = layout.image([layout.blob(SMALL, LAYER)] * count, [SMALL] * count)
    refused(store, layout.archive(top), "an image of 1001 layers, 1000 are allowed")


def test_indexes_in_indexes_are_read_once_each(store: Store) -> None:
    """Read for each time they are named, these would be a hundred million."""
    layout = Layout()
    index = layout.index([])
    for _ in range(4):
        index = layout.index([index] * 100)
    refused(store, layout.archive(index), "no image for")
    refused(store, layout.archive(layout.index([index])), "nested too deeply")


def test_the_same_image_a_thousand_times_is_one(store: Store) -> None:
    layout = Layout()
    image = layout.image([layout.blob(SMALL, LAYER)], [SMALL])
    assert len(load(store, io.BytesIO(layout.archive(*[image] * 1000)))) == 1


@pytest.mark.parametrize("size", [1 << 21, 1 << 34, (1 << 62) - 1])
def test_an_extended_header_is_limited(store: Store, size: int) -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, size
    refused(store, info.tobuf(tarfile.GNU_FORMAT), "a header of the archive is larger than")


def test_a_size_that_no_file_has_is_cut_off_where_the_archive_ends(store: Store) -> None:
    info = tarfile.TarInfo("manifest.json")
    info.size = 1 << 60
    refused(store, info.tobuf(tarfile.GNU_FORMAT) + b"{" + bytes(600), "truncated")


def test_a_bomb_is_read_in_pieces_and_never_held(store: Store) -> None:
    """A layer of 256 MiB of zeros in 256 KiB, in an archive that is compressed as well."""
    packer = zlib.compressobj(9, wbits=31)
    info = tarfile.TarInfo("zeros")
    info.size = 256 << 20
    plain = [info.tobuf(), *[ZEROS] * 256, bytes(1024)]
    packed = b"".join(map(packer.compress, plain)) + packer.flush()
    layout = Layout()
    archive = gzip.compress(layout.archive(layout.blob(packed, LAYER)))
    assert len(archive) < 400_000
    tracemalloc.start()
    try:
        refused(store, archive, "no image for")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 << 20


def test_an_xz_archive_gets_no_more_memory_than_xz_needs(store: Store) -> None:
    """Its header asks for a dictionary of 4 GiB (the .xz file format, 3.1 and 5.3.1)."""
    packed = bytearray(lzma.compress(docker_archive(config_of([SMALL]), [SMALL])))
    end = 12 + 4 * packed[12]
    packed[packed.index(b"\x21\x01", 12) + 2] = 40
    packed[end : end + 4] = zlib.crc32(packed[12:end]).to_bytes(4, "little")
    refused(store, bytes(packed), "xz data: Memory usage limit exceeded")


def test_zeros_behind_an_archive_are_not_held(store: Store) -> None:
    class Endless(io.RawIOBase):
        left = 300

        def read(self, size: int = -1, /) -> bytes:
            self.left -= 1
            if self.left == 299:
                return docker_archive(config_of([SMALL]), [SMALL])
            return ZEROS[: size if size >= 0 else None] if self.left > 0 else b""

    assert len(load(store, Endless())) == 1


@pytest.mark.parametrize("form", ["docker", "layout"])
def test_a_layer_that_breaks_a_limit_is_named(store: Store, form: str) -> None:
    bad = tar({"x/" * 1500 + "y": b""})
    if form == "docker":
        refused(store, docker_archive(config_of([bad]), [bad]), r"layer .*/layer.tar: .*1024 names")
        return
    layout = Layout()
    top = layout.image([layout.blob(gzip.compress(bad), LAYER)], [bad])
    refused(store, layout.archive(top), r"layer blobs/sha256/.*: .*limit of 1024 names")


def test_cve_2014_8178_a_layer_is_known_by_its_bytes_alone(store: Store) -> None:
    """An archive cannot put another layer under the name of one that is there, or will come."""
    other = tar({"a": b"evil"})
    load(store, io.BytesIO(docker_archive(config_of([SMALL]), [SMALL], "good:1")))
    layout = Layout()
    descriptor = layout.blob(SMALL, LAYER)
    layout.entries[f"blobs/sha256/{sha256(SMALL)}"] = other
    top = layout.image([{**descriptor, "size": len(other)}], [SMALL])
    with pytest.raises(ArchiveError, match="is damaged: its digest is"):
        load(store, io.BytesIO(layout.archive(top)))
    rebuilt = b"".join(store.layers.rebuilt(f"sha256:{sha256(SMALL)}"))
    assert rebuilt == SMALL
    assert [str(name) for image in store.images() for name in image.references] == ["good:1"]


def test_control_characters_in_names_are_escaped_in_errors(store: Store) -> None:
    info = tarfile.TarInfo("a\x1b[31m\nb")
    info.type = b"Z"
    with pytest.raises(ArchiveError) as raised:
        load(store, io.BytesIO(info.tobuf()))
    assert str(raised.value).isprintable()
    assert os.fsencode(str(raised.value))


# -- directories ---------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["blob", "blobs/sha256", "blobs", "index.json"])
@pytest.mark.parametrize("how", ["symlink", "fifo"])
def test_a_directory_is_read_by_its_own_files_alone(
    store: Store, tmp_path_factory: pytest.TempPathFactory, where: str, how: str
) -> None:
    """What is no file of it, but a symlink to one elsewhere, or would keep us waiting."""
    layout = Layout()
    top = layout.image([layout.blob(SMALL, LAYER)], [SMALL])
    base = tmp_path_factory.mktemp("layouts")
    with tarfile.open(fileobj=io.BytesIO(layout.archive(top))) as archive:
        archive.extractall(base / "layout")  # made above
    place = (
        base / "layout" / where.replace("blob", f"blobs/sha256/{sha256(SMALL)}", where == "blob")
    )
    place.rename(base / "elsewhere")
    if how == "symlink":
        place.symlink_to(base / "elsewhere")
    else:
        os.mkfifo(place)
    with pytest.raises(ArchiveError, match=r"has no blob|has no document|neither manifest"):
        load(store, base / "layout")
    assert store.images() == []
