"""Making a damaged pack whole again from what the store has elsewhere.

Other packs and merged indexes point into a pack, so what is mended is the same file to the byte: a
chunk is put back in its place, or the pack is made again and must have every chunk where it was.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unionfs.errors import PackError, UnionError

from ... import compression, digest
from ...errors import SnapshotterError
from ..locks import sync_directory
from .report import Work

if TYPE_CHECKING:
    from unionfs.pack import Location, Pack
    from unionfs.pack.format import Chunk


def mend(work: Work, number: int, diff_id: str) -> bool:
    """Try to make the pack of a layer whole; whether it is whole now."""
    if work.workspace is None:
        return False
    made = work.workspace / f"mended-{number}.pack"
    try:
        if not _patched(work, diff_id, made) and not _made_again(work, number, diff_id, made):
            return False
        os.rename(made, work.layers.path(diff_id))
        sync_directory(made.parent)
        sync_directory(work.root / "layers")
        return True
    finally:
        made.unlink(missing_ok=True)


def _patched(work: Work, diff_id: str, made: Path) -> bool:
    """Write a copy of the pack with damaged chunks put back; only if its metadata is whole."""
    from unionfs.pack import Pack  # noqa: PLC0415
    from unionfs.pack.verify import filling, own_chunks, read_own, stored_form  # noqa: PLC0415

    path = work.layers.path(diff_id)
    try:
        shutil.copyfile(path, made)
        with Pack(path) as pack, made.open("r+b") as out:
            damaged = [chunk for chunk in own_chunks(pack) if not read_own(out.fileno(), chunk)]
            found = _find(work, diff_id, {chunk.digest for chunk in damaged}) if damaged else {}
            for chunk in damaged:
                stored = stored_form(chunk, found[chunk.digest]) if chunk.digest in found else None
                if stored is None:
                    return False
                os.pwrite(out.fileno(), stored, chunk.offset)
            start, end = filling(pack)
            os.pwrite(out.fileno(), bytes(end - start), start)
            out.truncate(sum(pack.header.sections["sums"]))
            os.fsync(out.fileno())
        return _is_whole(work, made, diff_id)
    except (PackError, FileNotFoundError):
        return False


def _find(work: Work, diff_id: str, wanted: set[bytes]) -> dict[bytes, bytes]:
    """The plain bytes of chunks, from other packs and from kept blobs of the layer."""
    found: dict[bytes, bytes] = {}
    for (other,) in work.database.rows("SELECT diff_id FROM layer ORDER BY number"):
        if digest.text(other) != diff_id and len(found) < len(wanted):
            _find_in(work.layers.path(digest.text(other)), wanted, found)
    if len(found) < len(wanted) and work.workspace is not None:
        again = work.workspace / "again.pack"
        if _ingested(work, diff_id, again, None):
            _find_in(again, wanted, found)
            again.unlink()
    return found


def _find_in(path: Path, wanted: set[bytes], found: dict[bytes, bytes]) -> None:
    from unionfs.pack import Pack  # noqa: PLC0415
    from unionfs.pack.verify import own_chunks, read_own  # noqa: PLC0415

    try:
        with Pack(path) as pack, path.open("rb") as stream:
            for chunk in own_chunks(pack):
                if chunk.digest in wanted and chunk.digest not in found:
                    data = read_own(stream.fileno(), chunk)
                    if data is not None:
                        found[chunk.digest] = data
    except (PackError, OSError):
        return  # this one is damaged too: it has its own finding


def _made_again(work: Work, number: int, diff_id: str, made: Path) -> bool:
    """Make the pack from a kept blob, with every chunk where others look for it."""
    from unionfs.pack import Pack  # noqa: PLC0415
    from unionfs.pack.verify import own_chunks  # noqa: PLC0415

    if not _ingested(work, diff_id, made, _Before(work, number)):
        return False
    with Pack(made) as pack:
        there = {tuple(chunk)[:4] + chunk[5:] for chunk in own_chunks(pack)}
    if not there >= set(_looked_for(work, number, diff_id)):
        return False
    return _is_whole(work, made, diff_id)


def _looked_for(work: Work, number: int, diff_id: str) -> Iterator[tuple[object, ...]]:
    """What is said elsewhere of the chunks in a pack: digest, offset, lengths, flags."""
    from unionfs.pack import Pack  # noqa: PLC0415

    yield from work.database.rows(
        "SELECT digest, offset, stored, plain, flags FROM chunk WHERE layer = ?", number
    )
    users = work.database.rows(
        "SELECT diff_id FROM layer JOIN layer_source ON layer = number WHERE source = ?", number
    )
    for (user,) in users:
        try:
            with Pack(work.layers.path(digest.text(user))) as pack:
                yield from _taken(pack, digest.raw(diff_id))
        except (PackError, OSError):
            continue


def _taken(pack: Pack, source: bytes) -> Iterator[tuple[object, ...]]:
    sources = pack.sources
    for row in range(pack.chunk_count):
        chunk: Chunk = pack.chunk(row)
        if chunk.stored and sources[chunk.source] == source:
            yield tuple(chunk)[:4] + chunk[5:]


class _Before:
    """The chunks a layer found when it was added (:class:`unionfs.pack.Chunks`)."""

    def __init__(self, work: Work, number: int) -> None:
        self._layers = work.layers
        self._sources = {
            diff_id
            for (diff_id,) in work.database.rows(
                "SELECT diff_id FROM layer JOIN layer_source ON source = number WHERE layer = ?",
                number,
            )
        }

    def find(self, chunk: bytes) -> Location | None:
        """Where the chunk was, unless it came with the layer itself."""
        location = self._layers.find(chunk)
        return location if location is not None and location.source in self._sources else None


def _ingested(work: Work, diff_id: str, path: Path, known: _Before | None) -> bool:
    """Make a pack of a kept blob of the layer, or of a spare layer; whether there is a good one."""
    from unionfs.pack import ingest  # noqa: PLC0415

    for archive in _archives(work, diff_id):
        try:
            made = ingest(compression.plain(Pieces(archive)), path, known)
        except (UnionError, SnapshotterError, OSError):
            continue
        if digest.text(made.diff_id) == diff_id:
            return True
    path.unlink(missing_ok=True)
    return False


def _archives(work: Work, diff_id: str) -> Iterator[Iterator[bytes]]:
    """The archives that there are of a layer, compressed or not."""
    for blob in work.blobs.of_layer(diff_id):
        if blob.recipe is None:
            yield work.blobs.read(blob)
    if work.spare is not None and work.spare.get(diff_id) is not None:
        yield work.spare.rebuilt(diff_id)


class Pieces:
    """Pieces as a stream that counts; ``size`` is what was read."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = iter(pieces)
        self._rest = b""
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        """Up to ``size`` bytes, or a piece; empty only at the end."""
        data = self._rest or next(self._pieces, b"")
        if size >= 0:
            data, self._rest = data[:size], data[size:]
        else:
            self._rest = b""
        self.size += len(data)
        return data


def _is_whole(work: Work, path: Path, diff_id: str) -> bool:
    """Whether a pack stands the test; what others hold of its chunks is beside its final place."""
    from unionfs.pack import Pack, verify  # noqa: PLC0415

    # A pack finds the others in its own directory, so it is looked at there, under its own name
    # in a directory of links.
    place = path.parent / "beside"
    place.mkdir()
    try:
        for other in (work.root / "layers").glob("*.pack"):
            if other.name != work.layers.path(diff_id).name:
                (place / other.name).symlink_to(other)
        here = place / work.layers.path(diff_id).name
        here.symlink_to(path)
        with Pack(here) as pack:
            verify(pack)
            return pack.identity == digest.raw(diff_id)
    except PackError:
        return False
    finally:
        shutil.rmtree(place)
