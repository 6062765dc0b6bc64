"""verify finds every damage, mends what it can, and touches nothing else."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapshotter.archive import load, save_oci
from snapshotter.images import commit
from snapshotter.snapshots import Snapshotter
from snapshotter.store import Store
from snapshotter.store.verify import Report, State
from tests.snapshotter.helpers import check, new_container, small_image, tar, tree_of
from tests.snapshotter.test_blobs import layers, layout, saved_oci

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one of everything: shared chunks, merged runs, kept blobs, snapshots."""
    root = tmp_path_factory.mktemp("rich") / "store"
    random = os.urandom(700_000)
    with Store.open(root) as store:
        small_image(store, "base:1", big=random, text=b"text " * 60_000)
        (found,) = load(store, io.BytesIO(tar(layout(layers(), "gzip"))))
        container = new_container(store, store.image("base:1"))
        (container.upper / "more").write_bytes(random[:400_000] + b"x" * 99)
        (container.upper / "zeros").write_bytes(bytes(500_000))
        commit(store, container, reference="made:2")
        save_oci(store, ["made:2"], io.BytesIO())
        new_container(store, found.image)
        snapshotter = Snapshotter(store)
        snapshotter.prepare("work")
        snapshotter.commit("done", "work", {"label": "kept"})
        snapshotter.prepare("active", "done")
        assert store.verify().findings == []
        check(store)
    return root


def copied(rich: Path, place: Path) -> Path:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(rich, place, symlinks=True)
    return place


def contents(root: Path) -> dict[str, bytes]:
    """All files of a store but the database."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith("lamina.db")
    }


def rows(root: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(root / "lamina.db")) as connection:
        tables = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite%'"
            )
        ]
        return {
            table: sorted(connection.execute(f"SELECT * FROM {table}"), key=repr)
            for table in tables
        }


def run(root: Path, statement: str, *values: object) -> None:
    """Change a row behind the store's back; foreign keys are not looked at."""
    with closing(sqlite3.connect(root / "lamina.db")) as connection:
        connection.execute(statement, values)
        connection.commit()


def verified(root: Path, *, repair: bool = False) -> Report:
    with Store.open(root, sweeping=False) as store:
        return store.verify(repair=repair)


def files(root: Path, room: str, suffix: str = "") -> list[Path]:
    return sorted(path for path in (root / room).iterdir() if path.name.endswith(suffix))


def pack_of(root: Path, name: str, position: int = -1) -> Path:
    with Store.open(root) as store:
        return store.layers.path(store.image(name).layers[position].diff_id)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 0x55
    path.write_bytes(data)


def test_a_whole_store_is_found_whole_and_nothing_changes(rich: Path, tmp_path: Path) -> None:
    root = copied(rich, tmp_path / "store")
    before, before_rows = contents(root), rows(root)
    for repair in (False, True):
        report = verified(root, repair=repair)
        assert (report.findings, report.is_sound) == ([], True)
        assert (report.images, report.containers, report.blobs) == (3, 2, 4)
    assert contents(root) == before
    assert rows(root) == before_rows


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_every_damaged_file_is_found_and_mended_or_said_to_be_lost(
    rich: Path, tmp_path: Path, data: st.DataObject
) -> None:
    root = copied(rich, tmp_path / "store")
    before = contents(root)
    places = [*files(root, "layers"), *files(root, "blobs")]
    path = data.draw(st.sampled_from(places), "file")
    how = data.draw(st.sampled_from(["flip", "cut", "gone", "longer", "empty"]), "how")
    size = path.stat().st_size
    if how == "flip":
        flip(path, data.draw(st.integers(0, size - 1), "at"))
    elif how == "cut":
        os.truncate(path, data.draw(st.integers(1, size - 1), "size"))
    elif how == "longer":
        path.write_bytes(path.read_bytes() + b"\0more")
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    damaged = contents(root)
    name = str(path.relative_to(root))
    found = verified(root)
    assert found.findings
    assert not found.is_sound
    assert {finding.state for finding in found.findings} == {State.FOUND}
    assert contents(root) == damaged
    _check_repair(root, name, before, damaged)


def _check_repair(
    root: Path, name: str, before: dict[str, bytes], damaged: dict[str, bytes]
) -> None:
    report = verified(root, repair=True)
    after = contents(root)
    for other in set(before) - {name}:
        assert after.get(other) == before[other], other
    if report.is_sound:
        assert after == before
        assert verified(root).findings == []
    elif name.startswith("blobs/"):
        # What is gone is said once; the row is forgotten, and the file with it.
        assert verified(root, repair=True).is_sound
    else:
        assert after.get(name) == damaged.get(name)
        assert any(finding.images or finding.snapshots for finding in report.findings)
    if name.endswith(".merged"):
        assert report.is_sound


def test_a_merged_index_is_made_again(rich: Path, tmp_path: Path) -> None:
    root = copied(rich, tmp_path / "store")
    before = contents(root)
    merged = files(root, "layers", ".merged")
    assert merged
    for path in merged:
        path.unlink()
    assert {finding.problem for finding in verified(root).findings} == {"does not exist"}
    report = verified(root, repair=True)
    assert [finding.state for finding in report.findings] == [State.REPAIRED] * len(merged)
    assert contents(root) == before


def test_a_pack_is_made_again_of_a_kept_layer(rich: Path, tmp_path: Path) -> None:
    root = copied(rich, tmp_path / "store")
    before = contents(root)
    path = pack_of(root, "team/app:1", 0)
    path.write_bytes(b"not even a pack")
    report = verified(root, repair=True)
    assert [finding.state for finding in report.findings] == [State.REPAIRED]
    assert report.findings[0].images == ("team/app:1",)
    assert len(report.findings[0].containers) == 1
    assert contents(root) == before


def test_a_chunk_comes_from_another_pack(store: Store) -> None:
    shared = os.urandom(100_000)
    small_image(store, "one", data=shared)
    run(store.root, "UPDATE chunk SET digest = zeroblob(32) WHERE stored > 50000")
    small_image(store, "two", data=shared, other=b"other")
    assert store.verify(repair=True).is_sound
    path = store.layers.path(store.image("two").layers[0].diff_id)
    whole = path.read_bytes()
    flip(path, whole.index(shared[:100]) + 70_000)
    assert store.verify().findings[0].images == ("two:latest",)
    report = store.verify(repair=True)
    assert [finding.state for finding in report.findings] == [State.REPAIRED]
    assert path.read_bytes() == whole


def test_a_lost_chunk_concerns_all_who_need_it_and_is_offered_to_no_one(store: Store) -> None:
    shared = os.urandom(100_000)
    base = small_image(store, "one", data=shared)
    small_image(store, "two", data=shared, other=b"other")
    new_container(store, base)
    path = store.layers.path(base.layers[0].diff_id)
    whole = path.read_bytes()
    flip(path, whole.index(shared[:100]) + 70_000)
    report = store.verify(repair=True)
    first = report.findings[0]
    assert (first.state, first.images) == (State.LOST, ("one:latest", "two:latest"))
    assert first.containers == (store.containers()[0].name,)
    three = small_image(store, "three", data=shared, another=b"another")
    assert store.verify(["three"]).findings == []
    assert tree_of(store, three)["bin/data"] == shared
    # The new layer has the chunk, and so the old one can be mended now.
    assert store.verify(repair=True).is_sound
    assert path.read_bytes() == whole


ROWS: dict[str, tuple[str, bool]] = {
    "a layer's facts": ("UPDATE layer SET entries = entries + 1 WHERE number = 1", True),
    "a layer that is complete": ("UPDATE layer SET complete = 1 - complete", True),
    "sources": ("DELETE FROM layer_source", True),
    "more sources": ("INSERT INTO layer_source VALUES (1, 4)", True),
    "chunks": ("UPDATE chunk SET offset = offset + 1 WHERE layer = 1", True),
    "no chunks": ("DELETE FROM chunk", True),
    "foreign chunks": ("UPDATE chunk SET layer = 1 + layer % 4", True),
    "chunks of nobody": ("UPDATE chunk SET layer = 99 WHERE layer = 2", True),
    "image layers": ("UPDATE image_layer SET chain = zeroblob(32) WHERE position = 0", True),
    "no image layers": ("DELETE FROM image_layer WHERE position > 0", True),
    "image layers of nobody": (
        "UPDATE image_layer SET image = zeroblob(32) WHERE image = (SELECT max(id) FROM image)",
        True,
    ),
    "swapped layers": ("UPDATE image_layer SET layer = 1", True),
    "runs": ("DELETE FROM run", True),
    "other runs": ("UPDATE run SET file = 'other.merged'", True),
    "more runs": ("INSERT INTO run SELECT chain, position + 7, file FROM run", True),
    "a name": ("INSERT INTO reference SELECT 'Not/A//Name', id FROM image LIMIT 1", True),
    "names of nobody": ("UPDATE reference SET image = zeroblob(32)", True),
    "a configuration": ("UPDATE image SET config = CAST('{}' AS BLOB)", False),
    "an image's ID": ("UPDATE image SET id = zeroblob(32) WHERE rowid = 1", False),
    "container settings": ("UPDATE container SET config = zeroblob(3)", False),
    "a container's time": ("UPDATE container SET created = 'yesterday'", False),
    "a container's state": ("UPDATE container SET status = 'sleeping'", False),
    "a container's image": ("UPDATE container SET image = zeroblob(32)", False),
    "blob size": ("UPDATE blob SET size = 1", True),
    "blob of another": ("UPDATE blob SET layer = 1 WHERE recipe IS NULL", True),
    "blobs of nobody": ("UPDATE blob SET layer = 99", True),
    "blob digest": ("UPDATE blob SET digest = zeroblob(32) WHERE rowid = 1", True),
    "blob recipe": ("UPDATE blob SET recipe = 'gzip-99'", False),
    "manifest": ("UPDATE manifest SET content = zeroblob(9)", False),
    "manifest digest": ("UPDATE manifest SET digest = zeroblob(32)", False),
    "manifest of another": (
        "UPDATE manifest SET image = (SELECT id FROM image WHERE id <> manifest.image)",
        False,
    ),
    "a layer's diff_id": ("UPDATE layer SET diff_id = zeroblob(32) WHERE number = 1", True),
    "snapshot chain": ("UPDATE snapshot SET chain = zeroblob(32) WHERE chain NOT NULL", True),
    "snapshot labels": ("UPDATE snapshot SET labels = zeroblob(2)", False),
    "snapshot times": ("UPDATE snapshot SET created = ''", True),
    "snapshot kind": ("UPDATE snapshot SET kind = 'strange'", False),
    "snapshot parent": ("UPDATE snapshot SET parent = 99 WHERE kind = 'active'", False),
}


@pytest.mark.parametrize("damage", ROWS)
def test_every_wrong_row_is_found(rich: Path, tmp_path: Path, damage: str) -> None:
    statement, can_be_repaired = ROWS[damage]
    root = copied(rich, tmp_path / "store")
    before, before_rows = contents(root), rows(root)
    run(root, statement)
    assert rows(root) != before_rows
    found = verified(root)
    assert found.findings
    report = verified(root, repair=True)
    assert report.is_sound == can_be_repaired, report.findings
    after = contents(root)
    for name in before:
        if name.startswith(("layers/", "containers/", "snapshots/")):
            assert after.get(name) == before[name], name
    if can_be_repaired:
        assert verified(root).findings == []


COLUMNS = [
    *[f"layer.{name}" for name in ("diff_id", "tar_size", "content_size", "entries")],
    *[f"chunk.{name}" for name in ("digest", "layer", "offset", "stored", "plain", "flags")],
    *["layer_source.layer", "layer_source.source", "image.id", "image.config"],
    *[f"image_layer.{name}" for name in ("image", "position", "layer", "chain")],
    *["run.chain", "run.position", "run.file", "blob.digest", "blob.layer", "blob.size"],
    *["manifest.digest", "manifest.image", "manifest.content", "container.image"],
    *["snapshot.parent", "snapshot.layer", "snapshot.chain"],
]
"""What cannot be changed into anything that might be right as well."""


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_whatever_is_changed_in_a_row_is_found(
    rich: Path, tmp_path: Path, data: st.DataObject
) -> None:
    table, _, column = data.draw(st.sampled_from(COLUMNS)).partition(".")
    root = copied(rich, tmp_path / "store")
    before = contents(root)
    with closing(sqlite3.connect(root / "lamina.db")) as connection:
        key = [
            name for _, name, *_, part in connection.execute(f"PRAGMA table_info({table})") if part
        ]
        select = (
            f"SELECT {', '.join([*key, column])} FROM {table} WHERE {column} NOT NULL ORDER BY 1"
        )
        row = data.draw(st.sampled_from(connection.execute(select).fetchall()))
        value = data.draw(_others(row[-1]))
        condition = " AND ".join(f"{name} = ?" for name in key)
        try:
            connection.execute(
                f"UPDATE {table} SET {column} = ? WHERE {condition}", (value, *row[:-1])
            )
        except sqlite3.IntegrityError:
            return  # the tables themselves refuse it
        connection.commit()
    assert verified(root).findings
    verified(root, repair=True)
    again = verified(root, repair=True)
    assert all(finding.state is State.LOST for finding in again.findings)
    after = contents(root)
    for name in before:
        if name.startswith(("layers/", "containers/", "snapshots/")):
            assert after.get(name) == before[name], name


def _others(value: object) -> st.SearchStrategy[object]:
    """Another value of the same kind."""
    if isinstance(value, int):
        return st.integers(-3, 300).filter(lambda other: other != value)
    if isinstance(value, str):
        return st.sampled_from(["", "../x", "a" * 64 + ".pack", value + "x"])
    assert isinstance(value, bytes)
    at = st.integers(0, len(value) - 1)
    return at.map(lambda index: value[:index] + bytes([value[index] ^ 1]) + value[index + 1 :])


def test_what_rows_lose_is_what_the_rest_of_the_store_says(rich: Path, tmp_path: Path) -> None:
    for damage in ("no image layers", "runs", "sources", "chunks", "a layer's facts", "blob size"):
        root = copied(rich, tmp_path / "store")
        before = rows(root)
        run(root, ROWS[damage][0])
        verified(root, repair=True)
        assert rows(root) == before, damage


def test_leftovers_go_and_parts_of_containers_come_back(rich: Path, tmp_path: Path) -> None:
    root = copied(rich, tmp_path / "store")
    before = contents(root)
    (root / "layers" / "left.pack").write_bytes(b"left")
    (root / "blobs" / "left").write_bytes(b"left")
    (root / "containers" / "left" / "upper").mkdir(parents=True)
    (root / "snapshots" / "99").mkdir()
    container = next((root / "containers").glob("?" * 64))
    (container / "skeleton").rmdir()
    (container / "lock").unlink()
    found = {finding.place for finding in verified(root).findings}
    assert found >= {"layers/left.pack", "blobs/left", "containers/left", "snapshots/99"}
    assert f"containers/{container.name}/lock" in found
    assert verified(root, repair=True).is_sound
    assert contents(root) == before
    assert (container / "skeleton").is_dir()


def test_the_upper_of_a_container_cannot_be_had_again(rich: Path, tmp_path: Path) -> None:
    root = copied(rich, tmp_path / "store")
    for path in (root / "containers").iterdir():
        shutil.rmtree(path)
    shutil.rmtree(root / "snapshots" / "3", ignore_errors=True)
    report = verified(root, repair=True)
    lost = {name for finding in report.findings for name in finding.containers}
    with Store.open(root) as store:
        assert lost == {container.name for container in store.containers()}


def test_only_what_the_named_images_need_is_looked_at(rich: Path, tmp_path: Path) -> None:
    root = copied(rich, tmp_path / "store")
    pack_of(root, "team/app:1", 0).unlink()
    (root / "layers" / "left.pack").write_bytes(b"left")
    with Store.open(root) as store:
        made = store.verify(["made:2"])
        assert (made.findings, made.images, made.layers) == ([], 1, 2)
        assert not store.verify(["made:2", "team/app:1"]).is_sound


def test_layers_in_use_are_not_swept_by_a_verification(store: Store) -> None:
    with store.session() as session:
        session.add_layer(io.BytesIO(tar({"a": b"a"})))
        with Store.open(store.root) as other:
            assert other.verify(repair=True).findings == []
        assert files(store.root, "layers")


def test_a_damaged_kept_layer_is_given_up_and_comes_back_with_the_archive(store: Store) -> None:
    archive = tar(layout(layers(), "gzip"))
    load(store, io.BytesIO(archive))
    before = saved_oci(store, "team/app:1")
    flip(files(store.root, "blobs")[0], 1000)
    report = store.verify(repair=True)
    assert [(finding.state, finding.images) for finding in report.findings] == [
        (State.LOST, ("team/app:1",))
    ]
    assert store.verify(repair=True).is_sound
    load(store, io.BytesIO(archive))
    assert saved_oci(store, "team/app:1") == before


def test_progress_is_told_for_each_layer(rich: Path, tmp_path: Path) -> None:
    told: dict[str, tuple[int, int | None]] = {}

    def tell(layer: str, action: str, done: int, total: int | None) -> None:
        assert action == "Verifying"
        told[layer] = (done, total)

    with Store.open(copied(rich, tmp_path / "store")) as store:
        report = store.verify(progress=tell)
    assert len(told) == report.layers
    assert all(done == total for done, total in told.values())
