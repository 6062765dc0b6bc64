"""What a container has changed, name by name, as ``docker diff`` tells it.

What the union shows is compared with what the layers below the upper show. It costs what the upper
holds: a directory is listed as a whole only where it was renamed, replaced or made opaque, and
everything else that the upper does not have is passed over.

* A name that is new is added (``A``), with everything below it; a renamed directory, too.
* A name that is gone is deleted (``D``), without what was below it.
* A name that is there as before is changed (``C``) if kind, mode, owner, device, xattrs, size, time
  or contents differ, of a directory only mode, owner and xattrs, or something in it: its time and
  its size change with every name that comes or goes.
* The root itself is never named.
* A file with several names that was changed by one of them is changed under all of them.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from unionfs.nodes import Node, Part
from unionfs.reading import ReadableTree

from .entries import PIECE
from .store import Container, Store
from .views import View, container_view

ADDED, CHANGED, DELETED = "A", "C", "D"


class Change(NamedTuple):
    """One name: ``kind`` is ADDED, CHANGED or DELETED, ``path`` begins with a slash."""

    kind: str
    path: bytes


def changes(store: Store, container: Container) -> Iterator[Change]:
    """What a container has changed, sorted by path, also while it runs.

    Raises ``NoSuchImage``, :class:`unionfs.errors.UnionError`, :class:`OSError`.
    """
    with container_view(store, container) as view:
        yield from changes_of(view.tree)


def changes_of(tree: ReadableTree) -> Iterator[Change]:
    """What the topmost layer of a tree changes of those below it, sorted by path."""
    return _Comparison(tree).run()


class _Frame:
    """A directory that is being compared. ``is_silent``: it was not named yet."""

    def __init__(self, pair: _Pair, path: bytes, names: Iterable[bytes], is_silent: bool) -> None:
        self.pair = pair
        self.path = path
        self.names = iter(names)
        self.is_silent = is_silent


class _Pair(NamedTuple):
    """What a name is now, and what it was below the upper."""

    now: Node | None
    before: Node | None


class _Comparison:
    """The union of an upper, which is the topmost layer of ``now``, beside the layers below it."""

    def __init__(self, now: ReadableTree) -> None:
        self._now = now
        self._upper = now.lowers[0]
        # It uses the layers of the other, which is what closes them.
        self._before = ReadableTree(now.lowers[1:])
        self._view = View(now)
        self._linked = self._names_of_linked_files()

    def run(self) -> Iterator[Change]:
        """All changes, in order."""
        stack = [self._enter(_Pair(self._now.root, self._before.root), b"", is_silent=False)]
        while stack:
            frame = stack[-1]
            name = next(frame.names, None)
            if name is None:
                self._leave(stack.pop())
                continue
            pair = self._find(frame.pair, name)
            path = frame.path + b"/" + name
            kind = self._kind(pair)
            if kind is not None:
                yield from _announce(stack)
                yield Change(kind, path)
            if pair.now is not None and pair.now.is_directory:
                stack.append(self._enter(pair, path, is_silent=kind is None))
            else:
                self._trim(pair)

    def _enter(self, pair: _Pair, path: bytes, *, is_silent: bool) -> _Frame:
        now, before = pair
        assert now is not None
        if before is not None and not before.is_directory:
            self._before.trim(before)
            before = None
        self._now.open_directory(now)
        if before is not None:
            self._before.open_directory(before)
        pair = _Pair(now, before)
        return _Frame(pair, path, self._names(now, before, path), is_silent)

    def _leave(self, frame: _Frame) -> None:
        now, before = frame.pair
        if now is not None:
            self._now.close_directory(now)
        if before is not None:
            self._before.close_directory(before)

    def _trim(self, pair: _Pair) -> None:
        if pair.now is not None:
            self._now.trim(pair.now)
        if pair.before is not None:
            self._before.trim(pair.before)

    def _find(self, parents: _Pair, name: bytes) -> _Pair:
        return _Pair(
            _child(self._now, parents.now, name), _child(self._before, parents.before, name)
        )

    def _names(self, now: Node, before: Node | None, path: bytes) -> list[bytes]:
        """The names of a directory that may have changed."""
        if before is None:
            return _listing(self._now, now)
        below = [part for part in now.parts if part[0] is not self._upper]
        if _identities(below) != _identities(before.parts):
            return sorted({*_listing(self._now, now), *_listing(self._before, before)})
        names = set(self._linked.get(path, ()))
        if len(below) < len(now.parts):
            names.update(name for name, _ in self._upper.names(now.parts[0][1]))
        return sorted(names)

    def _names_of_linked_files(self) -> dict[bytes, set[bytes]]:
        """Where files are that were copied up and have other names, by directory, with parents."""
        found: dict[bytes, set[bytes]] = defaultdict(set)
        index = self._now.links
        if index is None:
            return found
        for key in index.all_keys():
            for names in self._now.links_of(key):
                for depth, name in enumerate(names):
                    found[b"".join(b"/" + part for part in names[:depth])].add(name)
        return found

    def _kind(self, pair: _Pair) -> str | None:
        now, before = pair
        if now is None:
            return DELETED if before is not None else None
        if before is None:
            return ADDED
        return CHANGED if self._differ(now, before) else None

    def _differ(self, now: Node, before: Node) -> bool:
        if _identities(now.parts) == _identities(before.parts):
            return False
        new, old = self._view.attributes(now), self._view.attributes(before)
        if (new.mode, new.uid, new.gid, new.rdev) != (old.mode, old.uid, old.gid, old.rdev):
            return True
        if self._view.xattrs(now) != self._view.xattrs(before):
            return True
        if now.is_directory:
            return False
        if (new.mtime_ns, new.size) != (old.mtime_ns, old.size):
            return True
        if now.kind == stat.S_IFLNK:
            return self._now.target(now) != self._before.target(before)
        return now.kind == stat.S_IFREG and self._contents_differ(now, before, new.size)

    def _contents_differ(self, now: Node, before: Node, size: int) -> bool:
        if _identities(now.parts[-1:]) == _identities(before.parts[-1:]):
            return False
        pieces = (
            (
                tree.read(node, at, PIECE)
                for tree, node in ((self._now, now), (self._before, before))
            )
            for at in range(0, size, PIECE)
        )
        return any(new != old for new, old in pieces)


def _announce(stack: list[_Frame]) -> Iterator[Change]:
    """The directories on the way to a change: they have changed as well."""
    for frame in stack:
        if frame.is_silent:
            frame.is_silent = False
            yield Change(CHANGED, frame.path)


def _child(tree: ReadableTree, parent: Node | None, name: bytes) -> Node | None:
    if parent is None:
        return None
    try:
        return tree.lookup(parent, name)
    except FileNotFoundError:
        return None


def _listing(tree: ReadableTree, node: Node) -> list[bytes]:
    return sorted(tree.names(node))


def _identities(parts: Iterable[Part]) -> list[tuple[int, int, int]]:
    found = []
    for layer, handle in parts:
        own = layer.attributes(handle)
        found.append((id(layer), own.space, own.number))
    return found
