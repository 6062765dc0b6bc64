"""The store's database: its tables, its version, and transactions.

SQLite in WAL mode with full synchronisation: many readers beside one writer, and what is committed
stays. Every error of SQLite comes out as :class:`StoreError`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import StoreError

FORMAT = 2
"""The version of the tables, kept in ``PRAGMA user_version``.

Version 1 had no snapshots, blobs and manifests; they are added when such a store is opened.
"""

APPLICATION = 0x6C616D69
"""``PRAGMA application_id``: "lami"."""

PATIENCE = 60.0
"""Seconds to wait for another process's transaction."""

Row = tuple[Any, ...]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS layer (
    number INTEGER PRIMARY KEY AUTOINCREMENT, -- never used again for another layer
    diff_id BLOB NOT NULL UNIQUE,
    tar_size INTEGER NOT NULL,       -- bytes of the uncompressed archive
    content_size INTEGER NOT NULL,   -- bytes of all its files
    entries INTEGER NOT NULL,
    unresolved INTEGER NOT NULL,     -- has hardlinks to files of lower layers
    complete INTEGER NOT NULL        -- can be the bottom of an image as it is
) STRICT;
CREATE TABLE IF NOT EXISTS layer_source ( -- the pack of `layer` takes chunks from `source`
    layer INTEGER NOT NULL REFERENCES layer ON DELETE CASCADE,
    source INTEGER NOT NULL,
    PRIMARY KEY (layer, source)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS layer_source_source ON layer_source (source);
CREATE TABLE IF NOT EXISTS chunk (
    digest BLOB PRIMARY KEY,
    layer INTEGER NOT NULL,
    offset INTEGER NOT NULL,
    stored INTEGER NOT NULL,
    plain INTEGER NOT NULL,
    flags INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS chunk_layer ON chunk (layer);
CREATE TABLE IF NOT EXISTS image (
    id BLOB PRIMARY KEY,
    config BLOB NOT NULL,            -- the exact bytes; id is their sha256
    parent BLOB
) STRICT;
CREATE TABLE IF NOT EXISTS image_layer (
    image BLOB NOT NULL REFERENCES image ON DELETE CASCADE,
    position INTEGER NOT NULL,       -- 0 is the bottom
    layer INTEGER NOT NULL REFERENCES layer,
    chain BLOB NOT NULL,             -- the chain ID up to here
    PRIMARY KEY (image, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS image_layer_layer ON image_layer (layer);
CREATE TABLE IF NOT EXISTS run (     -- the files that serve the layers up to a chain ID
    chain BLOB NOT NULL,
    position INTEGER NOT NULL,       -- 0 is the topmost
    file TEXT NOT NULL,
    PRIMARY KEY (chain, position)
) STRICT, WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS run_file ON run (file);
CREATE TABLE IF NOT EXISTS reference (
    name TEXT PRIMARY KEY,
    image BLOB NOT NULL REFERENCES image ON DELETE CASCADE
) STRICT;
CREATE INDEX IF NOT EXISTS reference_image ON reference (image);
CREATE TABLE IF NOT EXISTS container (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    image BLOB NOT NULL REFERENCES image,
    image_name TEXT NOT NULL,
    config BLOB NOT NULL,
    created TEXT NOT NULL,
    started TEXT,
    finished TEXT,
    exit_code INTEGER,
    status TEXT NOT NULL,
    pid INTEGER
) STRICT;
CREATE INDEX IF NOT EXISTS container_image ON container (image);
CREATE TABLE IF NOT EXISTS snapshot (
    number INTEGER PRIMARY KEY AUTOINCREMENT,  -- names its directory
    name TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    parent INTEGER REFERENCES snapshot,
    labels BLOB NOT NULL,            -- JSON
    created TEXT NOT NULL,
    updated TEXT NOT NULL,
    layer INTEGER REFERENCES layer,  -- of a committed one
    chain BLOB                       -- the chain ID up to there
) STRICT;
CREATE INDEX IF NOT EXISTS snapshot_parent ON snapshot (parent);
CREATE INDEX IF NOT EXISTS snapshot_layer ON snapshot (layer);
CREATE TABLE IF NOT EXISTS blob (    -- a compressed form in which a layer came or goes
    digest BLOB PRIMARY KEY,
    layer INTEGER NOT NULL REFERENCES layer ON DELETE CASCADE,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL,
    recipe TEXT                      -- how it is made of the layer; null: there is a file
) STRICT;
CREATE INDEX IF NOT EXISTS blob_layer ON blob (layer);
CREATE TABLE IF NOT EXISTS manifest ( -- as which an image came; the last one counts
    digest BLOB NOT NULL,
    image BLOB NOT NULL REFERENCES image ON DELETE CASCADE,
    media_type TEXT NOT NULL,
    content BLOB NOT NULL,           -- the exact bytes; digest is their sha256
    PRIMARY KEY (digest, image)
) STRICT;
CREATE INDEX IF NOT EXISTS manifest_image ON manifest (image);
"""


class Database:
    """One connection. Statements outside a transaction commit by themselves."""

    def __init__(self, path: Path) -> None:
        """Open the file, made if missing; raises :class:`StoreError`."""
        self._path = path
        try:
            self._connection = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
        except sqlite3.Error as error:
            raise self._error(error) from error
        try:
            self.run("PRAGMA foreign_keys = ON")
            self.run("PRAGMA synchronous = FULL")
            self.run("PRAGMA temp_store = MEMORY")
        except StoreError:
            self.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def version(self) -> int:
        """The format of the tables: 0 for none yet. Raises :class:`StoreError` for a newer one."""
        (version,) = self.row("PRAGMA user_version") or (0,)
        (application,) = self.row("PRAGMA application_id") or (0,)
        foreign = version == 0 and self.row("SELECT 1 FROM sqlite_master LIMIT 1") is not None
        if foreign or (version and application != APPLICATION):
            raise StoreError(f"{self._path} is not the database of a lamina store")
        if version > FORMAT:
            raise StoreError(
                f"{self._path.parent} was written by a newer lamina (store format {version}, this "
                f"one knows {FORMAT}): use that one, or another store"
            )
        return int(version)

    def create(self) -> None:
        """Make the tables that are missing, all or none.

        The caller keeps other processes from doing the same.
        """
        self.run("PRAGMA journal_mode = WAL")
        with self.transaction():
            for statement in _SCHEMA.split(";\n"):
                if statement.strip():
                    self.run(statement)
            self.run(f"PRAGMA application_id = {APPLICATION}")
            self.run(f"PRAGMA user_version = {FORMAT}")

    def rows(self, statement: str, *values: object) -> list[Row]:
        """All rows of a query."""
        try:
            return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise self._error(error) from error

    def row(self, statement: str, *values: object) -> Row | None:
        """The first row of a query."""
        try:
            found: Row | None = self._connection.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise self._error(error) from error
        return found

    def run(self, statement: str, *values: object) -> int:
        """Run a statement; the number of rows it changed."""
        try:
            return self._connection.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise self._error(error) from error

    def run_many(self, statement: str, values: Iterable[Row]) -> None:
        """Run a statement for each row of values."""
        try:
            self._connection.executemany(statement, values)
        except sqlite3.Error as error:
            raise self._error(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All statements inside take effect together, or none if an exception leaves the block.

        No other process writes meanwhile, and what was read stays as it is.
        """
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            # SQLite has already rolled back by itself after some errors, such as a full disk.
            if self._connection.in_transaction:
                self.run("ROLLBACK")
            raise

    def _error(self, error: sqlite3.Error) -> StoreError:
        return StoreError(f"{self._path}: {error}")
