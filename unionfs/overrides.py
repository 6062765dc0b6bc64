"""Owner, mode and type of a file kept in an xattr, where the host cannot have them.

An ordinary user cannot give files away or make devices, and on some network filesystems root
cannot either. There the file on the host belongs to whoever runs the mount, with a mode that lets
it be read, and an xattr says what it is meant to be, as text ``uid:gid:mode[:type]``: decimal ids,
octal permission bits, and a type ``file``, ``dir``, ``symlink``, ``pipe``, ``socket``,
``block-MAJOR-MINOR`` or ``char-MAJOR-MINOR``. Without a type the file is what it is on the host.

Three names are in use:

* ``user.containers.override_stat`` is written and read by podman and buildah (containers/storage
  with ``force_mask``: always with a type, mode in four digits) and by fuse-overlayfs with
  ``xattr_permissions=2`` (never with a type);
* ``user.fuseoverlayfs.override_stat`` was written in its place by fuse-overlayfs before 1.14, and
  is still where the upper's root has it;
* ``security.fuseoverlayfs.override_stat`` is fuse-overlayfs' with ``xattr_permissions=1``.

A layer uses the name that its root directory has. fuse-overlayfs 1.x copies the type bits of the
mode up with it (``0:0:100644``), and writes ids from 2**31 on as negative numbers. Devices in lower
layers are read by fuse-overlayfs from 1.15 on; 2.0 shows their numbers as 0:0.

containers/storage makes an empty regular file of devices, fifos and sockets, and no xattr for a
symlink, for Linux lets only regular files and directories have ``user.`` xattrs (xattr(7)). So only
those two are ever overridden, and only a regular file can be meant as something else.
"""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from .entry import Attributes
from .pack.format import MAJOR_MAX, MINOR_MAX
from .xattrs import ABSENT

CONTAINERS = b"user.containers.override_stat"
FUSE_OVERLAYFS = b"user.fuseoverlayfs.override_stat"
PRIVILEGED = b"security.fuseoverlayfs.override_stat"

NAMES = (PRIVILEGED, CONTAINERS, FUSE_OVERLAYFS)
"""The names in the order in which they are looked for, which is fuse-overlayfs' order."""

VALUE_MAX = 63
"""Bytes that a value may have: what fuse-overlayfs reads. The longest in use has 45."""

_TYPES = {
    b"file": stat.S_IFREG,
    b"dir": stat.S_IFDIR,
    b"symlink": stat.S_IFLNK,
    b"pipe": stat.S_IFIFO,
    b"socket": stat.S_IFSOCK,
    b"block": stat.S_IFBLK,
    b"char": stat.S_IFCHR,
}
_WORDS = {kind: word for word, kind in _TYPES.items()}
_DEVICES = (stat.S_IFBLK, stat.S_IFCHR)
_SPECIAL = (*_DEVICES, stat.S_IFIFO, stat.S_IFSOCK)

_VALUE = re.compile(
    rb"(?P<uid>-?\d{1,10}):(?P<gid>-?\d{1,10}):(?P<mode>[0-7]{1,7})"
    # What follows a known type is left to later versions, as the other readers leave it.
    rb"(?::(?P<type>[a-z]+)(?:-(?P<major>\d{1,4})-(?P<minor>\d{1,7}))?(?:[-:].*)?)?",
    re.DOTALL,
)


class Override(NamedTuple):
    """What a file is meant to be.

    ``mode`` holds permission bits only. ``kind`` is a ``stat.S_IF*`` value, 0 for "as the file is";
    ``rdev`` is as :func:`os.makedev` makes it and 0 for all but devices.
    """

    uid: int
    gid: int
    mode: int
    kind: int = 0
    rdev: int = 0


def parse(value: bytes) -> Override | None:
    """What an xattr's value says; None for anything malformed.

    Whoever may write the file on the host may write the xattr, so it can hold anything; an error
    would make the file one that can neither be read nor removed (for fuse-overlayfs 1.x not even
    its directory can be listed). A value that means nothing is therefore no override, as for
    fuse-overlayfs 2.0, and the file is what it is on the host.
    Malformed are also the id -1, which is no id, and a character device 0:0, which is a whiteout.
    """
    found = _VALUE.fullmatch(value) if len(value) <= VALUE_MAX else None
    if found is None:
        return None
    uid, gid = _id(found["uid"]), _id(found["gid"])
    mode = stat.S_IMODE(int(found["mode"], 8))
    if uid is None or gid is None:
        return None
    if found["type"] is None:
        return Override(uid, gid, mode)
    kind = _TYPES.get(found["type"])
    if kind is None:
        return None
    if kind not in _DEVICES:
        return Override(uid, gid, mode, kind)
    rdev = _device(found["major"], found["minor"])
    if rdev is None or (kind == stat.S_IFCHR and rdev == 0):
        return None
    return Override(uid, gid, mode, kind, rdev)


def _id(text: bytes) -> int | None:
    value = int(text)
    if not -(2**31) <= value < 2**32 - 1 or value == -1:
        return None
    return value % 2**32


def _device(major: bytes | None, minor: bytes | None) -> int | None:
    if major is None or minor is None or int(major) > MAJOR_MAX or int(minor) > MINOR_MAX:
        return None
    return os.makedev(int(major), int(minor))


def format(override: Override) -> bytes:  # noqa: A001 - the counterpart of parse, always qualified
    """The value that containers/storage and fuse-overlayfs read as ``override``."""
    text = b"%d:%d:%04o" % (override.uid, override.gid, override.mode)
    if not override.kind:
        return text
    text += b":" + _WORDS[override.kind]
    if override.kind in _DEVICES:
        text += b"-%d-%d" % (os.major(override.rdev), os.minor(override.rdev))
    return text


def apply(found: Attributes, override: Override) -> Attributes:
    """The attributes of a file as they are meant.

    A type that a file of its kind cannot stand for is passed over: a directory stays one, so that
    it can be listed, and no file without a target becomes a symlink.
    """
    kind = found.kind
    if kind not in (stat.S_IFREG, stat.S_IFDIR):
        return found
    found = found._replace(uid=override.uid, gid=override.gid, mode=kind | override.mode)
    if kind == stat.S_IFREG and override.kind in _SPECIAL:
        return found._replace(
            mode=override.kind | override.mode, rdev=override.rdev, size=0, blocks=0
        )
    return found


def used_in(root_fd: int) -> bytes | None:
    """The name of the xattr that a layer keeps overrides in, from its root; None for none."""
    for name in NAMES:
        try:
            os.getxattr(root_fd, name)
        except OSError as error:
            if error.errno not in ABSENT:
                raise
        else:
            return name
    return None
