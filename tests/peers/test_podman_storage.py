"""podman with lamina as mount program: beside fuse-overlayfs, and a plain directory.

podman's vfs driver copies the image for each container, so what a container of it holds is what
any filesystem would hold after the same steps.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.peers import box, packages
from tests.peers.podman import Storage, Work, fuse_overlayfs
from tests.peers.tartrees import assert_peer_agrees, assert_same

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.peer("podman", "buildah", "runc", "fuse-overlayfs"),
    pytest.mark.timeout(300),
]

NET_RAW = b"\1\0\0\2\0\x20" + bytes(14)
"""cap_net_raw+ep in the form of linux/capability.h, revision 2."""


def test_files_changed_in_a_container_are_those_of_any_filesystem(
    boxes: box.Boxes, tmp_path: Path
) -> None:
    ours, peer, truth = (Work(engine, "box", tmp_path) for engine in boxes)
    for script in (box.CHANGE, box.CHANGE_AGAIN):
        for work in (ours, peer, truth):
            work.run(script)
        tree = ours.tree()
        assert_same(tree, truth.tree())
        assert_peer_agrees(tree, peer.tree)
    assert ours.changes() == truth.changes()
    layer = ours.commit()
    assert_same(layer, truth.commit())
    assert_peer_agrees(layer, peer.commit, box.RECREATED)


def test_links_and_new_directories_stay_what_they_are_after_a_restart(
    boxes: box.Boxes, tmp_path: Path
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


def test_the_host_changes_a_container_that_is_mounted_and_then_started(
    boxes: box.Boxes, tmp_path: Path
) -> None:
    ours, _, truth = (Work(engine, "box", tmp_path) for engine in boxes)
    for work in (ours, truth):
        work.run("rm -r /tree/deep; mv /tree/directory /tree/shifted; echo made >/tree/made")
        root = Path(work.engine.podman("mount", work.name))
        assert (root / "tree/made").read_text() == "made\n"
        (root / "tree/shifted/0").write_text("from the host\n")
        (root / "tree/deep").mkdir()
        shutil.rmtree(root / "tree/many")
        os.chown(root / "tree/made", 33, 33)
        os.setxattr(root / "tree/made", "security.capability", NET_RAW)
        os.setxattr(root / "tree/setuid", "user.colour", b"blue")
        work.engine.podman("unmount", work.name)
        said = work.run("cat /tree/shifted/0; find /tree/many /tree/deep; stat -c %u /tree/made")
        assert said.splitlines() == ["from the host", "/tree/deep", "33"]
    assert ours.changes() == truth.changes()
    layer = ours.commit()
    assert_same(layer, truth.commit())
    assert "security.capability" in dict(layer["tree/made"].xattrs)
    assert dict(layer["tree/setuid"].xattrs) == {"user.colour": "blue"}
    image = Path(ours.engine.podman("image", "mount", "box"))
    assert (image / "tree/directory/0").read_text() == "directory/0 of the image\n"
    with pytest.raises(OSError, match="Read-only"):
        (image / "tree/directory/0").write_text("no")
    ours.engine.podman("image", "unmount", "box")


# -- what podman asks of a mount program ---------------------------------------------------------


def test_owners_in_a_user_namespace_are_those_of_the_image(
    boxes: box.Boxes, tmp_path: Path
) -> None:
    """podman tells the mount program the ids of the container as ``uidmapping``."""
    # podman 4.3 does that, and on newer kernels maps the ids of the layers beside: then even
    # fuse-overlayfs shows wrong owners. It remembers here that the kernel cannot do it.
    features = boxes.ours.directory / "run/overlay"
    features.mkdir(parents=True, exist_ok=True)
    (features / "idmapped-lower-dir-true").unlink(missing_ok=True)
    (features / "idmapped-lower-dir-false").touch()
    works = [Work(engine, "box", tmp_path) for engine in boxes]
    script = """
        cd /tree
        echo more >>appended
        chown 33:34 cut setuid
        mkdir made; touch made/file; chown 5:6 made
        mv directory shifted
        stat -c '%n %u %g' * /home/www/owned
    """
    maps = ("--uidmap=0:100000:65536", "--gidmap=0:200000:65536")
    said = [work.run(script, *maps) for work in works]
    assert said[0] == said[1] == said[2]
    assert "cut 33 34" in said[0]
    assert "/home/www/owned 33 33" in said[0]
    ours, peer, truth = works
    layer = ours.commit()
    assert_same(layer, truth.commit())
    assert_peer_agrees(layer, peer.commit)


def test_volumes_over_directories_and_images(boxes: box.Boxes, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("kept\n")
    script = "echo changed >/x/kept; cat /x/kept; rm -f /image/tree/gone; ls /image/tree/gone"
    image = "--mount=type=image,source=box,destination=/image"
    for more, left in (("", "/image/tree/gone"), (",rw=true", "")):
        options = ["--rm", f"--volume={tmp_path}:/x:O", image + more, "box"]
        command = [*options, "sh", "-c", f"{script}; true"]
        said = boxes.ours.podman("run", *command)
        assert said.split() == ["changed", *left.split()]
        assert said == boxes.peer.podman("run", *command)
        assert (tmp_path / "kept").read_text() == "kept\n"


def test_more_layers_than_options_of_mount_fit_a_page(boxes: box.Boxes, tmp_path: Path) -> None:
    count = 80
    archive = tmp_path / "layers.tar"
    box.write_layers(boxes.ours.directory / "box.tar", archive, count)
    boxes.ours.podman("load", "--quiet", "--input", archive)
    script = (
        "cat /tree/number; echo; ls /tree/layers | wc -l; rm /tree/layers/7; mv /tree/layers /moved"
    )
    ours, peer = (Work(engine, "layers", tmp_path) for engine in (boxes.ours, boxes.peer))
    said = [work.run(script) for work in (ours, peer)]
    assert said[0].split() == [str(count - 1), str(count - count // 2)]
    assert said[0] == said[1]
    names = {f"A /moved/{number}" for number in range(1, count, 2) if number != 7}
    assert names < set(ours.changes())


# -- packages ----------------------------------------------------------------------------------


@pytest.mark.peer("dpkg-deb")
def test_packages_unpacked_in_a_container_make_the_layer_they_make_on_fuse_overlayfs(
    overlay: Storage, debian_tar: Path, tmp_path: Path
) -> None:
    overlay.podman("import", "--quiet", debian_tar, "debian")
    for version in (1, 2):
        packages.build(tmp_path, version, 300)
    engines = (overlay, overlay.using(fuse_overlayfs()))
    works = [Work(engine, "debian", tmp_path) for engine in engines]
    for work in works:
        work.run(packages.ADMINISTER)
    ours = works[0].commit()
    assert_peer_agrees(ours, works[1].commit)
    assert ours["usr/bin/which.moved"].kind == "symlink"
    assert ours["usr/bin/union-setuid"].mode == 0o4755
    assert len(ours["usr/bin/union-tool"].links) == 3
    assert sum(name.startswith("usr/share/union-test/many/") for name in ours) == 240


@pytest.mark.slow
@pytest.mark.peer("dpkg-deb")
def test_many_packages_in_a_container_leave_what_they_leave_in_a_plain_directory(
    overlay: Storage, plain: Storage, debian_tar: Path, tmp_path: Path
) -> None:
    for version in (1, 2):
        packages.build(tmp_path, version, 4_000)
    works = []
    for engine in (overlay, plain):
        engine.podman("import", "--quiet", debian_tar, "debian")
        works.append(Work(engine, "debian", tmp_path))
        works[-1].run(packages.ADMINISTER + packages.PURGE)
    ours, truth = works
    assert_same(ours.tree(), truth.tree())
    assert ours.changes() == truth.changes()
    assert_same(ours.commit(), truth.commit())
