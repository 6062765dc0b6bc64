"""Runs, compressed layers, manifests, and what killed processes left."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from functools import partial

from unionfs.errors import PackError, UnionError

from ... import compression, digest, models
from ...errors import SnapshotterError
from ..blobs import Blob
from ..layers import StoredLayer
from ..locks import sync_directory
from ..snapshots import ANCESTORS
from ..sweeping import known_files
from .mending import Pieces
from .report import State, Work

_PIECE = 1 << 18


def verify_runs(work: Work, only: set[bytes] | None) -> None:
    """The files that serve images and snapshots. ``only`` are the images to look at, if not all."""
    seen: set[bytes] = set()
    done: set[str] = set()
    images = work.database.rows("SELECT DISTINCT image FROM image_layer ORDER BY image")
    for (image,) in images:
        if only is None or image in only:
            rows = work.database.rows(
                "SELECT diff_id FROM image_layer JOIN layer ON layer = number WHERE image = ?"
                " ORDER BY position",
                image,
            )
            _verify_chain(work, [digest.text(raw) for (raw,) in rows], seen, done)
    if only is None:
        for name, chain in work.database.rows(
            "SELECT name, chain FROM snapshot WHERE layer IS NOT NULL"
        ):
            rows = work.database.rows(ANCESTORS, name)
            diff_ids = [digest.text(raw) for (raw,) in rows]
            _verify_snapshot_chain(work, name, chain, diff_ids)
            _verify_chain(work, diff_ids, seen, done)


def _verify_snapshot_chain(work: Work, name: str, chain: bytes | None, diff_ids: list[str]) -> None:
    *_, last = "", *digest.chain(diff_ids)
    expected = digest.raw(last) if last else None
    if chain != expected:

        def correct() -> State:
            work.database.run("UPDATE snapshot SET chain = ? WHERE name = ?", expected, name)
            return State.REPAIRED

        work.found(f"snapshot {name}", "its chain of layers is another", correct)


def _verify_chain(work: Work, diff_ids: list[str], seen: set[bytes], done: set[str]) -> None:
    """One chain of layers: the rows of its runs, and those of its files that are no packs."""
    chains = list(digest.chain(diff_ids))
    chain = digest.raw(chains[-1]) if chains else b""
    layers = work.layers.require(diff_ids)
    if not chains or chain in seen or any(each.number in work.bad_layers for each in layers):
        return
    seen.add(chain)
    planned = work.layers.planned(layers)
    images = work.images_of_chain(chain)
    for name, first, end in planned:
        if name.endswith(".merged") and name not in done:
            done.add(name)
            problem = _merged_problem(work, name, digest.raw(chains[end - 1]))
            if problem is not None:
                repair = partial(_remerge, work, layers[:end], first, name)
                work.found(f"layers/{name}", problem, repair, images=images)
    expected = [(position, name) for position, (name, _, _) in enumerate(reversed(planned))]
    rows = work.database.rows(
        "SELECT position, file FROM run WHERE chain = ? ORDER BY position", chain
    )
    if rows != expected:
        relist = partial(_relist, work, chain, expected)
        work.found(f"runs of {chains[-1]}", "are listed wrongly", relist, images=images)


def _merged_problem(work: Work, name: str, identity: bytes) -> str | None:
    from unionfs.pack import Pack, verify  # noqa: PLC0415
    from unionfs.pack.format import MERGED  # noqa: PLC0415

    path = work.layers.file(name)
    try:
        with Pack(path) as pack:
            if pack.role != MERGED or pack.identity != identity:
                return "is the index of other layers"
            verify(pack)
    except FileNotFoundError:
        return "does not exist"
    except (PackError, OSError, ValueError) as error:
        return str(error).removeprefix(str(path)).strip() or "cannot be read"
    return None


def _remerge(work: Work, layers: list[StoredLayer], first: int, name: str) -> State:
    if work.workspace is None:
        return State.FOUND
    made = work.workspace / name
    work.layers.merge_packs(layers, first, made)
    os.rename(made, work.layers.file(name))
    sync_directory(work.root / "layers")
    return State.REPAIRED


def _relist(work: Work, chain: bytes, rows: Iterable[tuple[int, str]]) -> State:
    with work.database.transaction():
        work.database.run("DELETE FROM run WHERE chain = ?", chain)
        work.database.run_many("INSERT INTO run VALUES (?, ?, ?)", [(chain, *row) for row in rows])
    return State.REPAIRED


def verify_blobs(work: Work, only: set[int] | None) -> None:
    """Compressed layers: their bytes, and that they are the layer's."""
    for blob in work.blobs.all():
        layer = work.layers.get(blob.diff_id)
        if layer is None or (only is not None and layer.number not in only):
            continue
        work.report.blobs += 1
        problem = _blob_problem(work, blob, layer)
        if problem is not None:
            place = f"compressed layer {blob.digest}"
            repair = partial(_give_up, work, blob)
            work.found(place, problem, repair, layer=layer.number)


def _blob_problem(work: Work, blob: Blob, layer: StoredLayer) -> str | None:
    if blob.recipe not in (None, compression.RECIPE):
        return f"was made by {blob.recipe}, and here is {compression.RECIPE}"
    if blob.recipe is not None and layer.number in work.bad_layers:
        return None  # the layer has its own finding
    try:
        diff_id, size = _measure(work, blob)
    except FileNotFoundError:
        return "its file does not exist"
    except (UnionError, SnapshotterError, OSError) as error:
        return str(error)
    if diff_id != blob.diff_id:
        return "is the form of another layer"
    return None if size == blob.size else "has another size than its row says"


def _measure(work: Work, blob: Blob) -> tuple[str, int]:
    """The diff_id and the size of what a blob is; raises for damage."""
    stream = Pieces(work.blobs.read(blob))
    check = hashlib.sha256()
    plain = compression.plain(stream)
    while data := plain.read(_PIECE):
        check.update(data)
    while stream.read():
        pass
    return digest.text(check.digest()), stream.size


def _give_up(work: Work, blob: Blob) -> State:
    """Correct the row of a blob that is whole; forget one that is not."""
    if blob.recipe is None and _named_again(work, blob):
        return State.REPAIRED
    try:
        diff_id, size = _measure(work, blob)
    except (UnionError, SnapshotterError, OSError):
        owner, size = None, 0
    else:
        owner = work.layers.get(diff_id)
    if owner is None:
        work.database.run("DELETE FROM blob WHERE digest = ?", digest.raw(blob.digest))
        work.blobs.path(blob.digest).unlink(missing_ok=True)
        return State.LOST
    work.database.run(
        "UPDATE blob SET size = ?, layer = ? WHERE digest = ?",
        size,
        owner.number,
        digest.raw(blob.digest),
    )
    return State.REPAIRED


def _named_again(work: Work, blob: Blob) -> bool:
    """Give a row without a file the digest of a file without a row that is the same layer."""
    known = known_files(work.database)
    for path in sorted((work.root / "blobs").iterdir()):
        name = digest.PREFIX + path.name
        if f"blobs/{path.name}" in known or not digest.is_valid(name):
            continue
        found = blob._replace(digest=name)
        try:
            if _measure(work, found) != (blob.diff_id, blob.size):
                continue
        except (UnionError, SnapshotterError, OSError):
            continue
        work.database.run(
            "UPDATE blob SET digest = ? WHERE digest = ?",
            digest.raw(name),
            digest.raw(blob.digest),
        )
        return True
    return False


def verify_manifests(work: Work, only: set[bytes] | None) -> None:
    """Manifests as they came: their digests, and that they are those of their images."""
    for raw, image, content in work.database.rows("SELECT digest, image, content FROM manifest"):
        if only is not None and image not in only:
            continue
        problem = None
        if digest.raw(digest.of(content)) != raw:
            problem = "is damaged"
        else:
            try:
                config = models.decode(content, models.Manifest, "manifest").config.digest
            except SnapshotterError as error:
                problem, config = str(error), ""
            if problem is None and config != digest.text(image):
                problem = "is that of another image"
        if problem is not None:
            place = f"manifest {digest.text(raw)}"
            work.found(place, problem, partial(_drop_manifest, work, raw, image), images=[image])


def _drop_manifest(work: Work, raw: bytes, image: bytes) -> State:
    work.database.run("DELETE FROM manifest WHERE digest = ? AND image = ?", raw, image)
    return State.LOST


def leftovers(work: Work) -> list[str]:
    """Files and directories that nothing mentions. Only to be believed while nobody adds."""
    known = known_files(work.database)
    known.update(f"containers/{name}" for (name,) in work.database.rows("SELECT id FROM container"))
    known.update(
        f"snapshots/{number}" for (number,) in work.database.rows("SELECT number FROM snapshot")
    )
    rooms = ("layers", "blobs", "containers", "snapshots")
    found = [f"{room}/{path.name}" for room in rooms for path in (work.root / room).iterdir()]
    found.extend(f"tmp/{path.name}" for path in (work.root / "tmp").iterdir())
    return sorted(name for name in found if name not in known)
