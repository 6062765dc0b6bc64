"""A container's filesystem as a tar, and squashed commits."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import tarfile
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from snapshotter.export import export, flattened
from snapshotter.images import commit, import_rootfs
from snapshotter.store import Container, Store
from snapshotter.views import View
from tests.peers.docker import Docker
from tests.peers.tartrees import assert_same, read_tree, without_mounts
from tests.snapshotter.helpers import new_container, small_image, tar, tree_of, with_layer
from tests.snapshotter.test_changes import SCRIPT
from tests.snapshotter.trees import LINKS, LOW, STEPS, changed, in_seconds
from tests.support.command import Lamina
from tests.unionfs.trees import UnionSide
from unionfs.opening import open_union
from unionfs.pack import ingest


def exported(store: Store, container: Container) -> bytes:
    out = io.BytesIO()
    export(store, container, out)
    return out.getvalue()


def members(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as archive:
        return archive.getmembers()


@pytest.mark.usefixtures("no_umask")
@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(low=LOW, links=LINKS, steps=STEPS)
def test_a_flattened_union_shows_the_same(
    low: dict[bytes, bytes], links: list[tuple[int, bytes]], steps: list[partial[None]]
) -> None:
    with changed(low, links, steps) as union:
        ingest(flattened(View(union.tree)), union.directory / "flat.pack")
        with closing(open_union([os.fsencode(union.directory / "flat.pack")])) as tree:
            seen = in_seconds(UnionSide(tree).walk())
        expected = in_seconds(union.now)
        assert seen == expected


def test_names_are_sorted_and_plain(store: Store) -> None:
    container = new_container(store, small_image(store, b=b"1"))
    (container.upper / "bin.d").touch()
    (container.upper / "bin").mkdir()
    (container.upper / "bin" / "a").touch()
    (container.upper / "e").mkdir()
    found = exported(store, container)
    assert [member.name for member in members(found)] == ["bin", "bin/a", "bin/b", "bin.d", "e"]
    assert b"\0e/\0" in found
    assert not any(b"ustar  " in found[at : at + 512] for at in range(0, len(found), 512))


def test_the_same_container_is_the_same_bytes(store: Store) -> None:
    image = small_image(store, b=b"1" * 300_000)
    archives = []
    for _ in range(2):
        container = new_container(store, image)
        (container.upper / "x").write_text("x")
        os.utime(container.upper / "x", (0, 0))
        archives.append(exported(store, container))
        archives.append(exported(store, container))
    assert len(set(archives)) == 1


def test_mount_points_are_no_part_of_a_container(store: Store) -> None:
    container = new_container(store, small_image(store))
    (container.skeleton / "dev" / "pts").mkdir(parents=True)
    (container.skeleton / "bin").mkdir(mode=0o700)
    (container.skeleton / "bin" / "sh").touch()
    assert [member.name for member in members(exported(store, container))] == ["bin", "bin/hello"]
    (container.upper / "dev").mkdir()
    assert "dev" in [member.name for member in members(exported(store, container))]


@pytest.mark.root
def test_everything_a_tar_can_hold_is_there(store: Store) -> None:
    container = new_container(store, small_image(store))
    upper = container.upper
    (upper / "big").write_bytes(b"")
    os.truncate(upper / "big", 3_000_000)
    os.link(upper / "big", upper / "again")
    os.mkfifo(upper / "fifo")
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(upper / "big", "user.k", b"\0v")
    os.setxattr(upper / "big", "trusted.overlay.origin", b"x")
    os.chown(upper / "fifo", 3_000_000, 5)
    (upper / "big").chmod(0o4755)
    (upper / "link").symlink_to("../" * 60)
    (upper / ("n" * 200)).touch()
    found = {member.name: member for member in members(exported(store, container))}
    assert set(found) == {
        *("again", "big", "bin", "bin/hello", "fifo", "link", "null", "n" * 200),
    }
    assert found["big"].linkname == "again"
    assert (found["again"].size, found["again"].mode) == (3_000_000, 0o4755)
    assert found["again"].pax_headers == {"SCHILY.xattr.user.k": "\0v"}
    assert (found["fifo"].uid, found["fifo"].gid, found["fifo"].isfifo()) == (3_000_000, 5, True)
    assert (found["null"].devmajor, found["null"].devminor) == (1, 3)
    assert found["link"].linkname == "../" * 60


@pytest.mark.slow
def test_a_big_container_is_exported_with_little_memory(lamina: Lamina, tmp_path: Path) -> None:
    archive = tmp_path / "big.tar"
    with tarfile.open(archive, "w") as made:
        member = tarfile.TarInfo("big")
        member.size = 400_000_000
        with open("/dev/urandom", "rb") as noise:
            made.addfile(member, noise)
    with Store.open(lamina.root) as store, archive.open("rb") as stream:
        container = new_container(store, import_rootfs(store, stream, reference="big"))
    script = (
        "import resource, subprocess, sys\n"
        "subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    argv = lamina.argv("export", container.id)
    done = subprocess.run(["python3", "-c", script, *argv], capture_output=True, check=True)
    assert int(done.stdout) < 150_000, "kilobytes"


def test_a_squashed_commit_is_one_layer_with_everything(store: Store) -> None:
    base = small_image(store, "base", keep=b"1", change=b"2")
    middle = with_layer(store, base, tar({"./": None, "bin/.wh.keep": b"", "more": b"3"}))
    container = new_container(store, middle)
    (container.upper / "bin").mkdir()
    (container.upper / "bin" / "change").write_bytes(b"new")
    middle = commit(store, container)
    container = new_container(store, middle)
    (container.upper / "last").touch()
    image = commit(store, container, reference="flat", squash=True, message="all in one")
    assert tree_of(store, image) == {
        "bin": "directory",
        "bin/change": b"new",
        "last": b"",
        "more": b"3",
    }
    assert len(image.layers) == 1
    assert image.parent is None
    history = json.loads(image.config_bytes)["history"]
    assert [bool(entry.get("empty_layer")) for entry in history[-2:]] == [True, False]
    assert history[-1]["comment"] == "all in one"
    for left in store.containers():
        store.remove_container(left.id)
    for unneeded in (middle.id, "base"):
        store.remove_image(unneeded, force=True)
    assert store.image("flat").id == image.id


def test_the_root_of_a_squashed_image_is_that_of_the_image(store: Store) -> None:
    root = tarfile.TarInfo("./")
    root.type, root.mode, root.mtime, root.uid = tarfile.DIRTYPE, 0o751, 77, os.geteuid()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        archive.addfile(root)
    image = import_rootfs(store, io.BytesIO(out.getvalue()))
    layers = set()
    for _ in range(2):
        made = commit(store, new_container(store, image), squash=True)
        layers.add(made.layers[0].diff_id)
        attributes = store.root_attributes(made)
        assert (attributes.mode, attributes.uid) == (0o751, os.geteuid())
    assert len(layers) == 1
    container = new_container(store, image)
    container.upper.chmod(0o700)
    assert store.root_attributes(commit(store, container, squash=True)).mode == 0o700


def test_an_empty_container_is_squashed_to_no_layer(store: Store) -> None:
    image = import_rootfs(store, io.BytesIO(bytes(1024)))
    made = commit(store, new_container(store, image), squash=True)
    assert made.layers == ()


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.peer("runc")
def test_an_export_is_what_docker_exports(
    lamina: Lamina, docker: Docker, busybox_tar: Path, tmp_path: Path
) -> None:
    script = SCRIPT + "chown 7:8 /new/a; chmod 4711 /new/a; ln -s /etc/x /new/l; cp /new/a /new/c"
    docker("import", busybox_tar, "box:1")
    docker("run", "--network", "none", "--name", "work", "box:1", "sh", "-c", script)
    docker("export", "-o", tmp_path / "theirs.tar", "work")
    lamina("import", busybox_tar, "box:1")
    lamina("run", "--name", "work", "box:1", "sh", "-c", script)
    lamina("export", "-o", tmp_path / "ours.tar", "work")
    trees = []
    for name in ("ours.tar", "theirs.tar"):
        with (tmp_path / name).open("rb") as stream:
            tree = without_mounts(read_tree(stream))
        # Without what Docker puts into containers, and the xattrs that it forgets.
        for added in (".dockerenv", "etc/hosts"):
            tree.pop(added, None)
        trees.append({path: file._replace(xattrs=()) for path, file in tree.items()})
    assert_same(*trees)
