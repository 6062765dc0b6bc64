"""The packs of layers, and what rows say of them."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

from unionfs.errors import PackError

from ... import digest, models
from ...errors import ArchiveError
from ..database import Row
from .mending import mend
from .report import State, Work

if TYPE_CHECKING:
    from unionfs.pack import Pack

_FACTS = ("tar_size", "content_size", "entries", "unresolved", "complete")


def verify_layers(work: Work, only: set[int] | None) -> None:
    """Every layer, older ones first: packs take chunks from older ones."""
    rows = [
        row
        for row in work.database.rows(
            f"SELECT number, diff_id, {', '.join(_FACTS)} FROM layer ORDER BY number"  # noqa: S608
        )
        if only is None or row[0] in only
    ]
    work.report.layers = len(rows)
    for number, raw, *facts in rows:
        _verify_layer(work, number, digest.text(raw), tuple(facts))
    for number, *_ in rows:
        if number not in work.bad_layers:
            _list_missing(work, number)


def _verify_layer(work: Work, number: int, diff_id: str, facts: Row) -> None:
    from unionfs.pack import Pack  # noqa: PLC0415

    path = work.layers.path(diff_id)
    problem = _problem(work, diff_id)
    if problem is not None:
        repair = partial(_repair, work, number, diff_id)
        place = f"layers/{path.name}"
        if work.found(place, problem, repair, layer=number) is not State.REPAIRED:
            work.bad_layers.add(number)
            return
        (raw,) = work.database.row("SELECT diff_id FROM layer WHERE number = ?", number) or (b"",)
        path = work.layers.path(diff_id := digest.text(raw))
    with Pack(path) as pack:
        found = (
            pack.tar_size,
            pack.content_size,
            pack.entries,
            int(bool(pack.unresolved)),
            int(pack.is_complete),
        )
        if found != facts:
            repair = partial(_describe, work, number, found)
            work.found(f"layer {diff_id}", "its row does not describe its pack", repair)
        _verify_sources(work, number, diff_id, pack)
        _verify_chunks(work, number, diff_id, pack)


def _problem(work: Work, diff_id: str) -> str | None:
    """What is wrong with the pack of a layer."""
    from unionfs.pack import Pack, verify  # noqa: PLC0415

    path = work.layers.path(diff_id)

    def tell(done: int) -> None:
        if work.progress is not None:
            work.progress(digest.short(diff_id), "Verifying", done, pack.tar_size)

    try:
        with Pack(path) as pack:
            if pack.identity != digest.raw(diff_id):
                return "is the pack of another layer"
            verify(pack, tell)
    except FileNotFoundError:
        return "does not exist"
    except (PackError, OSError, ValueError) as error:
        return str(error).removeprefix(str(path)).strip() or "cannot be read"
    return None


def _repair(work: Work, number: int, diff_id: str) -> State:
    if mend(work, number, diff_id) or _named_again(work, number):
        return State.REPAIRED
    _forget_damaged(work, number, diff_id)
    return State.LOST


def _named_again(work: Work, number: int) -> bool:
    """Give a row the diff_id that its images know it by, if there is such a pack."""
    rows = work.database.rows(
        "SELECT position, config FROM image_layer JOIN image ON id = image WHERE layer = ?", number
    )
    for position, config in rows:
        try:
            diff_ids = models.parse_config(config, "config").rootfs.diff_ids or []
            wanted = diff_ids[position]
            raw = digest.raw(wanted)
        except (ArchiveError, IndexError):
            continue
        if work.layers.get(wanted) is None and _problem(work, wanted) is None:
            work.database.run("UPDATE layer SET diff_id = ? WHERE number = ?", raw, number)
            return True
    return False


def _forget_damaged(work: Work, number: int, diff_id: str) -> None:
    """Offer no more chunks of a pack to new layers than it has."""
    from unionfs.pack import Pack  # noqa: PLC0415
    from unionfs.pack.verify import own_chunks, read_own  # noqa: PLC0415

    path = work.layers.path(diff_id)
    try:
        with Pack(path) as pack:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                bad = [(c.digest, number) for c in own_chunks(pack) if read_own(fd, c) is None]
            finally:
                os.close(fd)
        work.database.run_many("DELETE FROM chunk WHERE digest = ? AND layer = ?", bad)
    except (PackError, OSError, ValueError):
        work.database.run("DELETE FROM chunk WHERE layer = ?", number)


def _describe(work: Work, number: int, facts: Row) -> State:
    columns = ", ".join(f"{name} = ?" for name in _FACTS)
    work.database.run(f"UPDATE layer SET {columns} WHERE number = ?", *facts, number)  # noqa: S608
    return State.REPAIRED


def _verify_sources(work: Work, number: int, diff_id: str, pack: Pack) -> None:
    rows = work.database.rows(
        "SELECT diff_id FROM layer_source JOIN layer ON source = number WHERE layer = ?", number
    )
    needed = {source for source in pack.sources if source != pack.identity}
    (count,) = work.database.row("SELECT count(*) FROM layer_source WHERE layer = ?", number) or (
        0,
    )
    if {raw for (raw,) in rows} == needed and count == len(needed):
        return

    def renew() -> State:
        with work.database.transaction():
            work.database.run("DELETE FROM layer_source WHERE layer = ?", number)
            work.database.run_many(
                "INSERT INTO layer_source SELECT ?, number FROM layer WHERE diff_id = ?",
                [(number, source) for source in sorted(needed)],
            )
        return State.REPAIRED

    work.found(f"layer {diff_id}", "the packs it takes chunks from are listed wrongly", renew)


def _verify_chunks(work: Work, number: int, diff_id: str, pack: Pack) -> None:
    """Whether the chunk table tells the truth: new layers rely on it without looking."""
    from unionfs.pack.verify import own_chunks  # noqa: PLC0415

    own = {chunk.digest: (*chunk[1:4], chunk.flags) for chunk in own_chunks(pack)}
    rows = work.database.rows(
        "SELECT digest, offset, stored, plain, flags FROM chunk WHERE layer = ?", number
    )
    wrong = [(name,) for name, *where in rows if own.get(name) != tuple(where)]
    if wrong:

        def forget() -> State:
            work.database.run_many("DELETE FROM chunk WHERE digest = ?", wrong)
            return State.REPAIRED

        work.found(f"layer {diff_id}", "chunks are listed that it does not have", forget)


def _list_missing(work: Work, number: int) -> None:
    """Whether the chunk table has all chunks, here or elsewhere: else they are stored again."""
    from unionfs.pack import Pack  # noqa: PLC0415
    from unionfs.pack.verify import own_chunks  # noqa: PLC0415

    (raw,) = work.database.row("SELECT diff_id FROM layer WHERE number = ?", number) or (b"",)
    diff_id = digest.text(raw)
    with Pack(work.layers.path(diff_id)) as pack:
        missing = [
            (chunk.digest, number, *chunk[1:4], chunk.flags)
            for chunk in own_chunks(pack)
            if not _is_listed(work, chunk.digest)
        ]
    if missing:

        def add() -> State:
            work.database.run_many("INSERT INTO chunk VALUES (?, ?, ?, ?, ?, ?)", sorted(missing))
            return State.REPAIRED

        work.found(f"layer {diff_id}", "chunks that it has are not listed", add)


def _is_listed(work: Work, chunk: bytes) -> bool:
    return work.database.row("SELECT 1 FROM chunk WHERE digest = ?", chunk) is not None
