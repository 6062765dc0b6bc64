"""What Docker and lamina make of one upper that Docker's own container wrote."""

from __future__ import annotations

import io
import json
import os
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter.diff import Difference
from snapshotter.images import import_rootfs
from snapshotter.store import Store
from tests.peers.docker import Docker
from tests.snapshotter.helpers import members_of, saved
from unionfs.opening import open_finished

IN_A_CONTAINER = r"""
set -eu
mkdir -p /new/deep /empty
echo x >/new/deep/file; ln /new/deep/file /new/again; ln /new/deep/file /0first
ln -s /no/where /new/link; mkfifo -m 640 /new/fifo; mknod /new/null c 1 3
rm /etc/passwd; rm -r /home; mkdir /home; echo h >/home/new; rm -r /var
mv /tmp /moved; chmod 700 /root; chown 33:44 /etc/motd; chmod 4755 /etc/motd; touch -d @5 /new
dd if=/dev/zero of=/hole bs=1 count=1 seek=1000000 2>/dev/null
echo long >"/$(printf 'n%.0s' $(seq 200))"; echo odd >"$(printf '/odd \351')"; cat /etc/group >/g
cat /g >/etc/group; rm /g; ln -s x /etc/1; ln /etc/1 /etc/2
"""


def _said(layer: bytes) -> dict[str, tuple[object, ...]]:
    """What two writers must say alike, by name."""
    found: dict[str, tuple[object, ...]] = {}
    with tarfile.open(fileobj=io.BytesIO(layer), errors="surrogateescape") as archive:
        for each in archive:
            content = archive.extractfile(each) if each.isreg() else None
            found[each.name] = (
                each.type,
                each.size,
                each.devmajor,
                each.devminor,
                content.read() if content else b"",
            )
            if not each.name.rpartition("/")[2].startswith(".wh."):
                # Docker's whiteouts have the target of a link that they are not.
                attributes = (each.mode & 0o7777, each.uid, each.gid, int(each.mtime))
                found[each.name] += (each.linkname, *attributes)
    return found


@pytest.mark.root
@pytest.mark.peer("runc")
def test_c01_to_c21_the_layer_of_dockers_own_upper_is_dockers(
    store: Store, busybox_tar: Path, docker: Docker, tmp_path: Path
) -> None:
    with busybox_tar.open("rb") as stream:
        import_rootfs(store, stream, reference="base:1", changes=['CMD ["sh"]'])
    docker("load", stdin=saved(store, "base:1"))
    docker("run", "--network", "none", "--name", "work", "base:1", "sh", "-c", IN_A_CONTAINER)
    docker("commit", "work", "made:1")
    docker("save", "--output", tmp_path / "saved.tar", "made:1")
    (manifest,) = json.loads(members_of((tmp_path / "saved.tar").read_bytes())["manifest.json"])
    theirs = members_of((tmp_path / "saved.tar").read_bytes())[manifest["Layers"][-1]]
    places = json.loads(docker("inspect", "--format", "{{json .GraphDriver.Data}}", "work"))
    lowers = places["LowerDir"].split(":")
    with closing(
        open_finished(
            os.fsencode(places["UpperDir"]), os.fsencode(tmp_path), list(map(os.fsencode, lowers))
        )
    ) as tree:
        ours = Difference(tree).read()
    docker("rm", "work")
    assert _said(ours) == _said(theirs)
