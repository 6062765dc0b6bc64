"""What a tar archive says of a tree, in a form in which two trees can be compared."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections import defaultdict
from pathlib import Path
from typing import IO, NamedTuple

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


class File(NamedTuple):
    """One name. ``links`` are all names of its inode, ``mtime`` is None when it is recent."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    content: str
    mtime: int | None
    xattrs: tuple[tuple[str, str], ...]
    links: tuple[str, ...]


def read_tree(source: IO[bytes], recent: float) -> Tree:
    """The tree in a tar archive. Times from ``recent`` on, in seconds since 1970, are not kept:
    two runs of the same steps differ in them."""
    files: dict[str, File] = {}
    groups: dict[str, list[str]] = defaultdict(list)
    with tarfile.open(fileobj=source, mode="r:") as archive:
        for member in archive:
            name = _clean(member.name)
            first = _clean(member.linkname) if member.islnk() else name
            groups[first].append(name)
            if not member.islnk():
                files[name] = _describe(archive, member, recent)
    return {
        name: files[first]._replace(links=tuple(sorted(names)))
        for first, names in groups.items()
        for name in names
    }


def _clean(name: str) -> str:
    return name.removeprefix("./").strip("/")


def _describe(archive: tarfile.TarFile, member: tarfile.TarInfo, recent: float) -> File:
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
        mtime=int(member.mtime) if member.mtime < recent else None,
        xattrs=tuple(sorted(xattrs.items())),
        links=(),
    )


def read_layers(archive: Path, recent: float) -> list[Tree]:
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
            layers.append(read_tree(io.BytesIO(stream.read()), recent))
        return layers


def differences(first: Tree, second: Tree) -> list[str]:
    """What to print about two trees: one line for each name that is not the same in both."""
    lines = []
    for name in sorted(first.keys() | second.keys()):
        one, other = first.get(name), second.get(name)
        if one is None or other is None:
            lines.append(f"{name}: only in the {'second' if one is None else 'first'}")
        elif one != other:
            changed = [
                f"{field} {ours!r} and {theirs!r}"
                for field, ours, theirs in zip(File._fields, one, other, strict=True)
                if ours != theirs
            ]
            lines.append(f"{name}: {', '.join(changed)}")
    return lines
