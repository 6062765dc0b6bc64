"""Whatever is killed, verify finds nothing wrong afterwards; and it may be killed itself."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import pytest

from snapshotter.store import Store
from tests.snapshotter.helpers import check, small_image, start, tar
from tests.snapshotter.test_blobs import layout

KILLS = 12


def archive(place: Path) -> Path:
    """An OCI archive whose layers take a while."""
    chance = random.Random(1)
    layers = [
        tar({f"{layer}-{name}": chance.randbytes(40_000) for name in range(60)})
        for layer in range(3)
    ]
    path = place / "archive.tar"
    path.write_bytes(tar(layout(layers, "gzip")))
    return path


def _spoil(root: Path) -> None:
    """Damage that can be repaired: a pack and an index are gone, rows are wrong, a file is left."""
    with Store.open(root) as store:
        path = store.layers.path(store.image("team/app:1").layers[0].diff_id)
        path.unlink()
        for merged in (root / "layers").glob("*.merged"):
            merged.unlink()
    (root / "blobs" / "left").write_bytes(b"left")


@pytest.mark.parametrize("operation", ["load", "save-oci", "prune", "repair"])
def test_after_a_kill_verify_finds_nothing(tmp_path: Path, operation: str) -> None:
    chance = random.Random(operation)
    source = archive(tmp_path)
    whole = tmp_path / "whole"
    with Store.open(whole) as store:
        small_image(store, "other")
    if operation != "load":
        process = start("load", whole, source)
        process.join(60)
        assert process.exitcode == 0
    arguments: dict[str, tuple[object, ...]] = {
        "load": (source,),
        "save-oci": (tmp_path / "out", "team/app:1", "other"),
    }
    root = tmp_path / "store"
    needed = 0.0
    for attempt in range(KILLS + 1):
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        if operation == "repair":
            _spoil(root)
        started = time.perf_counter()
        process = start(operation, root, *arguments.get(operation, ()))
        if attempt:
            time.sleep(chance.uniform(0, needed))
            process.kill()
        process.join(60)
        assert process.exitcode is not None
        assert attempt or process.exitcode == 0
        needed = needed or time.perf_counter() - started
        with Store.open(root) as store:
            if operation == "repair":
                assert store.verify(repair=True).is_sound
            assert store.verify().findings == []
            store.sweep()
            check(store)
