"""What the lower layers make of a name: which of them take part in what the union shows there.

The rules are those of kernel overlayfs (Documentation/filesystems/overlayfs.rst): the topmost layer
that has a name decides it; a whiteout ends the search; directories merge, down to the first that is
opaque; a redirect says where the layers further below have a directory or a metacopy's contents.
"""

from __future__ import annotations

import stat
from collections.abc import Sequence
from typing import NamedTuple

from .entry import WHITEOUT, Entry
from .errors import LayerError, display
from .layers import Layer
from .layers.shown import ShownWhiteouts
from .nodes import Part
from .redirects import Redirect

Parts = tuple[Part, ...]


class Found(NamedTuple):
    """One name in the lower layers. ``kind`` is WHITEOUT, and ``parts`` empty, for nothing.

    A directory's parts are those that merge, topmost first. A file has one, or, if that is a
    metacopy, further ones of which the last has the contents.
    """

    kind: int
    parts: Parts


NOTHING = Found(WHITEOUT, ())


def describing_part(parts: Sequence[Part]) -> Part:
    """The part that says what a directory looks like: the topmost that is there for itself."""
    return next((part for part in parts if not part[0].is_implicit(part[1])), parts[0])


def first_entry(parts: Sequence[Part], name: bytes) -> Entry | None:
    """What the topmost of some layers that has a name says of it, be it that it is gone."""
    for layer, handle in parts:
        entry = layer.lookup(handle, name)
        if entry is not None:
            return entry
    return None


class Stack:
    """The lower layers that show, topmost first, and whether redirects are followed."""

    def __init__(self, roots: Parts, *, follow: bool = True) -> None:
        self.roots = roots
        self._follow = follow

    def find(self, parts: Parts, name: bytes) -> Found:
        """What the directory of these parts has under a name.

        Raises :class:`LayerError` for a metacopy whose contents are missing.
        """
        for at, (layer, handle) in enumerate(parts):
            entry = layer.lookup(handle, name)
            if entry is None:
                continue
            if entry.kind == stat.S_IFDIR or (
                entry.kind == stat.S_IFREG and layer.is_metacopy(entry.handle)
            ):
                return _Search(self, parts[at:], (name,)).run(entry)
            if entry.kind == WHITEOUT:
                return NOTHING
            return Found(entry.kind, ((layer, entry.handle),))
        return NOTHING

    def find_redirected(self, parts: Parts, redirect: Redirect) -> Found:
        """What is at the place that a redirect, found above a directory of these parts, names."""
        return _Search(self, self.roots if redirect.is_absolute else parts, redirect.names).run()

    def find_path(self, names: Sequence[bytes]) -> Found:
        """What is at a path from the root; the root itself for no names."""
        found = Found(stat.S_IFDIR, self.roots)
        for name in names:
            if found.kind != stat.S_IFDIR:
                return NOTHING
            found = self.find(found.parts, name)
        return found

    def below(self, layer: Layer) -> Parts:
        """The roots of the layers below one."""
        for at, (candidate, _) in enumerate(self.roots, 1):
            if candidate is layer:
                return self.roots[at:]
        return ()

    def follow(self, layer: Layer, entry: Entry, name: bytes) -> Redirect | None:
        """The redirect of an entry of some name.

        Raises :class:`LayerError` where there is one and none may be followed: what would be shown
        without it is not what the layers hold.
        """
        redirect = layer.redirect(entry.handle)
        if redirect is not None and not self._follow:
            raise LayerError(
                f"{display(name)} in layer {display(layer.path)} is redirected to "
                f"{display(redirect.format())}, and redirect_dir=nofollow"
            )
        return redirect


class _Search:
    """One walk down the layers. A redirect changes where the layers further below are asked."""

    def __init__(self, stack: Stack, parts: Parts, path: tuple[bytes, ...]) -> None:
        self._stack = stack
        self._ahead = parts
        self._path = path
        self._found: list[Part] = []
        self._over = False

    def run(self, known: Entry | None = None) -> Found:
        """Walk; ``known`` is what the first layer has at the path, if it was asked already."""
        found = self._found
        kind = WHITEOUT
        while self._ahead and not self._over:
            (layer, handle), self._ahead = self._ahead[0], self._ahead[1:]
            entry, known = known or self._descend(layer, handle), None
            if entry is None:
                continue
            if entry.kind == WHITEOUT:
                break
            if found and (kind == stat.S_IFDIR) != entry.is_directory:
                if isinstance(layer, ShownWhiteouts):  # what is below the file stays hidden
                    found.append((layer, layer.covered(entry.handle)))
                break
            if not entry.is_directory:
                if found and entry.kind != stat.S_IFREG:
                    break
                found.append((layer, entry.handle))
                kind = entry.kind
                if kind != stat.S_IFREG or not layer.is_metacopy(entry.handle):
                    return Found(kind, tuple(found))
            else:
                found.append((layer, entry.handle))
                kind = stat.S_IFDIR
                self._over |= layer.is_opaque(entry.handle)
            self._redirect(layer, entry, 0)
        else:
            self._expect_all(kind)
        if kind == stat.S_IFREG:
            raise LayerError(
                f"{display(self._path[-1])} in layer {display(found[0][0].path)} is a metacopy "
                "whose contents no lower layer has: mount it over the layers it was made with"
            )
        return Found(kind, tuple(found)) if found else NOTHING

    def _expect_all(self, kind: int) -> None:
        """Refuse what an archive of shown whiteouts would lose: a directory that was renamed away
        from lower parts which are in no layer of the mount."""
        if kind != stat.S_IFDIR or self._over:
            return
        layer, handle = self._found[-1]
        if isinstance(layer, ShownWhiteouts) and layer.redirect(handle) is not None:
            raise LayerError(
                f"{display(self._path[-1])} of a directory that was renamed in layer "
                f"{display(layer.path)} is in no layer below: show whiteouts of mounts with "
                "redirect_dir=off, or show all layers"
            )

    def _descend(self, layer: Layer, handle: object) -> Entry | None:
        """What one layer has at the path. A file or a whiteout on the way hides all below it."""
        path = self._path
        last = len(path) - 1
        for depth, name in enumerate(path):
            entry = layer.lookup(handle, name)
            if entry is None or depth == last:
                return entry
            if not entry.is_directory:
                return Entry(WHITEOUT, None)
            self._over |= layer.is_opaque(entry.handle)
            self._redirect(layer, entry, last - depth)
            handle = entry.handle
        return None

    def _redirect(self, layer: Layer, entry: Entry, rest: int) -> None:
        """Ask the layers below where a redirect says that is ``rest`` names before the end."""
        at = len(self._path) - rest
        redirect = self._stack.follow(layer, entry, self._path[at - 1])
        if redirect is None:
            return
        tail = self._path[at:]
        if redirect.is_absolute:
            self._ahead = self._stack.below(layer)
            self._path = redirect.names + tail
        else:
            self._path = (*self._path[: at - 1], *redirect.names, *tail)
