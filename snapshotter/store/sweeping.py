"""Removing what nothing refers to: layers without images, and what a killed process left."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from ..errors import StoreError
from .database import Database
from .locks import locked, remove_tree

_log = logging.getLogger(__name__)

_FIND_LIVE = """
CREATE TEMPORARY TABLE live AS
WITH RECURSIVE found (number) AS (
    SELECT layer FROM image_layer
    UNION
    SELECT source FROM layer_source JOIN found ON layer = number
)
SELECT number FROM found
"""
"""The layers of images, and those whose packs these take chunks from."""


def sweep(database: Database, root: Path) -> bool:
    """Remove all garbage from the store at ``root``; False if somebody is adding to it now.

    Garbage that is left for that reason is found by the next sweep. A sweep that is killed leaves
    a directory in ``tmp``, which makes the next process that opens the store sweep again.
    """
    with locked(root / "lock", exclusive=True, wait=False) as held:
        if not held:
            return False
        (root / "tmp" / "sweep").mkdir(exist_ok=True)
        with database.transaction():
            _forget(database)
        _remove_files(database, root / "layers")
        _remove_containers(database, root / "containers")
        for left in sorted((root / "tmp").iterdir()):
            _remove_directory(left)
        return True


def _forget(database: Database) -> None:
    """Delete the rows that nothing refers to."""
    database.run(_FIND_LIVE)
    dead = database.rows("SELECT number FROM layer WHERE number NOT IN (SELECT number FROM live)")
    database.run_many("DELETE FROM chunk WHERE layer = ?", dead)
    database.run_many("DELETE FROM layer WHERE number = ?", dead)
    database.run("DROP TABLE live")
    database.run(
        "DELETE FROM run WHERE chain NOT IN (SELECT chain FROM image_layer AS top WHERE NOT EXISTS"
        " (SELECT 1 FROM image_layer WHERE image = top.image AND position > top.position))"
    )


def _remove_files(database: Database, directory: Path) -> None:
    """Remove the packs and merged indexes that no row mentions."""
    known = {f"{diff_id.hex()}.pack" for (diff_id,) in database.rows("SELECT diff_id FROM layer")}
    known.update(name for (name,) in database.rows("SELECT file FROM run"))
    for path in directory.iterdir():
        if path.name not in known:
            path.unlink()


def _remove_containers(database: Database, directory: Path) -> None:
    """Remove the directories of containers that do not exist."""
    known = {name for (name,) in database.rows("SELECT id FROM container")}
    for path in directory.iterdir():
        if path.name not in known:
            _remove_directory(path)


def _remove_directory(path: Path) -> None:
    """Remove a directory, unless files of other users or a mount are in it."""
    try:
        remove_tree(path)
    except (PermissionError, StoreError) as error:
        # A container of a user namespace with several users: only in there can it be removed.
        _log.info("%s is left: %s", path, error)


def has_leftovers(root: Path) -> bool:
    """Whether anything in ``tmp`` may have been left by a killed process."""
    with os.scandir(root / "tmp") as entries:
        return next(entries, None) is not None
