"""Looking at everything in a store, and mending what can be mended.

Checked are the database, each row, each pack to the last chunk, each merged index, compressed
layers and manifests by their digests, and what nothing mentions. Mended is what can be had from
what is there: an index from the layers it joins, a chunk from another pack or from a compressed
layer, rows from the packs they describe. Nothing that is whole is touched.
"""

from __future__ import annotations

from collections.abc import Iterable

from .others import leftovers, verify_blobs, verify_manifests, verify_runs
from .packs import verify_layers
from .report import Finding, Report, State, Work
from .rows import verify_containers, verify_database, verify_images, verify_snapshots

__all__ = ["Finding", "Report", "State", "Work", "leftovers", "verify"]

_LAYERS_OF_IMAGE = """
WITH RECURSIVE needed (number) AS (
    SELECT layer FROM image_layer WHERE image = ?
    UNION
    SELECT source FROM layer_source JOIN needed ON layer = number
)
SELECT number FROM needed
"""


def verify(work: Work, images: Iterable[bytes] | None = None) -> None:
    """Check a store, or no more than what some images need; the report is in ``work``.

    Raises :class:`~...errors.StoreError` if the database cannot be read at all.
    """
    only = set(images) if images is not None else None
    layers = None
    if only is not None:
        layers = {
            number for image in only for (number,) in work.database.rows(_LAYERS_OF_IMAGE, image)
        }
    else:
        verify_database(work)
    # Layers first: a row may get back the diff_id that images know it by.
    verify_layers(work, layers)
    verify_images(work, only)
    verify_containers(work, only)
    if only is None:
        verify_snapshots(work)
    verify_runs(work, only)
    verify_blobs(work, layers)
    verify_manifests(work, only)
