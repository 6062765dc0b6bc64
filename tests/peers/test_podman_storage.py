"""podman and buildah with lamina as mount program: beside fuse-overlayfs, and a plain directory.

podman's vfs driver copies the image for each container, so what a container of it holds is what
any filesystem would hold after the same steps.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import box, packages
from tests.peers.podman import Storage, fuse_overlayfs, storage
from tests.peers.tartrees import Tree, differences, read_layers, read_tree
from tests.support.rootfs import EPOCH

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.peer("podman", "buildah", "runc", "fuse-overlayfs"),
    pytest.mark.timeout(300),
]

STARTED = int(time.time())
"""Files with a later time were written by a test."""


def assert_same(ours: Tree, theirs: Tree) -> None:
    lines = differences(ours, theirs)
    assert not lines, "\n".join(lines[:50])


def tolerant(ours: Tree, theirs: Tree) -> Tree:
    """The peer's tree without what fuse-overlayfs 1.10 gets wrong.

    It sets the time of directories in which something failed to be removed, and of files whose
    directory it copied, and it forgets the links of files that it has not looked up.
    """
    forgiven = dict(theirs)
    for name, file in theirs.items():
        other = ours.get(name)
        if other is None:
            continue
        mtime = other.mtime if file.mtime is None else file.mtime
        links = other.links if set(file.links) <= set(other.links) else file.links
        forgiven[name] = file._replace(mtime=mtime, links=links)
    return forgiven


# -- what the containers start from ------------------------------------------------------------


@pytest.fixture(scope="module")
def overlay() -> Iterator[Storage]:
    """A storage whose mounts are made by lamina."""
    with storage() as made:
        yield made


@pytest.fixture(scope="module")
def plain() -> Iterator[Storage]:
    """A storage that mounts nothing."""
    with storage(vfs=True) as made:
        yield made


RECREATED = ("tree/directory/", "tree/opaque/", "tree/deep/er/still/", "etc/")
"""Directories that were removed and made again. In images that are committed on fuse-overlayfs 1.10
what they held before is there again."""


class Work:
    """One container in which scripts are run one after the other, and what became of it."""

    def __init__(self, engine: Storage, image: str, directory: Path) -> None:
        self.engine = engine
        self.name = f"{directory.name}-{engine.name}"
        self._files = directory / self.name
        self._files.mkdir()
        self._create = ["--name", self.name, "--hostname", "box", "--no-hosts", "--cap-add=mknod"]
        self._create += [
            "--env",
            f"SOURCE_DATE_EPOCH={EPOCH}",
            "--volume",
            f"{directory}:/given:ro",
        ]
        self._create += [image, "sh", f"/given/{self.name}/script"]

    def run(self, script: str) -> str:
        """Run a script, in the container as the last one left it."""
        first = not (self._files / "script").exists()
        (self._files / "script").write_text(script)
        if first:
            return self.engine.podman("run", *self._create)
        return self.engine.podman("start", "--attach", self.name)

    def tree(self) -> Tree:
        """What the container holds."""
        path = self._files / "exported.tar"
        path.unlink(missing_ok=True)
        self.engine.podman("export", "--output", path, self.name)
        with path.open("rb") as stream:
            return _without_mounts(read_tree(stream, STARTED))

    def changes(self) -> list[str]:
        return sorted(self.engine.podman("diff", self.name).splitlines())

    def commit(self) -> Tree:
        """The layer of what was changed in the container."""
        self.engine.podman("commit", "--quiet", self.name, self.name)
        path = self._files / "saved.tar"
        self.engine.podman("save", "--quiet", "--output", path, self.name)
        return _without_mounts(read_layers(path, STARTED)[-1])


def _without_mounts(tree: Tree) -> Tree:
    """Without what podman puts into containers, and the places it makes for that."""
    made = ("dev", "proc", "run", "sys", "etc/hostname", "etc/resolv.conf", "etc/mtab")
    return {
        name: file for name, file in tree.items() if not name.startswith(made) and name != "given"
    }


# -- containers --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def boxes(overlay: Storage, plain: Storage, busybox_tar: Path) -> tuple[Storage, Storage, Storage]:
    """The image ``box`` on lamina, on fuse-overlayfs and in a plain directory."""
    path = overlay.directory / "box.tar"
    box.write_box(busybox_tar, path)
    for engine in (overlay, plain):
        engine.podman("import", "--quiet", path, "box")
    return overlay, overlay.using(fuse_overlayfs()), plain


def test_files_changed_in_a_container_are_those_of_any_filesystem(
    boxes: tuple[Storage, Storage, Storage], tmp_path: Path
) -> None:
    ours, peer, truth = (Work(engine, "box", tmp_path) for engine in boxes)
    for script in (box.CHANGE, box.CHANGE_AGAIN):
        for work in (ours, peer, truth):
            work.run(script)
        tree = ours.tree()
        assert_same(tree, truth.tree())
        assert_same(tree, tolerant(tree, peer.tree()))
    assert ours.changes() == truth.changes()
    layer = ours.commit()
    assert_same(layer, truth.commit())
    assert_same(*map(_without_resurrected, (layer, tolerant(layer, peer.commit()))))


def _without_resurrected(layer: Tree) -> Tree:
    return {
        name: file
        for name, file in layer.items()
        if "/.wh." not in name or not name.startswith(RECREATED)
    }


def test_links_and_new_directories_stay_what_they_are_after_a_restart(
    boxes: tuple[Storage, Storage, Storage], tmp_path: Path
) -> None:
    """On fuse-overlayfs 1.10 an emptied directory that is moved leaves its old self behind."""
    ours, _, truth = (Work(engine, "box", tmp_path) for engine in boxes)
    for script in (box.BEYOND, box.BEYOND_AGAIN):
        ours.run(script)
        truth.run(script)
        assert_same(ours.tree(), truth.tree())
    layer = ours.commit()
    assert_same(layer, truth.commit())
    assert layer["tree/hard/b"].links == ("tree/hard/a", "tree/hard/b", "tree/hard/new")


# -- packages ----------------------------------------------------------------------------------


def test_packages_unpacked_in_a_container_make_the_layer_they_make_on_fuse_overlayfs(
    overlay: Storage, debian_tar: Path, tmp_path: Path
) -> None:
    overlay.podman("import", "--quiet", debian_tar, "debian")
    layers = []
    for version in (1, 2):
        packages.build(tmp_path, version, 600)
    for engine in (overlay, overlay.using(fuse_overlayfs())):
        work = Work(engine, "debian", tmp_path)
        work.run(packages.ADMINISTER)
        layers.append(work.commit())
    ours, theirs = layers
    assert_same(ours, tolerant(ours, theirs))
    assert ours["usr/bin/which.moved"].kind == "symlink"
    assert ours["usr/bin/union-setuid"].mode == 0o4755
    assert len(ours["usr/bin/union-tool"].links) == 3
    assert sum(name.startswith("usr/share/union-test/many/") for name in ours) == 440


@pytest.mark.slow
def test_many_packages_in_a_container_leave_what_they_leave_in_a_plain_directory(
    overlay: Storage, plain: Storage, debian_tar: Path, tmp_path: Path
) -> None:
    for version in (1, 2):
        packages.build(tmp_path, version, 20_000)
    works = []
    for engine in (overlay, plain):
        engine.podman("import", "--quiet", debian_tar, "debian")
        works.append(Work(engine, "debian", tmp_path))
        works[-1].run(packages.ADMINISTER + packages.PURGE)
    ours, truth = works
    assert_same(ours.tree(), truth.tree())
    assert ours.changes() == truth.changes()
    assert_same(ours.commit(), truth.commit())
