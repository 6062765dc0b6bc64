"""Layers that try to reach what is not theirs.

The names are those of containerd's tests of layers that break out, and of public advisories about
programs that unpack archives. The contents are as the names say; ``SECRET`` is a file outside.
"""

from __future__ import annotations

import tarfile
from typing import NamedTuple

from tests.pack.applied import Made, entry, folder, hardlink, symlink

SECRET = "secret"
UP = "../" * 40


class Breakout(NamedTuple):
    """Layers, bottom first, and what they show, or a pattern for the error if they are refused.

    What they show is told as in tests/pack/test_applying.py.
    """

    layers: list[list[Made]]
    expected: dict[str, str] | str


def _one(expected: dict[str, str] | str, *entries: Made) -> Breakout:
    return Breakout([list(entries)], expected)


def _two(expected: dict[str, str] | str, *entries: Made) -> Breakout:
    return Breakout([[symlink("out", f"{UP}tmp"), folder("d"), entry("d/f", b"f")], [*entries]],
                    expected)  # fmt: skip


_BELOW = {"out": f"-> {UP}tmp", "d": "dir 755", "d/f": "f"}
_OUT = {"d": "dir 755", "d/f": "f"}

CONTAINERD = {
    "SymlinkAbsolute": _one(
        {"l": "dir 755", "l/f": "x"}, symlink("l", "/tmp"), entry("l/f", b"x")
    ),
    "SymlinkUpAndOut": _one(
        {"l": "dir 755", "l/f": "x"}, symlink("l", UP + "tmp"), entry("l/f", b"x")
    ),
    "SymlinkMultipleAbsolute": _one(
        {"a": "-> /b", "b": "dir 755", "b/f": "x"},
        symlink("a", "/b"), symlink("b", "/tmp"), entry("b/f", b"x"),
    ),
    "SymlinkMultipleRelative": _one(
        {"a": "dir 755", "a/f": "x", "b": f"-> {UP}"},
        symlink("a", "b"), symlink("b", UP), entry("a/f", b"x"),
    ),
    "SymlinkEmptyFile": _one({"l": ""}, symlink("l", f"{UP}{SECRET}"), entry("l")),
    "HardlinkRelative": _one("the hardlink l: .*'\\.\\.'", hardlink("l", f"../{SECRET}")),
    "HardlinkDownAndOut": _one(
        "the hardlink l: .*'\\.\\.'", folder("d"), hardlink("l", f"d/../../{SECRET}")
    ),
    "HardlinkAbsolute": _one("l in .* is a hardlink to secret", hardlink("l", f"/{SECRET}")),
    "HardlinkRelativeLong": _one("the hardlink l: .*'\\.\\.'", hardlink("l", f"{UP}{SECRET}")),
    "HardlinkRelativeUpAndOut": _one(
        "the hardlink d/l: .*'\\.\\.'", hardlink("d/l", f"{UP}tmp/{SECRET}")
    ),
    "HardlinkDirectRelative": _one(
        "h in .* is a hardlink to l/secret", symlink("l", UP), hardlink("h", f"l/{SECRET}")
    ),
    "HardlinkDirectAbsolute": _one(
        "h in .* is a hardlink to l/secret", symlink("l", "/"), hardlink("h", f"l/{SECRET}")
    ),
    "SymlinkParentDirectory": _one(
        "\\.\\. leads out", symlink("..", "/tmp"), entry("../f", b"x")
    ),
    "SymlinkEmptyFilename": _one("root of the layer is no directory", symlink("", "/tmp")),
    "SymlinkParentRelative": _one("leads out of its directory", symlink("d/../..", "/tmp")),
    "SymlinkSlashEnded": _one(
        {"l": "dir 755", "l/f": "x"}, symlink("l/", "/tmp/"), entry("l/f", b"x")
    ),
    "SymlinkOverrideDirectory": _two(
        {"d": f"-> {UP}tmp", "out": f"-> {UP}tmp"}, symlink("d", f"{UP}tmp")
    ),
    "SymlinkOverrideDirectoryRelative": _two(
        {"d": "dir 755", "d/g": "x", "out": f"-> {UP}tmp"},
        symlink("d", f"{UP}tmp"), entry("d/g", b"x"),
    ),
    "DirectoryOverrideSymlink": _two(
        {**_OUT, "out": "dir 755", "out/f": "x"}, folder("out"), entry("out/f", b"x")
    ),
    "DirectoryOverrideSymlinkAndHardlink": _two(
        {**_OUT, "out": "dir 755", "out/f": "f", "h": "f"},
        folder("out"), hardlink("out/f", "d/f"), hardlink("h", "out/f"),
    ),
    "WhiteoutRootParent": _two("'\\.\\.'", entry("../.wh.tmp")),
    "WhiteoutParent": _two("d/\\.wh\\.\\.\\. is a whiteout of nothing", entry("d/.wh...")),
    "WhiteoutRoot": _two("\\.wh\\. is a whiteout of nothing", entry(".wh.")),
    "WhiteoutCurrentDirectory": _two("\\.wh\\.\\. is a whiteout of nothing", entry(".wh..")),
    "WhiteoutSymlink": _two({"d": "dir 755", "d/f": "f"}, entry(".wh.out")),
    "WhiteoutSymlinkPath": _two({**_OUT, "out": "dir 755"}, entry(f"out/.wh.{SECRET}")),
    "WhiteoutDirectoryName": _two("lies in a whiteout", entry(".wh.d/f", b"x")),
    "WhiteoutDeadSymlinkParent": _two(
        {**_BELOW, "dead": "dir 755"}, symlink("dead", "no/where"), entry("dead/.wh.f")
    ),
    "WhiteoutRelativePath": _two("'\\.\\.'", entry(f"d/{UP}tmp/.wh.{SECRET}")),
    "SymlinkOverridePath": _two(
        {**_BELOW, "d": "dir 755", "d/s": "dir 755", "d/s/f": "x"},
        symlink("d/s", f"{UP}tmp"), entry("d/s/f", b"x"),
    ),
    "HardlinkSymlinkBeforeCreateTarget": _one(
        "h in .* is a hardlink to l",
        hardlink("h", "l"), symlink("l", f"{UP}{SECRET}"),
    ),
    "HardlinkSymlinkRelative": _one(
        {"l": f"-> {UP}{SECRET}", "h": "x"},
        symlink("l", f"{UP}{SECRET}"), hardlink("h", "l"), entry("h", b"x"),
    ),
    "HardlinkSymlinkAbsolute": _one(
        {"l": f"-> /{SECRET}", "h": "x"},
        symlink("l", f"/{SECRET}"), hardlink("h", "l"), entry("h", b"x"),
    ),
    "HardlinkSymlinkChmod": _one(
        {"l": f"-> /{SECRET}", "h": f"-> /{SECRET}"},
        symlink("l", f"/{SECRET}"), hardlink("h", "l", mode=0o777),
    ),
}  # fmt: skip

_LONG = "/".join(["x" * 247] * 15)

ADVISORIES = {
    "CVE-2007-4559, a name with two dots": _one("'\\.\\.'", entry(f"{UP}{SECRET}", b"x")),
    "CVE-2007-4559, an absolute name": _one(
        {"tmp": "dir 755", f"tmp/{SECRET}": "x"}, entry(f"/tmp/{SECRET}", b"x")
    ),
    "CVE-2014-9357 and 2018-15664, a directory exchanged for a symlink": _one(
        {"d": "dir 755", "d/f": "x"}, folder("d"), symlink("d", UP), entry("d/f", b"x")
    ),
    "CVE-2020-27833, symlinks one after the other": _one(
        {"a": "dir 755", "a/p": "dir 755", "a/p/p": "dir 755", f"a/p/p/{SECRET}": "x"},
        symlink("a", "."), symlink("a/p", ".."), symlink("a/p/p", ".."),
        entry(f"a/p/p/{SECRET}", b"x"),
    ),
    "CVE-2021-29136, a symlink named /.": _one(
        "root of the layer is no directory", symlink("/.", "/tmp"), entry("f", b"x")
    ),
    "CVE-2021-32760, a mode through a link": _one(
        {"l": "-> /tmp"}, symlink("l", "/tmp"),
        entry("l", kind=tarfile.SYMTYPE, linkname="/tmp", mode=0o777),
    ),
    "CVE-2024-12718, attributes outside": _one("'\\.\\.'", folder("a/../..", mode=0o777)),
    "CVE-2025-4138, a target longer than a path": _one(
        {**{_LONG[: 248 * depth - 1]: "dir 755" for depth in range(1, 16)},
         "e": f"-> {_LONG}/{'../' * 15}", "e2": "dir 755", f"e2/{SECRET}": "x"},
        folder(_LONG), symlink("e", f"{_LONG}/{'../' * 15}"), symlink("e2", f"e/{UP}"),
        entry(f"e2/{SECRET}", b"x"),
    ),
    "CVE-2025-4330, a target that is removed": _one(
        {"a": "dir 755", "a/b": "-> ../c", "c": "x"},
        symlink("a/b", "../c"), symlink("c", f"{UP}{SECRET}"), entry("c", b"x"),
    ),
    "CVE-2025-4517, a hardlink to a symlink out": _one(
        "h in .* is a hardlink to l/secret", symlink("l", UP + "tmp"), hardlink("h", f"l/{SECRET}"),
        entry("h2", b"x"),
    ),
    "CVE-2026-50163, a hardlink from the working directory": _one(
        "h in .* is a hardlink to secret", hardlink("h", SECRET)
    ),
    "CVE-2026-85731, parents that are symlinks": _two(
        {**_OUT, "out": "dir 755", "out/a": "dir 755", "out/a/b": "x"}, entry("out/a/b", b"x")
    ),
    "a device behind a symlink": _two(
        {**_OUT, "out": "dir 755", "out/null": "device"},
        entry("out/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3),
    ),
    "a whiteout behind a symlink to a directory of the image": Breakout(
        [[folder("d"), entry("d/f", b"f"), symlink("s", "d")], [entry("s/.wh.f")]],
        {"d": "dir 755", "d/f": "f", "s": "dir 755"},
    ),
    "xattrs that make a file of the host a whiteout": _one(
        {"f": ""}, entry("f", pax_headers={"SCHILY.xattr.trusted.overlay.whiteout": "",
                                           "SCHILY.xattr.user.overlay.metacopy": "",
                                           "SCHILY.xattr.trusted.overlay.redirect": f"/{SECRET}"})
    ),
}  # fmt: skip

BREAKOUTS = {**CONTAINERD, **ADVISORIES}
