"""The JSON documents of images, as msgspec structs: configs, manifests, indexes.

Fields follow the OCI image specification (config.md, manifest.md, image-index.md) and Docker's
archive format. Unknown fields are ignored here and kept in the bytes they came in: an image's ID
is the digest of those bytes, so they are never written anew.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec

from .errors import ArchiveError

JSON_MAX = 4 << 20
"""The largest document accepted, in bytes (distribution-spec asks registries to take 4 MiB)."""

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"


class ProcessConfig(msgspec.Struct, kw_only=True, omit_defaults=True, rename="pascal"):
    """How to run the image: the ``config`` object. Absent and null both read as None."""

    user: str | None = None
    exposed_ports: dict[str, Any] | None = None
    env: list[str] | None = None
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    volumes: dict[str, Any] | None = None
    working_dir: str | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | None = None
    healthcheck: dict[str, Any] | None = None
    on_build: list[str] | None = None
    shell: list[str] | None = None


class History(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What made one layer, or one change of the configuration (``empty_layer``)."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


class RootFS(msgspec.Struct, kw_only=True):
    """The layers, bottom first, by the digests of their uncompressed archives."""

    type: str = "layers"
    diff_ids: list[str] | None = None


class ImageConfig(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The configuration of an image. ``created`` is RFC 3339; see :func:`parse_time`."""

    created: str | None = None
    author: str | None = None
    architecture: str = ""
    os: str = ""
    variant: str | None = None
    config: ProcessConfig | None = None
    rootfs: RootFS
    history: list[History] | None = None

    @property
    def process(self) -> ProcessConfig:
        """The ``config`` object; an empty one if the image has none."""
        return self.config if self.config is not None else ProcessConfig()


class Platform(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Which machines a manifest of an index is for."""

    architecture: str = ""
    os: str = ""
    variant: str | None = None


class Descriptor(msgspec.Struct, kw_only=True, omit_defaults=True, rename="camel"):
    """A typed pointer to a blob; ``size`` in bytes."""

    media_type: str = ""
    digest: str
    size: int
    annotations: dict[str, str] | None = None
    platform: Platform | None = None


class Manifest(msgspec.Struct, kw_only=True, rename="camel"):
    """One image: its configuration and its layers, bottom first."""

    schema_version: int
    media_type: str = OCI_MANIFEST
    config: Descriptor
    layers: list[Descriptor]


class Index(msgspec.Struct, kw_only=True, rename="camel"):
    """A list of manifests: for several platforms, or of several images in one archive."""

    schema_version: int
    media_type: str = OCI_INDEX
    manifests: list[Descriptor]


class ArchiveImage(msgspec.Struct, kw_only=True, rename="pascal"):
    """One image in the ``manifest.json`` of a Docker archive; values are paths in the archive."""

    config: str
    repo_tags: list[str] | None = None
    layers: list[str] | None = None


Document = TypeVar("Document")


def decode(data: bytes, kind: type[Document], what: str) -> Document:
    """Parse a JSON document. Raises :class:`ArchiveError`; ``what`` names the document in it."""
    if len(data) > JSON_MAX:
        raise ArchiveError(f"{what}: larger than the {JSON_MAX} bytes allowed for a JSON document")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ArchiveError(f"{what}: {error}") from error


def encode(document: object) -> bytes:
    """A document as JSON: the same bytes for the same content, always."""
    return msgspec.json.encode(document, order="deterministic")


def parse_config(data: bytes, what: str) -> ImageConfig:
    """Parse an image configuration.

    Raises :class:`ArchiveError` also for a root filesystem that is not made of layers
    (image-spec, config.md).
    """
    config = decode(data, ImageConfig, what)
    if config.rootfs.type != "layers":
        raise ArchiveError(f"{what}: rootfs type {config.rootfs.type!r} is not supported")
    return config


def format_time(moment: datetime) -> str:
    """A time as RFC 3339 in UTC, as short as it can be written exactly."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def parse_time(text: str | None) -> datetime:
    """A time of an image; the epoch if it has none or one that cannot be read.

    Nanoseconds are cut off: it is only for showing and sorting.
    """
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    if not text:
        return epoch
    try:
        # Python 3.11 reads any number of fraction digits and keeps six of them.
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):  # which has no such time in UTC
        return epoch
