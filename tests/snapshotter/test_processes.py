"""Several processes on one store, and processes that are killed or find the disk full."""

from __future__ import annotations

import io
import os
import random
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from snapshotter.archive import atomic_output, save
from snapshotter.errors import StoreError
from snapshotter.images import commit, import_rootfs
from snapshotter.store import Store
from tests.snapshotter import helpers
from tests.snapshotter.helpers import check, new_container, saved, small_image, start, tar

KILLS = 10


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    """A layer that takes a while."""
    chance = random.Random(1)
    path = tmp_path / "rootfs.tar"
    files = {f"d{number % 7}/f{number}": chance.randbytes(9000) for number in range(400)}
    path.write_bytes(tar({**{f"d{number}": None for number in range(7)}, **files}))
    return path


def wait(process: ForkServerProcess) -> int:
    process.join(60)
    code = process.exitcode
    assert code is not None, "the process hangs"
    process.close()
    return code


@pytest.mark.parametrize(
    "operation",
    ["import", "commit", "load", "save", "remove", "create-container", "remove-container"],
)
def test_a_killed_process_leaves_nothing_half_made(
    tmp_path: Path, rootfs: Path, operation: str
) -> None:
    chance = random.Random(operation)
    root = tmp_path / "store"
    needed = 0.2
    for attempt in range(KILLS + 1):
        arguments, before = _prepare(root, rootfs, operation, attempt)
        started = time.perf_counter()
        process = start(operation, root, *arguments)
        if attempt > 0:
            time.sleep(chance.uniform(0, needed))
            process.kill()
        code = wait(process)
        if attempt == 0:
            assert code == 0
            needed = time.perf_counter() - started
        with Store.open(root) as store:
            check(store)
            _check_outcome(store, operation, before)


def _prepare(
    root: Path, rootfs: Path, operation: str, attempt: int
) -> tuple[tuple[object, ...], set[str]]:
    """What the operation needs, in the store; its arguments; the images there before."""
    with Store.open(root) as store:
        for image in store.images():
            if operation in ("import", "load") and image.references:
                store.remove_image(image.id, force=True)
        if operation == "load":
            archive = root.parent / "archive.tar"
            if not archive.exists():
                helpers.OPERATIONS["import"](store, rootfs, "loaded")
                archive.write_bytes(saved(store, "loaded"))
                store.remove_image("loaded")
            return (archive,), {image.id for image in store.images()}
        if operation == "import":
            return (rootfs, "imported"), {image.id for image in store.images()}
        if not store.images() or operation == "remove":
            helpers.OPERATIONS["import"](store, rootfs, "there")
        base = store.image("there")
        container = new_container(store, base)
        with (container.upper / "changed").open("wb") as changed:
            changed.write(os.urandom(2 << 20))
        before = {image.id for image in store.images()}
        if operation == "remove":
            store.remove_container(container.id)
            return ("there",), before
        if operation in ("commit", "remove-container"):
            name = (f"made:{attempt}",) if operation == "commit" else ()
            return (container.id, *name), before
        return ("there",) if operation == "create-container" else (
            Path(os.devnull),
            "there",
        ), before


def _check_outcome(store: Store, operation: str, before: set[str]) -> None:
    after = {image.id for image in store.images()}
    if operation in ("import", "commit", "load"):
        assert before <= after
        assert len(after - before) <= 1
    elif operation == "remove":
        assert after <= before
    else:
        assert after == before
    for container in store.containers():
        assert container.upper.is_dir()


def test_processes_do_not_disturb_each_other(tmp_path: Path, rootfs: Path) -> None:
    root = tmp_path / "store"
    processes = [start("busy", root, rootfs, number) for number in range(4)]
    assert [wait(process) for process in processes] == [0, 0, 0, 0]
    with Store.open(root) as store:
        for container in store.containers():
            store.remove_container(container.id)
        store.sweep()
        check(store)


def test_one_layer_added_by_two_processes_at_once_is_one_layer(
    tmp_path: Path, rootfs: Path
) -> None:
    root = tmp_path / "store"
    processes = [start("import", root, rootfs, f"image:{number}") for number in range(3)]
    assert [wait(process) for process in processes] == [0, 0, 0]
    with Store.open(root) as store:
        check(store)
        assert len({image.layers for image in store.images()}) == 1


def test_a_layer_in_use_is_not_swept(store: Store) -> None:
    image = small_image(store, "base")
    with store.session():
        store.remove_image("base")
        assert store.images() == []
        assert store.layers.path(image.layers[0].diff_id).exists()
        assert not store.sweep()
    assert store.sweep()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 3 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def _save_much(store: Store, path: Path) -> None:
    with atomic_output(path) as out:
        for _ in range(100):
            save(store, ["base"], out)
            out.write(bytes(1 << 20))


@pytest.mark.root
def test_a_full_disk_leaves_nothing_half_made(small_disk: Path, tmp_path: Path) -> None:
    with Store.open(small_disk / "store") as store:
        base = small_image(store, "base")
        container = new_container(store, base)
        with pytest.raises((OSError, StoreError)):
            import_rootfs(store, io.BytesIO(tar({"big": os.urandom(6 << 20)})), reference="big")
        check(store)
        (container.upper / "f").write_bytes(os.urandom(1_900_000))
        with pytest.raises((OSError, StoreError)):
            commit(store, container, reference="big")
        check(store)
        with pytest.raises(OSError, match="No space left"):
            _save_much(store, small_disk / "out.tar")
        assert [path.name for path in small_disk.iterdir()] == ["store"]
        (container.upper / "f").unlink()
        assert [image.id for image in store.images()] == [base.id]
        commit(store, container, reference="fits")
        store.remove_container(container.id)
        check(store)
