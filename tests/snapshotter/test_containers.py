"""Containers in the store."""

from __future__ import annotations

import fcntl
import io
import os
import tarfile
from datetime import UTC, datetime

import pytest

from snapshotter.errors import Conflict, InvalidName, NoSuchContainer
from snapshotter.images import import_rootfs
from snapshotter.store import ContainerConfig, Store
from tests.snapshotter.helpers import new_container, small_image


def test_a_container_is_found_by_name_id_and_prefix(store: Store) -> None:
    image = small_image(store)
    container = store.create_container(
        image, image_name="base", config=ContainerConfig(env=["A=1"]), name="web"
    )
    for name in ("web", "/web", container.id, container.short_id):
        assert store.container(name) == container
    assert (container.status, container.image_name) == ("created", "base")
    assert (container.config.env, container.config.cmd) == (["A=1"], [])
    assert all(path.exists() for path in (container.upper, container.work, container.lock))
    with pytest.raises(NoSuchContainer, match=r"^No such container: nobody$"):
        store.container("nobody")


def test_names_are_unique_and_made_up_if_missing(store: Store) -> None:
    image = small_image(store)
    names = {new_container(store, image).name for _ in range(20)}
    assert len(names) == 20
    assert all("_" in name for name in names)
    taken = min(names)
    with pytest.raises(Conflict, match=f'The container name "/{taken}" is already in use by'):
        store.create_container(image, image_name="x", config=ContainerConfig(), name=taken)
    with pytest.raises(InvalidName, match=r"only \[a-zA-Z0-9\]"):
        store.create_container(image, image_name="x", config=ContainerConfig(), name="a/b")
    assert len(list((store.root / "containers").iterdir())) == 20


def test_a_container_whose_supervisor_died_has_exited(store: Store) -> None:
    container = new_container(store, small_image(store))
    fd = store.hold_container(container)
    started = datetime(2024, 1, 1, tzinfo=UTC)
    running = store.update_container(container, status="running", pid=1, started=started)
    assert (running.status, running.pid, running.started) == ("running", 1, started)
    with pytest.raises(Conflict, match="container is running: stop the container"):
        store.remove_container(container.id)
    os.close(fd)
    dead = store.container(container.id)
    assert (dead.status, dead.exit_code, dead.pid) == ("exited", 137, None)
    store.remove_container(container.id)
    assert store.containers() == []


def test_only_one_supervisor_holds_a_container(store: Store) -> None:
    container = new_container(store, small_image(store))
    fd = os.open(container.lock, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    with pytest.raises(Conflict, match="already running"):
        store.hold_container(container)
    os.close(fd)
    os.close(store.hold_container(container))


def test_containers_are_renamed_but_not_onto_each_other(store: Store) -> None:
    image = small_image(store)
    first, second = new_container(store, image), new_container(store, image)
    assert store.update_container(first, name="one").name == "one"
    assert store.update_container(first, name="one").name == "one"
    with pytest.raises(Conflict, match="already in use"):
        store.update_container(second, name="one")
    with pytest.raises(TypeError, match="image cannot be changed"):
        store.update_container(first, image="x")


@pytest.mark.root
def test_the_upper_looks_like_the_root_of_the_image(store: Store) -> None:

    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        root = tarfile.TarInfo("./")
        root.type, root.mode, root.uid, root.gid = tarfile.DIRTYPE, 0o1711, 12, 34
        archive.addfile(root)
    container = new_container(store, import_rootfs(store, io.BytesIO(out.getvalue())))
    info = container.upper.stat()
    assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (0o1711, 12, 34)
