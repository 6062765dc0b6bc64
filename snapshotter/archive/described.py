"""What an archive that is written says of its images, and where its layers come from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, Protocol

from .. import compression, digest, models
from ..errors import ArchiveError
from ..progress import Progress
from ..reference import Reference
from ..store import Blob, Image, Manifest, Store, StoredLayer
from ..store.layers import Layers

BLOBS = "blobs/sha256/"


class Source(NamedTuple):
    """A layer to be written: its digest, its size in bytes, and what gives its bytes.

    That raises at the end if the bytes were not those of the digest.
    """

    digest: str
    size: int
    pieces: Callable[[], Iterator[bytes]]


class Content(Protocol):
    """What goes into one archive."""

    @property
    def sources(self) -> dict[str, Source]:
        """The layers by digest, each once, in the order they are written."""
        ...

    def documents(self) -> dict[str, bytes]:
        """The JSON files by name, in the order they are written."""
        ...


class DockerContent:
    """An archive for Docker that is an OCI layout as well, its layers plain."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self._blobs: dict[str, bytes] = {}
        self._index: list[models.Descriptor] = []
        self._images: list[dict[str, object]] = []
        self._repositories: dict[str, dict[str, str]] = {}

    def add(self, image: Image, references: Sequence[Reference], store: Layers) -> None:
        """Add an image under these names. Raises ``StoreError`` if the store lacks a layer."""
        layers = store.require([info.diff_id for info in image.layers])
        for layer in layers:
            self.sources[layer.diff_id] = _plain(store, layer)
        manifest = _manifest(image, [_plain_descriptor(layer) for layer in layers])
        self._blobs[_blob(image.id)] = image.config_bytes
        self._blobs[_blob(digest.of(manifest.content))] = manifest.content
        self._index.extend(_descriptors(manifest, references))
        self._images.append(
            {
                "Config": _blob(image.id),
                "RepoTags": [str(reference) for reference in references] or None,
                "Layers": [_blob(layer.diff_id) for layer in layers],
            }
        )
        top = digest.hexadecimal(layers[-1].diff_id if layers else image.id)
        for reference in references:
            self._repositories.setdefault(reference.repository, {})[reference.tag or ""] = top

    def documents(self) -> dict[str, bytes]:
        """The JSON files by name, in the order they are written."""
        return {
            **_layout(self._index),
            "manifest.json": models.encode(self._images),
            "repositories": models.encode(self._repositories),
            **self._blobs,
        }


class OciContent:
    """An OCI layout with the manifests images came with, where all their layers are at hand."""

    def __init__(self, store: Store, workspace: Path, progress: Progress | None) -> None:
        self.sources: dict[str, Source] = {}
        self._store = store
        self._workspace = workspace
        self._progress = progress
        self._blobs: dict[str, bytes] = {}
        self._index: list[models.Descriptor] = []

    def add(self, image: Image, references: Sequence[Reference]) -> None:
        """Add an image under these names; layers without a compressed form get one.

        Raises ``StoreError`` if the store lacks a layer, and for a damaged one.
        """
        layers = self._store.layers.require([info.diff_id for info in image.layers])
        manifest, sources = self._as_it_came(image, layers) or self._made(image, layers)
        self.sources.update((source.digest, source) for source in sources)
        self._blobs[_blob(digest.of(manifest.content))] = manifest.content
        self._blobs[_blob(image.id)] = image.config_bytes
        self._index.extend(_descriptors(manifest, references))

    def documents(self) -> dict[str, bytes]:
        """The JSON files by name, in the order they are written."""
        return {**_layout(self._index), **self._blobs}

    def _as_it_came(
        self, image: Image, layers: Sequence[StoredLayer]
    ) -> tuple[Manifest, list[Source]] | None:
        """The image's own manifest and its layers; None if it has none, or a layer is not kept."""
        manifest = self._store.blobs.manifest(image.id)
        if manifest is None:
            return None
        try:
            described = models.decode(manifest.content, models.Manifest, "kept manifest").layers
        except ArchiveError:
            return None
        if len(described) != len(layers):
            return None
        sources = []
        for layer, descriptor in zip(layers, described, strict=True):
            blob = self._store.blobs.get(descriptor.digest)
            if descriptor.digest == layer.diff_id:
                sources.append(_plain(self._store.layers, layer))
            elif blob is not None and blob.diff_id == layer.diff_id:
                sources.append(self._compressed(blob))
            else:
                return None
        return manifest, sources

    def _made(self, image: Image, layers: Sequence[StoredLayer]) -> tuple[Manifest, list[Source]]:
        """A new manifest, of compressed forms that layers have or get."""
        sources, descriptors = [], []
        for layer in layers:
            known = self._store.blobs.of_layer(layer.diff_id)
            blob = known[0] if known else self._compress(layer)
            sources.append(self.sources.get(blob.digest) or self._compressed(blob))
            descriptors.append(
                models.Descriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size)
            )
        return _manifest(image, descriptors), sources

    def _compressed(self, blob: Blob) -> Source:
        return Source(blob.digest, blob.size, partial(self._store.blobs.read, blob))

    def _compress(self, layer: StoredLayer) -> Blob:
        """Compress a layer into a file, so that it need not be done again to write it."""
        path = self._workspace / f"{digest.hexadecimal(layer.diff_id)}.gz"
        check = hashlib.sha256()
        size = 0
        with path.open("wb") as stream:
            for piece in compression.compress_layer(self._counted(layer)):
                check.update(piece)
                size += stream.write(piece)
        blob = Blob(
            digest.text(check.digest()),
            layer.diff_id,
            size,
            models.OCI_LAYER + "+gzip",
            compression.RECIPE,
        )
        self._store.blobs.note(blob)
        self.sources[blob.digest] = Source(blob.digest, size, partial(_read, path))
        return blob

    def _counted(self, layer: StoredLayer) -> Iterator[bytes]:
        done = 0
        for piece in self._store.layers.rebuilt(layer.diff_id):
            yield piece
            done += len(piece)
            if self._progress is not None:
                label = digest.short(layer.diff_id)
                self._progress(label, "Compressing layer", done, layer.tar_size)


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        yield from iter(lambda: stream.read(1 << 20), b"")


def _blob(blob_digest: str) -> str:
    return BLOBS + digest.hexadecimal(blob_digest)


def _plain(layers: Layers, layer: StoredLayer) -> Source:
    return Source(layer.diff_id, layer.tar_size, partial(layers.rebuilt, layer.diff_id))


def _plain_descriptor(layer: StoredLayer) -> models.Descriptor:
    return models.Descriptor(media_type=models.OCI_LAYER, digest=layer.diff_id, size=layer.tar_size)


def _manifest(image: Image, layers: list[models.Descriptor]) -> Manifest:
    """The OCI manifest of an image."""
    config = models.Descriptor(
        media_type=models.OCI_CONFIG, digest=image.id, size=len(image.config_bytes)
    )
    document = models.Manifest(schema_version=2, config=config, layers=layers)
    return Manifest(models.OCI_MANIFEST, models.encode(document))


def _layout(index: list[models.Descriptor]) -> dict[str, bytes]:
    return {
        "oci-layout": models.encode({"imageLayoutVersion": "1.0.0"}),
        "index.json": models.encode(models.Index(schema_version=2, manifests=index)),
    }


def _descriptors(manifest: Manifest, references: Sequence[Reference]) -> list[models.Descriptor]:
    """The entries of a manifest in the index: one for each name, as Docker writes them."""
    annotations: list[dict[str, str] | None] = [
        {models.IMAGE_NAME: reference.full, models.REF_NAME: reference.tag or ""}
        for reference in references
    ]
    return [
        models.Descriptor(
            media_type=manifest.media_type,
            digest=digest.of(manifest.content),
            size=len(manifest.content),
            annotations=each,
        )
        for each in annotations or [None]
    ]
