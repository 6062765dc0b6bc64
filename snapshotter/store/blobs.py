"""Compressed layers: under which digests they came, and how to have those bytes again.

A digest names compressed bytes, and compressing the same layer again seldom gives the same bytes.
So a layer that came compressed from an archive is kept in that form as well, as a file of
``blobs/``. Where :func:`~..compression.compress_layer` gives the same bytes, a row is enough.
Manifests are kept as they came, for they name layers by these digests.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .. import compression, digest, models
from ..errors import ArchiveError, StoreError
from .database import Database, Row
from .layers import Layers
from .locks import sync_directory

_PIECE = 1 << 20
_SELECT = "SELECT digest, diff_id, size, media_type, recipe FROM blob JOIN layer ON layer = number"


class Blob(NamedTuple):
    """The compressed form of a layer; ``size`` in bytes.

    ``recipe`` says how it is made from the layer, see :data:`~..compression.RECIPE`; without one
    there is a file.
    """

    digest: str
    diff_id: str
    size: int
    media_type: str
    recipe: str | None


class NewBlob(NamedTuple):
    """A blob to be added, and the file it is in: None for one with a recipe."""

    blob: Blob
    path: Path | None


class Manifest(NamedTuple):
    """A manifest as it came; its digest is that of ``content``."""

    media_type: str
    content: bytes


class Blobs:
    """The compressed layers of one store, and the manifests of its images."""

    def __init__(self, database: Database, layers: Layers, directory: Path) -> None:
        self._database = database
        self._layers = layers
        self._directory = directory

    def get(self, blob_digest: str) -> Blob | None:
        """The blob with this digest, if the store can give it."""
        found = self._database.row(f"{_SELECT} WHERE digest = ?", digest.raw(blob_digest))
        blob = _build(found) if found is not None else None
        return blob if blob is not None and self._is_there(blob) else None

    def of_layer(self, diff_id: str) -> list[Blob]:
        """The compressed forms of a layer, those kept as files first."""
        rows = self._database.rows(
            f"{_SELECT} WHERE diff_id = ? ORDER BY recipe IS NOT NULL, digest", digest.raw(diff_id)
        )
        return [blob for blob in map(_build, rows) if self._is_there(blob)]

    def all(self) -> list[Blob]:
        """All blobs there are rows of."""
        return [_build(row) for row in self._database.rows(f"{_SELECT} ORDER BY digest")]

    def _is_there(self, blob: Blob) -> bool:
        if blob.recipe is not None:
            return blob.recipe == compression.RECIPE
        return self.path(blob.digest).exists()

    def path(self, blob_digest: str) -> Path:
        """The file of a blob."""
        return self._directory / digest.hexadecimal(blob_digest)

    def read(self, blob: Blob) -> Iterator[bytes]:
        """The bytes of a blob; at their end they are known to be those of its digest.

        Raises :class:`StoreError` for a blob that is damaged, or that this machine cannot make
        again, and :class:`unionfs.errors.PackError` for a damaged layer.
        """
        check = hashlib.sha256()
        for piece in self._pieces(blob):
            check.update(piece)
            yield piece
        if digest.text(check.digest()) != blob.digest:
            raise StoreError(f"compressed layer {blob.digest} is damaged")

    def _pieces(self, blob: Blob) -> Iterator[bytes]:
        if blob.recipe is None:
            with self.path(blob.digest).open("rb") as stream:
                yield from iter(lambda: stream.read(_PIECE), b"")
            return
        if blob.recipe != compression.RECIPE:
            raise StoreError(
                f"layer {blob.digest} was compressed by {blob.recipe}, and here is "
                f"{compression.RECIPE}: it cannot be made again"
            )
        yield from compression.compress_layer(self._layers.rebuilt(blob.diff_id))

    def publish(self, blobs: Iterable[NewBlob]) -> None:
        """Put blobs in their place; part of the transaction that adds their image."""
        for blob, path in blobs:
            if path is not None and not self.path(blob.digest).exists():
                os.rename(path, self.path(blob.digest))
                sync_directory(self._directory)
            self._database.run(
                "INSERT OR IGNORE INTO blob SELECT ?, number, ?, ?, ? FROM layer WHERE diff_id = ?",
                digest.raw(blob.digest),
                blob.size,
                blob.media_type,
                blob.recipe,
                digest.raw(blob.diff_id),
            )

    def note(self, blob: Blob) -> None:
        """Remember what a layer is called when this program compresses it."""
        with self._database.transaction():
            self.publish([NewBlob(blob, None)])

    def manifest(self, image_id: str) -> Manifest | None:
        """The manifest an image came with last."""
        row = self._database.row(
            "SELECT media_type, content FROM manifest WHERE image = ? ORDER BY rowid DESC LIMIT 1",
            digest.raw(image_id),
        )
        return Manifest(*row) if row is not None else None

    def keep_manifest(self, image_id: bytes, manifest: Manifest) -> None:
        """Keep the manifest an image comes with; part of the transaction that adds it."""
        self._database.run(
            "INSERT OR REPLACE INTO manifest (digest, image, media_type, content)"
            " VALUES (?, ?, ?, ?)",
            digest.raw(digest.of(manifest.content)),
            image_id,
            *manifest,
        )

    def named(self) -> dict[str, list[str]]:
        """The digests of all layers that manifests name, each with the IDs of their images."""
        found: dict[str, list[str]] = {}
        for image, content in self._database.rows("SELECT image, content FROM manifest"):
            try:
                manifest = models.decode(content, models.Manifest, "manifest")
            except ArchiveError:
                continue  # damaged; a verification says so
            for layer in manifest.layers:
                found.setdefault(layer.digest, []).append(digest.text(image))
        return found

    def give_up(self) -> None:
        """Forget every blob that is a file; the files are swept."""
        self._database.run("DELETE FROM blob WHERE recipe IS NULL")


def _build(row: Row) -> Blob:
    return Blob(digest.text(row[0]), digest.text(row[1]), *row[2:])
