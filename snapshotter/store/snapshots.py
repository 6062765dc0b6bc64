"""Snapshots: filesystems that grow from each other, by the contract of containerd's snapshotters.

A snapshot is *committed*, and then one layer on the layers of its parents; or *active*, and then an
upper directory on them; or a *view*, which only looks at them. Names and keys share one space. Only
committed snapshots can be parents. Committing an active one makes a new committed one and removes
it (containerd, core/snapshots/snapshotter.go).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import msgspec

from unionfs.attach import MountOptions
from unionfs.locks import lock_within
from unionfs.options import TreeOptions

from .. import digest
from ..errors import Conflict, NoSuchSnapshot
from .containers import make_root
from .database import Database, Row
from .layers import Layers, RootAttributes, StoredLayer
from .pruning import has_label

_INHERITED = "containerd.io/snapshot/"
"""Labels that begin so are those of the parent too."""


class SnapshotKind(Enum):
    """What a snapshot is."""

    VIEW = "view"
    ACTIVE = "active"
    COMMITTED = "committed"


class Snapshot(NamedTuple):
    """What is known of a snapshot. ``parent`` is empty for none."""

    name: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str]
    created: datetime
    updated: datetime


class SnapshotUsage(NamedTuple):
    """What a snapshot itself takes, without its parents: files, and bytes on the disk."""

    inodes: int
    size: int


class _Record(NamedTuple):
    """A row; ``parent`` is the parent's name, ``chain`` the chain ID of a committed one."""

    number: int
    name: str
    kind: SnapshotKind
    labels: dict[str, str]
    created: datetime
    updated: datetime
    chain: bytes | None
    parent: str


_SELECT = """
SELECT snapshot.number, snapshot.name, snapshot.kind, snapshot.labels, snapshot.created,
    snapshot.updated, snapshot.chain, ifnull(above.name, '')
FROM snapshot LEFT JOIN snapshot AS above ON above.number = snapshot.parent
"""

ANCESTORS = """
WITH RECURSIVE line (number, parent, layer, depth) AS (
    SELECT number, parent, layer, 0 FROM snapshot WHERE name = ?
    UNION ALL
    SELECT snapshot.number, snapshot.parent, snapshot.layer, depth + 1
    FROM snapshot JOIN line ON snapshot.number = line.parent
)
SELECT diff_id FROM line JOIN layer ON layer.number = line.layer ORDER BY depth DESC
"""
"""The layers of a snapshot and its parents, bottom first."""


class Snapshots:
    """The snapshots of one store. Methods that add are called in a session of the store."""

    def __init__(self, database: Database, layers: Layers, directory: Path) -> None:
        self._database = database
        self._layers = layers
        self._directory = directory

    # -- looking -------------------------------------------------------------------------------

    def stat(self, name: str) -> Snapshot:
        """What is known of a snapshot; raises :class:`NoSuchSnapshot`."""
        return _shown(self._row(name))

    def walk(
        self,
        *,
        kind: SnapshotKind | None = None,
        parent: str | None = None,
        label: str | None = None,
    ) -> Iterator[Snapshot]:
        """Every snapshot that fits, in the order of making; ``label`` is ``KEY[=VALUE]``.

        Snapshots may be looked at, changed and removed meanwhile.
        """
        for row in self._database.rows(_SELECT + " ORDER BY snapshot.number"):
            found = _shown(_record(row))
            if kind not in (None, found.kind) or parent not in (None, found.parent):
                continue
            if label is None or has_label(found.labels, label):
                yield found

    def usage(self, name: str) -> SnapshotUsage:
        """What a snapshot takes. Of an active one this is read from its upper, file by file."""
        row = self._row(name)
        if row.kind is SnapshotKind.COMMITTED:
            layer = self._layer(row)
            return SnapshotUsage(layer.entries, self._layers.path(layer.diff_id).stat().st_size)
        return (
            _usage_of(self._place(row) / "upper")
            if row.kind is SnapshotKind.ACTIVE
            else SnapshotUsage(0, 0)
        )

    def mount_options(self, key: str, mountpoint: Path) -> MountOptions:
        """How to mount a view or an active snapshot. Raises :class:`Conflict` for another."""
        row = self._row(key)
        if row.kind is SnapshotKind.COMMITTED:
            raise Conflict(f"snapshot {key} is committed: prepare or view one on it to mount it")
        place = self._place(row)
        active = row.kind is SnapshotKind.ACTIVE
        return MountOptions(
            lowers=(*self.lowers(key),),
            upper=os.fsencode(place / "upper") if active else None,
            work=os.fsencode(place / "work") if active else None,
            mountpoint=os.fsencode(mountpoint),
            tree=TreeOptions(metacopy=active),
        )

    def lowers(self, key: str) -> list[bytes]:
        """The layers below an active snapshot or a view, topmost first, an empty one the lowest."""
        row = self._row(key)
        chain = self._row(row.parent).chain if row.parent else None
        runs = self._layers.run_files(digest.text(chain)) if chain is not None else ()
        paths = [self._layers.file(name) for name in runs]
        return [os.fsencode(path) for path in (*paths, self._place(row) / "empty")]

    def places(self, key: str) -> tuple[Path, Path, Path]:
        """The upper of an active snapshot, its work directory, and the upper as it was made."""
        row = self._row(key)
        if row.kind is not SnapshotKind.ACTIVE:
            raise Conflict(f"snapshot {key} is not active")
        place = self._place(row)
        return place / "upper", place / "work", place / "pristine"

    def layers_of(self, name: str) -> list[StoredLayer]:
        """The layers of a committed snapshot and its parents, bottom first; none for no name."""
        if not name:
            return []
        rows = self._database.rows(ANCESTORS, name)
        return self._layers.require([digest.text(diff_id) for (diff_id,) in rows])

    # -- changing ------------------------------------------------------------------------------

    def prepare(
        self,
        key: str,
        parent: str = "",
        *,
        labels: Mapping[str, str] | None = None,
        view: bool = False,
        workspace: Path,
    ) -> Snapshot:
        """Make an active snapshot, or a view, on a committed one, or on nothing.

        Raises :class:`Conflict` for a key in use or a parent that is not committed,
        :class:`NoSuchSnapshot`.
        """
        kind = SnapshotKind.VIEW if view else SnapshotKind.ACTIVE
        with self._database.transaction():
            above = self._parent(parent)
            inherited = {
                name: value
                for name, value in (above.labels if above is not None else {}).items()
                if name.startswith(_INHERITED)
            }
            number = self._insert(key, kind, above, {**inherited, **(labels or {})})
            made = workspace / f"snapshot-{number}"
            self._make(made, parent, kind)
            os.rename(made, self._directory / str(number))
        return self.stat(key)

    def _make(self, place: Path, parent: str, kind: SnapshotKind) -> None:
        place.mkdir(0o700)
        (place / "empty").mkdir()
        if kind is SnapshotKind.ACTIVE:
            (place / "work").mkdir(0o700)
            for name in ("upper", "pristine"):
                make_root(place / name, self._root_attributes(parent))

    def _root_attributes(self, parent: str) -> RootAttributes:
        chain = self._row(parent).chain if parent else None
        if chain is None:
            return RootAttributes()
        files = [self._layers.file(name) for name in self._layers.run_files(digest.text(chain))]
        return self._layers.root_attributes(files)

    def commit(
        self,
        key: str,
        name: str,
        layer: StoredLayer,
        *,
        labels: Mapping[str, str] | None = None,
        workspace: Path,
    ) -> Snapshot:
        """Make the committed snapshot ``name`` of ``layer`` on the parent of ``key``; remove that.

        Raises :class:`Conflict` for a name in use or a key that is not active.
        """
        row = self._row(key)
        runs = self._layers.runs([*self.layers_of(row.parent), layer], workspace)
        with self._database.transaction():
            row = self._row(key)
            if row.kind is not SnapshotKind.ACTIVE:
                raise Conflict(f"snapshot {key} is not active")
            self._refuse_mounted(row)
            self._layers.publish(runs)
            above = self._parent(row.parent)
            number = self._insert(name, SnapshotKind.COMMITTED, above, labels or {})
            self._database.run(
                "UPDATE snapshot SET layer = ?, chain = ? WHERE number = ?",
                layer.number,
                digest.raw(runs.chain),
                number,
            )
            self._database.run("DELETE FROM snapshot WHERE number = ?", row.number)
        self._discard(row, workspace)
        return self.stat(name)

    def update(self, name: str, labels: Mapping[str, str]) -> Snapshot:
        """Replace the labels of a snapshot; an empty value removes one that is not given."""
        with self._database.transaction():
            self._row(name)
            self._database.run(
                "UPDATE snapshot SET labels = ?, updated = ? WHERE name = ?",
                msgspec.json.encode({key: value for key, value in labels.items() if value}),
                _now(),
                name,
            )
        return self.stat(name)

    def remove(self, name: str, workspace: Path) -> None:
        """Remove a snapshot. Raises :class:`Conflict` if others grow from it or it is mounted."""
        with self._database.transaction():
            row = self._row(name)
            child = self._database.row("SELECT name FROM snapshot WHERE parent = ?", row.number)
            if child is not None:
                raise Conflict(f"cannot remove snapshot {name}: {child[0]} grows from it")
            self._refuse_mounted(row)
            self._database.run("DELETE FROM snapshot WHERE number = ?", row.number)
        self._discard(row, workspace)

    def _discard(self, row: _Record, workspace: Path) -> None:
        # Only after the row has gone: a process killed before must leave the directory in place.
        place = self._place(row)
        if place.exists():
            os.rename(place, workspace / f"removed-{row.number}")

    # -- rows ----------------------------------------------------------------------------------

    def _row(self, name: str) -> _Record:
        found = self._database.row(_SELECT + " WHERE snapshot.name = ?", name)
        if found is None:
            raise NoSuchSnapshot(name)
        return _record(found)

    def _parent(self, name: str) -> _Record | None:
        if not name:
            return None
        row = self._row(name)
        if row.kind is not SnapshotKind.COMMITTED:
            raise Conflict(f"snapshot {name} is not committed: nothing can grow from it")
        return row

    def _insert(
        self, name: str, kind: SnapshotKind, parent: _Record | None, labels: Mapping[str, str]
    ) -> int:
        if not name:
            raise Conflict("a snapshot needs a name")
        if self._database.row("SELECT 1 FROM snapshot WHERE name = ?", name) is not None:
            raise Conflict(f"snapshot {name} exists already")
        self._database.run(
            "INSERT INTO snapshot (name, kind, parent, labels, created, updated)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            name,
            kind.value,
            parent.number if parent is not None else None,
            msgspec.json.encode(dict(labels)),
            now := _now(),
            now,
        )
        (number,) = self._database.row("SELECT last_insert_rowid()") or (0,)
        return int(number)

    def _layer(self, row: _Record) -> StoredLayer:
        return self.layers_of(row.name)[-1]

    def _place(self, row: _Record) -> Path:
        return self._directory / str(row.number)

    def _refuse_mounted(self, row: _Record) -> None:
        """Refuse what still has a mount: the work directory is locked by its daemon."""
        if row.kind is SnapshotKind.ACTIVE and _is_locked(self._place(row) / "work"):
            raise Conflict(f"snapshot {row.name} is mounted: unmount it first")


def _record(row: Row) -> _Record:
    number, name, kind, labels, created, updated, chain, parent = row
    return _Record(
        number,
        name,
        SnapshotKind(kind),
        msgspec.json.decode(labels, type=dict[str, str]),
        datetime.fromisoformat(created),
        datetime.fromisoformat(updated),
        chain,
        parent,
    )


def _shown(row: _Record) -> Snapshot:
    return Snapshot(row.name, row.parent, row.kind, row.labels, row.created, row.updated)


def _now() -> str:
    return datetime.now(UTC).isoformat()


def _usage_of(root: Path) -> SnapshotUsage:
    """Files and bytes on the disk below a directory, each file once, the directory included."""
    seen: set[int] = set()
    size = 0
    for _, _, files, fd in os.fwalk(root):
        for info in (os.fstat(fd), *(os.stat(f, dir_fd=fd, follow_symlinks=False) for f in files)):
            if info.st_ino not in seen:
                seen.add(info.st_ino)
                size += info.st_blocks * 512
    return SnapshotUsage(len(seen), size)


def _is_locked(directory: Path) -> bool:
    """Whether a mount uses a work directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return not lock_within(fd, fcntl.LOCK_EX, 0)
    finally:
        os.close(fd)
