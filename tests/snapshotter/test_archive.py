"""Saving and loading archives of images."""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.archive import atomic_output, load, save
from snapshotter.errors import ArchiveError, NoSuchImage, SnapshotterError
from snapshotter.images import commit
from snapshotter.store import Store
from tests.snapshotter.helpers import (
    COMPRESSIONS,
    Entry,
    config_of,
    docker_archive,
    members_of,
    new_container,
    saved,
    sha256,
    small_image,
    tar,
    tree_of,
)
from unionfs.errors import LayerError, PackError, UnionError


class Pipe(io.RawIOBase):
    """A stream that cannot be sought and gives little at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        return self._data.read(min(size, 1000) if size >= 0 else 1000)


def layout(config: bytes, layers: list[bytes], name: str | None, **extra: Any) -> dict[str, Entry]:
    """The members of an OCI layout, manifests last."""

    def blob(data: bytes, kind: str) -> dict[str, Any]:
        entries[f"blobs/sha256/{sha256(data)}"] = data
        return {"mediaType": kind, "digest": f"sha256:{sha256(data)}", "size": len(data)}

    entries: dict[str, Entry] = {}
    manifest = {
        "schemaVersion": 2,
        "layers": [blob(data, "application/vnd.oci.image.layer.v1.tar") for data in layers],
        "config": blob(config, "application/vnd.oci.image.config.v1+json"),
        **extra,
    }
    entry = blob(json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json")
    if name is not None:
        entry["annotations"] = {"org.opencontainers.image.ref.name": name}
    entries["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [entry]}).encode()
    entries["oci-layout"] = b'{"imageLayoutVersion": "1.0.0"}'
    return entries


def test_what_was_saved_is_loaded_as_the_same_images(store: Store, tmp_path: Path) -> None:
    base = small_image(store, "base:1")
    container = new_container(store, base)
    (container.upper / "more").write_bytes(os.urandom(400_000))
    made = commit(store, container, reference="team/made:2")
    archive = saved(store, "base", "team/made:2")
    with Store.open(tmp_path / "other") as other:
        loaded = load(other, Pipe(archive))
        assert [(found.image.id, list(map(str, found.references))) for found in loaded] == [
            (base.id, ["base:1"]),
            (made.id, ["team/made:2"]),
        ]
        assert tree_of(other, other.image("team/made:2")) == tree_of(store, made)
        assert saved(other, "base", "team/made:2") == archive
        assert [found.image.id for found in load(other, io.BytesIO(archive))] == [base.id, made.id]


def test_an_archive_is_the_same_every_time_and_has_each_blob_once(store: Store) -> None:
    small_image(store, "a")
    store.tag("a", "a:other")
    store.tag("a", "b")
    archive = saved(store, "a", "b", "a:other")
    assert archive == saved(store, "a", "b", "a:other")
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        names = opened.getnames()
        assert {(member.mtime, member.uid) for member in opened.getmembers()} == {(0, 0)}
    assert len(names) == len(set(names))
    members = members_of(archive)
    (manifest,) = json.loads(members["manifest.json"])
    assert manifest["RepoTags"] == ["a:latest", "a:other", "b:latest"]
    assert len(json.loads(members["index.json"])["manifests"]) == 3
    for name, data in members.items():
        if name.startswith("blobs/"):
            assert name == f"blobs/sha256/{sha256(data)}"


def test_an_image_saved_by_its_id_has_no_name(store: Store) -> None:
    image = small_image(store, "a")
    archive = saved(store, image.short_id)
    assert json.loads(members_of(archive)["manifest.json"])[0]["RepoTags"] is None
    assert load(store, io.BytesIO(archive))[0].references == ()
    with pytest.raises(NoSuchImage):
        saved(store, "a", "nobody")


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_archives_of_older_dockers_are_loaded(store: Store, compression: str) -> None:
    layers = [tar({"a": b"1"}), gzip.compress(tar({".wh.a": b"", "b": b"2"}))]
    config = config_of([layers[0], gzip.decompress(layers[1])])
    archive = COMPRESSIONS[compression](docker_archive(config, layers, "old:1", "old:2"))
    (found,) = load(store, Pipe(archive))
    assert list(map(str, found.references)) == ["old:1", "old:2"]
    assert found.image.id == f"sha256:{sha256(config)}"
    assert tree_of(store, found.image) == {"b": b"2"}


def test_a_layer_that_is_a_symlink_to_another_is_loaded(store: Store) -> None:
    layer = tar({"a": b"1"})
    config = config_of([layer, layer])
    manifest = [{"Config": "c.json", "Layers": ["x/layer.tar", "y/layer.tar"]}]
    archive = tar(
        {
            "x/layer.tar": (tarfile.SYMTYPE, "../y/layer.tar"),
            "y/layer.tar": layer,
            "c.json": config,
            "manifest.json": json.dumps(manifest).encode(),
        }
    )
    assert len(load(store, io.BytesIO(archive))[0].image.layers) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [("localhost/app:1", ["localhost/app:1"]), ("latest", []), (None, []), ("app:2", ["app:2"])],
)
def test_oci_layouts_are_loaded(store: Store, name: str | None, expected: list[str]) -> None:
    layer = tar({"a": b"1"})
    archive = tar(layout(config_of([layer]), [layer], name))
    (found,) = load(store, io.BytesIO(archive))
    assert list(map(str, found.references)) == expected


def test_an_index_of_several_platforms_gives_this_machines_image(store: Store) -> None:
    layer = tar({"a": b"1"})
    entries = layout(config_of([layer]), [layer], None)
    index = entries["index.json"]
    assert isinstance(index, bytes)
    (own,) = json.loads(index)["manifests"]
    missing = {**own, "digest": "sha256:" + "0" * 64}
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    nested = json.dumps(
        {
            "schemaVersion": 2,
            "manifests": [
                {**missing, "platform": {"os": "windows", "architecture": machine}},
                {**missing, "annotations": {"vnd.docker.reference.type": "attestation-manifest"}},
                {**own, "platform": {"os": "linux", "architecture": machine}},
            ],
        }
    ).encode()
    entries[f"blobs/sha256/{sha256(nested)}"] = nested
    top = {
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": f"sha256:{sha256(nested)}",
        "size": len(nested),
        "annotations": {"io.containerd.image.name": "docker.io/library/multi:1"},
    }
    entries["index.json"] = json.dumps({"schemaVersion": 2, "manifests": [top]}).encode()
    (found,) = load(store, io.BytesIO(tar(entries)))
    assert list(map(str, found.references)) == ["multi:1"]


def test_unknown_fields_of_a_config_survive_load_and_save(store: Store) -> None:
    layer = tar({"a": b"1"})
    config = config_of([layer])
    load(store, io.BytesIO(docker_archive(config, [layer], "kept:1")))
    assert config in members_of(saved(store, "kept:1")).values()


LAYER = tar({"a": b"1"})
CONFIG = config_of([LAYER])


def _damaged_blob() -> bytes:
    entries = layout(CONFIG, [LAYER], "x:1")
    entries[f"blobs/sha256/{sha256(LAYER)}"] = tar({"a": b"2"})
    return tar(entries)


def _wrong_size() -> bytes:
    entries = layout(CONFIG, [LAYER], "x:1")
    index = entries["index.json"]
    assert isinstance(index, bytes)
    entries["index.json"] = index.replace(b'"size": ', b'"size": 1')
    return tar(entries)


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"", "truncated"),
        (b"x" * 2000, "not a tar archive"),
        (tar({}), "neither manifest.json nor index.json"),
        (docker_archive(CONFIG, [LAYER], "x:1")[:5000], "truncated"),
        (docker_archive(CONFIG, [], "x:1"), "lists 1 layers, but the manifest has 0"),
        (docker_archive(CONFIG, [tar({"b": b"1"})], "x:1"), "invalid diffID"),
        (docker_archive(CONFIG, [LAYER], "Bad Name"), "invalid reference"),
        (docker_archive(b"[]", [LAYER], "x:1"), "Expected `object`, got `array`"),
        (docker_archive(config_of([], rootfs={"type": "x"}), []), "rootfs type 'x'"),
        (tar({"manifest.json": b'[{"Config": "c", "Layers": []}]'}), "no document c"),
        (tar({"manifest.json": b"[{"}), "manifest.json: "),
        (tar({"../x": b"1"}), "leads out of the archive"),
        (tar({"x": (tarfile.SYMTYPE, "../../etc/passwd")}), "leads out of the archive"),
        (
            tar({
                "a": (tarfile.SYMTYPE, "b"), "b": (tarfile.SYMTYPE, "a"),
                "manifest.json": b'[{"Config": "a", "Layers": []}]',
            }),
            "too many links",
        ),
        (
            tar({
                "0" * 64 + ".json": CONFIG, "l": LAYER,
                "manifest.json": b'[{"Config": "%s.json", "Layers": ["l"]}]' % (b"0" * 64),
            }),
            "is damaged",
        ),
        (_damaged_blob(), "is damaged"),
        (_wrong_size(), "bytes, but should have"),
        (tar(layout(CONFIG, [LAYER], "x:1", manifests=[])), "a manifest and an index at once"),
        (tar(layout(CONFIG, [LAYER], "x:1", mediaType="text/plain")), "says it is 'text/plain'"),
        (tar({"index.json": b"{}", "oci-layout": b"{}"}), "version None is not supported"),
    ],
)  # fmt: skip
def test_a_bad_archive_is_refused_and_leaves_nothing(
    store: Store, archive: bytes, message: str
) -> None:
    with pytest.raises(ArchiveError, match=message):
        load(store, io.BytesIO(archive))
    assert store.images() == []
    assert list((store.root / "layers").iterdir()) == []


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), form=st.sampled_from(["docker", "layout"]))
def test_damaged_archives_are_loaded_or_refused_and_nothing_else(
    store: Store, data: st.DataObject, form: str
) -> None:
    entries = layout(CONFIG, [LAYER], "x:1")
    damaged = bytearray(
        tar(entries) if form == "layout" else docker_archive(CONFIG, [LAYER], "x:1")
    )
    used = len(damaged.rstrip(b"\0"))
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, used))] = data.draw(st.integers(0, 255))
    try:
        loaded = load(store, io.BytesIO(damaged))
    except (SnapshotterError, UnionError):
        assert store.images() == []
        return
    for found in loaded:
        assert found.image.id == f"sha256:{sha256(found.image.config_bytes)}"
        store.remove_image(found.image.id, force=True)


def test_a_bad_layer_counts_only_if_an_image_has_it(store: Store) -> None:
    archive = tar({"junk": b"j" * 5000, **layout(CONFIG, [LAYER], "x:1")})
    assert len(load(store, io.BytesIO(archive))) == 1
    bad = LAYER[:100] + b"\xff" + LAYER[101:]
    with pytest.raises(LayerError, match=r"layer .*/layer\.tar"):
        load(store, io.BytesIO(docker_archive(config_of([bad]), [bad])))


def test_layers_no_image_refers_to_do_not_stay(store: Store) -> None:
    archive = tar({"stray.tar": tar({"b": b"1" * 5000}), **layout(CONFIG, [LAYER], "x:1")})
    load(store, io.BytesIO(archive))
    assert len(list((store.root / "layers").glob("*.pack"))) == 1


def test_a_damaged_store_saves_nothing_wrong(store: Store, tmp_path: Path) -> None:
    image = small_image(store, "a", data=os.urandom(300_000))
    pack = store.layers.path(image.layers[0].diff_id)
    whole = pack.read_bytes()
    pack.write_bytes(whole[:50_000] + b"\xff\x00" + whole[50_002:])
    with pytest.raises(PackError, match=pack.name):
        _save_to(store, tmp_path / "out.tar")
    assert not (tmp_path / "out.tar").exists()
    pack.write_bytes(whole)


def _save_to(store: Store, path: Path) -> None:
    with atomic_output(path) as stream:
        save(store, ["a"], stream)


def test_progress_is_told_for_each_layer(store: Store) -> None:
    told: list[tuple[str, str, int, int | None]] = []
    archive = docker_archive(CONFIG, [LAYER], "x:1")
    load(store, io.BytesIO(archive), lambda *report: told.append(report))
    assert told[-1] == (sha256(b"0")[:12], "Loading layer", len(LAYER), len(LAYER))


def _write_half(path: Path) -> None:
    with atomic_output(path) as stream:
        stream.write(b"half")
        raise RuntimeError


def test_an_output_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "out.tar"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError):
        _write_half(path)
    assert [(found.name, found.read_bytes()) for found in tmp_path.iterdir()] == [
        ("out.tar", b"old")
    ]
    with atomic_output(path) as stream:
        stream.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(list(tmp_path.iterdir())) == 1


def test_an_image_may_have_more_layers_than_a_process_has_descriptors(store: Store) -> None:
    layers = [tar({f"f{number}": b"%d" % number}) for number in range(90)]
    archive = docker_archive(config_of(layers), layers, "many:1")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = len(os.listdir("/proc/self/fd")) + 40
    resource.setrlimit(resource.RLIMIT_NOFILE, (few, before[1]))
    try:
        (loaded,) = load(store, io.BytesIO(archive))
        assert len(tree_of(store, loaded.image)) == 90
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
