"""The store: images, layers and containers below one directory, safe for many processes.

=================  =============================================================================
``lamina.db``      what there is: see :mod:`.database`
``layers/``        packs of layers (``<diff_id>.pack``), merged indexes (``<chain ID>.merged``)
``blobs/``         compressed layers that only here can be had: see :mod:`.blobs`
``containers/``    one directory for each container
``snapshots/``     one directory for each snapshot that is not committed
``tmp/``, ``lock`` work in progress, and who may remove what: see :mod:`.locks`
=================  =============================================================================

Files are made in ``tmp``, written to the disk and renamed to their place; then one transaction
makes them visible. Removing goes the other way round. So whatever is killed whenever, an image or a
container is there wholly or not at all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from .. import digest
from ..errors import Conflict, NoSuchContainer, NoSuchImage, StoreError
from ..progress import Progress, Readable
from ..reference import Reference
from .blobs import Blob, Blobs, Manifest, NewBlob
from .containers import Container, ContainerConfig, Containers, hold
from .database import FORMAT, Database
from .images import Deleted, Image, Images, LayerInfo, NewImage, Untagged
from .layers import Layers, RootAttributes, StoredLayer
from .locks import locked, workspace
from .pruning import Selection, stopped_containers, unused_images
from .snapshots import Snapshot, SnapshotKind, Snapshots, SnapshotUsage
from .sweeping import is_due, sweep
from .usage import (
    BlobUsage,
    ContainerUsage,
    ImageUsage,
    Usage,
    blob_usage,
    directory_size,
    rooms_size,
    usage,
)

if TYPE_CHECKING:
    from .verify import Report, State, Work

__all__ = [
    "Blob",
    "BlobUsage",
    "Container",
    "ContainerConfig",
    "ContainerUsage",
    "Deleted",
    "Image",
    "ImageUsage",
    "LayerInfo",
    "Manifest",
    "NewBlob",
    "NewImage",
    "RootAttributes",
    "Selection",
    "Session",
    "Snapshot",
    "SnapshotKind",
    "SnapshotUsage",
    "Store",
    "StoredLayer",
    "Untagged",
    "Usage",
]

_log = logging.getLogger(__name__)

_ROOMS = ("layers", "blobs", "containers", "snapshots", "tmp")
_DATABASE = "lamina.db"


class Store:
    """One open store; a context manager. Not to be used by a forked child, nor by threads."""

    def __init__(self, root: Path, database: Database) -> None:
        """For :meth:`open`."""
        self.root = root
        self._database = database
        self.layers = Layers(database, root / "layers")
        self.blobs = Blobs(database, self.layers, root / "blobs")
        self._images = Images(database, self.layers, self.blobs)
        self._containers = Containers(database, root / "containers")
        self.snapshots = Snapshots(database, self.layers, root / "snapshots")

    @classmethod
    def open(cls, root: Path, *, sweeping: bool = True) -> Store:
        """Open the store at ``root``, made if there is nothing or an empty directory.

        Garbage is removed unless ``sweeping`` is False: of a damaged store it may not be that.
        Raises :class:`StoreError` for a directory that is something else or cannot be written,
        and for the store of a newer version.
        """
        try:
            _prepare(root)
            database = Database(root / _DATABASE)
            try:
                if database.version() < FORMAT:
                    with locked(root / "lock", exclusive=True):
                        # Another process may have been first.
                        if database.version() < FORMAT:
                            database.create()
                store = cls(root, database)
                if sweeping and is_due(database, root):
                    store.sweep()
            except BaseException:
                database.close()
                raise
        except OSError as error:
            raise StoreError(f"cannot use the store {root}: {error.strerror or error}") from error
        return store

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Add to the store: nothing is removed from it by others until the end of the block.

        Layers that were added and belong to no image at the end are removed.
        """
        session: Session | None = None
        try:
            with (
                locked(self.root / "lock", exclusive=False),
                workspace(self.root / "tmp") as directory,
            ):
                session = Session(self, directory)
                yield session
        finally:
            if session is not None and session.unused:
                self.sweep()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read layers: none is removed until the end of the block."""
        with locked(self.root / "lock", exclusive=False):
            yield

    def sweep(self) -> bool:
        """Remove what nothing refers to; False, and nothing done, if others are adding now."""
        return sweep(self._database, self.root)

    def verify(
        self,
        names: Sequence[str] | None = None,
        *,
        repair: bool = False,
        spare: Store | None = None,
        progress: Progress | None = None,
    ) -> Report:
        """Check everything, or what these images need; with ``repair`` mend what can be.

        What this store lacks is taken from the layers of ``spare``.
        Raises :class:`StoreError` if the database cannot be read, and what :meth:`image` does.
        """
        from . import verify  # noqa: PLC0415

        images = [digest.raw(self.image(name).id) for name in names] if names else None
        with ExitStack() as stack:
            session = stack.enter_context(self.session()) if repair else None
            if session is None:
                stack.enter_context(self.reading())
            work = verify.Work(
                self._database,
                self.root,
                self.layers,
                self.blobs,
                session.directory if session is not None else None,
                progress,
                spare.layers if spare is not None else None,
            )
            verify.verify(work, images)
        if images is None:
            self._verify_leftovers(work)
        return work.report

    def _verify_leftovers(self, work: Work) -> None:
        """Look for what nothing mentions, while nobody adds to the store.

        It stays where something is lost: it may be just that.
        """
        from .verify import leftovers  # noqa: PLC0415

        with locked(self.root / "lock", exclusive=True, wait=False) as held:
            names = leftovers(work) if held else []
        if names and work.workspace is not None and work.report.is_sound:
            self.sweep()
        for name in names:
            work.found(name, "belongs to nothing", partial(self._is_swept, name))

    def _is_swept(self, name: str) -> State:
        from .verify import State  # noqa: PLC0415

        return State.LOST if (self.root / name).exists() else State.REPAIRED

    def images(self) -> list[Image]:
        """All images, newest first."""
        return self._images.all()

    def image(self, name: str) -> Image:
        """The image with this name (``latest`` by default), ID or beginning of an ID.

        Raises :class:`~..errors.NoSuchImage`, ``AmbiguousId``, ``InvalidReference``.
        """
        return self._images.get(name)

    def tag(self, source: str, target: str) -> Reference:
        """Give the image ``source`` the name ``target`` as well."""
        return self._images.tag(source, target)

    def remove_image(self, name: str, *, force: bool = False) -> list[Untagged | Deleted]:
        """Take a name from an image, and remove it with its last one; see :meth:`Images.remove`."""
        records = self._images.remove(name, force=force)
        if any(isinstance(record, Deleted) for record in records):
            self.sweep()
        return records

    def prune_images(
        self, selection: Selection | None = None, *, every: bool = False
    ) -> list[Untagged | Deleted]:
        """Remove nameless images that nothing uses, or with ``every`` all without containers."""
        chosen = selection or Selection()
        records = self._images.remove_unused(
            lambda images: unused_images(images, self._database, chosen, every=every)
        )
        if records:
            self.sweep()
        return records

    def prune_containers(self, selection: Selection | None = None) -> list[ContainerUsage]:
        """Remove the containers that do not run; what each took."""
        removed = []
        for container in stopped_containers(self.containers(), selection or Selection()):
            size = directory_size(container.upper)
            try:
                removed.append(ContainerUsage(self.remove_container(container.id), size))
            except (Conflict, NoSuchContainer) as error:
                _log.info("not removed: %s", error)  # mounted, started or removed meanwhile
        return removed

    def give_up_blobs(self) -> list[BlobUsage]:
        """Forget the compressed layers that are kept: what images named them, and cannot now."""
        given_up = blob_usage(self.blobs)
        self.blobs.give_up()
        self.sweep()
        return given_up

    def usage(self) -> Usage:
        """How much of the disk images, containers and kept compressed layers take."""
        with self.reading():
            return usage(self._database, self.root, self.images(), self.containers(), self.blobs)

    def size(self) -> int:
        """The bytes of all layers, merged indexes and kept compressed layers."""
        return rooms_size(self.root)

    def runs(self, image: Image) -> list[Path]:
        """The files to mount an image from, topmost first; none for an image without layers.

        Raises :class:`~..errors.NoSuchImage` if it was removed meanwhile.
        """
        chain = image.chain_id
        names = self.layers.run_files(chain) if chain is not None else ()
        if chain is not None and not names:
            raise NoSuchImage(image.id)  # removed since the caller got it
        return [self.layers.file(name) for name in names]

    def lowers(self, container: Container, image: Image) -> list[bytes]:
        """The layers below a container's upper, topmost first: its image's, then mount points."""
        runs = [os.fsencode(path) for path in self.runs(image)]
        return [*runs, os.fsencode(container.skeleton)]

    def containers(self) -> list[Container]:
        """All containers, newest first."""
        return self._containers.all()

    def container(self, name: str) -> Container:
        """The container with this name, ID or beginning of an ID.

        Raises :class:`~..errors.NoSuchContainer`, ``AmbiguousId``.
        """
        return self._containers.get(name)

    def create_container(
        self,
        image: Image,
        *,
        image_name: str,
        config: ContainerConfig,
        name: str | None = None,
        created: datetime | None = None,
    ) -> Container:
        """Make a container, with a random name if none is given.

        Raises :class:`~..errors.Conflict` for a name in use, ``InvalidName``, ``NoSuchImage``.
        """
        with self.session() as session:
            return self._containers.create(
                image.id,
                image_name=image_name,
                config=config,
                name=name,
                created=created,
                root=self.root_attributes(image),
                workspace=session.directory,
            )

    def root_attributes(self, image: Image) -> RootAttributes:
        """What the root directory of an image looks like."""
        return self.layers.root_attributes(self.runs(image))

    def update_container(self, container: Container, **changes: object) -> Container:
        """Change ``status``, ``pid``, ``started``, ``finished``, ``exit_code`` or ``name``."""
        return self._containers.update(container.id, changes)

    def hold_container(self, container: Container) -> int:
        """Lock a container for its supervisor: a descriptor to keep open while it runs.

        Raises :class:`~..errors.Conflict` if it runs already.
        """
        return hold(container)

    def remove_container(self, name: str) -> Container:
        """Remove a container and its directory. Raises :class:`~..errors.Conflict` if it runs."""
        with self.session() as session:
            return self._containers.remove(name, session.directory)

    def add_images(self, images: Sequence[NewImage], directory: Path) -> list[Image]:
        """For :meth:`Session.add_images`."""
        return self._images.add(images, directory)


class Session:
    """The right to add to a store, from :meth:`Store.session`.

    ``unused`` are the diff_ids of layers that were added and belong to no image yet.
    """

    def __init__(self, store: Store, directory: Path) -> None:
        self.directory = directory
        self.unused: set[str] = set()
        self._store = store

    def add_layer(self, tar: Readable) -> StoredLayer:
        """Take in a layer; see :meth:`Layers.add`."""
        layer = self._store.layers.add(tar, self.directory)
        self.unused.add(layer.diff_id)
        return layer

    def add_images(self, images: Sequence[NewImage]) -> list[Image]:
        """Make images visible, all or none; see :meth:`Images.add`."""
        added = self._store.add_images(images, self.directory)
        self.unused.difference_update(layer.diff_id for image in added for layer in image.layers)
        return added


def _prepare(root: Path) -> None:
    """Make the directories of a store, unless there is something else."""
    if root.is_dir() and not (root / _DATABASE).exists():
        strangers = set(os.listdir(root)) - {*_ROOMS, "lock"}
        strangers = {name for name in strangers if not name.startswith(_DATABASE)}
        if strangers:
            raise StoreError(f"{root} is neither empty nor a lamina store: choose another place")
    root.mkdir(0o700, parents=True, exist_ok=True)
    for name in _ROOMS:
        (root / name).mkdir(0o700, exist_ok=True)
