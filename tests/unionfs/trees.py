"""A union tree driven by paths, and the same operations on a plain directory."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from unionfs import syscalls
from unionfs.changes import WritableTree
from unionfs.entry import Owner
from unionfs.layers import Layer
from unionfs.layers.directory import DirectoryLayer
from unionfs.layers.upper import Upper
from unionfs.nodes import Node
from unionfs.options import TreeOptions

OWNER = Owner(os.geteuid(), os.getegid())


class Seen(NamedTuple):
    """What a walk sees of one file. Directories have no size; hardlinks share ``first``."""

    kind: int
    mode: int
    links: int
    size: int
    mtime_ns: int
    data: bytes
    xattrs: tuple[tuple[bytes, bytes], ...]
    first: bytes


def plant(root: Path, *paths: str) -> None:
    """Make files that hold their own paths."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)


def open_tree(
    lowers: list[Path], upper: Path, work: Path, options: TreeOptions | None = None
) -> WritableTree:
    """A tree over directories of the host."""
    options = options or TreeOptions()
    layers: list[Layer] = [DirectoryLayer(os.fsencode(path)) for path in lowers]
    writable = Upper(
        os.fsencode(upper), os.fsencode(work), aufs=options.aufs, override=options.override
    )
    return WritableTree(layers, writable, options=options)


class UnionSide:
    """Operations by path on a tree, as the kernel would ask for them."""

    def __init__(self, tree: WritableTree) -> None:
        self.tree = tree

    def node(self, path: bytes) -> Node:
        node = self.tree.root
        for name in path.split(b"/") if path else []:
            node = self.tree.lookup(node, name)
        return node

    def parent(self, path: bytes) -> tuple[Node, bytes]:
        above, _, name = path.rpartition(b"/")
        return self.node(above), name

    def create(self, path: bytes, data: bytes) -> None:
        node = self.tree.create(*self.parent(path), 0o644, OWNER)
        self.tree.write(node, 0, data)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        node = self.node(path)
        if node.kind != stat.S_IFREG:
            raise IsADirectoryError
        self.tree.write(node, offset, data)

    def truncate(self, path: bytes, size: int) -> None:
        node = self.node(path)
        if node.kind != stat.S_IFREG:
            raise IsADirectoryError
        self.tree.truncate(node, size)

    def mkdir(self, path: bytes) -> None:
        self.tree.mkdir(*self.parent(path), 0o755, OWNER)

    def symlink(self, path: bytes, target: bytes) -> None:
        self.tree.symlink(*self.parent(path), target, OWNER)

    def link(self, source: bytes, target: bytes) -> None:
        self.tree.link(self.node(source), *self.parent(target))

    def unlink(self, path: bytes) -> None:
        self.tree.unlink(*self.parent(path))

    def rmdir(self, path: bytes) -> None:
        self.tree.rmdir(*self.parent(path))

    def rename(self, source: bytes, target: bytes) -> None:
        old = self.parent(source)
        self.tree.lookup(*old)
        self.tree.rename(old, self.parent(target))

    def exchange(self, one: bytes, other: bytes) -> None:
        self.tree.rename(self.parent(one), self.parent(other), syscalls.RENAME_EXCHANGE)

    def forget(self) -> None:
        """Drop every node that nothing uses, as when the kernel's caches are emptied."""
        waiting = [self.tree.root]
        while waiting:
            node = waiting.pop()
            waiting.extend(node.children.values())
            self.tree.trim(node)

    def chmod(self, path: bytes, mode: int) -> None:
        self.tree.chmod(self.node(path), mode)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        self.tree.utimens(self.node(path), None, mtime_ns)

    def set_xattr(self, path: bytes, value: bytes) -> None:
        self.tree.set_xattr(self.node(path), b"user.test", value)

    def walk(self) -> dict[bytes, Seen]:
        """Everything the union shows, by path."""
        found: dict[bytes, Seen] = {}
        firsts: dict[int, bytes] = {}
        waiting = [b""]
        while waiting:
            above = waiting.pop()
            node = self.node(above)
            for name in sorted(self.tree.names(node)):
                path = above + b"/" + name if above else name
                child = self.tree.lookup(node, name)
                found[path] = self._see(path, child, firsts)
                if child.is_directory:
                    waiting.append(path)
        return dict(sorted(found.items()))

    def _see(self, path: bytes, node: Node, firsts: dict[int, bytes]) -> Seen:
        info = self.tree.attributes(node)
        data = b""
        if node.kind == stat.S_IFREG:
            data = self.tree.read(node, 0, 1 << 20)
        elif node.kind == stat.S_IFLNK:
            data = self.tree.target(node)
        return Seen(
            node.kind,
            stat.S_IMODE(info.mode),
            info.nlink,
            0 if node.is_directory else info.size,
            0 if node.is_directory else info.mtime_ns,
            data,
            tuple(sorted(self.tree.xattrs(node).items())),
            b"" if node.is_directory else firsts.setdefault(node.number, path),
        )


Union = Callable[[], UnionSide]
"""Opens a union, and again if it is open."""


class PlainSide:
    """The same on a directory of the host."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def at(self, path: bytes) -> bytes:
        """The path on the host; a symlink on the way is no directory, as it is for a tree."""
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            if os.path.islink(os.path.join(self.root, *parts[:depth])):
                raise NotADirectoryError(errno.ENOTDIR, "a symlink on the way")
        return os.path.join(self.root, path) if path else self.root

    def kind(self, path: bytes) -> int:
        """The file type of a path, 0 for nothing."""
        try:
            return stat.S_IFMT(os.lstat(self.at(path)).st_mode)
        except OSError:
            return 0

    def create(self, path: bytes, data: bytes) -> None:
        with os.fdopen(
            os.open(self.at(path), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644), "wb"
        ) as f:
            f.write(data)

    def write(self, path: bytes, offset: int, data: bytes) -> None:
        fd = self._open(path)
        os.pwrite(fd, data, offset)
        os.close(fd)

    def _open(self, path: bytes) -> int:
        if os.path.islink(self.at(path)):
            raise IsADirectoryError
        return os.open(self.at(path), os.O_WRONLY)

    def truncate(self, path: bytes, size: int) -> None:
        fd = self._open(path)
        os.ftruncate(fd, size)
        os.close(fd)

    def mkdir(self, path: bytes) -> None:
        os.mkdir(self.at(path), 0o755)

    def symlink(self, path: bytes, target: bytes) -> None:
        os.symlink(target, self.at(path))

    def link(self, source: bytes, target: bytes) -> None:
        os.link(self.at(source), self.at(target), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self.at(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self.at(path))

    def rename(self, source: bytes, target: bytes) -> None:
        os.rename(self.at(source), self.at(target))

    def exchange(self, one: bytes, other: bytes) -> None:
        here = syscalls.AT_FDCWD
        syscalls.renameat2(here, self.at(one), here, self.at(other), syscalls.RENAME_EXCHANGE)

    def chmod(self, path: bytes, mode: int) -> None:
        os.chmod(self.at(path), mode)

    def utime(self, path: bytes, mtime_ns: int) -> None:
        info = os.lstat(self.at(path))
        os.utime(self.at(path), ns=(info.st_atime_ns, mtime_ns), follow_symlinks=False)

    def set_xattr(self, path: bytes, value: bytes) -> None:
        os.setxattr(self.at(path), "user.test", value, follow_symlinks=False)

    def walk(self) -> dict[bytes, Seen]:
        """Everything there is, by path."""
        found: dict[bytes, Seen] = {}
        firsts: dict[int, bytes] = {}
        waiting = [b""]
        while waiting:
            above = waiting.pop()
            for name in sorted(os.listdir(self.at(above))):
                path = above + b"/" + name if above else name
                found[path] = self._see(path, firsts)
                if found[path].kind == stat.S_IFDIR:
                    waiting.append(path)
        return dict(sorted(found.items()))

    def _see(self, path: bytes, firsts: dict[int, bytes]) -> Seen:
        place = self.at(path)
        info = os.lstat(place)
        kind = stat.S_IFMT(info.st_mode)
        is_directory = kind == stat.S_IFDIR
        data = b""
        if kind == stat.S_IFREG:
            data = Path(os.fsdecode(place)).read_bytes()
        elif kind == stat.S_IFLNK:
            data = os.readlink(place)
        xattrs = {
            os.fsencode(name): os.getxattr(place, name, follow_symlinks=False)
            for name in os.listxattr(place, follow_symlinks=False)
        }
        return Seen(
            kind,
            stat.S_IMODE(info.st_mode),
            info.st_nlink,
            0 if is_directory else info.st_size,
            0 if is_directory else info.st_mtime_ns,
            data,
            tuple(sorted(xattrs.items())),
            b"" if is_directory else firsts.setdefault(info.st_ino, path),
        )
