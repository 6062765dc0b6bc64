"""What a tar archive says of a tree, in a form in which two trees can be compared."""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, NamedTuple

import pytest

Tree = dict[str, "File"]

_KINDS = {
    tarfile.REGTYPE: "file",
    tarfile.AREGTYPE: "file",
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "character device",
    tarfile.BLKTYPE: "block device",
    tarfile.FIFOTYPE: "fifo",
}
_XATTR = "SCHILY.xattr."
_MOUNTS = re.compile(r"(dev|proc|run|sys|given|etc/(hostname|resolv\.conf|mtab))(/.*)?$")
_LOOKS = 3
_STARTED = int(time.time())


class File(NamedTuple):
    """One name. ``links`` are all names of its inode.

    ``mtime`` is None when a test has set it: two runs of the same steps differ in such times.
    """

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str
    mtime: int | None
    xattrs: tuple[tuple[str, str], ...]
    links: tuple[str, ...]


def read_tree(source: IO[bytes]) -> Tree:
    """The tree in a tar archive."""
    files: dict[str, File] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    with tarfile.open(fileobj=source, mode="r:") as archive:
        for member in archive:
            name = _clean(member.name)
            first = _clean(member.linkname) if member.islnk() else name
            groups[first].append(name)
            if not member.islnk():
                files[name] = _describe(archive, member)
    return {
        name: files[first]._replace(links=tuple(sorted(names)))
        for first, names in groups.items()
        for name in names
    }


def _clean(name: str) -> str:
    return name.removeprefix("./").strip("/")


def _describe(archive: tarfile.TarFile, member: tarfile.TarInfo) -> File:
    content = f"{member.devmajor}:{member.devminor}" if member.isdev() else member.linkname
    if member.isreg():
        stream = archive.extractfile(member)
        assert stream is not None
        content = hashlib.sha256(stream.read()).hexdigest()
    xattrs = {
        name.removeprefix(_XATTR): value
        for name, value in member.pax_headers.items()
        if name.startswith(_XATTR)
    }
    return File(
        kind=_KINDS[member.type],
        mode=member.mode & 0o7777,
        uid=member.uid,
        gid=member.gid,
        size=member.size,
        content=content,
        mtime=int(member.mtime) if member.mtime < _STARTED else None,
        xattrs=tuple(sorted(xattrs.items())),
        links=(),
    )


def read_layers(archive: Path) -> list[Tree]:
    """The layers of the one image in an archive of ``podman save``, lowest first."""
    with tarfile.open(archive) as outer:
        manifest = outer.extractfile("manifest.json")
        assert manifest is not None
        (image,) = json.load(manifest)
        layers = []
        for name in image["Layers"]:
            member = outer.getmember(name)
            if member.issym():  # a layer that is there twice
                member = outer.getmember(str(Path(name).parent / member.linkname))
            stream = outer.extractfile(member)
            assert stream is not None
            layers.append(read_tree(io.BytesIO(stream.read())))
        return layers


def without_mounts(tree: Tree) -> Tree:
    """Without what podman puts into containers, and ``/given`` of the tests."""
    return {name: file for name, file in tree.items() if not _MOUNTS.match(name)}


def assert_same(ours: Tree, theirs: Tree) -> None:
    """Fail with one line for each name that is not the same in both trees."""
    lines = list(_differences(ours, theirs))
    assert not lines, "\n".join(lines[:50])


def _differences(first: Tree, second: Tree) -> Iterator[str]:
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            yield f"{name}: only in the {'second' if one is None else 'first'}"
        elif one != other:
            changed = [
                f"{field} {ours!r} and {theirs!r}"
                for field, ours, theirs in zip(File._fields, one, other, strict=True)
                if ours != theirs
            ]
            yield f"{name}: {', '.join(changed)}"


# -- beside fuse-overlayfs 1.10 ------------------------------------------------------------------


def assert_peer_agrees(
    ours: Tree, look: Callable[[], Tree], recreated: tuple[str, ...] = ()
) -> None:
    """Fail unless fuse-overlayfs has the same tree, but for what it is known to get wrong.

    Now and then it leaves a name out when it lists a directory (mended in 1.16), hence ``look``
    is called again when the trees differ. Where a directory was removed and made again, its layers
    sometimes lack the whiteouts: ``recreated`` are such directories.
    """
    mine = _without_whiteouts_in(ours, recreated)
    lines: list[str] = []
    for _ in range(_LOOKS):
        lines = list(_differences(mine, _without_whiteouts_in(_forgiven(ours, look()), recreated)))
        if not lines:
            return
    pytest.fail("\n".join(lines[:50]))


def _forgiven(ours: Tree, theirs: Tree) -> Tree:
    """The peer's tree with the times and links that it forgets.

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


def _without_whiteouts_in(layer: Tree, directories: tuple[str, ...]) -> Tree:
    return {
        name: file
        for name, file in layer.items()
        if "/.wh." not in name or not any(f"/{place}" in f"/{name}" for place in directories)
    }
