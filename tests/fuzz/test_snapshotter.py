"""The parsers of the snapshotter: 300 cases each, 5,000 in a long run; whole archives fewer."""

from __future__ import annotations

import bz2
import io
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapshotter import compression, digest, dockerfile, models, platforms
from snapshotter.archive import load, save
from snapshotter.archive.members import members
from snapshotter.errors import (
    ArchiveError,
    InvalidChange,
    InvalidPlatform,
    InvalidReference,
    SnapshotterError,
)
from snapshotter.reference import Reference
from snapshotter.store import Store
from tests.fuzz.cases import COUNTS, allowing, fuzz, inputs, mutations
from tests.snapshotter.helpers import config_of, docker_archive, tar
from tests.snapshotter.layouts import LAYER, Layout
from unionfs.errors import LayerError, UnionError

_LAYER = tar({"a": b"1", "d/b": b"2" * 600})[:3072]
_CONFIG = config_of(
    [_LAYER],
    created="2024-01-02T03:04:05.123456789+01:00",
    author="me",
    config={"Env": ["A=1"], "Cmd": ["sh"], "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}},
            "Volumes": {"/v": {}}, "Healthcheck": {"Test": ["NONE"]}, "User": "1:2"},
    history=[{"created": "2024-01-02T03:04:05Z", "created_by": "x", "empty_layer": True}],
)  # fmt: skip


def _layout() -> tuple[bytes, bytes, bytes]:
    """An archive, and the manifest and the index in it."""
    layout = Layout()
    image = layout.image([layout.blob(_LAYER, LAYER)], [_LAYER])
    image["annotations"] = {"io.containerd.image.name": "docker.io/library/x:1"}
    image["platform"] = {"os": "linux", "architecture": "amd64", "variant": "v8"}
    index = layout.index([image])
    manifest, content = (
        layout.entries[f"blobs/{each['digest'].replace(':', '/')}"] for each in (image, index)
    )
    assert isinstance(manifest, bytes)
    assert isinstance(content, bytes)
    return layout.archive(index, image), manifest, content


_LAYOUT, _MANIFEST, _INDEX = _layout()
_DOCKER = docker_archive(_CONFIG, [_LAYER], "a:1", "b/c:2")
_IMAGES = b'[{"Config": "c.json", "RepoTags": ["a:1"], "Layers": ["x/layer.tar"], "Parent": ""}]'


def _config(data: bytes) -> None:
    config = models.parse_config(data, "c")
    made = models.parse_time(config.created)
    assert models.parse_time(models.format_time(made)) == made
    assert made < models.parse_time("9999-12-31T23:59:59Z") or made.year == 9999
    list(digest.chain(config.rootfs.diff_ids or []))
    for step in config.history or []:
        models.parse_time(step.created)


def _document(kind: type) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        models.encode(models.decode(data, kind, "document"))

    return run


@pytest.mark.parametrize("count", COUNTS)
def test_documents(count: int) -> None:
    """Configurations, manifests, indexes, the manifest of Docker's archives."""
    for run, seed in (
        (_config, _CONFIG),
        (_document(models.Manifest), _MANIFEST),
        (_document(models.Index), _INDEX),
        (_document(list[models.ArchiveImage]), _IMAGES),
    ):
        fuzz(allowing(run, ArchiveError), inputs(seed), count)


@pytest.mark.parametrize("count", COUNTS)
def test_references(count: int) -> None:
    def run(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        found = Reference.parse(text)
        assert Reference.parse(found.full) == found
        assert Reference.parse(str(found)) == found
        assert str(found).isascii()
        assert str(found).isprintable()
        assert ".." not in found.path.split("/")

    def safe(data: bytes) -> None:
        try:
            run(data)
        except InvalidReference as error:
            assert str(error)  # noqa: PT017 - the text came from this user's own terminal

    seeds = (
        b"busybox", b"docker.io/library/a:1.2", b"localhost:5000/team/app_x:v1", b"[::1]:80/a-b/c",
        b"index.docker.io/a@sha256:" + b"0" * 64, b"UPPER.example/a__b:T", b"a" * 255, b"0" * 64,
    )  # fmt: skip
    fuzz(safe, inputs(*seeds, largest=80), count)


@pytest.mark.parametrize("count", COUNTS)
def test_digests_times_and_platforms(count: int) -> None:
    def one(data: bytes) -> None:
        text = data.decode(errors="replace")
        assert len(digest.raw(text)) == 32
        assert digest.text(digest.raw(text)) == text

    def time(data: bytes) -> None:
        moment = models.parse_time(data.decode(errors="replace"))
        assert moment.utcoffset() is not None
        models.format_time(moment)

    def platform(data: bytes) -> None:
        assert platforms.parse(data.decode(errors="replace"))["os"]

    fuzz(allowing(one, ArchiveError), inputs(b"sha256:" + b"0f" * 32, largest=90), count)
    times = (b"2024-01-02T03:04:05.123456789Z", b"0001-01-01T00:00:00+23:59", b"2024-W01-1",
             b"9999-12-31T23:59:59-23:59", b"20240102T030405,5+0100")  # fmt: skip
    fuzz(allowing(time, ()), inputs(*times, largest=40), count)
    fuzz(allowing(platform, InvalidPlatform), inputs(b"linux/arm64/v8", largest=30), count)


@pytest.mark.parametrize("count", COUNTS)
def test_instructions(count: int) -> None:
    def run(data: bytes) -> None:
        models.encode(dockerfile.apply([data.decode(errors="replace")], {}))

    seeds = (
        b'CMD ["a", "b"]', b"ENV A=1 B='x y' C=\"q\\\"\"", b"EXPOSE 80/tcp 90-95/udp", b"ENV A b c",
        b"LABEL a=b", b"HEALTHCHECK --interval=5s --retries=2 CMD x", b"VOLUME [\"/a\"]",
        b"ONBUILD RUN x", b"USER a:b", b"WORKDIR ../x", b"STOPSIGNAL 9", b"ENTRYPOINT x $y",
    )  # fmt: skip
    fuzz(allowing(run, InvalidChange), inputs(*seeds, largest=80), count)


@pytest.mark.parametrize("count", COUNTS)
def test_members_of_archives(count: int) -> None:
    def run(data: bytes) -> None:
        fixed = bytearray(data)
        for start in range(0, len(fixed) - 511, 512):
            if fixed[start + 257 : start + 262] == b"ustar":
                fixed[start + 148 : start + 156] = b" " * 8
                fixed[start + 148 : start + 156] = b"%06o\0 " % sum(fixed[start : start + 512])
        for member in members(io.BytesIO(fixed)):
            assert not member.name.startswith(("/", "../"))
            assert member.name != ".."
            assert member.size >= 0
            member.drain()

    long = tar({"n" * 150: b"x", "l": (b"2", "t" * 150), "h": (b"1", "./n")})
    fuzz(allowing(run, ArchiveError), inputs(_DOCKER, long, _LAYOUT), count)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("form", ["bzip2", "xz"])
def test_compressed_archives(form: str, count: int) -> None:
    packed = bz2.compress(_DOCKER) if form == "bzip2" else lzma.compress(_DOCKER)

    def run(data: bytes) -> None:
        stream = compression.plain(io.BytesIO(data))
        left = 1 << 26
        while left > 0 and (piece := stream.read(1 << 16)):
            left -= len(piece)

    fuzz(allowing(run, LayerError), inputs(packed, packed + packed), count)


@pytest.mark.parametrize(
    "count", [100, pytest.param(2000, marks=[pytest.mark.slow, pytest.mark.timeout(0)])]
)
def test_whole_archives(tmp_path: Path, count: int) -> None:
    """100 cases, 2,000 in a long run. What is loaded can be saved; what is not leaves nothing."""
    with Store.open(tmp_path / "store") as store:

        def run(data: bytes) -> None:
            try:
                loaded = load(store, io.BytesIO(data))
            except (SnapshotterError, UnionError):
                assert store.images() == []
                raise
            for found in loaded:
                save(store, [found.image.id], io.BytesIO())
                store.remove_image(found.image.id, force=True)

        errors = (SnapshotterError, UnionError)
        fuzz(allowing(run, errors), mutations(_DOCKER, _LAYOUT), count)
        fuzz(allowing(run, errors), mutations(*_rebuilt()), count)


_CHANGES: list[dict[str, Any]] = [
    {"layers": []}, {"config": {}}, {"schemaVersion": None}, {"mediaType": ""}, {"manifests": 1},
]  # fmt: skip


def _rebuilt() -> list[bytes]:
    """Archives with one document changed, their digests made right."""
    archives = []
    for change in _CHANGES:
        layout = Layout()
        manifest = {**json.loads(_MANIFEST), **change}
        layout.blob(_LAYER, LAYER)
        layout.blob(config_of([_LAYER]), LAYER)
        archives.append(
            layout.archive(layout.document(manifest, "application/vnd.oci.image.manifest.v1+json"))
        )
    return archives
