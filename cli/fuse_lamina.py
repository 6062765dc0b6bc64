"""``fuse-lamina``: mount layers as a union, with the options of fuse-overlayfs and mount(8)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unionfs.mounting import MountOptions

_USAGE = """\
usage: fuse-lamina [-f] [-o OPTION[,OPTION...]]... [SOURCE] MOUNTPOINT

Mount a union of directories, or of layer packs, in userspace.

  -o lowerdir=DIR[:DIR...]   the layers to read, topmost first (write \\: for a colon)
  -o upperdir=DIR            where changes go; without it the mount is read-only
  -o workdir=DIR             an empty directory on upperdir's filesystem
  -o ro, rw, allow_other, default_permissions, fsname=NAME
  -o [no]suid, [no]dev, [no]exec, [no]atime, [no]diratime, sync, async, dirsync
  -f, --foreground           stay in the foreground until the mount ends
  -d, --debug                stay in the foreground and say what happens
  -h, --help                 show this text
  -V, --version              show the version
"""


class UsageError(Exception):
    """The command line makes no sense; the message says what is wrong with it."""


def split_escaped(text: str, separator: str) -> list[str]:
    """Split at a separator that no backslash precedes, and take the backslashes away."""
    words = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            words[-1] += following if following in (separator, "\\") else character + following
        elif character == separator:
            words.append("")
        else:
            words[-1] += character
    return words


def parse_mount_options(words: list[str]) -> dict[str, str]:
    """The ``-o`` options by name; a flag has an empty value, the last of a name decides."""
    found: dict[str, str] = {}
    for word in words:
        for item in _split_options(word):
            name, _, value = item.partition("=")
            if name:
                found.pop(name, None)
                found[name] = value
    return found


def _split_options(word: str) -> list[str]:
    """Split at commas, which may be escaped as in mount(8); other escapes stay for lowerdir."""
    items = [""]
    characters = iter(word)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            items[-1] += following if following == "," else character + following
        elif character == ",":
            items.append("")
        else:
            items[-1] += character
    return items


def _take(arguments: Iterator[str], option: str) -> str:
    try:
        return next(arguments)
    except StopIteration:
        raise UsageError(f"option {option} needs a value") from None


def build_options(given: dict[str, str], mountpoint: str) -> MountOptions:
    """The mount that options ask for. An option nobody knows is an error."""
    from unionfs.attach import FLAGS  # noqa: PLC0415
    from unionfs.mounting import MountOptions  # noqa: PLC0415

    lowers = split_escaped(given.pop("lowerdir", ""), ":")
    upper, work = given.pop("upperdir", None), given.pop("workdir", None)
    fsname = given.pop("fsname", "") or "lamina"
    given.pop("subtype", None)  # mount.fuse3 passes on the type that it was called for
    given.pop("default_permissions", None)  # always so
    allow_other = given.pop("allow_other", None) is not None or os.geteuid() == 0
    flags = tuple(name for name in given if name in FLAGS)
    unknown = [name for name in given if name not in FLAGS]
    if unknown:
        raise UsageError(f"unknown option: {unknown[0]}")
    read_only = [name for name in flags if name in ("ro", "rw")][-1:] == ["ro"]
    return MountOptions(
        lowers=tuple(_absolute(path) for path in lowers if path),
        upper=_absolute(upper) if upper else None,
        work=_absolute(work) if work else None,
        mountpoint=_absolute(mountpoint),
        fsname=fsname,
        read_only=read_only,
        allow_other=allow_other,
        flags=tuple(name for name in flags if name not in ("ro", "rw")),
    )


def _absolute(path: str) -> bytes:
    return os.path.abspath(os.fsencode(path))


def parse(arguments: list[str]) -> tuple[MountOptions, bool, bool]:
    """The mount, whether to stay in the foreground, and whether to say what happens."""
    words: list[str] = []
    places: list[str] = []
    foreground = debug = False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-f", "--foreground"):
            foreground = True
        elif argument in ("-d", "--debug"):
            foreground = debug = True
        elif argument == "-o":
            words.append(_take(rest, argument))
        elif argument.startswith("-o"):
            words.append(argument[2:])
        elif argument == "--":
            places.extend(rest)
        elif argument.startswith("-"):
            raise UsageError(f"unknown option: {argument}")
        else:
            places.append(argument)
    if len(places) not in (1, 2):
        raise UsageError("say one mountpoint")
    return build_options(parse_mount_options(words), places[-1]), foreground, debug


def main() -> None:
    """Run the program and exit: 0 once the mount answers, 1 if it cannot be made, 2 for usage."""
    arguments = sys.argv[1:]
    if "-h" in arguments or "--help" in arguments:
        sys.stdout.write(_USAGE)
        return
    if "-V" in arguments or "--version" in arguments:
        sys.stdout.write(f"fuse-lamina {version('lamina')}\n")
        return
    sys.exit(_run(arguments))


def _run(arguments: list[str]) -> int:
    import logging  # noqa: PLC0415

    from unionfs.errors import UnionError  # noqa: PLC0415
    from unionfs.mounting import describe, serve, start  # noqa: PLC0415

    try:
        options, foreground, debug = parse(arguments)
        logging.basicConfig(
            level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(message)s"
        )
        if foreground:
            serve(options)
        else:
            start(options)
    except UsageError as error:
        sys.stderr.write(f"fuse-lamina: {error}\ntry 'fuse-lamina --help'\n")
        return 2
    except (UnionError, OSError) as error:
        sys.stderr.write(f"fuse-lamina: {describe(error)}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    main()
