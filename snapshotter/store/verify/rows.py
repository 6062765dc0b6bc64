"""The rows: does every one say what can be, and do they agree with each other?"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import msgspec

from ... import digest, models
from ...errors import ArchiveError, SnapshotterError
from ...reference import Reference
from ..containers import CREATED, EXITED, RUNNING, ContainerConfig
from ..database import Database, Row
from ..snapshots import SnapshotKind
from .report import State, Work

_ORPHANS = {
    "reference": "image NOT IN (SELECT id FROM image)",
    "image_layer": "image NOT IN (SELECT id FROM image)",
    "manifest": "image NOT IN (SELECT id FROM image)",
    "chunk": "layer NOT IN (SELECT number FROM layer)",
    "layer_source": "layer NOT IN (SELECT number FROM layer)",
    "blob": "layer NOT IN (SELECT number FROM layer)",
}
"""What belongs to something that does not exist, and serves nothing without it."""


def verify_database(work: Work) -> None:
    """The file itself: SQLite's own check, with indexes made anew as the only repair."""
    problems = _integrity(work.database)
    if problems:

        def reindex() -> State:
            work.database.run("REINDEX")
            return State.LOST if _integrity(work.database) else State.REPAIRED

        work.found("lamina.db", "; ".join(problems[:3]), reindex)
    for table, condition in _ORPHANS.items():
        (count,) = work.database.row(f"SELECT count(*) FROM {table} WHERE {condition}") or (0,)  # noqa: S608
        if count:
            work.found(
                f"table {table}",
                f"rows that belong to nothing: {count}",
                partial(_run, work.database, f"DELETE FROM {table} WHERE {condition}"),  # noqa: S608
            )


def _integrity(database: Database) -> list[str]:
    found = [str(text) for (text,) in database.rows("PRAGMA integrity_check(20)")]
    return [text for text in found if text != "ok"]


def _run(database: Database, statement: str, *values: object) -> State:
    """A repair that is one statement."""
    database.run(statement, *values)
    return State.REPAIRED


def verify_images(work: Work, only: set[bytes] | None) -> None:
    """Configurations, their layers and names. ``only`` are the images to look at, if not all."""
    for image, config in work.database.rows("SELECT id, config FROM image ORDER BY id"):
        if only is not None and image not in only:
            continue
        work.report.images += 1
        place = f"image {digest.text(image)}"
        if digest.raw(digest.of(config)) != image:
            work.found(place, "its configuration is damaged", images=[image])
            continue
        try:
            diff_ids = models.parse_config(config, place).rootfs.diff_ids or []
            expected = _expected_layers(work.database, diff_ids)
        except ArchiveError as error:
            work.found(place, str(error), images=[image])
            continue
        rows = work.database.rows(
            "SELECT position, layer, chain FROM image_layer WHERE image = ? ORDER BY position",
            image,
        )
        if None in expected:
            missing = diff_ids[expected.index(None)]
            work.found(place, f"the store has no layer {missing}", images=[image])
        elif rows != expected:
            repair = partial(_relist, work.database, image, [row for row in expected if row])
            work.found(place, "its layers are listed wrongly", repair, images=[image])
    _verify_references(work, only)


def _expected_layers(database: Database, diff_ids: list[str]) -> list[Row | None]:
    """The rows an image has with these layers; None for a layer that is not there."""
    expected: list[Row | None] = []
    chains = digest.chain(diff_ids)
    for position, (diff_id, chain) in enumerate(zip(diff_ids, chains, strict=True)):
        layer = database.row("SELECT number FROM layer WHERE diff_id = ?", digest.raw(diff_id))
        expected.append((position, layer[0], digest.raw(chain)) if layer is not None else None)
    return expected


def _relist(database: Database, image: bytes, rows: list[Row]) -> State:
    with database.transaction():
        database.run("DELETE FROM image_layer WHERE image = ?", image)
        database.run_many(
            "INSERT INTO image_layer VALUES (?, ?, ?, ?)", [(image, *row) for row in rows]
        )
    return State.REPAIRED


def _verify_references(work: Work, only: set[bytes] | None) -> None:
    for name, image in work.database.rows("SELECT name, image FROM reference ORDER BY name"):
        if only is not None and image not in only:
            continue
        try:
            is_good = Reference.parse(name).full == name
        except SnapshotterError:
            is_good = False
        if not is_good:
            forget = partial(_run, work.database, "DELETE FROM reference WHERE name = ?", name)
            work.found(f"reference {name}", "that is no name of an image", forget, images=[image])


def verify_containers(work: Work, only: set[bytes] | None) -> None:
    """Settings, states and directories of containers."""
    rows = work.database.rows(
        "SELECT id, name, image, config, created, started, finished, status FROM container"
        " ORDER BY id"
    )
    for row in rows:
        if only is None or row[2] in only:
            work.report.containers += 1
            _verify_container(work, row)


def _verify_container(work: Work, row: Row) -> None:
    identity, name, image, config, created, started, finished, status = row
    place = f"container {identity[:12]}"
    users = (name,)
    if work.database.row("SELECT 1 FROM image WHERE id = ?", image) is None:
        work.found(place, f"its image {digest.text(image)} does not exist", containers=users)
    try:
        msgspec.json.decode(config, type=ContainerConfig)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # The settings of one container must not keep users from all others, nor from its files.
        reset = partial(_lose, work.database, "config", b"{}", identity)
        work.found(place, "its settings are damaged", reset, containers=users)
    for column, value, least in (
        ("created", created, datetime.now(UTC).isoformat()),
        ("started", started, None),
        ("finished", finished, None),
    ):
        if (value or column == "created") and not _is_time(value):
            reset = partial(_lose, work.database, column, least, identity)
            work.found(place, f"when it was {column} is no time", reset, containers=users)
    if status not in (CREATED, RUNNING, EXITED):
        reset = partial(_lose, work.database, "status", EXITED, identity)
        work.found(place, f"its state is {status!r}", reset, containers=users)
    _verify_directory(work, identity, users)


def _verify_directory(work: Work, identity: str, users: tuple[str, ...]) -> None:
    directory = work.root / "containers" / identity
    for part in ("upper", "pristine"):
        if not (directory / part).is_dir():
            work.found(f"containers/{identity}/{part}", "does not exist", containers=users)
    if directory.is_dir():
        for part in ("work", "skeleton", "lock"):
            if not (directory / part).exists():
                make = partial(_make, directory / part)
                work.found(f"containers/{identity}/{part}", "does not exist", make)


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _lose(database: Database, column: str, value: object, identity: str) -> State:
    """Replace what a container's row says by something that at least makes sense."""
    database.run(f"UPDATE container SET {column} = ? WHERE id = ?", value, identity)  # noqa: S608
    return State.LOST


def _make(path: Path) -> State:
    if path.name == "lock":
        os.close(os.open(path, os.O_CREAT | os.O_CLOEXEC, 0o600))
    else:
        path.mkdir(0o700)
    return State.REPAIRED


def verify_snapshots(work: Work) -> None:
    """Kinds, labels, times, layers and directories of snapshots."""
    kinds = {kind.value for kind in SnapshotKind}
    for row in work.database.rows(
        "SELECT number, name, kind, labels, created, updated, layer, parent FROM snapshot"
        " ORDER BY number"
    ):
        number, name, kind, labels, created, updated, layer, parent = row
        place = f"snapshot {name}"
        if kind not in kinds:
            work.found(place, f"its kind is {kind!r}")
            continue
        try:
            msgspec.json.decode(labels, type=dict[str, str])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            reset = partial(_lose_labels, work.database, number)
            work.found(place, "its labels are damaged", reset)
        if not _is_time(created) or not _is_time(updated):
            now = datetime.now(UTC).isoformat()
            statement = "UPDATE snapshot SET created = ?, updated = ? WHERE number = ?"
            reset = partial(_run, work.database, statement, now, now, number)
            work.found(place, "its times are none", reset)
        for table, key, value in (("layer", "number", layer), ("snapshot", "number", parent)):
            known = f"SELECT 1 FROM {table} WHERE {key} = ?"  # noqa: S608
            if value is not None and work.database.row(known, value) is None:
                work.found(place, f"its {table} does not exist")
        if kind == SnapshotKind.COMMITTED.value and layer is None:
            work.found(place, "it has no layer")
        if (
            kind != SnapshotKind.COMMITTED.value
            and not (work.root / "snapshots" / str(number)).is_dir()
        ):
            work.found(f"snapshots/{number}", f"does not exist: what {name} has changed is gone")


def _lose_labels(database: Database, number: int) -> State:
    database.run("UPDATE snapshot SET labels = ? WHERE number = ?", b"{}", number)
    return State.LOST
