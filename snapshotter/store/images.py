"""The images of a store: their rows, names, and Docker's rules for removing them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path

from .. import digest, models
from ..errors import AmbiguousId, Conflict, InvalidReference, NoSuchImage
from ..reference import Reference
from .blobs import Blobs, Manifest, NewBlob
from .database import Database, Row
from .layers import Layers

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{1,64})")


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer of an image; ``size`` is the bytes of all its files."""

    diff_id: str
    size: int


@dataclass(frozen=True)
class Image:
    """An image of the store. ``id`` is the digest of ``config_bytes``; layers are bottom first."""

    id: str
    config_bytes: bytes
    references: tuple[Reference, ...]
    layers: tuple[LayerInfo, ...]
    parent: str | None

    @cached_property
    def config(self) -> models.ImageConfig:
        """The parsed configuration."""
        return models.parse_config(self.config_bytes, f"config of image {self.id}")

    @property
    def created(self) -> datetime:
        """When the image was made; the epoch if it does not say."""
        return models.parse_time(self.config.created)

    @property
    def size(self) -> int:
        """The bytes of all files of all layers, as Docker counts."""
        return sum(layer.size for layer in self.layers)

    @property
    def short_id(self) -> str:
        """The 12 hex digits users see."""
        return digest.short(self.id)

    @property
    def chain_id(self) -> str | None:
        """What identifies the whole stack of layers; None without layers."""
        chains = list(digest.chain(layer.diff_id for layer in self.layers))
        return chains[-1] if chains else None


@dataclass(frozen=True, slots=True)
class NewImage:
    """An image to be added: configuration bytes, and the names it gets.

    ``manifest`` and ``blobs`` are the manifest it comes with and the compressed layers of that.
    """

    config: bytes
    references: tuple[Reference, ...] = ()
    parent: str | None = None
    manifest: Manifest | None = None
    blobs: tuple[NewBlob, ...] = ()


@dataclass(frozen=True, slots=True)
class Untagged:
    """A name was taken from an image."""

    reference: str

    def __str__(self) -> str:
        return f"Untagged: {self.reference}"


@dataclass(frozen=True, slots=True)
class Deleted:
    """An image, or the last use of a chain of layers, is gone."""

    id: str

    def __str__(self) -> str:
        return f"Deleted: {self.id}"


class Images:
    """The images of one store."""

    def __init__(self, database: Database, layers: Layers, blobs: Blobs) -> None:
        self._database = database
        self._layers = layers
        self._blobs = blobs

    def all(self) -> list[Image]:
        """All images, newest first."""
        rows = self._database.rows("SELECT id, config, parent FROM image")
        return sorted(self._build(rows), key=lambda image: (image.created, image.id), reverse=True)

    def get(self, name: str) -> Image:
        """The image with this name, ID, or beginning of an ID.

        Raises :class:`NoSuchImage`, :class:`AmbiguousId`, :class:`InvalidReference`.
        """
        image_id = self._by_reference(name) or self._by_id(name)
        if image_id is None:
            raise NoSuchImage(name if _is_id(name) else str(Reference.parse(name).tagged()))
        return self.by_id(digest.text(image_id))

    def by_id(self, image_id: str) -> Image:
        """The image with exactly this ID. Raises :class:`NoSuchImage`."""
        rows = self._database.rows(
            "SELECT id, config, parent FROM image WHERE id = ?", digest.raw(image_id)
        )
        if not rows:
            raise NoSuchImage(image_id)
        return self._build(rows)[0]

    def _by_reference(self, name: str) -> bytes | None:
        if _is_id(name) and len(name.removeprefix(digest.PREFIX)) == 64:
            return None
        try:
            reference = Reference.parse(name).tagged()
        except InvalidReference:
            if _is_id(name):
                return None
            raise
        row = self._database.row("SELECT image FROM reference WHERE name = ?", reference.full)
        return row[0] if row is not None else None

    def _by_id(self, name: str) -> bytes | None:
        match = _ID.fullmatch(name)
        if match is None:
            return None
        rows = self._database.rows(
            "SELECT id FROM image WHERE lower(hex(id)) LIKE ? LIMIT 2", match[1] + "%"
        )
        if len(rows) > 1:
            raise AmbiguousId(name)
        return rows[0][0] if rows else None

    def _build(self, rows: Sequence[Row]) -> list[Image]:
        """The images of some rows; their layers and names are read together."""
        one = rows[0][0] if len(rows) == 1 else None
        layers: dict[bytes, list[LayerInfo]] = {}
        for image, diff_id, size in self._database.rows(
            "SELECT image, diff_id, content_size FROM image_layer JOIN layer ON layer = number"
            " WHERE ?1 IS NULL OR image = ?1 ORDER BY image, position",
            one,
        ):
            layers.setdefault(image, []).append(LayerInfo(digest.text(diff_id), size))
        references: dict[bytes, list[Reference]] = {}
        for image, name in self._database.rows(
            "SELECT image, name FROM reference WHERE ?1 IS NULL OR image = ?1 ORDER BY name", one
        ):
            references.setdefault(image, []).append(Reference.parse(name))
        return [
            Image(
                digest.text(image),
                config,
                tuple(references.get(image, ())),
                tuple(layers.get(image, ())),
                digest.text(parent) if parent is not None else None,
            )
            for image, config, parent in rows
        ]

    def add(self, images: Sequence[NewImage], workspace: Path) -> list[Image]:
        """Add images whose layers are in the store, all of them or none, and name them.

        Raises :class:`unionfs.errors.LayerError` for layers that do not fit together.
        """
        prepared = []
        for image in images:
            config = models.parse_config(image.config, "image config")
            stack = self._layers.require(config.rootfs.diff_ids or [])
            prepared.append((image, stack, self._layers.runs(stack, workspace)))
        with self._database.transaction():
            for image, stack, runs in prepared:
                self._layers.publish(runs)
                self._insert(image, [layer.number for layer in stack], runs.chain)
            return [self.by_id(digest.of(image.config)) for image in images]

    def _insert(self, image: NewImage, layers: Sequence[int], chain: str) -> None:
        image_id = digest.raw(digest.of(image.config))
        parent = digest.raw(image.parent) if image.parent is not None else None
        if self._database.run(
            "INSERT OR IGNORE INTO image VALUES (?, ?, ?)", image_id, image.config, parent
        ):
            diff_ids = models.parse_config(image.config, "image config").rootfs.diff_ids or []
            self._database.run_many(
                "INSERT INTO image_layer VALUES (?, ?, ?, ?)",
                [
                    (image_id, position, layer, digest.raw(chain_id))
                    for position, (layer, chain_id) in enumerate(
                        zip(layers, digest.chain(diff_ids), strict=True)
                    )
                ],
            )
        self._blobs.publish(image.blobs)
        if image.manifest is not None:
            self._blobs.keep_manifest(image_id, image.manifest)
        self._name(image_id, image.references)

    def _name(self, image_id: bytes, references: Iterable[Reference]) -> None:
        self._database.run_many(
            "INSERT OR REPLACE INTO reference VALUES (?, ?)",
            [(reference.full, image_id) for reference in references],
        )

    def tag(self, source: str, target: str) -> Reference:
        """Give an image one more name, taken from another image if need be."""
        reference = Reference.parse_tagged(target)
        with self._database.transaction():
            self._name(digest.raw(self.get(source).id), [reference])
        return reference

    def remove(self, name: str, *, force: bool) -> list[Untagged | Deleted]:
        """Take the name from an image, and remove the image with its last name.

        An image named by its ID loses all its names; more than one of them needs ``force``. An
        image that a container uses is never removed, only its names are, with ``force``. Raises
        :class:`Conflict`, :class:`NoSuchImage` and the other errors of :meth:`get`.
        """
        with self._database.transaction():
            image = self.get(name)
            if self._by_reference(name) is None:
                return self._remove_by_id(image, force)
            return self._remove_reference(image, Reference.parse(name).tagged(), force)

    def remove_unused(
        self, choose: Callable[[list[Image]], list[Image]]
    ) -> list[Untagged | Deleted]:
        """Remove the images that ``choose`` names, until it names none; all in one transaction."""
        records: list[Untagged | Deleted] = []
        with self._database.transaction():
            while chosen := choose(self.all()):
                for image in chosen:
                    records += self._untag(image.references)
                    records += self._delete(image)
        return records

    def _remove_reference(
        self, image: Image, reference: Reference, force: bool
    ) -> list[Untagged | Deleted]:
        user = self._user(image)
        last = len(image.references) == 1
        if last and user is not None and not force:
            raise Conflict(
                f'conflict: unable to remove repository reference "{reference}" (must force) - '
                f"container {user[0][:12]} is using its referenced image {image.short_id}"
            )
        untagged = self._untag([reference])
        return untagged + self._delete(image) if last and user is None else untagged

    def _remove_by_id(self, image: Image, force: bool) -> list[Untagged | Deleted]:
        user = self._user(image)
        about = f"conflict: unable to delete {image.short_id}"
        if user is not None and (not force or user[1] == "running" or not image.references):
            kind = "running" if user[1] == "running" else "stopped"
            how = "must be forced" if kind == "stopped" and image.references else "cannot be forced"
            raise Conflict(
                f"{about} ({how}) - image is being used by {kind} container {user[0][:12]}"
            )
        if len(image.references) > 1 and not force:
            raise Conflict(
                f"{about} (must be forced) - image is referenced in multiple repositories"
            )
        untagged = self._untag(image.references)
        return untagged + self._delete(image) if user is None else untagged

    def _user(self, image: Image) -> Row | None:
        """The ID and status of a container that uses an image, a running one first."""
        return self._database.row(
            "SELECT id, status FROM container WHERE image = ?"
            " ORDER BY status = 'running' DESC, created LIMIT 1",
            digest.raw(image.id),
        )

    def _untag(self, references: Iterable[Reference]) -> list[Untagged | Deleted]:
        records: list[Untagged | Deleted] = []
        for reference in references:
            self._database.run("DELETE FROM reference WHERE name = ?", reference.full)
            records.append(Untagged(str(reference)))
        return records

    def _delete(self, image: Image) -> list[Untagged | Deleted]:
        image_id = digest.raw(image.id)
        rows = self._database.rows(
            "SELECT chain FROM image_layer AS mine WHERE image = ?1 AND NOT EXISTS"
            " (SELECT 1 FROM image_layer AS other WHERE other.chain = mine.chain"
            " AND other.image <> ?1) ORDER BY position DESC",
            image_id,
        )
        self._database.run("DELETE FROM image WHERE id = ?", image_id)
        return [Deleted(image.id), *(Deleted(digest.text(chain)) for (chain,) in rows)]


def _is_id(name: str) -> bool:
    return _ID.fullmatch(name) is not None
