"""Committing containers."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from snapshotter.containers.userns import call_inside, single_mapping
from snapshotter.images import commit, import_rootfs
from snapshotter.store import ContainerConfig, Image, Store
from tests.snapshotter.helpers import (
    check,
    members_of,
    new_container,
    saved,
    small_image,
    tar,
    tree_of,
    with_layer,
)
from unionfs.errors import LayerError
from unionfs.opening import open_union

WHEN = datetime(2024, 5, 6, 7, 8, 9, tzinfo=UTC)


def whiteout(path: Path) -> None:
    os.mknod(path, stat.S_IFCHR, 0)


@pytest.mark.root
def test_a_commit_is_the_image_with_the_changes(store: Store) -> None:
    base = small_image(store, "base", keep=b"1", change=b"2", remove=b"3")
    container = new_container(store, base)
    (container.upper / "bin").mkdir()
    (container.upper / "bin" / "change").write_bytes(b"new")
    whiteout(container.upper / "bin" / "remove")
    (container.upper / "added").mkdir()
    (container.upper / "added" / "x").write_bytes(b"x" * 300_000)
    image = commit(store, container, reference="made")
    assert tree_of(store, image) == {
        "added": "directory",
        "added/x": b"x" * 300_000,
        "bin": "directory",
        "bin/change": b"new",
        "bin/keep": b"1",
    }
    assert image.parent == base.id
    assert [layer.diff_id for layer in image.layers[:1]] == [base.layers[0].diff_id]
    assert tree_of(store, base)["bin/remove"] == b"3"


def test_the_same_upper_is_the_same_layer(store: Store) -> None:
    base = small_image(store)
    images = []
    for _ in range(2):
        container = new_container(store, base)
        for name in ("b", "a", "c"):
            (container.upper / name).write_text(name)
            os.utime(container.upper / name, (0, 5))
        images.append(commit(store, container, created=WHEN))
    assert images[0].id == images[1].id


def test_what_was_not_changed_makes_no_layer(store: Store) -> None:
    base = small_image(store)
    image = commit(store, new_container(store, base), message="nothing", author="me")
    assert image.layers == base.layers
    last = (image.config.history or [])[-1]
    assert (last.empty_layer, last.comment, last.author) == (True, "nothing", "me")
    assert image.config.author == "me"


def test_a_changed_root_directory_is_part_of_the_layer(store: Store) -> None:
    base = small_image(store)
    container = new_container(store, base)
    container.upper.chmod(0o711)
    image = commit(store, container)
    assert len(image.layers) == 2
    assert store.root_attributes(image).mode == 0o711


def _image_with_root_of(store: Store, uid: int) -> Image:
    """An image whose root directory belongs to ``uid``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        root = tarfile.TarInfo("./")
        root.type, root.mode, root.uid, root.gid = tarfile.DIRTYPE, 0o755, uid, uid
        archive.addfile(root)
    return import_rootfs(store, io.BytesIO(out.getvalue()))


def test_an_owner_that_could_not_be_set_is_no_change(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    base = _image_with_root_of(store, 33)
    with monkeypatch.context() as unprivileged:
        unprivileged.setattr(os, "chown", refuse)
        container = new_container(store, base)
    assert commit(store, container).layers == base.layers
    container.upper.chmod(0o711)
    assert len(commit(store, container).layers) == 2


@pytest.mark.root
def test_a_root_directory_given_to_another_is_a_change(store: Store) -> None:
    base = _image_with_root_of(store, 33)
    container = new_container(store, base)
    assert commit(store, container).layers == base.layers
    os.chown(container.upper, 0, 0)
    image = commit(store, container)
    assert len(image.layers) == 2
    assert store.root_attributes(image)[:3] == (0o755, 0, 0)


@pytest.mark.parametrize("owner", [0, 33])
def test_inside_a_user_namespace_the_root_directory_is_no_change_either(
    store: Store, owner: int
) -> None:
    base = _image_with_root_of(store, owner)
    container = new_container(store, base)

    def commit_inside() -> None:
        with Store.open(store.root) as opened:
            commit(opened, opened.container(container.id), reference="inside")

    call_inside(single_mapping(), "", commit_inside)
    assert store.image("inside").layers == base.layers


def test_the_configuration_is_merged_as_docker_does(store: Store) -> None:
    base = import_rootfs(
        store,
        io.BytesIO(tar({"f": b""})),
        changes=["ENV A=1 B=2", 'CMD ["old"]', "LABEL x=1", "EXPOSE 80", "ONBUILD RUN x"],
    )
    container = store.create_container(
        base,
        image_name="base",
        config=ContainerConfig(
            cmd=["sh", "-c", "make"],
            env=["A=1", "B=2", "C=3"],
            labels={"x": "1", "y": "2"},
            working_dir="/srv",
            user="me",
        ),
    )
    image = commit(store, container, changes=["ENV B=5", "LABEL z=3"], created=WHEN, message="hi")
    process = image.config.process
    assert process.env == ["A=1", "B=5", "C=3"]
    assert process.labels == {"x": "1", "y": "2", "z": "3"}
    assert process.cmd == ["sh", "-c", "make"]
    assert (process.user, process.working_dir) == ("me", "/srv")
    assert process.exposed_ports == {"80/tcp": {}}
    assert process.on_build is None
    last = (image.config.history or [])[-1]
    assert (last.created, last.created_by) == ("2024-05-06T07:08:09Z", "sh -c make")
    assert (image.config.created, last.comment) == ("2024-05-06T07:08:09Z", "hi")


def test_times_are_clamped_on_request(store: Store) -> None:
    container = new_container(store, small_image(store))
    (container.upper / "f").touch()
    image = commit(store, container, clamp=1000, reference="clamped")
    layer = members_of(saved(store, "clamped"))[
        f"blobs/{image.layers[1].diff_id.replace(':', '/')}"
    ]
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        assert [member.mtime for member in archive.getmembers()] == [1000]


@pytest.mark.root
def test_a_commit_that_fails_changes_nothing(store: Store) -> None:
    container = new_container(store, small_image(store))
    (container.upper / "f").write_bytes(os.urandom(1 << 20))
    os.setxattr(container.upper / "f", "trusted.overlay.metacopy", b"")
    with pytest.raises(LayerError, match="is a metacopy"):
        commit(store, container, reference="broken")
    assert len(store.images()) == 1
    check(store)


@pytest.mark.root
def test_many_commits_are_served_by_few_files_that_say_the_same(store: Store) -> None:
    image = small_image(store, None, **{f"f{number}": b"%d" % number for number in range(40)})
    expected = tree_of(store, image)
    for step in range(30):
        container = new_container(store, image)
        (container.upper / "bin").mkdir()
        (container.upper / "bin" / f"step{step}").write_bytes(b"s%d" % step)
        expected[f"bin/step{step}"] = b"s%d" % step
        for gone in (f"f{step}", f"step{step - 2}"):
            if expected.pop(f"bin/{gone}", None) is not None:
                whiteout(container.upper / "bin" / gone)
        image = commit(store, container)
        assert len(store.runs(image)) <= 4
        assert tree_of(store, image) == expected
        store.remove_container(container.id)
    assert len(image.layers) == 31


@pytest.mark.root
def test_a_hardlink_into_a_lower_layer_is_found_there(store: Store) -> None:
    base = small_image(store, None, **{f"f{number}": b"%d" % number for number in range(100)})
    link = tar({"bin/link": (tarfile.LNKTYPE, "bin/f7")})
    image = with_layer(store, base, link)
    assert tree_of(store, image)["bin/link"] == b"7"
    with pytest.raises(LayerError, match="nowhere"):
        with_layer(store, base, tar({"bin/link": (tarfile.LNKTYPE, "bin/nowhere")}))
    store.sweep()


def test_a_commit_costs_what_changed(store: Store) -> None:
    base = small_image(store, None, **{f"f{number}": b"%d" % number for number in range(20_000)})
    container = new_container(store, base)
    (container.upper / "one").write_text("1")
    commit(store, container, created=WHEN)
    (container.upper / "two").write_text("2")
    started = time.perf_counter()
    commit(store, container, created=WHEN)
    # A merge of the base would take many times as long; a busy disk may take its share.
    assert time.perf_counter() - started < 0.5


@pytest.mark.root
def test_a_directory_that_was_moved_and_moved_back_is_not_copied(store: Store) -> None:
    image = small_image(store, None, f=b"f")
    container = new_container(store, image)
    places = (os.fsencode(container.upper), os.fsencode(container.work))
    with closing(open_union(store.lowers(container, image), *places)) as tree:
        tree.rename((tree.root, b"bin"), (tree.root, b"elsewhere"))
        tree.rename((tree.root, b"elsewhere"), (tree.root, b"bin"))
    layer = commit(store, container).layers[-1]
    assert store.layers.require([layer.diff_id])[0].entries == 1
