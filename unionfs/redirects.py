"""Where a renamed directory has its lower parts: the xattr ``overlay.redirect``.

A directory that has lower parts is renamed by moving what the upper has of it and noting where the
lower layers have theirs: a plain name for another name in the same directory, or a path from the
root that begins with ``/`` (Documentation/filesystems/overlayfs.rst, "Renaming directories"). The
same note finds the contents of a regular file whose attributes alone were copied up (metacopy).
"""

from __future__ import annotations

from typing import NamedTuple

from .errors import LayerError, display


class Redirect(NamedTuple):
    """A place in the layers below: ``names`` from the root, or one name beside the file."""

    is_absolute: bool
    names: tuple[bytes, ...]

    def format(self) -> bytes:
        """The value of the xattr."""
        return (b"/" if self.is_absolute else b"") + b"/".join(self.names)


def parse(value: bytes, layer: bytes, name: bytes) -> Redirect:
    """Read the value found on ``name``; raises :class:`LayerError` if it makes no sense."""
    is_absolute = value.startswith(b"/")
    names = tuple(value.removeprefix(b"/").split(b"/"))
    if (
        any(part in (b"", b".", b"..") or b"\0" in part for part in names)
        or (not is_absolute and len(names) > 1)
    ):  # fmt: skip
        raise LayerError(
            f"{display(name)} in layer {display(layer)} has the redirect {display(value)}, "
            "which is no place in a layer"
        )
    return Redirect(is_absolute, names)
