"""Putting a FUSE filesystem into the mount table, and taking it out again.

With CAP_SYS_ADMIN in its user namespace a process mounts by itself, so that ``allow_other`` and
devices are its own to decide; an ordinary user goes through the setuid program fusermount3, which
also ends the mount when the daemon dies.
"""

from __future__ import annotations

import array
import errno
import logging
import os
import re
import socket
import subprocess
from dataclasses import dataclass, field
from typing import NamedTuple

from . import syscalls
from .errors import MountError, display
from .options import TreeOptions
from .owners import IdMap

log = logging.getLogger(__name__)

FILESYSTEM = "fuse.lamina"
DEVICE = "/dev/fuse"

_ATIMES = syscalls.MS_NOATIME | syscalls.MS_RELATIME | syscalls.MS_STRICTATIME

FLAGS = {
    "ro": (0, syscalls.MS_RDONLY),
    "rw": (syscalls.MS_RDONLY, 0),
    "nosuid": (0, syscalls.MS_NOSUID),
    "suid": (syscalls.MS_NOSUID, 0),
    "nodev": (0, syscalls.MS_NODEV),
    "dev": (syscalls.MS_NODEV, 0),
    "noexec": (0, syscalls.MS_NOEXEC),
    "exec": (syscalls.MS_NOEXEC, 0),
    "noatime": (_ATIMES, syscalls.MS_NOATIME),
    "atime": (syscalls.MS_NOATIME, 0),
    "relatime": (_ATIMES, syscalls.MS_RELATIME),
    "norelatime": (syscalls.MS_RELATIME, 0),
    "strictatime": (_ATIMES, syscalls.MS_STRICTATIME),
    "nostrictatime": (syscalls.MS_STRICTATIME, 0),
    "lazytime": (0, syscalls.MS_LAZYTIME),
    "nolazytime": (syscalls.MS_LAZYTIME, 0),
    "nodiratime": (0, syscalls.MS_NODIRATIME),
    "diratime": (syscalls.MS_NODIRATIME, 0),
    "nosymfollow": (0, syscalls.MS_NOSYMFOLLOW),
    "symfollow": (syscalls.MS_NOSYMFOLLOW, 0),
    "sync": (0, syscalls.MS_SYNCHRONOUS),
    "async": (syscalls.MS_SYNCHRONOUS, 0),
    "dirsync": (0, syscalls.MS_DIRSYNC),
    "silent": (0, syscalls.MS_SILENT),
    "loud": (syscalls.MS_SILENT, 0),
}
"""The generic mount flags (mount(8)): for each the bits that it clears and those that it sets."""

_HELPER_FLAGS = {
    syscalls.MS_RDONLY: "ro",
    syscalls.MS_NOEXEC: "noexec",
    syscalls.MS_SYNCHRONOUS: "sync",
    syscalls.MS_DIRSYNC: "dirsync",
    syscalls.MS_NOATIME: "noatime",
}
"""The flags that every fusermount3 knows; it sets nosuid and nodev by itself."""

_HELPER_SETS = syscalls.MS_NOSUID | syscalls.MS_NODEV


@dataclass(frozen=True, kw_only=True)
class MountOptions:
    """What to mount where.

    ``lowers`` are topmost first, each a directory or the file of a pack or merged index; ``upper``
    and ``work`` come together, without them the mount is read-only. ``uid_map`` and ``gid_map``
    say how owners of lower files are shown. ``flags`` are names of :data:`FLAGS`, the last of
    a pair deciding; ``noatime`` is the default.

    ``fsname`` and ``subtype`` are what the mount table shows: source, and type after ``fuse.``.
    ``allow_root`` lets in root beside the user who mounts, ``allow_other`` everybody. ``contexts``
    are SELinux's mount options. ``cached_seconds`` is how long the kernel may trust names and
    attributes; every change passes the mount, so it is long. ``volatile`` marks the work directory
    as one that a crash makes worthless. Without ``acls`` or ``xattrs`` there are none.
    """

    lowers: tuple[bytes, ...]
    upper: bytes | None
    work: bytes | None
    mountpoint: bytes
    tree: TreeOptions = field(default_factory=TreeOptions)
    fsname: str = "lamina"
    subtype: str = "lamina"
    read_only: bool = False
    allow_other: bool = False
    allow_root: bool = False
    default_permissions: bool = True
    uid_map: IdMap = ()
    gid_map: IdMap = ()
    flags: tuple[str, ...] = ()
    contexts: tuple[tuple[str, str], ...] = ()
    cached_seconds: float = 86400.0
    volatile: bool = False
    acls: bool = True
    xattrs: bool = True
    writeback: bool = True


def may_mount_directly() -> bool:
    """Whether this process can mount by itself, without fusermount3."""
    if not syscalls.has_capability(syscalls.CAP_SYS_ADMIN):
        return False
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return False
    return True


def attach(options: MountOptions) -> tuple[int, socket.socket | None]:
    """Mount; returns the descriptor of the session, and fusermount3's channel if it was needed.

    The mount of the helper lasts as long as the channel is open. Raises :class:`MountError`.
    """
    if syscalls.has_capability(syscalls.CAP_SYS_ADMIN):
        try:
            return _mount_directly(options), None
        except PermissionError:
            log.debug("mounting directly is not permitted; trying fusermount3")
    return _mount_by_helper(options)


def _flag_bits(options: MountOptions) -> int:
    bits = syscalls.MS_NOATIME
    for name in options.flags:
        clears, sets = FLAGS[name]
        bits = bits & ~clears | sets
    if options.read_only or options.upper is None:
        bits |= syscalls.MS_RDONLY
    return bits


def _words(options: MountOptions) -> list[str]:
    """The options of the FUSE filesystem itself."""
    words = ["default_permissions"] if options.default_permissions else []
    # with allow_root it is the daemon that turns the others away, the kernel cannot
    return words + (["allow_other"] if options.allow_other or options.allow_root else [])


def _mount_directly(options: MountOptions) -> int:
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _no_device() from None
    words = [f"fd={fd},rootmode=40000,user_id={os.geteuid()},group_id={os.getegid()}"]
    words += _words(options)
    words += [f'{name}="{context}"' for name, context in options.contexts]
    kind = f"fuse.{options.subtype}"
    try:
        syscalls.mount(
            os.fsencode(options.fsname), options.mountpoint, os.fsencode(kind),
            _flag_bits(options), os.fsencode(",".join(words)),
        )  # fmt: skip
    except PermissionError:
        os.close(fd)
        raise
    except OSError as error:
        os.close(fd)
        if error.errno == errno.ENODEV:
            raise _no_device() from None
        raise MountError(f"mounting at {display(options.mountpoint)}: {error.strerror}") from None
    return fd


def _no_device() -> MountError:
    return MountError(f"this kernel offers no FUSE ({DEVICE}): load its module with modprobe fuse")


def _mount_by_helper(options: MountOptions) -> tuple[int, socket.socket]:
    """Have fusermount3 mount, and receive the session's descriptor (libfuse, util/fusermount.c)."""
    if options.contexts:
        raise MountError(f"option {options.contexts[0][0]}: fusermount3 sets no security contexts")
    bits = _flag_bits(options)
    words = ["auto_unmount", f"fsname={_escape(options.fsname)}"]
    words += [f"subtype={_escape(options.subtype)}", *_words(options)]
    words += [word for bit, word in _HELPER_FLAGS.items() if bits & bit]
    if bits & ~_HELPER_SETS & ~sum(_HELPER_FLAGS):
        log.info("fusermount3 cannot set all of the mount flags %s", ",".join(options.flags))
    ours, theirs = socket.socketpair()
    command = ["fusermount3", "-o", ",".join(words), "--", os.fsdecode(options.mountpoint)]
    with theirs:
        try:
            helper = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                env={"PATH": os.defpath, "_FUSE_COMMFD": str(theirs.fileno())},
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
        except FileNotFoundError:
            raise MountError(
                "an ordinary user needs fusermount3 to mount: install the package fuse3"
            ) from None
    fd = _receive_descriptor(ours)
    if fd is None:
        assert helper.stderr is not None
        said = helper.stderr.read().decode("utf-8", "replace").strip().splitlines()
        helper.wait()
        raise MountError(said[-1] if said else "fusermount3 failed and said nothing")
    return fd, ours


def _escape(word: str) -> str:
    """A word for fusermount3's comma-separated options."""
    return word.replace("\\", "\\\\").replace(",", "\\,")


def _receive_descriptor(channel: socket.socket) -> int | None:
    size = array.array("i").itemsize
    _, ancillary, _, _ = channel.recvmsg(1, socket.CMSG_SPACE(size))
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds = array.array("i")
            fds.frombytes(data[:size])
            os.set_inheritable(fds[0], False)
            return fds[0]
    return None


def unmount(mountpoint: bytes, *, lazy: bool = False) -> None:
    """End a lamina mount. ``lazy`` detaches it at once, though files in it are open.

    Raises :class:`MountError` if there is none or it is busy.
    """
    found = mounted_at(mountpoint)
    if found is None or found.kind != FILESYSTEM:
        raise MountError(f"{display(mountpoint)} is not a lamina mount")
    flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    try:
        syscalls.umount(mountpoint, flags)
    except PermissionError:
        _unmount_by_helper(mountpoint, lazy=lazy)
    except OSError as error:
        reason = "it is busy: a process has a file or its working directory there"
        raise MountError(
            f"cannot unmount {display(mountpoint)}: "
            + (reason if error.errno == errno.EBUSY else str(error.strerror))
        ) from None


def _unmount_by_helper(mountpoint: bytes, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fsdecode(mountpoint)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        raise MountError(
            "an ordinary user needs fusermount3 to unmount: install the package fuse3"
        ) from None
    if done.returncode:
        raise MountError(done.stderr.decode("utf-8", "replace").strip())


def _unescape(field: bytes) -> bytes:
    """A path of /proc/self/mountinfo, where blanks and backslashes are octal (proc(5))."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


class Mounted(NamedTuple):
    """What the mount table says is on top at a path: a filesystem type, and its device number."""

    kind: str
    device: str


def mounted_at(mountpoint: bytes) -> Mounted | None:
    """What is mounted at this very path, found without touching it; None for no mountpoint."""
    absolute = os.path.abspath(mountpoint)
    path = os.path.join(os.path.realpath(os.path.dirname(absolute)), os.path.basename(absolute))
    found = None
    with open("/proc/self/mountinfo", "rb") as mounts:
        for line in mounts:
            fields, _, tail = line.partition(b" - ")
            _, _, device, _, place = fields.split()[:5]
            if _unescape(place) == path:
                found = Mounted(os.fsdecode(tail.split()[0]), device.decode())
    return found
