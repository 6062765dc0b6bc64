"""``fuse-lamina``: mount layers as a union, with the options of fuse-overlayfs and mount(8)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import version
from typing import NamedTuple

from .mount_options import Given, UsageError, build_options

_NO_DEVICES = "FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT"
"""What has fuse-overlayfs write ``.wh.`` files when it is in the environment."""

_USAGE = """\
usage: fuse-lamina [-f] [-o OPTION[,OPTION...]]... [SOURCE] MOUNTPOINT

Mount a union of directories, or of layer packs, in userspace. Takes the options of fuse-overlayfs
and those of mount(8).

  -o lowerdir=DIR[:DIR...]   the layers to read, topmost first (write \\: for a colon)
  -o upperdir=DIR            where changes go; without it the mount is read-only
  -o workdir=DIR             an empty directory on upperdir's filesystem
  -o ro, rw, allow_other, allow_root, fsname=NAME, subtype=NAME
  -o [no]suid, [no]dev, [no]exec, [no]atime, [no]diratime, relatime, strictatime, lazytime,
     nosymfollow, sync, async, dirsync
  -o redirect_dir=on|follow|nofollow|off   whether directories of layers can be renamed  [on]
  -o metacopy=on|off         copy attributes up without contents  [off]
  -o whiteout=overlay|aufs   how removed names are written  [as upperdir has it]
  -o shwh                    a mount without upperdir shows removed names as .wh.NAME
  -o uidmapping=ID:SHOWN:COUNT[:...], gidmapping=...   owners, on disk and shown
  -o squash_to_root, squash_to_uid=ID, squash_to_gid=ID
  -o xattr_permissions=0|1|2 keep owners and modes in xattrs, where they cannot be set
  -o volatile, fsync=0       never wait for the disk
  -o timeout=SECONDS         how long the kernel trusts names and attributes  [86400]
  -o writeback=0, noacl, noxattrs=1, static_nlink, ino32_t
  -f, --foreground           stay in the foreground until the mount ends
  -d, --debug                stay in the foreground and say what happens
  -h, --help                 show this text
  -V, --version              show the version
"""


def _take(arguments: Iterator[str], option: str) -> str:
    try:
        return next(arguments)
    except StopIteration:
        raise UsageError(f"option {option} needs a value") from None


class CommandLine(NamedTuple):
    """What was typed: ``places`` are ``[SOURCE] MOUNTPOINT``, ``given`` the ``-o`` options."""

    places: list[str]
    given: Given
    foreground: bool
    debug: bool


def read(arguments: list[str]) -> CommandLine:
    """Take a command line apart. Raises :class:`UsageError`."""
    words: list[str] = []
    places: list[str] = []
    foreground = debug = False
    rest = iter(arguments)
    for argument in rest:
        if argument in ("-f", "--foreground"):
            foreground = True
        elif argument in ("-d", "--debug"):
            debug = True
        elif argument == "-o":
            words.append(_take(rest, argument))
        elif argument.startswith("-o"):
            words.append(argument[2:])
        elif argument == "--":
            places.extend(rest)
        elif argument == "-s":
            pass  # one thread, as always
        elif argument.startswith("-"):
            raise UsageError(f"unknown option: {argument}")
        else:
            places.append(argument)
    if len(places) not in (1, 2):
        raise UsageError("say one mountpoint")
    given = Given(words)
    debug |= given.flag("debug")
    return CommandLine(places, given, foreground or debug, debug)


def main(arguments: list[str] | None = None) -> None:
    """Run the program and exit: 0 once the mount answers, 1 if it cannot be made, 2 for usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
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
        typed = read(arguments)
        logging.basicConfig(
            level=logging.DEBUG if typed.debug else logging.WARNING,
            format="%(levelname)s %(message)s",
        )
        if _NO_DEVICES in os.environ:
            typed.given.default("whiteout", "aufs")
        options = build_options(typed.given, typed.places)
        if typed.foreground:
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
