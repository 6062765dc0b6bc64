"""What can go wrong in layers and mounts, as exceptions a caller can tell apart.

Every message names the file or option at fault and says what to do about it; the command line
shows it to the user as it stands. Failing system calls stay :class:`OSError`.
"""

from __future__ import annotations

import os


class UnionError(Exception):
    """The root of all errors of this package that are not a plain :class:`OSError`."""


class LayerError(UnionError):
    """A layer or a layer archive is not what it claims to be: malformed, truncated or forbidden."""


class PackError(UnionError):
    """A pack is damaged, of an unknown version, or misses another pack it takes chunks from."""


class MountError(UnionError):
    """A mount cannot be made or ended: a bad option, a missing directory, no permission."""


def display(path: bytes | str | os.PathLike[str]) -> str:
    """A name or path for a message: printable, undecodable bytes and controls escaped."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)[1:-1]
