"""Inode numbers that stay the same: across lookups, copy-up, rename and remount.

A number is made of the file's own number in its layer and of the *space* that number comes from:
one space for all packs of a mount (row numbers of the index), one for each filesystem that holds
directories. With a single space numbers are shown as they are, as kernel overlayfs does where all
layers are on one filesystem; with several, the space is put in the upper 16 bits, as overlayfs does
with ``xino=on`` (Documentation/filesystems/overlayfs.rst, "Inode properties").
"""

from __future__ import annotations

from collections.abc import Iterable

ROOT = 1
"""The number of the mount's root, fixed by the FUSE protocol."""

_LOCAL_BITS = 48
_SPARE = 0xFFFF << _LOCAL_BITS


class Numbers:
    """Gives files their numbers. Pure bookkeeping, no I/O."""

    def __init__(self, spaces: Iterable[int], *, short: bool = False) -> None:
        """``spaces`` are those of the layers, bottom first: the order fixes the numbers.

        With ``short`` all numbers fit 32 bits, for programs that know no longer ones.
        """
        self._spaces: dict[int, int] = {}
        self._short = short
        self._spare = _SPARE >> 32 if short else _SPARE
        for space in spaces:
            self._spaces.setdefault(space, len(self._spaces))
        self._lasting = len(self._spaces)

    def number(self, space: int, local: int) -> int:
        """The number of file ``local`` of ``space``: the same at every mount of these layers.

        But not of a filesystem that is mounted inside a layer.
        """
        index = self._spaces.setdefault(space, len(self._spaces))
        number = index << _LOCAL_BITS | local
        if self._short:
            number = (number ^ number >> 32) & 0xFFFFFFFF
        return number if number > ROOT and not local >> _LOCAL_BITS else self.spare()

    def key(self, space: int, local: int) -> bytes | None:
        """A name for file ``local`` of ``space`` that no other file has, at any mount.

        None for a space that no layer begins with (a filesystem mounted inside of one): its number
        depends on when it was seen first.
        """
        index = self._spaces.get(space, self._lasting)
        return b"%x" % (index << 64 | local) if index < self._lasting else None

    def locate(self, key: bytes) -> tuple[int, int]:
        """The (space, local) that a key stands for; a space that is not there is -1."""
        index, local = divmod(int(key, 16), 1 << 64)
        return next((space for space, at in self._spaces.items() if at == index), -1), local

    def spare(self) -> int:
        """A number for a file that cannot have its own, good until the unmount."""
        self._spare += 1
        return self._spare
