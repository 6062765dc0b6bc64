"""Images and their names in the store, and Docker's rules for taking them away."""

from __future__ import annotations

import io
import os
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snapshotter.errors import (
    AmbiguousId,
    Conflict,
    InvalidReference,
    NoSuchImage,
    StoreError,
)
from snapshotter.images import import_rootfs
from snapshotter.store import Deleted, Store, Untagged
from tests.snapshotter.helpers import COMPRESSIONS, new_container, small_image, tar, tree_of
from unionfs.errors import LayerError


def test_an_image_is_found_by_name_id_and_prefix(store: Store) -> None:
    image = small_image(store, "app:1")
    store.tag("app:1", "app")
    for name in ("app:1", "app", "docker.io/library/app:1", image.id, image.id[7:], image.short_id):
        assert store.image(name).id == image.id
    assert store.image(f"sha256:{image.short_id}").id == image.id
    assert [str(reference) for reference in store.image("app").references] == [
        "app:1",
        "app:latest",
    ]


def test_what_is_not_there_is_reported_in_full(store: Store) -> None:
    for name, shown in (("x", "x:latest"), ("a/b:1", "a/b:1"), ("0" * 64, "0" * 64)):
        with pytest.raises(NoSuchImage, match=f"^No such image: {shown}$"):
            store.image(name)
    with pytest.raises(InvalidReference):
        store.image("Not A Name")


def test_a_prefix_of_several_ids_is_ambiguous(store: Store) -> None:
    ids: dict[str, str] = {}
    for number in range(40):
        image = small_image(store, None, file=b"%d" % number)
        first = image.id[7]
        if first in ids:
            with pytest.raises(AmbiguousId):
                store.image(first)
            return
        ids[first] = image.id
    pytest.fail("17 images have 17 different first digits")


def test_the_same_root_filesystem_is_stored_once(store: Store) -> None:
    when = datetime(2024, 1, 1, tzinfo=UTC)
    data = tar({"f": b"content" * 1000})
    first = import_rootfs(store, io.BytesIO(data), reference="a", created=when)
    second = import_rootfs(store, io.BytesIO(data), reference="b", created=when)
    assert first.id == second.id
    assert first.size == 7000
    assert len(list((store.root / "layers").glob("*.pack"))) == 1


def test_a_name_moves_to_the_image_it_was_given_last(store: Store) -> None:
    old, new = small_image(store, "app"), small_image(store, "app", other=b"2")
    assert store.image("app").id == new.id
    assert store.image(old.id).references == ()


def test_import_records_what_it_was_told(store: Store) -> None:
    image = import_rootfs(
        store,
        io.BytesIO(tar({"f": b""})),
        changes=['CMD ["sh"]', "ENV A=1"],
        message="from a friend",
        platform="linux/arm64/v8",
        created=datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC),
    )
    config = image.config
    assert (config.os, config.architecture, config.variant) == ("linux", "arm64", "v8")
    assert (config.process.cmd, config.process.env) == (["sh"], ["A=1"])
    assert config.created == "2024-01-02T03:04:05Z"
    assert [entry.comment for entry in config.history or []] == ["from a friend"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_import_reads_every_compression(store: Store, compression: str) -> None:
    data = COMPRESSIONS[compression](tar({"f": b"content" * 500}))
    assert tree_of(store, import_rootfs(store, io.BytesIO(data))) == {"f": b"content" * 500}
    with pytest.raises(LayerError):
        import_rootfs(store, io.BytesIO(data[: 700 if compression == "plain" else len(data) // 2]))


def test_a_failed_import_leaves_nothing(store: Store) -> None:
    with pytest.raises(LayerError):
        import_rootfs(store, io.BytesIO(b"not a tar" * 1000), reference="bad")
    assert store.images() == []
    assert list((store.root / "layers").iterdir()) == []


def test_taking_the_last_name_deletes_the_image(store: Store) -> None:
    image = small_image(store, "app:1")
    store.tag("app:1", "app:2")
    assert store.remove_image("app:1") == [Untagged("app:1")]
    records = store.remove_image("app:2")
    assert records == [Untagged("app:2"), Deleted(image.id), Deleted(image.layers[0].diff_id)]
    assert next(map(str, records)) == "Untagged: app:2"
    assert list((store.root / "layers").iterdir()) == []


def test_an_id_with_several_names_needs_force(store: Store) -> None:
    image = small_image(store, "app:1")
    store.tag("app:1", "app:2")
    message = (
        rf"^conflict: unable to delete {image.short_id} \(must be forced\) - "
        "image is referenced in multiple repositories$"
    )
    with pytest.raises(Conflict, match=message):
        store.remove_image(image.short_id)
    assert len(store.remove_image(image.short_id, force=True)) == 4
    assert store.images() == []


def test_an_image_in_use_is_kept(store: Store) -> None:
    image = small_image(store, "app")
    container = new_container(store, image)
    with pytest.raises(Conflict, match=r'remove repository reference "app:latest" \(must force\)'):
        store.remove_image("app")
    with pytest.raises(Conflict, match=r"must be forced\) - image is being used by stopped"):
        store.remove_image(image.id)
    assert store.remove_image("app", force=True) == [Untagged("app:latest")]
    with pytest.raises(Conflict, match=r"cannot be forced\) - image is being used by stopped"):
        store.remove_image(image.id, force=True)
    assert store.runs(store.image(image.id))
    store.remove_container(container.id)
    assert store.remove_image(image.id)[0] == Deleted(image.id)


def test_layers_shared_by_images_stay_until_the_last_one_goes(store: Store) -> None:
    data = os.urandom(500_000)
    first = small_image(store, "first", data=data)
    small_image(store, "second", data=data, more=os.urandom(300_000))
    assert len(store.remove_image("first")) == 3
    # The pack of the second takes its chunks from that of the first, which must stay.
    assert store.layers.path(first.layers[0].diff_id).exists()
    assert tree_of(store, store.image("second"))["bin/data"] == data
    store.remove_image("second")
    assert list((store.root / "layers").iterdir()) == []


def test_a_directory_that_is_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(StoreError, match="neither empty nor a lamina store"):
        Store.open(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(StoreError, match="Not a directory"):
        Store.open(tmp_path / "thesis.txt" / "store")


def test_the_store_of_a_newer_version_is_refused(store: Store) -> None:
    with Store.open(store.root):
        pass
    connection = sqlite3.connect(store.root / "lamina.db")
    connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="was written by a newer lamina"):
        Store.open(store.root)
    connection.execute("PRAGMA user_version = 1")
    connection.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lamina.db").write_bytes(b"something else entirely" * 100)
    with pytest.raises(StoreError, match="file is not a database"):
        Store.open(tmp_path)
    (tmp_path / "lamina.db").unlink()
    connection = sqlite3.connect(tmp_path / "lamina.db")
    connection.execute("CREATE TABLE recipes (name TEXT)")
    connection.close()
    with pytest.raises(StoreError, match="is not the database of a lamina store"):
        Store.open(tmp_path)
