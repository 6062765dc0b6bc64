"""The tree of one layer while its archive is read: what each entry does to the entries before it.

The rules are those of the OCI image specification (layer.md, "Applying Changesets") and, where it
is silent, of the tools that apply layers. No name is ever looked up on the host.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator

from ..errors import LayerError, display
from .chunks import Content
from .emit import Tables
from .format import IMPLICIT, NO_ROW, OPAQUE, UNRESOLVED, Inode
from .headers import Header
from .tar import REGULAR, Limits

_NAME_MAX = 255
_MARKER = b".wh."
_BOOKKEEPING = b".wh..wh."
_OPAQUE_MARKER = b".wh..wh..opq"
_IMPLICIT_MODE = stat.S_IFDIR | 0o755
_NO_CONTENT = Content(0, 0, 0)
_TYPES = {
    b"2": stat.S_IFLNK,
    b"3": stat.S_IFCHR,
    b"4": stat.S_IFBLK,
    b"6": stat.S_IFIFO,
    **{bytes([kind]): stat.S_IFREG for kind in REGULAR},
}


def _unmarked(name: bytes) -> bytes:
    """A name, or the one that a whiteout speaks of: that may be as long as names may be."""
    return name.removeprefix(_MARKER)


class Node:
    """One file of the layer. Only directories have ``children`` and ``whiteouts``."""

    __slots__ = (
        "children", "content", "flags", "gid", "linked", "major", "minor", "mode", "mtime",
        "target", "uid", "whiteouts", "xattrs",
    )  # fmt: skip

    def __init__(self, mode: int, header: Header | None, xattrs: dict[bytes, bytes]) -> None:
        self.mode = mode
        self.uid = self.gid = self.major = self.minor = self.flags = 0
        self.mtime = (0, 0)
        self.content = _NO_CONTENT
        self.target = b""
        self.linked = False
        self.xattrs = xattrs
        self.children: dict[bytes, Node] | None = None
        self.whiteouts: set[bytes] | None = None
        if header is not None:
            self.uid = header.uid
            self.gid = header.gid
            self.mtime = header.mtime

    @property
    def is_directory(self) -> bool:
        """Whether the node is a directory."""
        return self.children is not None


def _directory(flags: int) -> Node:
    node = Node(_IMPLICIT_MODE, None, {})
    node.children = {}
    node.flags = flags
    return node


class Draft:
    """The tree. Paths are lists of names, see :meth:`split`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._directories = 0
        self.root = _directory(IMPLICIT)

    def split(self, path: bytes) -> list[bytes]:
        """The names of a path: ``x``, ``./x``, ``/x`` and ``x/`` are the same, ``.`` is the root.

        Raises :class:`LayerError` for ``..`` and for what is longer than names and paths may be.
        """
        if len(path) > self._limits.path:
            raise LayerError(
                f"the path {display(path[:60])}... is longer than the limit of"
                f" {self._limits.path} bytes"
            )
        names = [name for name in path.split(b"/") if name not in (b"", b".")]
        if b".." in names:
            raise LayerError(f"{display(path)} leads out of its directory by '..'")
        if len(names) > self._limits.depth:
            raise LayerError(
                f"the path {display(path[:60])}... is deeper than the limit of"
                f" {self._limits.depth} names"
            )
        if len(path) > _NAME_MAX and any(len(_unmarked(name)) > _NAME_MAX for name in names):
            raise LayerError(f"{display(path)} has a name longer than {_NAME_MAX} bytes")
        return names

    def mark(self, names: list[bytes]) -> bool:
        """Apply an entry that is a whiteout, whatever its type; False if it is none.

        ``.wh.NAME`` hides NAME of lower layers, ``.wh..wh..opq`` all names of lower layers; other
        names that begin with ``.wh..wh.`` are leftovers of AUFS and say nothing.
        """
        if not any(name.startswith(_MARKER) for name in names):
            return False
        if any(name.startswith(_BOOKKEEPING) for name in names[:-1]):
            return True
        path = display(b"/".join(names))
        if any(name.startswith(_MARKER) for name in names[:-1]):
            raise LayerError(f"{path} lies in a whiteout as if that were a directory")
        marker = names[-1]
        if marker.startswith(_BOOKKEEPING):
            if marker == _OPAQUE_MARKER:
                self._parent(names).flags |= OPAQUE
            return True
        hidden = marker[len(_MARKER) :]
        if hidden in (b"", b".", b".."):
            raise LayerError(f"{path} is a whiteout of nothing that can be removed")
        parent = self._parent(names)
        if parent.whiteouts is None:
            parent.whiteouts = set()
        parent.whiteouts.add(hidden)
        return True

    def add_directory(self, names: list[bytes], header: Header, xattrs: dict[bytes, bytes]) -> None:
        """Add a directory, or give one that is there new attributes."""
        node = self._enter_directory(self._parent(names), names[-1]) if names else self.root
        node.flags &= ~IMPLICIT
        node.mode = stat.S_IFDIR | header.mode
        node.uid = header.uid
        node.gid = header.gid
        node.mtime = header.mtime
        node.xattrs = xattrs

    def add_file(
        self,
        names: list[bytes],
        header: Header,
        xattrs: dict[bytes, bytes],
        content: Content = _NO_CONTENT,
    ) -> None:
        """Add what is neither directory nor hardlink, in place of what has the name."""
        mode = _TYPES[header.type] | header.mode
        if header.type == b"2":
            self._check_target(names, header.link)
            mode = stat.S_IFLNK | 0o777
        node = Node(mode, header, xattrs)
        node.content = content
        if header.type == b"2":  # others may have something in the field all the same
            node.target = header.link
        node.major = header.major
        node.minor = header.minor
        self._put(names, node)

    def add_hardlink(self, names: list[bytes], header: Header) -> None:
        """Give a file another name. The target is a path from the root of the layer.

        One that this layer does not have (yet) is left to be found in the layers below.
        """
        try:
            target = self.split(header.link)
        except LayerError as error:
            raise LayerError(f"the hardlink {display(header.name)}: {error}") from error
        if not target:
            raise LayerError(f"the hardlink {display(header.name)} has no file as its target")
        node = self._find(target)
        if node is None:
            node = Node(stat.S_IFREG | header.mode, header, {})
            node.flags = UNRESOLVED
            node.target = b"/".join(target)
        elif node.is_directory:
            raise LayerError(
                f"the hardlink {display(header.name)} has a directory as its target:"
                f" {display(header.link)}"
            )
        else:
            node.linked = True
        self._put(names, node)

    def _check_target(self, names: list[bytes], target: bytes) -> None:
        if not target:
            raise LayerError(f"the symlink {display(b'/'.join(names))} has no target")
        if len(target) > self._limits.path:
            raise LayerError(
                f"the target of {display(b'/'.join(names))} is longer than the limit of"
                f" {self._limits.path} bytes"
            )

    def _put(self, names: list[bytes], node: Node) -> None:
        if not names:
            raise LayerError("the root of the layer is no directory")
        children = self._parent(names).children
        assert children is not None
        children[names[-1]] = node

    def _parent(self, names: list[bytes]) -> Node:
        """The directory of a name; it and those above are made if needed."""
        node = self.root
        for name in names[:-1]:
            node = self._enter_directory(node, name)
        return node

    def _enter_directory(self, parent: Node, name: bytes) -> Node:
        """A directory to be used; what has its name and is none is replaced."""
        assert parent.children is not None
        found = parent.children.get(name)
        if found is not None and found.is_directory:
            return found
        self._directories += 1
        if self._directories > self._limits.entries:
            raise LayerError(
                f"the paths of the layer have more than the limit of {self._limits.entries}"
                " directories"
            )
        # A file of this layer stood there, which hid what lower layers have of that name.
        made = parent.children[name] = _directory(IMPLICIT if found is None else IMPLICIT | OPAQUE)
        return made

    def _find(self, names: list[bytes]) -> Node | None:
        node = self.root
        for name in names:
            if node.children is None:
                return None
            found = node.children.get(name)
            if found is None:
                return None
            node = found
        return node


class DraftTree:
    """A finished draft as the emitter wants it."""

    def __init__(self, draft: Draft) -> None:
        self.root = draft.root
        self.unresolved = 0

    def children(self, directory: Node) -> Iterator[tuple[bytes, int, Node | None]]:
        """The names of a directory in order, each with its kind."""
        assert directory.children is not None
        named: dict[bytes, Node | None] = dict(directory.children)
        for name in directory.whiteouts or ():
            child = named.get(name)
            if child is None:
                if not directory.flags & OPAQUE:
                    named[name] = None
            elif child.is_directory:
                child.flags |= OPAQUE
        for name in sorted(named):
            node = named[name]
            yield name, stat.S_IFMT(node.mode) if node is not None else 0, node

    @staticmethod
    def identity(node: Node) -> Node | None:
        """What tells the names of a hardlinked file; None for a file with one name."""
        return node if node.linked else None

    def describe(self, node: Node, tables: Tables) -> Inode:
        """The row of a file, without what the emitter knows better."""
        first, count, size = node.content
        if node.target:
            first, count = tables.string(node.target), len(node.target)
            size = count
        if node.flags & UNRESOLVED:
            self.unresolved += 1
            size = 0
        xattr_offset, xattr_length = tables.xattrs(node.xattrs)
        return Inode(
            node.mode, node.uid, node.gid, 1, size, *node.mtime, node.flags, node.major, node.minor,
            first, count, NO_ROW, NO_ROW, xattr_length, xattr_offset,
        )  # fmt: skip
