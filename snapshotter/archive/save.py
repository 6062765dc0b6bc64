"""Writing images into an archive.

The same images and names always give the same bytes: times are 0, owners root, blobs in a fixed
order. What describes the images comes first, so that a reader knows a layer when it comes by.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import BinaryIO

from unionfs.pack import Pack, rebuild

from .. import digest, models, tarwriter
from ..errors import InvalidReference, StoreError
from ..progress import Progress
from ..reference import Reference
from ..store import Image, Store, StoredLayer

_BLOBS = "blobs/sha256/"


def save(
    store: Store, names: Sequence[str], out: BinaryIO, progress: Progress | None = None
) -> None:
    """Write the images with these names, each with all its layers, as one archive.

    A repository without a tag stands for all its tags; an image named by its ID is saved without
    a name. Layers that several images share are written once. Raises ``NoSuchImage`` and its kin
    before anything is written, :class:`OSError`, and :class:`unionfs.errors.PackError` or
    ``StoreError`` for a damaged store.
    """
    with store.reading():
        contents = _Contents()
        for image, references in _select(store, names):
            layers = store.layers.require([info.diff_id for info in image.layers])
            contents.add(image, references, layers)
        for directory in ("blobs/", _BLOBS):
            out.write(tarwriter.header(directory.encode(), tarwriter.DIRECTORY, mode=0o755))
        for name, data in contents.documents().items():
            _start_file(out, name, len(data))
            out.write(data + tarwriter.padding(len(data)))
        for layer in contents.layers.values():
            _write_layer(store, layer, out, progress)
        out.write(tarwriter.END)


def _select(store: Store, names: Sequence[str]) -> list[tuple[Image, list[Reference]]]:
    """The images that the names stand for, each once, with the names to save them under."""
    selection: dict[str, tuple[Image, list[Reference]]] = {}
    for name in names:
        for image, references in _named(store, name):
            known = selection.setdefault(image.id, (image, []))[1]
            known.extend(reference for reference in references if reference not in known)
    return list(selection.values())


def _named(store: Store, name: str) -> list[tuple[Image, list[Reference]]]:
    """The images that one name stands for."""
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return [(store.image(name), [])]
    if reference.tag is None and reference.digest is None:
        found = [
            (image, [known for known in image.references if known.repository == str(reference)])
            for image in store.images()
        ]
        tagged = [(image, references) for image, references in found if references]
        if tagged:
            return tagged
    image = store.image(name)
    return [(image, [known for known in image.references if known == reference])]


class _Contents:
    """What goes into one archive."""

    def __init__(self) -> None:
        self.layers: dict[str, StoredLayer] = {}
        self._blobs: dict[str, bytes] = {}
        self._index: list[models.Descriptor] = []
        self._images: list[dict[str, object]] = []
        self._repositories: dict[str, dict[str, str]] = {}

    def add(
        self, image: Image, references: Sequence[Reference], layers: Sequence[StoredLayer]
    ) -> None:
        """Add an image under these names."""
        self.layers.update((layer.diff_id, layer) for layer in layers)
        manifest = _manifest(image, layers)
        self._blobs[_blob(image.id)] = image.config_bytes
        self._blobs[_blob(digest.of(manifest))] = manifest
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
        index = models.Index(schema_version=2, manifests=self._index)
        return {
            "oci-layout": models.encode({"imageLayoutVersion": "1.0.0"}),
            "index.json": models.encode(index),
            "manifest.json": models.encode(self._images),
            "repositories": models.encode(self._repositories),
            **self._blobs,
        }


def _blob(blob_digest: str) -> str:
    return _BLOBS + digest.hexadecimal(blob_digest)


def _manifest(image: Image, layers: Sequence[StoredLayer]) -> bytes:
    """The OCI manifest of an image: its layers are in the archive as plain tars."""
    return models.encode(
        models.Manifest(
            schema_version=2,
            config=models.Descriptor(
                media_type=models.OCI_CONFIG, digest=image.id, size=len(image.config_bytes)
            ),
            layers=[
                models.Descriptor(
                    media_type=models.OCI_LAYER, digest=layer.diff_id, size=layer.tar_size
                )
                for layer in layers
            ],
        )
    )


def _descriptors(manifest: bytes, references: Sequence[Reference]) -> list[models.Descriptor]:
    """The entries of a manifest in the index: one for each name, as Docker writes them."""
    annotations: list[dict[str, str] | None] = [
        {models.IMAGE_NAME: reference.full, models.REF_NAME: reference.tag or ""}
        for reference in references
    ]
    return [
        models.Descriptor(
            media_type=models.OCI_MANIFEST,
            digest=digest.of(manifest),
            size=len(manifest),
            annotations=each,
        )
        for each in annotations or [None]
    ]


def _start_file(out: BinaryIO, name: str, size: int) -> None:
    out.write(tarwriter.header(name.encode(), tarwriter.REGULAR, mode=0o644, size=size))


def _write_layer(
    store: Store, layer: StoredLayer, out: BinaryIO, progress: Progress | None
) -> None:
    """Write the exact archive a layer came as, or raise."""
    label = digest.short(layer.diff_id)
    _start_file(out, _blob(layer.diff_id), layer.tar_size)
    check = hashlib.sha256()
    done = 0
    with Pack(store.layers.path(layer.diff_id)) as pack:
        for piece in rebuild(pack):
            check.update(piece)
            out.write(piece)
            done += len(piece)
            if progress is not None:
                progress(label, "Saving layer", done, layer.tar_size)
    if done != layer.tar_size or digest.text(check.digest()) != layer.diff_id:
        raise StoreError(f"layer {layer.diff_id} is damaged: what was written of it is wrong")
    out.write(tarwriter.padding(done))
