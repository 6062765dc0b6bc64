"""Reading images from an archive, in one pass, so that a pipe will do, or from a directory.

Read are this program's own archives, those of ``docker save`` of every age, and archived OCI
layouts (``skopeo``, ``podman save``), compressed or not. A member is taken for a layer or a
document by its content; what it is for shows only when all has been read, since the manifest may
come last. Every digest that the archive gives is checked, and nothing is visible before all is.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .. import compression
from ..progress import Progress, Readable
from ..reference import Reference
from ..store import Image, Store
from .contents import Contents
from .directory import directory_members
from .manifests import described
from .members import members


@dataclass(frozen=True, slots=True)
class Loaded:
    """An image that was loaded, and the names it got: none if the archive has none for it."""

    image: Image
    references: tuple[Reference, ...]


def load(store: Store, source: Readable | Path, progress: Progress | None = None) -> list[Loaded]:
    """Load all images of an archive, or none. Other images lose the names these have.

    ``source`` is the archive, or a directory with an OCI layout.

    Raises :class:`~..errors.ArchiveError` for a malformed archive, a wrong digest or a missing
    blob, :class:`unionfs.errors.LayerError` for a bad layer, :class:`OSError` (disk full).
    """
    with store.session() as session:
        contents = Contents(store, session, progress)
        found_in = (
            directory_members(source)
            if isinstance(source, Path)
            else members(compression.plain(source))
        )
        for member in found_in:
            contents.take(member)
        found = described(contents)
        images = session.add_images(found)
    return [Loaded(image, new.references) for image, new in zip(images, found, strict=True)]
