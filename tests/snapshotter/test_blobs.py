"""Compressed layers and manifests go out as they came in."""

from __future__ import annotations

import gzip
import io
import json
import os
import sqlite3
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from snapshotter import compression
from snapshotter.archive import load, save, save_oci
from snapshotter.errors import ArchiveError, StoreError
from snapshotter.images import commit
from snapshotter.store import Store
from tests.snapshotter.helpers import (
    Entry,
    config_of,
    members_of,
    new_container,
    sha256,
    small_image,
    tar,
)

KNOWN = "f46c5376b603e471fcc203c63cd281763730794f7cf357ebc777843e9004391a"
"""What "lamina", a hundred thousand times, becomes."""

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def foreign_gzip(data: bytes) -> bytes:
    """A layer compressed as this program does not."""
    return gzip.compress(data, 9, mtime=7)


FORMS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "gzip": (foreign_gzip, f"{OCI_LAYER}+gzip"),
    "zstd": (zstd.compress, f"{OCI_LAYER}+zstd"),
    "gzip called plain": (foreign_gzip, OCI_LAYER),
    "of Docker": (foreign_gzip, DOCKER_LAYER),
    "own": (lambda data: b"".join(compression.compress_layer([data])), f"{OCI_LAYER}+gzip"),
    "plain": (bytes, OCI_LAYER),
}


def layout(
    plain: list[bytes], form: str, name: str = "team/app:1", **more: Any
) -> dict[str, Entry]:
    """The members of an OCI layout; its manifest has a field that nobody knows."""
    compress, media_type = FORMS[form]
    config = config_of(plain)
    entries: dict[str, Entry] = {}

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        entries[f"blobs/sha256/{sha256(data)}"] = data
        return {"mediaType": kind, "size": len(data), "digest": f"sha256:{sha256(data)}"}

    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [blob(compress(layer), media_type) for layer in plain],
        "annotations": {"nobody": "knows"},
    }
    entry = blob(json.dumps(manifest, indent=3).encode(), str(manifest["mediaType"]))
    entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    entries["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    entries["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    return {**entries, **more}


def layers() -> list[bytes]:
    return [tar({"a": os.urandom(300_000), "b": b"b" * 300_000}), tar({"c": b"c"})]


def blobs_of(entries: dict[str, Any]) -> dict[str, Any]:
    return {name: data for name, data in entries.items() if name.startswith("blobs/sha256/")}


def saved_oci(store: Store, *names: str) -> dict[str, bytes]:
    out = io.BytesIO()
    save_oci(store, names, out)
    return members_of(out.getvalue())


def kept(store: Store) -> list[str]:
    return [path.name for path in (store.root / "blobs").iterdir()]


@pytest.mark.parametrize("form", FORMS)
def test_manifests_and_layers_go_out_as_they_came_in(store: Store, form: str) -> None:
    archive = layout(layers(), form)
    (found,) = load(store, io.BytesIO(tar(archive)))
    saved = saved_oci(store, "team/app:1")
    assert blobs_of(saved) == blobs_of(archive)
    (descriptor,) = json.loads(saved["index.json"])["manifests"]
    assert descriptor["annotations"]["io.containerd.image.name"] == "docker.io/team/app:1"
    index = archive["index.json"]
    assert isinstance(index, bytes)
    assert descriptor["digest"] == json.loads(index)["manifests"][0]["digest"]
    assert len(kept(store)) == (0 if form in ("own", "plain") else 2)
    store.remove_image(found.image.id)
    assert kept(store) == []


def test_an_image_that_came_compressed_is_saved_for_docker_with_plain_layers(store: Store) -> None:
    plain = layers()
    load(store, io.BytesIO(tar(layout(plain, "zstd"))))
    out = io.BytesIO()
    save(store, ["team/app:1"], out)
    assert {sha256(layer) for layer in plain} <= {
        name.removeprefix("blobs/sha256/") for name in members_of(out.getvalue())
    }


def test_what_docker_saves_with_compressed_layers_keeps_its_manifest(store: Store) -> None:
    plain = layers()
    archive = layout(plain, "gzip")
    compressed = [sha256(foreign_gzip(layer)) for layer in plain]
    manifest = [
        {
            "Config": f"blobs/sha256/{sha256(config_of(plain))}",
            "RepoTags": ["other/name:2"],
            "Layers": [f"blobs/sha256/{name}" for name in compressed],
        }
    ]
    archive["manifest.json"] = json.dumps(manifest).encode()
    (found,) = load(store, io.BytesIO(tar(archive)))
    assert list(map(str, found.references)) == ["other/name:2"]
    assert blobs_of(saved_oci(store, "other/name:2")) == blobs_of(archive)


def test_loading_again_adds_nothing_and_needs_no_decompression(store: Store) -> None:
    archive = layout(layers(), "gzip")
    load(store, io.BytesIO(tar(archive)))
    before = {path: path.stat().st_ino for path in (store.root / "blobs").iterdir()}
    load(store, io.BytesIO(tar(archive)))
    assert {path: path.stat().st_ino for path in (store.root / "blobs").iterdir()} == before


def test_a_commit_on_an_image_that_came_compressed_keeps_the_digests_below(store: Store) -> None:
    plain = layers()
    (found,) = load(store, io.BytesIO(tar(layout(plain, "gzip"))))
    container = new_container(store, found.image)
    (container.upper / "new").write_bytes(b"new" * 1000)
    commit(store, container, reference="made")
    saved = saved_oci(store, "made", "team/app:1")
    index = json.loads(saved["index.json"])["manifests"]
    made, came = (json.loads(saved[f"blobs/{each['digest'].replace(':', '/')}"]) for each in index)
    assert [each["digest"] for each in made["layers"][:2]] == [
        each["digest"] for each in came["layers"]
    ]
    assert all(each["mediaType"] == f"{OCI_LAYER}+gzip" for each in made["layers"])
    top = saved[f"blobs/{made['layers'][2]['digest'].replace(':', '/')}"]
    assert sha256(gzip.decompress(top)) == store.image("made").layers[2].diff_id[7:]


def test_what_is_saved_as_oci_is_loaded_without_keeping_it(store: Store, tmp_path: Path) -> None:
    small_image(store, "a")
    first, again = saved_oci(store, "a"), saved_oci(store, "a")
    assert first == again
    with Store.open(tmp_path / "other") as other:
        load(other, io.BytesIO(tar(dict(first))))
        assert kept(other) == []
        assert blobs_of(saved_oci(other, "a")) == blobs_of(first)
    assert all(name == f"blobs/sha256/{sha256(data)}" for name, data in blobs_of(first).items())


def test_compressing_a_layer_gives_the_bytes_that_are_documented() -> None:
    data = b"lamina" * 100_000
    pieces = [data[at : at + 7777] for at in range(0, len(data), 7777)]
    compressed = b"".join(compression.compress_layer(pieces))
    assert gzip.decompress(compressed) == data
    assert compressed[:10] == bytes.fromhex("1f8b08000000000000ff")
    if compression.RECIPE == "gzip-3-zlib":
        assert sha256(compressed) == KNOWN


def test_a_layer_is_compressed_anew_where_a_kept_one_was_lost(store: Store) -> None:
    plain = layers()
    load(store, io.BytesIO(tar(layout(plain, "gzip"))))
    for path in (store.root / "blobs").iterdir():
        path.unlink()
    saved = saved_oci(store, "team/app:1")
    contents = [gzip.decompress(data) for data in saved.values() if data[:2] == b"\x1f\x8b"]
    assert sorted(map(sha256, contents)) == sorted(map(sha256, plain))
    load(store, io.BytesIO(tar(layout(plain, "gzip"))))
    assert len(kept(store)) == 2
    assert blobs_of(saved_oci(store, "team/app:1")) == blobs_of(layout(plain, "gzip"))


def test_a_damaged_kept_layer_is_not_saved(store: Store, tmp_path: Path) -> None:
    load(store, io.BytesIO(tar(layout(layers(), "gzip"))))
    path = store.root / "blobs" / kept(store)[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(StoreError, match="is damaged"):
        save_oci(store, ["team/app:1"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == [store.root]
    path.write_bytes(whole)


def test_what_another_library_compressed_is_compressed_anew(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_image(store, "a")
    saved_oci(store, "a")
    monkeypatch.setattr(compression, "RECIPE", "gzip-99")
    with pytest.raises(StoreError, match="cannot be made again"):
        list(store.blobs.read(store.blobs.all()[0]))
    assert saved_oci(store, "a")
    monkeypatch.undo()


def test_a_directory_gets_a_whole_layout_or_nothing(store: Store, tmp_path: Path) -> None:
    archive = layout(layers(), "zstd")
    load(store, io.BytesIO(tar(archive)))
    save_oci(store, ["team/app:1"], tmp_path / "layout")
    found = {
        str(path.relative_to(tmp_path / "layout")): path.read_bytes()
        for path in (tmp_path / "layout").rglob("*")
        if path.is_file()
    }
    assert found == saved_oci(store, "team/app:1")
    with pytest.raises(ArchiveError, match="exists already"):
        save_oci(store, ["team/app:1"], tmp_path / "layout")


def test_a_layout_in_a_directory_is_loaded(store: Store, tmp_path: Path) -> None:
    archive = layout(layers(), "gzip")
    place = tmp_path / "layout"
    for name, data in archive.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data if isinstance(data, bytes) else b"")
    (found,) = load(store, place)
    assert list(map(str, found.references)) == ["team/app:1"]
    save_oci(store, ["team/app:1"], tmp_path / "again")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "again/blobs/sha256").iterdir()}
    assert saved == {path.name: path.read_bytes() for path in (place / "blobs/sha256").iterdir()}


def test_links_in_a_directory_are_not_followed(store: Store, tmp_path: Path) -> None:
    archive = layout(layers(), "gzip")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "layout").mkdir()
    for name, data in archive.items():
        target = tmp_path / "elsewhere" / name.replace("/", "-")
        target.write_bytes(data if isinstance(data, bytes) else b"")
        place = tmp_path / "layout" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(target)
    with pytest.raises(ArchiveError, match="not an image archive"):
        load(store, tmp_path / "layout")
    for name in ("index.json", "oci-layout"):
        (tmp_path / "layout" / name).unlink()
        os.rename(tmp_path / "elsewhere" / name, tmp_path / "layout" / name)
    with pytest.raises(ArchiveError, match="has no blob"):
        load(store, tmp_path / "layout")
    os.rename(tmp_path / "layout" / "blobs", tmp_path / "blobs")
    (tmp_path / "layout" / "blobs").symlink_to(tmp_path / "blobs")
    with pytest.raises(ArchiveError, match="has no blob"):
        load(store, tmp_path / "layout")


def test_a_store_of_the_first_version_gets_what_it_lacks(store: Store) -> None:
    image = small_image(store, "a")
    connection = sqlite3.connect(store.root / "lamina.db")
    for table in ("blob", "manifest", "snapshot"):
        connection.execute(f"DROP TABLE {table}")
    connection.execute("PRAGMA user_version = 1")
    connection.close()
    (store.root / "blobs").rmdir()
    with Store.open(store.root) as again:
        assert again.image("a").id == image.id
        load(again, io.BytesIO(tar(layout(layers(), "gzip"))))
        assert len(kept(again)) == 2


@pytest.mark.peer("skopeo")
@pytest.mark.parametrize("form", ["gzip", "zstd"])
def test_skopeo_finds_the_digests_unchanged(store: Store, tmp_path: Path, form: str) -> None:
    load(store, io.BytesIO(tar(layout(layers(), form))))
    save_oci(store, ["team/app:1"], tmp_path / "layout")
    with (tmp_path / "archive").open("wb") as out:
        save_oci(store, ["team/app:1"], out)
    raw = _skopeo("inspect", "--raw", f"oci-archive:{tmp_path}/archive:1")
    manifest = json.loads(raw)
    (descriptor,) = json.loads(saved_oci(store, "team/app:1")["index.json"])["manifests"]
    assert descriptor["digest"] == f"sha256:{sha256(raw)}"
    for kind, name in (("oci-archive", "archive"), ("oci", "layout")):
        source, copy = f"{kind}:{tmp_path}/{name}:1", tmp_path / f"copy-{name}"
        _skopeo("--insecure-policy", "copy", source, f"dir:{copy}")
        assert (copy / "manifest.json").read_bytes() == raw
        for layer in manifest["layers"]:
            assert sha256((copy / layer["digest"][7:]).read_bytes()) == layer["digest"][7:]


@pytest.mark.peer("skopeo")
def test_what_skopeo_compressed_goes_back_to_the_byte(store: Store, tmp_path: Path) -> None:
    small_image(store, "a", data=os.urandom(100_000) + bytes(100_000))
    with (tmp_path / "docker.tar").open("wb") as out:
        save(store, ["a"], out)
    source, target = (
        f"docker-archive:{tmp_path}/docker.tar",
        f"oci-archive:{tmp_path}/oci.tar:x/y:1",
    )
    _skopeo("--insecure-policy", "copy", source, target)
    with Store.open(tmp_path / "other") as other:
        with (tmp_path / "oci.tar").open("rb") as stream:
            load(other, stream)
        saved = blobs_of(saved_oci(other, "x/y:1"))
    with tarfile.open(tmp_path / "oci.tar") as archive:
        names = {member.name for member in archive.getmembers() if member.isfile()}
    assert set(saved) == {name for name in names if name.startswith("blobs/sha256/")}


def _skopeo(*arguments: str) -> bytes:
    done = subprocess.run(["skopeo", *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
