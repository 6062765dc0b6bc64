"""Random lower layers for mounts, and what kernel overlayfs makes of them."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from tests.unionfs.sights import LONG_AGO

KERNEL_OPTIONS = "redirect_dir=on,index=on,xino=auto"
"""With metacopy=on, opening a file for writing would change its time of modification (6.18)."""

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
DATA = st.binary(max_size=12)
WHICH = st.integers(0, 9)


class Lowers(NamedTuple):
    """What two lower layers are made of, see MountMachine.build."""

    low: dict[bytes, bytes]
    middle: dict[bytes, bytes]
    symlinks: dict[bytes, bytes]
    opaque: list[bytes]
    gone: list[bytes]
    links: list[tuple[int, bytes]]


LOWERS = st.builds(
    Lowers,
    low=st.dictionaries(PATHS, DATA, min_size=3, max_size=8),
    middle=st.dictionaries(PATHS, DATA, max_size=4),
    symlinks=st.dictionaries(PATHS, PATHS, max_size=1),
    opaque=st.lists(PATHS, max_size=1),
    gone=st.lists(PATHS, max_size=2),
    links=st.lists(st.tuples(WHICH, PATHS), max_size=3),
)


def fill(base: Path, lowers: Lowers) -> bool:
    """Fill base/low and base/middle; whether a file of the lowest has several names."""
    lower, upper = bytes(base / "low"), bytes(base / "middle")
    for layer, contents in ((lower, lowers.low), (upper, lowers.middle)):
        for path, data in contents.items():
            plant(layer, path, partial(write_new, data))
    for path, leads_to in lowers.symlinks.items():
        plant(lower, path, partial(os.symlink, leads_to))
    for path in lowers.opaque:
        plant(upper, path, os.mkdir)
        with contextlib.suppress(OSError):
            os.setxattr(os.path.join(upper, path), "trusted.overlay.opaque", b"y")
    for path in lowers.gone:
        # Kernel overlayfs takes whiteouts for what they are in merged directories only.
        above = os.path.dirname(os.path.join(lower, path))
        if shows(base, path) and os.path.isdir(above) and os.path.realpath(above) == above:
            plant(upper, path, partial(os.mknod, mode=stat.S_IFCHR, device=0))
    links = [link_below(base, sorted(lowers.low), *link) for link in lowers.links]
    for layer in (lower, upper):
        make_old(layer)
    return any(links)


def link_below(base: Path, paths: list[bytes], which: int, new: bytes) -> bool:
    """Give a file of the lowest layer one more name, both names to be seen in the union.

    A directory as a layer does not know how many names of a file other layers hide, and neither
    does the kernel: both would count them.
    """
    old = paths[which % len(paths)] if paths else b""
    if shows(base, old) and shows(base, new):
        lower = bytes(base / "low")
        with contextlib.suppress(OSError):
            os.link(os.path.join(lower, old), os.path.join(lower, new), follow_symlinks=False)
            return True
    return False


def shows(base: Path, path: bytes) -> bool:
    """Whether the middle layer leaves a path to the one below it."""
    if not path:
        return False
    parts = path.split(b"/")
    for depth in range(1, len(parts) + 1):
        place = os.path.join(bytes(base / "middle"), *parts[:depth])
        if not os.path.lexists(place):
            return True
        if depth == len(parts) or os.path.islink(place) or not os.path.isdir(place):
            return False
        if "trusted.overlay.opaque" in os.listxattr(place):
            return False
    return True


def plant(root: bytes, path: bytes, make: Callable[[bytes], Any]) -> None:
    """Make a file of some kind and its parents, unless something is in the way."""
    with contextlib.suppress(OSError):
        os.makedirs(os.path.dirname(os.path.join(root, path)), exist_ok=True)
        make(os.path.join(root, path))


def write_new(data: bytes, place: bytes) -> None:
    with open(place, "xb") as file:
        file.write(data)


def make_old(root: bytes) -> None:
    """Give everything a time that is recognised as set, in whole seconds, as in a tar."""
    for directory, _, files in os.walk(root, topdown=False):
        for name in files:
            os.utime(os.path.join(directory, name), ns=(LONG_AGO, LONG_AGO), follow_symlinks=False)
        os.utime(directory, ns=(LONG_AGO, LONG_AGO))


@contextlib.contextmanager
def kernel_overlay(
    mountpoint: Path, lowers: list[Path], upper: Path | None = None, work: Path | None = None
) -> Iterator[None]:
    options = "lowerdir=" + ":".join(map(str, lowers))
    if upper is not None and work is not None:
        upper.mkdir(exist_ok=True)
        work.mkdir(exist_ok=True)
        options += f",upperdir={upper},workdir={work},{KERNEL_OPTIONS}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, mountpoint], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", mountpoint], check=True)
