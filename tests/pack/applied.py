"""What layers show when they are applied: in the union over their packs, and as other tools do it.

Layers are archives, bottom first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.pack.archives import TIME
from unionfs.nodes import Node
from unionfs.opening import open_union
from unionfs.pack import Pack, ingest, merge
from unionfs.reading import ReadableTree


class Sight(NamedTuple):
    """What is seen of one file. ``names`` are all its names; directories have one."""

    kind: int
    mode: int
    owner: tuple[int, int]
    device: int
    mtime_ns: int
    content: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    names: frozenset[bytes]


Sights = dict[bytes, Sight]
"""The sights of a tree by path; the root has the empty one."""


class Made(NamedTuple):
    """An entry of a layer to be made."""

    info: tarfile.TarInfo
    content: bytes


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: Any) -> Made:
    """An entry; ``fields`` are those of :class:`tarfile.TarInfo`."""
    info = tarfile.TarInfo(name)
    info.type = kind
    info.mtime = TIME
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return Made(info, content)


def folder(name: str, **fields: Any) -> Made:
    """A directory."""
    return entry(name, kind=tarfile.DIRTYPE, **fields)


def symlink(name: str, target: str) -> Made:
    """A symbolic link."""
    return entry(name, kind=tarfile.SYMTYPE, linkname=target, mode=0o777)


def hardlink(name: str, target: str, **fields: Any) -> Made:
    """A hardlink."""
    return entry(name, kind=tarfile.LNKTYPE, linkname=target, **fields)


def layer(*entries: Made, form: int = tarfile.PAX_FORMAT) -> bytes:
    """The archive of some entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


# -- lamina --------------------------------------------------------------------------------------


def applied(place: Path, *layers: bytes) -> Sights:
    """What the union over the packs of the layers shows, and the merged index of them as well.

    Hardlinks into layers below are only shown by the index, as in the store.
    """
    place.mkdir(exist_ok=True)
    with opened(place, layers, merged=True) as tree:
        found = seen_in(tree)
    if not any(ingested for ingested in _take_in(place, layers).values()):
        with opened(place, layers) as tree:
            assert seen_in(tree) == found
    return found


@contextmanager
def opened(place: Path, layers: Sequence[bytes], *, merged: bool = False) -> Iterator[ReadableTree]:
    """The union over the packs of the layers, or over the one merged index of them."""
    place.mkdir(exist_ok=True)
    paths = list(_take_in(place, layers))
    if merged:
        packs = [Pack(path) for path in paths]
        try:
            merge(packs, place / "merged", bytes(32), complete=True)
        finally:
            for pack in packs:
                pack.close()
        paths = [place / "merged"]
    with closing(open_union([os.fsencode(path) for path in reversed(paths)])) as tree:
        yield tree


def _take_in(place: Path, layers: Sequence[bytes]) -> dict[Path, bool]:
    """The packs, each with whether it has hardlinks into layers below."""
    packs = {}
    for number, archive in enumerate(layers):
        path = place / f"{number}.pack"
        ingested = ingest(io.BytesIO(archive), path)
        # Packs look for each other under their names; equal layers are one file in a store, too.
        named = place / f"{ingested.diff_id.hex()}.pack"
        if not named.exists():
            os.link(path, named)
        packs[path] = ingested.unresolved
    return packs


def seen_in(tree: ReadableTree) -> Sights:
    """All that a tree shows."""
    nodes: dict[bytes, Node] = {b"": tree.root}
    waiting = [b""]
    while waiting:
        above = waiting.pop()
        for name in tree.names(nodes[above]):
            path = above + b"/" + name if above else name
            nodes[path] = tree.lookup(nodes[above], name)
            if nodes[path].is_directory:
                waiting.append(path)
    names: dict[int, set[bytes]] = {}
    for path, node in nodes.items():
        names.setdefault(node.number, set()).add(path)
    return {path: _see(tree, node, frozenset(names[node.number])) for path, node in nodes.items()}


def _see(tree: ReadableTree, node: Node, names: frozenset[bytes]) -> Sight:
    info = tree.attributes(node)
    content = b""
    if info.kind == stat.S_IFREG:
        content = tree.read(node, 0, info.size)
        assert len(content) == info.size
    elif info.kind == stat.S_IFLNK:
        content = tree.target(node)
    assert node.is_directory or info.nlink == len(names)
    return Sight(
        info.kind, stat.S_IMODE(info.mode), (info.uid, info.gid), info.rdev, info.mtime_ns,
        content, tuple(sorted(tree.xattrs(node).items())), names,
    )  # fmt: skip


# -- others --------------------------------------------------------------------------------------


def by_gnu_tar(place: Path, *layers: bytes) -> Sights:
    """What GNU tar makes of the layers, unpacked one after the other."""
    root = place / "gnu-tar"
    root.mkdir(parents=True)
    for archive in layers:
        command = ["tar", "-xpf", "-", "--numeric-owner", "--xattrs", "--xattrs-include=*"]
        subprocess.run([*command, "-C", root], input=archive, check=True, capture_output=True)
    return seen_on_disk(root)


def by_umoci(place: Path, *layers: bytes) -> Sights:
    """What umoci makes of an image of the layers."""
    layout = place / "layout"
    write_layout(layout, layers)
    command = ["umoci", "unpack", "--image", f"{layout}:made", str(place / "bundle")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return seen_on_disk(place / "bundle" / "rootfs")


def write_layout(layout: Path, layers: Sequence[bytes]) -> None:
    """Write an OCI layout of one image, ``made``."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    kind = "application/vnd.oci.image"

    def blob(data: bytes, media_type: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}

    described = [blob(data, f"{kind}.layer.v1.tar") for data in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [each["digest"] for each in described]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": blob(json.dumps(config).encode(), f"{kind}.config.v1+json"),
        "layers": described,
    }
    top = blob(json.dumps(manifest).encode(), f"{kind}.manifest.v1+json")
    top["annotations"] = {"org.opencontainers.image.ref.name": "made"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def seen_on_disk(root: Path) -> Sights:
    """All that a directory of this machine holds."""
    base = os.fsencode(root)
    places = [base]
    for above, directories, files in os.walk(base):
        places += [os.path.join(above, name) for name in (*directories, *files)]
    infos = {place: os.lstat(place) for place in places}
    paths = {place: os.path.relpath(place, base) if place != base else b"" for place in places}
    names: dict[int, set[bytes]] = {}
    for place, info in infos.items():
        names.setdefault(info.st_ino, set()).add(paths[place])
    return {
        paths[place]: _see_on_disk(place, info, frozenset(names[info.st_ino]))
        for place, info in infos.items()
    }


def _see_on_disk(place: bytes, info: os.stat_result, names: frozenset[bytes]) -> Sight:
    kind = stat.S_IFMT(info.st_mode)
    content = b""
    if kind == stat.S_IFREG:
        content = Path(os.fsdecode(place)).read_bytes()
    elif kind == stat.S_IFLNK:
        content = os.readlink(place)
    xattrs = {
        os.fsencode(name): os.getxattr(place, name, follow_symlinks=False)
        for name in os.listxattr(place, follow_symlinks=False)
    }
    return Sight(
        kind, stat.S_IMODE(info.st_mode), (info.st_uid, info.st_gid), info.st_rdev,
        info.st_mtime_ns, content, tuple(sorted(xattrs.items())), names,
    )  # fmt: skip
