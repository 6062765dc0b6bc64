"""Layers to try packs with: archives, what a pack shows, and a plain model of applying layers."""

from __future__ import annotations

import io
import stat
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from unionfs.pack import Ingested, Pack, ingest
from unionfs.pack.format import OPAQUE

BLOCK = 512
TIME = 1_700_000_000


class Shown(NamedTuple):
    """What a pack shows at one path. ``names`` are all paths of the same file."""

    kind: int
    mode: int
    uid: int
    gid: int
    mtime: tuple[int, int]
    content: bytes
    device: tuple[int, int]
    xattrs: tuple[tuple[bytes, bytes], ...]
    names: frozenset[bytes]


def shown(pack: Pack) -> dict[bytes, Shown | None]:
    """Everything in a pack by path, the root as empty path; None for a whiteout."""
    rows: dict[bytes, int | None] = {b"": 0, **dict(walk(pack))}
    names: dict[int | None, set[bytes]] = {}
    for path, row in rows.items():
        names.setdefault(row, set()).add(path)
    return {
        path: None if row is None else _shown(pack, row, frozenset(names[row]))
        for path, row in rows.items()
    }


def walk(pack: Pack) -> Iterator[tuple[bytes, int | None]]:
    """Every path below the root with its row."""
    waiting = [(b"", 0)]
    while waiting:
        prefix, directory = waiting.pop()
        for name, kind, row in pack.names(directory):
            assert pack.lookup(directory, name) == (kind, row)
            yield prefix + name, row if kind else None
            if kind == stat.S_IFDIR:
                waiting.append((prefix + name + b"/", row))


def _shown(pack: Pack, row: int, names: frozenset[bytes]) -> Shown:
    inode = pack.inode(row)
    kind = stat.S_IFMT(inode.mode)
    content = b""
    if kind == stat.S_IFREG:
        content = pack.read(row, 0, inode.size)
        assert len(content) == inode.size
    elif kind == stat.S_IFLNK:
        content = pack.target(row)
    if kind != stat.S_IFDIR:
        assert inode.nlink == len(names)
        paths = {b"/".join(filter(None, (pack.path(d), name))) for d, name in pack.links(row)}
        assert paths == names
        assert pack.path(row) in names
    return Shown(
        kind, stat.S_IMODE(inode.mode), inode.uid, inode.gid,
        (inode.mtime_sec, inode.mtime_nsec), content, (inode.major, inode.minor),
        tuple(sorted(pack.xattrs(row).items())), names,
    )  # fmt: skip


def take_in(directory: Path, tar: bytes, name: str = "") -> Ingested:
    """Ingest an archive; the pack gets the name other packs look for."""
    path = directory / "new.pack"
    ingested = ingest(io.BytesIO(tar), path)
    path.rename(directory / (name or f"{ingested.diff_id.hex()}.pack"))
    return ingested


def pack_of(directory: Path, tar: bytes) -> Pack:
    """The open pack of an archive."""
    return Pack(directory / f"{take_in(directory, tar).diff_id.hex()}.pack")


# -- single entries ------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One entry of a layer: ``type`` as in a tar header, ``data`` content or target."""

    path: str
    type: bytes
    data: bytes = b""
    mode: int = 0o644


def directory(path: str, mode: int = 0o755) -> Entry:
    """A directory entry."""
    return Entry(path, tarfile.DIRTYPE, mode=mode)


def file(path: str, data: bytes = b"") -> Entry:
    """A regular file."""
    return Entry(path, tarfile.REGTYPE, data)


def link(path: str, target: str) -> Entry:
    """A hardlink."""
    return Entry(path, tarfile.LNKTYPE, target.encode())


def symlink(path: str, target: str) -> Entry:
    """A symbolic link."""
    return Entry(path, tarfile.SYMTYPE, target.encode())


def tar_of(entries: Iterable[Entry]) -> bytes:
    """The archive of some entries."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in entries:
            member = tarfile.TarInfo(entry.path)
            member.type = entry.type
            member.mode = entry.mode
            member.mtime = TIME
            if entry.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
                member.linkname = entry.data.decode()
            elif entry.type == tarfile.REGTYPE:
                member.size = len(entry.data)
            archive.addfile(member, io.BytesIO(entry.data))
    return out.getvalue()


# -- the model -----------------------------------------------------------------------------------


class File:
    """A file of the model; ``children`` makes it a directory."""

    def __init__(self, entry: Entry | None, children: dict[str, File] | None = None) -> None:
        self.entry = entry
        self.children = children


class Missing(Exception):
    """A hardlink leads nowhere."""


def applied(layers: Sequence[Sequence[Entry]]) -> dict[bytes, Shown]:
    """What layers make together, applied one after the other to a tree of dicts."""
    root = File(None, {})
    for layer in layers:
        root = _apply_layer(root, layer)
    return _listed(root)


def _apply_layer(below: File, layer: Sequence[Entry]) -> File:
    merged = _copy(below)
    for entry in layer:
        _, name = _split(entry.path)
        if name == ".wh..wh..opq":
            found = _find(merged, _parts(entry.path)[:-1])
            if found is not None and found.children is not None:
                found.children.clear()
                found.entry = None
        elif name.startswith(".wh."):
            parent = _find(merged, _parts(entry.path)[:-1])
            if parent is not None and parent.children is not None:
                parent.children.pop(name.removeprefix(".wh."), None)
    own = File(None, {})
    for entry in layer:
        _apply_entry(entry, below, own, merged)
    if _has_dangling(own):
        raise Missing
    return merged


def _has_dangling(node: File) -> bool:
    """Whether a link is left that led nowhere; one that was replaced does no harm."""
    if node.children is None:
        return node.entry is None
    return any(map(_has_dangling, node.children.values()))


def _apply_entry(entry: Entry, below: File, own: File, merged: File) -> None:
    parts = _parts(entry.path)
    made: File | None = None
    if parts and not parts[-1].startswith(".wh."):
        made = File(entry)
        if entry.type == tarfile.LNKTYPE:
            target = _parts(entry.data.decode())
            made = _find(own, target)
            if made is not None and made.children is not None:
                raise Missing
            made = made or _find(below, target)
            if made is None or made.children is not None:
                made = File(None)
    for tree in (own, merged):
        if not parts:
            tree.entry = entry
            continue
        parent = tree
        for part in parts[:-1]:
            parent = _enter(parent, part)
        assert parent.children is not None
        if made is None:
            continue
        if entry.type == tarfile.DIRTYPE:
            _enter(parent, parts[-1]).entry = entry
        else:
            parent.children[parts[-1]] = made


def _enter(parent: File, name: str) -> File:
    assert parent.children is not None
    found = parent.children.get(name)
    if found is None or found.children is None:
        found = parent.children[name] = File(None, {})
    return found


def _find(root: File, parts: Sequence[str]) -> File | None:
    at: File | None = root
    for part in parts:
        if at is None or at.children is None:
            return None
        at = at.children.get(part)
    return at


def _copy(node: File) -> File:
    if node.children is None:
        return node
    return File(node.entry, {name: _copy(child) for name, child in node.children.items()})


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _split(path: str) -> tuple[str, str]:
    parts = _parts(path)
    return "/".join(parts[:-1]), parts[-1] if parts else ""


def _listed(root: File) -> dict[bytes, Shown]:
    nodes: dict[bytes, File] = {}
    waiting = [(b"", root)]
    while waiting:
        path, node = waiting.pop()
        nodes[path] = node
        for name, child in (node.children or {}).items():
            waiting.append((b"/".join(filter(None, (path, name.encode()))), child))
    names: dict[int, set[bytes]] = {}
    for path, node in nodes.items():
        names.setdefault(id(node), set()).add(path)
    return {path: _as_shown(node, frozenset(names[id(node)])) for path, node in nodes.items()}


_KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


def _as_shown(node: File, names: frozenset[bytes]) -> Shown:
    entry = node.entry
    if entry is None:
        return Shown(stat.S_IFDIR, 0o755, 0, 0, (0, 0), b"", (0, 0), (), names)
    kind = _KINDS[entry.type]
    mode = 0o777 if kind == stat.S_IFLNK else entry.mode
    content = entry.data if kind in (stat.S_IFREG, stat.S_IFLNK) else b""
    return Shown(kind, mode, 0, 0, (TIME, 0), content, (0, 0), (), names)


def opaque_paths(pack: Pack) -> set[bytes]:
    """The directories of a pack that hide what is below them."""
    found = {path for path, row in walk(pack) if row is not None and pack.inode(row).flags & OPAQUE}
    return found | ({b""} if pack.inode(0).flags & OPAQUE else set())


_names = st.sampled_from(["a", "b", "c"])
_paths = st.lists(_names, min_size=1, max_size=3).map("/".join)
_marker_paths = st.builds(
    lambda parents, name: "/".join([*parents, name]),
    st.lists(_names, max_size=2),
    st.sampled_from([".wh.a", ".wh.b", ".wh.c", ".wh..wh..opq"]),
)


def entries() -> st.SearchStrategy[Entry]:
    """Entries that meet each other often."""
    return st.one_of(
        st.builds(directory, _paths, st.sampled_from([0o700, 0o1777])),
        st.builds(file, _paths, st.binary(max_size=3)),
        st.builds(symlink, _paths, _paths),
        st.builds(link, _paths, _paths),
        st.builds(lambda path: Entry(path, tarfile.FIFOTYPE), _paths),
        st.builds(file, _marker_paths),
        st.just(directory(".", 0o711)),
    )
