"""Layers in the store: packs, the chunks they share, and the files that serve a chain of layers.

A chain is served by *runs*, topmost first: each is the pack of one layer or a merged index of
several. A new layer is merged only with runs that are not much larger than itself, so that adding
a layer costs about what the layer holds, and there are few runs (their sizes grow by more than
:data:`FACTOR` from one to the one below). Which layers a run joins follows from the layers alone,
so a merged index can be named after the chain ID of its top layer.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from unionfs import syscalls

from .. import digest
from ..errors import StoreError
from ..progress import Readable
from .database import Database
from .locks import sync_directory

# Packs are imported where they are used: listing images and containers does without them.
if TYPE_CHECKING:
    from unionfs.pack import Ingested, Location, Pack

FACTOR = 4
"""A run is merged with the new layer above it unless it has over this many times its entries."""


class RootAttributes(NamedTuple):
    """What the root directory of an image looks like, for the upper that covers it."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    xattrs: Mapping[bytes, bytes] = MappingProxyType({})


class StoredLayer(NamedTuple):
    """A layer of the store; sizes in bytes."""

    number: int
    diff_id: str
    tar_size: int
    content_size: int
    entries: int
    unresolved: bool
    complete: bool


class Runs(NamedTuple):
    """How a chain is served: file names, topmost first, and those of them just made, with where."""

    chain: str
    files: tuple[str, ...]
    made: dict[str, Path]


def plan(layers: Sequence[StoredLayer]) -> list[tuple[int, int]]:
    """Which layers each run joins, as (first, end) positions, bottom first.

    Hardlinks into lower layers can only be resolved by merging with all that is below.
    """
    stack: list[tuple[int, int]] = []  # first layer, entries
    for position, layer in enumerate(layers):
        first, entries = position, layer.entries
        while stack and (layer.unresolved or stack[-1][1] <= FACTOR * entries):
            first, below = stack.pop()
            entries += below
        stack.append((first, entries))
    bounds = [*(first for first, _ in stack), len(layers)]
    return list(pairwise(bounds))


class Layers:
    """The layers of one store. Methods that add are called in a session of the store."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory
        self._sources: dict[int, bytes] = {}

    def find(self, chunk: bytes) -> Location | None:
        """Where the store has the chunk with this digest (:class:`unionfs.pack.Chunks`)."""
        from unionfs.pack import Location  # noqa: PLC0415

        row = self._database.row(
            "SELECT layer, offset, stored, plain, flags FROM chunk WHERE digest = ?", chunk
        )
        if row is None:
            return None
        source = self._sources.get(row[0])
        if source is None:
            (source,) = self._database.row(
                "SELECT diff_id FROM layer WHERE number = ?", row[0]
            ) or (None,)
            if source is None:
                raise StoreError(f"chunk {chunk.hex()} belongs to a layer that does not exist")
            self._sources[row[0]] = source
        return Location(source, *row[1:])

    def get(self, diff_id: str) -> StoredLayer | None:
        """The layer with this diff_id, if the store has it."""
        row = self._database.row(
            "SELECT number, tar_size, content_size, entries, unresolved, complete"
            " FROM layer WHERE diff_id = ?",
            digest.raw(diff_id),
        )
        return StoredLayer(row[0], diff_id, *row[1:]) if row is not None else None

    def require(self, diff_ids: Sequence[str]) -> list[StoredLayer]:
        """The layers with these diff_ids; raises :class:`StoreError` if one is missing."""
        layers = []
        for diff_id in diff_ids:
            layer = self.get(diff_id)
            if layer is None:
                raise StoreError(f"the store has no layer {diff_id}")
            layers.append(layer)
        return layers

    def path(self, diff_id: str) -> Path:
        """The pack of a layer."""
        return self._directory / f"{digest.hexadecimal(diff_id)}.pack"

    def file(self, name: str) -> Path:
        """The file of a run."""
        return self._directory / name

    def rebuilt(self, diff_id: str) -> Iterator[bytes]:
        """The exact archive a layer came as, in pieces; at its end it is known to be that.

        Raises :class:`unionfs.errors.PackError` for damage, :class:`StoreError` if it is another.
        """
        from unionfs.pack import Pack, rebuild  # noqa: PLC0415

        check = hashlib.sha256()
        with Pack(self.path(diff_id)) as pack:
            for piece in rebuild(pack):
                check.update(piece)
                yield piece
        if digest.text(check.digest()) != diff_id:
            raise StoreError(f"layer {diff_id} is damaged: what is stored of it is another archive")

    def add(self, tar: Readable, workspace: Path) -> StoredLayer:
        """Take in one layer, an uncompressed tar stream read to its end.

        No user sees it before an image refers to it. Raises :class:`unionfs.errors.LayerError`
        for a malformed archive, :class:`OSError` for a full disk.
        """
        from unionfs.pack import Pack, ingest  # noqa: PLC0415

        path = workspace / "layer.pack"
        ingested = ingest(tar, path, self)
        diff_id = digest.text(ingested.diff_id)
        known = self.get(diff_id)
        if known is not None:
            path.unlink()
            return known
        with Pack(path) as pack:
            content_size, complete = pack.content_size, pack.is_complete
        with self._database.transaction():
            # Never replace a pack that is known: the chunk table points into that very file.
            if self.get(diff_id) is None:
                self._insert(ingested, content_size, complete)
                os.rename(path, self.path(diff_id))
                sync_directory(self._directory)
        path.unlink(missing_ok=True)
        return self.require([diff_id])[0]

    def _insert(self, ingested: Ingested, content_size: int, complete: bool) -> None:
        self._database.run(
            "INSERT INTO layer (diff_id, tar_size, content_size, entries, unresolved, complete)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            ingested.diff_id,
            ingested.tar_size,
            content_size,
            ingested.entries,
            ingested.unresolved,
            complete,
        )
        number = self.require([digest.text(ingested.diff_id)])[0].number
        self._database.run_many(
            "INSERT INTO layer_source SELECT ?, number FROM layer WHERE diff_id = ?",
            [(number, source) for source in ingested.sources if source != ingested.diff_id],
        )
        # In the order of the table's own tree, which makes many inserts much faster.
        self._database.run_many(
            "INSERT OR IGNORE INTO chunk VALUES (?, ?, ?, ?, ?, ?)",
            sorted((chunk, number, *where[1:]) for chunk, where in ingested.new_chunks),
        )

    def runs(self, layers: Sequence[StoredLayer], workspace: Path) -> Runs:
        """The runs that serve these layers, bottom first; merged in ``workspace`` where missing.

        Raises :class:`unionfs.errors.LayerError` for a hardlink to a file that is in no layer.
        """
        chains = list(digest.chain(layer.diff_id for layer in layers))
        if not chains:
            return Runs("", (), {})
        known = self.run_files(chains[-1])
        if known:
            return Runs(chains[-1], known, {})
        files: list[str] = []
        made: dict[str, Path] = {}
        for first, end in plan(layers):
            name = _run_name(layers, chains, first, end)
            files.append(name)
            if name.endswith(".merged") and not self._has_run(name):
                made[name] = workspace / name
                self._merge(layers[:end], chains[:end], first, made[name])
        return Runs(chains[-1], tuple(reversed(files)), made)

    def _merge(
        self, layers: Sequence[StoredLayer], chains: Sequence[str], first: int, path: Path
    ) -> None:
        """Merge the layers from ``first`` on, using what is already merged of them."""
        from unionfs.pack import merge  # noqa: PLC0415

        files: list[Path] = []
        for start, end in _parts(layers, first):
            name = _run_name(layers, chains, start, end)
            if name.endswith(".pack") or self._has_run(name):
                files.append(self.file(name))
            else:
                files.extend(self.path(layer.diff_id) for layer in layers[start:end])
        with _opened(files) as inputs:
            merge(inputs, path, digest.raw(chains[-1]), complete=first == 0)

    def planned(self, layers: Sequence[StoredLayer]) -> list[tuple[str, int, int]]:
        """The runs that serve these layers, bottom first: file, first layer, and end of each."""
        chains = list(digest.chain(layer.diff_id for layer in layers))
        return [(_run_name(layers, chains, first, end), first, end) for first, end in plan(layers)]

    def merge_packs(self, layers: Sequence[StoredLayer], first: int, path: Path) -> None:
        """Merge the layers from ``first`` on, relying on nothing but their packs."""
        from unionfs.pack import merge  # noqa: PLC0415

        *_, chain = digest.chain(layer.diff_id for layer in layers)
        with _opened([self.path(layer.diff_id) for layer in layers[first:]]) as packs:
            merge(packs, path, digest.raw(chain), complete=first == 0)

    def root_attributes(self, files: Sequence[Path]) -> RootAttributes:
        """The root directory of an image, from its runs: of the topmost layer that has it."""
        from unionfs.pack import Pack  # noqa: PLC0415
        from unionfs.pack.format import IMPLICIT  # noqa: PLC0415

        for path in files:
            with Pack(path) as pack:
                inode = pack.inode(0)
                if not inode.flags & IMPLICIT:
                    return RootAttributes(
                        stat.S_IMODE(inode.mode), inode.uid, inode.gid, pack.xattrs(0)
                    )
        return RootAttributes()

    def run_files(self, chain: str) -> tuple[str, ...]:
        """The files that serve a chain, topmost first; empty if they were not made yet."""
        rows = self._database.rows(
            "SELECT file FROM run WHERE chain = ? ORDER BY position", digest.raw(chain)
        )
        return tuple(name for (name,) in rows)

    def _has_run(self, name: str) -> bool:
        return self._database.row("SELECT 1 FROM run WHERE file = ? LIMIT 1", name) is not None

    def publish(self, runs: Runs) -> None:
        """Put runs in their place; part of the transaction that adds the image."""
        if not runs.chain or self.run_files(runs.chain):
            return
        for name, path in runs.made.items():
            if not self._has_run(name):
                os.rename(path, self.file(name))
        sync_directory(self._directory)
        chain = digest.raw(runs.chain)
        self._database.run_many(
            "INSERT INTO run VALUES (?, ?, ?)",
            [(chain, position, name) for position, name in enumerate(runs.files)],
        )


@contextmanager
def _opened(files: Sequence[Path]) -> Iterator[list[Pack]]:
    """Packs, all open at once: an image may have more layers than a process has descriptors."""
    from unionfs.pack import Pack  # noqa: PLC0415

    syscalls.raise_descriptor_limit()
    with ExitStack() as stack:
        yield [stack.enter_context(Pack(file)) for file in files]


def _parts(layers: Sequence[StoredLayer], first: int) -> list[tuple[int, int]]:
    """The ranges that make up the run from ``first`` to the last layer.

    Without the last layer they were runs of their own, in the chain that ends below it.
    """
    below = [(start, end) for start, end in plan(layers[:-1]) if start >= first]
    return [*below, (len(layers) - 1, len(layers))]


def _run_name(layers: Sequence[StoredLayer], chains: Sequence[str], first: int, end: int) -> str:
    """The file of the run that joins some layers: a pack that can stand alone, or an index."""
    if end - first == 1 and (first > 0 or layers[first].complete):
        return f"{digest.hexadecimal(layers[first].diff_id)}.pack"
    return f"{digest.hexadecimal(chains[end - 1])}.merged"
