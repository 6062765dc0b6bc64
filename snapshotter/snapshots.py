"""The contract of containerd's snapshotters on a store (core/snapshots/snapshotter.go).

=============  ===================================================================================
``prepare``    an active snapshot on a committed one, to be mounted and changed
``view``       a snapshot to be mounted and looked at
``commit``     an active one becomes a committed one, and with it a layer
``remove``     any that nothing grows from
``stat``, ``update``, ``walk``, ``usage``, ``mount_options``: what there is, and how it is mounted
=============  ===================================================================================

A committed snapshot is one layer, exact and shared like those of images, whatever it grows from; a
chain of hundreds is served by a few files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

from unionfs.attach import MountOptions
from unionfs.opening import open_finished

from .diff import Difference, root_has_changed
from .store import Snapshot, SnapshotKind, SnapshotUsage, Store


class Snapshotter:
    """Snapshots of one store, which stays the caller's to close.

    Every method raises :class:`snapshotter.errors.NoSuchSnapshot` for a name that is not there and
    :class:`snapshotter.errors.Conflict` for what the contract forbids.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def prepare(
        self, key: str, parent: str = "", labels: Mapping[str, str] | None = None
    ) -> Snapshot:
        """Make an active snapshot on a committed one; an empty parent is an empty filesystem."""
        with self._store.session() as session:
            return self._store.snapshots.prepare(
                key, parent, labels=labels, workspace=session.directory
            )

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] | None = None) -> Snapshot:
        """Make a snapshot that only looks at a committed one."""
        with self._store.session() as session:
            return self._store.snapshots.prepare(
                key, parent, labels=labels, view=True, workspace=session.directory
            )

    def commit(self, name: str, key: str, labels: Mapping[str, str] | None = None) -> Snapshot:
        """Make the committed snapshot ``name`` of the active one ``key``, which is removed.

        Raises :class:`unionfs.errors.LayerError` for what a layer cannot hold.
        """
        snapshots = self._store.snapshots
        with self._store.session() as session:
            upper, work, pristine = snapshots.places(key)
            lowers = snapshots.lowers(key)
            with closing(open_finished(os.fsencode(upper), os.fsencode(work), lowers)) as tree:
                changed = root_has_changed(tree, pristine)
                layer = session.add_layer(Difference(tree, with_root=changed))
            made = snapshots.commit(key, name, layer, labels=labels, workspace=session.directory)
            session.unused.discard(layer.diff_id)
            return made

    def remove(self, name: str) -> None:
        """Remove a snapshot, and its layer if nothing else has it."""
        with self._store.session() as session:
            self._store.snapshots.remove(name, session.directory)
        self._store.sweep()

    def stat(self, name: str) -> Snapshot:
        """What is known of a snapshot."""
        return self._store.snapshots.stat(name)

    def update(self, name: str, labels: Mapping[str, str]) -> Snapshot:
        """Replace the labels of a snapshot; those with an empty value go."""
        return self._store.snapshots.update(name, labels)

    def walk(
        self,
        *,
        kind: SnapshotKind | None = None,
        parent: str | None = None,
        label: str | None = None,
    ) -> Iterator[Snapshot]:
        """Every snapshot that fits, in the order of making; ``label`` is ``KEY[=VALUE]``."""
        return self._store.snapshots.walk(kind=kind, parent=parent, label=label)

    def usage(self, name: str) -> SnapshotUsage:
        """Files and bytes on the disk of a snapshot, without its parents."""
        return self._store.snapshots.usage(name)

    def mount_options(self, key: str, mountpoint: Path) -> MountOptions:
        """How to mount an active snapshot or a view (:func:`unionfs.mounting.start`)."""
        return self._store.snapshots.mount_options(key, mountpoint)
