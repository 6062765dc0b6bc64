"""A small image with a bit of everything to change, and scripts that change it.

The scripts are for the shell and the tools of busybox.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.peers.podman import Storage
from tests.support.rootfs import EPOCH


class Boxes(NamedTuple):
    """The image ``box``, mounted by lamina, by fuse-overlayfs, and in a plain directory."""

    ours: Storage
    peer: Storage
    truth: Storage


def write_box(busybox_tar: Path, path: Path) -> None:
    """Write the small root filesystem with a directory of things to change, ``/tree``."""
    path.write_bytes(busybox_tar.read_bytes())
    with tarfile.open(path, "a", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(_lower_names()):
            member = tarfile.TarInfo(f"tree/{name}".rstrip("/"))
            member.mtime = EPOCH
            member.mode = 0o755 if name.endswith("/") or not name else 0o644
            if name.endswith("/") or not name:
                member.type = tarfile.DIRTYPE
                archive.addfile(member)
                continue
            content = f"{name} of the image\n".encode() * (5000 if name == "big" else 1)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, target in (("hard/b", "hard/a"), ("hard/far/c", "hard/a"), ("hard/e", "hard/d")):
            _add_link(archive, tarfile.LNKTYPE, name, f"tree/{target}")
        for name in ("symlink", "symlink-replaced", "symlink-to-directory"):
            _add_link(archive, tarfile.SYMTYPE, name, "directory")


def _add_link(archive: tarfile.TarFile, kind: bytes, name: str, target: str) -> None:
    member = tarfile.TarInfo(f"tree/{name}")
    member.type, member.linkname, member.mtime = kind, target, EPOCH
    archive.addfile(member)


def _lower_names() -> Iterator[str]:
    """Names of directories end with a slash."""
    yield from ("", "directory/", "deep/", "deep/er/", "deep/er/still/", "hard/", "hard/far/")
    yield from ("opaque/", "opaque/sub/", "to-file/", "elsewhere/", "modes/", "owners/", "many/")
    yield from ("appended", "cut", "emptied", "big", "moved", "mover", "covered", "gone", "back")
    yield from ("hard/a", "hard/d", "to-directory", "to-symlink", "setuid", "dated", "linked")
    for directory in ("directory", "deep", "deep/er", "deep/er/still", "opaque", "opaque/sub"):
        yield from (f"{directory}/{number}" for number in range(4))
    for directory in ("to-file", "modes", "owners"):
        yield from (f"{directory}/{number}" for number in range(10))
    yield from (f"many/{number}" for number in range(200))


def write_layers(base: Path, path: Path, count: int) -> None:
    """Write an image, ``layers``, of ``count`` more layers than the base, for ``podman load``.

    Each says its number in ``/tree/number`` and in a name in ``/tree/layers``; every second one
    removes the name before.
    """
    layers = [base.read_bytes()]
    for number in range(count):
        content = {"tree/number": str(number), f"tree/layers/{number}": str(number)}
        if number % 2:
            content[f"tree/layers/.wh.{number - 1}"] = ""
        layers.append(_tar({name: text.encode() for name, text in content.items()}))
    identifiers = [f"sha256:{hashlib.sha256(layer).hexdigest()}" for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": identifiers},
    }
    names = [f"{number}.tar" for number in range(len(layers))]
    manifest = [{"Config": "config.json", "RepoTags": ["layers:latest"], "Layers": names}]
    documents = {"config.json": config, "manifest.json": manifest}
    files = {name: json.dumps(document).encode() for name, document in documents.items()}
    path.write_bytes(_tar(files | dict(zip(names, layers, strict=True))))


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), EPOCH
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


CHANGE = r"""
set -eu
cd /tree
echo more >>appended
truncate -s 5 cut
: >emptied
printf changed | dd of=big bs=1 seek=70000 conv=notrunc 2>/dev/null
mv moved moved.away
mv mover covered
rm gone back
echo again >back
mv directory renamed
mkdir directory
echo new >directory/new
rm renamed/1
mv deep/er elsewhere/er
echo inside >elsewhere/er/still/new
rm elsewhere/er/still/2
rm -rf opaque
mkdir opaque
echo only >opaque/2
rm -r to-file
echo file >to-file
rm to-directory
mkdir to-directory
echo inside >to-directory/0
rm to-symlink
ln -s opaque to-symlink
rm symlink-replaced symlink-to-directory
echo file >symlink-replaced
mkdir symlink-to-directory
chown -h 7:8 symlink
ln linked directory/linked
chmod -R u=rwX,go= modes
chown -R 33:33 owners
chmod 2755 owners
chmod 4755 setuid
chmod 1777 elsewhere
touch -d '2001-02-03 04:05:06' dated
mkfifo -m 600 fifo
mknod -m 640 null c 1 3
mknod block b 7 3
cp -a /bin bin
mkdir unpacked
tar -C / -cf - etc/passwd etc/motd etc/motd.hardlink home var | tar -C unpacked -xf -
for number in $(seq 0 199); do
    echo "$number" >"many/new $number"
    [ $((number % 3)) -ne 0 ] || rm "many/$number"
    [ $((number % 3)) -ne 1 ] || mv "many/new $number" "many/$number"
done
printf x >"$(printf 'odd \351\\:,name')"
dd if=/dev/zero of=sparse bs=1 count=0 seek=5000000 2>/dev/null
"""
CHANGE_AGAIN = r"""
set -eu
cd /tree
mv renamed directory/below
mv elsewhere/er deep/er
rm -r deep/er/still
mkdir deep/er/still
echo recreated >deep/er/still/0
rm -rf owners
mv directory/linked linked.again
rm -rf unpacked/etc
mkdir unpacked/etc
find many -name 'new*' -exec rm {} +
chmod -R g+w many
ln -sfn deep to-symlink
"""


BEYOND = r"""
set -eu
cd /tree/hard
echo written >>b
ln far/c new
rm e
rm -rf ../opaque
mkdir ../opaque
"""
BEYOND_AGAIN = r"""
set -eu
cd /tree/hard
test "$(stat -c %h a)" = 4
echo "after a restart" >>new
rm far/c
mv ../opaque ../opaque.moved
"""

RECREATED = ("tree/directory/", "tree/opaque/", "tree/deep/er/still/")
"""The directories that :data:`CHANGE` and :data:`CHANGE_AGAIN` remove and make again."""
