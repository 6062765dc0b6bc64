"""How much of the disk images, containers and kept compressed layers take.

Images share the packs of layers, merged indexes, and packs whose chunks others use; so what an
image takes by itself is what would be free if it alone were removed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from .. import digest
from .blobs import Blob, Blobs
from .containers import Container
from .database import Database
from .images import Image

_FILES = """
WITH RECURSIVE needed (image, number) AS (
    SELECT image, layer FROM image_layer
    UNION
    SELECT image, source FROM layer_source JOIN needed ON layer = number
)
SELECT image, lower(hex(diff_id)) || '.pack' FROM needed JOIN layer ON layer.number = needed.number
UNION
SELECT image, file FROM run JOIN image_layer AS top ON top.chain = run.chain WHERE NOT EXISTS (
    SELECT 1 FROM image_layer WHERE image = top.image AND position > top.position
)
"""
"""The files of each image."""


class ImageUsage(NamedTuple):
    """What an image takes on the disk, in bytes: with others, and by itself."""

    image: Image
    shared: int
    unique: int
    containers: int


class ContainerUsage(NamedTuple):
    """What the files that a container has changed take, in bytes, as Docker counts it."""

    container: Container
    size: int


class BlobUsage(NamedTuple):
    """A kept compressed layer, and the IDs of images whose manifests name it."""

    blob: Blob
    images: tuple[str, ...]


@dataclass(frozen=True)
class Usage:
    """What a store takes: ``size`` is that of all files of images, each counted once.

    ``reclaimable`` is what of these no image with a container needs.
    """

    images: list[ImageUsage]
    size: int
    reclaimable: int
    containers: list[ContainerUsage]
    blobs: list[BlobUsage]


def usage(
    database: Database, root: Path, images: list[Image], containers: list[Container], blobs: Blobs
) -> Usage:
    """Measure the disk; of containers this reads every directory."""
    users: dict[str, set[str]] = {}
    for image, name in database.rows(_FILES):
        users.setdefault(name, set()).add(digest.text(image))
    sizes = {name: _size(root / "layers" / name) for name in users}
    counts = dict.fromkeys((image.id for image in images), 0)
    for container in containers:
        counts[container.image] = counts.get(container.image, 0) + 1
    shared = dict.fromkeys(counts, 0)
    unique = dict.fromkeys(counts, 0)
    for name, owners in users.items():
        for owner in owners & counts.keys():
            (shared if len(owners) > 1 else unique)[owner] += sizes[name]
    return Usage(
        [
            ImageUsage(image, shared[image.id], unique[image.id], counts[image.id])
            for image in images
        ],
        sum(sizes.values()),
        sum(
            sizes[name]
            for name, owners in users.items()
            if not any(counts.get(owner) for owner in owners)
        ),
        [ContainerUsage(container, directory_size(container.upper)) for container in containers],
        blob_usage(blobs),
    )


def blob_usage(blobs: Blobs) -> list[BlobUsage]:
    """The compressed layers that are kept as files."""
    named = blobs.named()
    return [
        BlobUsage(blob, tuple(named.get(blob.digest, ())))
        for blob in blobs.all()
        if blob.recipe is None
    ]


def rooms_size(root: Path) -> int:
    """The bytes of all layers, merged indexes and kept compressed layers."""
    return sum(_size(path) for room in ("layers", "blobs") for path in (root / room).iterdir())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0  # removed meanwhile


def directory_size(root: Path) -> int:
    """The bytes of all files below a directory, each counted once; what is closed to us is not."""
    seen: set[int] = set()
    size = 0
    for _, _, files, fd in os.fwalk(root):
        for name in files:
            try:
                info = os.stat(name, dir_fd=fd, follow_symlinks=False)
            except FileNotFoundError:
                continue  # the container is at work
            if info.st_ino not in seen:
                seen.add(info.st_ino)
                size += info.st_size
    return size
