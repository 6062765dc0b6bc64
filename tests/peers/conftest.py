"""Storages of podman, and a small image in them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers.box import Boxes, write_box
from tests.peers.podman import Storage, fuse_overlayfs, storage


@pytest.fixture(scope="session")
def overlay() -> Iterator[Storage]:
    """A storage whose mounts are made by lamina."""
    with storage() as made:
        yield made


@pytest.fixture(scope="session")
def plain() -> Iterator[Storage]:
    """A storage that mounts nothing."""
    with storage(vfs=True) as made:
        yield made


@pytest.fixture(scope="session")
def boxes(overlay: Storage, plain: Storage, busybox_tar: Path) -> Boxes:
    """A small image to change, see :mod:`tests.peers.box`."""
    path = overlay.directory / "box.tar"
    write_box(busybox_tar, path)
    for engine in (overlay, plain):
        engine.podman("import", "--quiet", path, "box")
    return Boxes(overlay, overlay.using(fuse_overlayfs()), plain)
