"""The open contents of files. They belong to the node, not to whoever opened it."""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable

from .layers import Content
from .layers.directory import FileContent
from .layers.spot import Spot
from .nodes import Node

IDLE_CONTENTS = 512
"""How many contents that nobody has open keep their descriptor."""


class Contents:
    """Keeps few contents open that nobody uses, so that the next reader finds them."""

    def __init__(self) -> None:
        self._idle: OrderedDict[Node, None] = OrderedDict()

    def get(self, node: Node, opener: Callable[[Node], Content]) -> Content:
        """The content of a node, opened if it is not."""
        if node.content is None:
            self.adopt(node, opener(node))
        elif not node.opened:
            self._idle.move_to_end(node)
        assert node.content is not None
        return node.content

    def adopt(self, node: Node, content: Content) -> None:
        """Take over a content that has just been opened for a node."""
        node.content = content
        if not node.opened:
            self.rest(node)

    def use(self, node: Node) -> None:
        """Somebody has opened the file: its content stays."""
        self._idle.pop(node, None)

    def rest(self, node: Node) -> None:
        """Nobody has the file open: its content stays until enough others have come."""
        if node.content is not None:
            self._idle[node] = None
            if len(self._idle) > IDLE_CONTENTS:
                self.close(next(iter(self._idle)))

    def close(self, node: Node) -> None:
        """Close the content of a node, if it is open."""
        if node.content is not None:
            node.content.close()
            node.content = None
            self._idle.pop(node, None)


def open_upper(spot: Spot) -> FileContent:
    """Open a file of the upper for whatever comes, although its mode may keep its owner from it.

    The kernel has checked the caller's rights. The content must be there as well for a reader of
    the other pages of a write-only file, or for a writer after its descriptor was given up.
    """
    try:
        return FileContent(spot.open(os.O_RDWR))
    except PermissionError:
        mode = stat.S_IMODE(os.stat(spot.name, dir_fd=spot.dir_fd).st_mode)
    os.chmod(spot.name, mode | 0o600, dir_fd=spot.dir_fd)
    try:
        return FileContent(spot.open(os.O_RDWR))
    finally:
        os.chmod(spot.name, mode, dir_fd=spot.dir_fd)
