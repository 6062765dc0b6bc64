"""Removing what nothing refers to: layers without images, and what a killed process left."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..errors import StoreError
from .database import Database, Row
from .locks import locked, remove_tree

_log = logging.getLogger(__name__)

_FIND_LIVE = """
CREATE TEMPORARY TABLE live AS
WITH RECURSIVE found (number) AS (
    SELECT layer FROM image_layer
    UNION
    SELECT layer FROM snapshot WHERE layer IS NOT NULL
    UNION
    SELECT source FROM layer_source JOIN found ON layer = number
)
SELECT number FROM found
"""
"""The layers of images and snapshots, and those whose packs these take chunks from."""


_UNUSED_RUNS = """
FROM run WHERE chain NOT IN (
    SELECT chain FROM image_layer AS top WHERE NOT EXISTS (
        SELECT 1 FROM image_layer WHERE image = top.image AND position > top.position
    )
    UNION ALL SELECT chain FROM snapshot WHERE chain IS NOT NULL
)
"""
_UNUSED_RUN = f"SELECT 1 {_UNUSED_RUNS} LIMIT 1"
_UNUSED_LAYER = """
SELECT 1 FROM layer WHERE NOT EXISTS (SELECT 1 FROM image_layer WHERE layer = number)
AND NOT EXISTS (SELECT 1 FROM snapshot WHERE layer = layer.number)
AND NOT EXISTS (SELECT 1 FROM layer_source WHERE source = number) LIMIT 1
"""
"""Of unused layers one is no other's source, because a pack takes chunks from older ones only."""


def sweep(database: Database, root: Path) -> bool:
    """Remove all garbage from the store at ``root``; False if somebody is adding to it now.

    Garbage that is left for that reason, or because this process is killed, is found when the
    store is opened next: :func:`is_due`.
    """
    with locked(root / "lock", exclusive=True, wait=False) as held:
        if not held:
            return False
        (root / "tmp" / "sweep").mkdir(exist_ok=True)
        with database.transaction():
            _forget(database)
        _remove_files(database, root)
        _remove_unknown(root / "containers", database.rows("SELECT id FROM container"))
        _remove_unknown(root / "snapshots", database.rows("SELECT number FROM snapshot"))
        for left in sorted((root / "tmp").iterdir()):
            _remove(left)
        return True


def _forget(database: Database) -> None:
    """Delete the rows that nothing refers to."""
    database.run(_FIND_LIVE)
    dead = database.rows("SELECT number FROM layer WHERE number NOT IN (SELECT number FROM live)")
    database.run_many("DELETE FROM chunk WHERE layer = ?", dead)
    database.run_many("DELETE FROM layer WHERE number = ?", dead)
    database.run("DROP TABLE live")
    database.run(f"DELETE {_UNUSED_RUNS}")


def known_files(database: Database) -> set[str]:
    """The files of layers, runs and blobs that rows mention, as ``DIRECTORY/NAME``."""
    packs = database.rows("SELECT diff_id FROM layer")
    blobs = database.rows("SELECT digest FROM blob WHERE recipe IS NULL")
    return {
        *(f"layers/{diff_id.hex()}.pack" for (diff_id,) in packs),
        *(f"layers/{name}" for (name,) in database.rows("SELECT file FROM run")),
        *(f"blobs/{digest.hex()}" for (digest,) in blobs),
    }


def _remove_files(database: Database, root: Path) -> None:
    """Remove the files of layers, runs and blobs that no row mentions."""
    known = known_files(database)
    for room in ("layers", "blobs"):
        for path in (root / room).iterdir():
            if f"{room}/{path.name}" not in known:
                path.unlink()


def _remove_unknown(directory: Path, rows: list[Row]) -> None:
    """Remove the directories of containers or snapshots that do not exist."""
    known = {str(name) for (name,) in rows}
    for path in directory.iterdir():
        if path.name not in known:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a directory, unless files of other users or a mount are in it; or a stray file."""
    try:
        if path.is_dir() and not path.is_symlink():
            remove_tree(path)
        else:
            path.unlink()
    except (PermissionError, StoreError) as error:
        # A container of a user namespace with several users: only in there can it be removed.
        _log.info("%s is left: %s", path, error)


def is_due(database: Database, root: Path) -> bool:
    """Whether there may be garbage: what a killed process left, or nobody could sweep yet."""
    with os.scandir(root / "tmp") as entries:
        if next(entries, None) is not None:
            return True
    return database.row(_UNUSED_LAYER) is not None or database.row(_UNUSED_RUN) is not None
