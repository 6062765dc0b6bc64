"""Images built by podman and buildah on lamina, on fuse-overlayfs and in plain directories."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.peers import box
from tests.peers.podman import Storage, layers_of
from tests.peers.tartrees import Tree, assert_peer_agrees, assert_same
from tests.support.rootfs import EPOCH

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.peer("podman", "buildah", "runc", "fuse-overlayfs"),
]

CONTAINERFILE = """\
FROM box
RUN sh /given/change
COPY --chown=5:6 files /tree/renamed/
ADD added.tar /tree/unpacked
RUN cd /tree && mv renamed elsewhere/again && chmod -R a+rX modes && rm -r many owners \\
    && rm elsewhere/er/still/0 && ln unpacked/one unpacked/three && mv deep/0 unpacked/
"""


@pytest.fixture
def context(tmp_path: Path) -> Path:
    """What the builds copy from."""
    for name in ("1", "cut", "sub/deeper/file"):
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name} from outside")
    (tmp_path / "files/link").symlink_to("sub/deeper")
    (tmp_path / "change").write_text(box.CHANGE.replace("mknod", ": mknod"))
    (tmp_path / "Containerfile").write_text(CONTAINERFILE)
    with tarfile.open(tmp_path / "added.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("one")
        member.mode, member.uid, member.gid, member.mtime = 0o4711, 7, 8, EPOCH
        # cap_net_raw+ep in the form of linux/capability.h
        capability = "\1\0\0\2\0\x20" + "\0" * 14
        member.pax_headers = {
            "SCHILY.xattr.user.colour": "blue",
            "SCHILY.xattr.security.capability": capability,
        }
        content = b"of the archive"
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
        # buildah sets what the header of a link says.
        member.name, member.type, member.linkname, member.size = "two", tarfile.LNKTYPE, "one", 0
        archive.addfile(member)
    return tmp_path


def joined(layers: list[Tree]) -> Tree:
    """All layers as one tree, in which the first name of a path is the number of the layer."""
    return {
        f"{number}/{name}": file
        for number, layer in enumerate(layers)
        for name, file in layer.items()
    }


def same_on_all(
    boxes: box.Boxes, make: Callable[[Storage, Path], list[Tree]], context: Path
) -> list[Tree]:
    """The layers made on lamina, which are those made elsewhere."""
    layers = make(boxes.ours, context)
    ours = joined(layers)
    assert_same(ours, joined(make(boxes.truth, context)))
    recreated = (*box.RECREATED, "tree/unpacked/")
    assert_peer_agrees(ours, lambda: joined(make(boxes.peer, context)), recreated)
    return layers


def build(engine: Storage, context: Path) -> list[Tree]:
    name = f"built-on-{engine.name}"
    options = ["--quiet", "--no-cache", "--layers", "--volume", f"{context}:/given:ro"]
    engine.podman("build", *options, "--tag", name, context)
    return layers_of(engine, name)


def test_a_build_of_many_steps_makes_the_same_layers(boxes: box.Boxes, context: Path) -> None:
    base, changed, copied, added, last = same_on_all(boxes, build, context)
    assert base["tree/hard/b"].links == ("tree/hard/a", "tree/hard/b", "tree/hard/far/c")
    assert changed["tree/.wh.gone"].size == 0
    assert copied["tree/renamed/1"].uid == 5
    assert dict(added["tree/unpacked/two"].xattrs).keys() == {"user.colour", "security.capability"}
    assert last["tree/elsewhere/again/1"].gid == 6
    assert last["tree/unpacked/three"].mode == 0o4711
    assert "tree/.wh.owners" in last


def change_with_buildah(engine: Storage, context: Path) -> list[Tree]:
    name = engine.buildah("from", "box")
    volume = ("--volume", f"{context}:/given:ro")
    engine.buildah("run", *volume, name, "sh", "/given/change")
    engine.buildah("copy", "--chown", "5:6", name, context / "files", "/tree/renamed")
    engine.buildah("add", name, context / "added.tar", "/tree/unpacked")
    engine.buildah("run", name, "sh", "-c", "mv /tree/unpacked /tree/renamed; rm -r /tree/modes")
    root = Path(engine.buildah("mount", name))
    (root / "tree/renamed/unpacked/two").rename(root / "tree/from the host")
    engine.buildah("unmount", name)
    image = f"changed-on-{engine.name}"
    engine.buildah("commit", "--quiet", name, image)
    return layers_of(engine, image)


def test_steps_of_buildah_make_the_same_layer(boxes: box.Boxes, context: Path) -> None:
    layer = same_on_all(boxes, change_with_buildah, context)[-1]
    links = ("tree/from the host", "tree/renamed/unpacked/one")
    assert layer["tree/from the host"].links == links
    assert "tree/.wh.modes" in layer
