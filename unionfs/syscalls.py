"""System calls that the standard library does not offer, as thin typed wrappers.

Every ctypes call of lamina is made here. Each wrapper raises :class:`OSError` with the errno and
the path it was about.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource

AT_FDCWD = -100

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_DIRSYNC = 0x80
MS_NOSYMFOLLOW = 0x100
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SILENT = 0x8000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
MS_LAZYTIME = 0x2000000

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

CAP_CHOWN = 0
CAP_SYS_ADMIN = 21

SYNC_FILE_RANGE_WRITE = 2

FICLONE = 0x40049409

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: bytes | None = None, other: bytes | None = None) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path, None, other)


def renameat2(source_fd: int, source: bytes, target_fd: int, target: bytes, flags: int) -> None:
    """Rename ``source`` to ``target`` under the RENAME_* ``flags`` (renameat2(2))."""
    _check(_libc.renameat2(source_fd, source, target_fd, target, flags), source, target)


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """mount(2): put ``source`` at the directory ``target``."""
    _check(_libc.mount(source, target, kind, ctypes.c_ulong(flags), data), target)


def umount(target: bytes, flags: int = 0) -> None:
    """umount2(2): end the mount at ``target``."""
    _check(_libc.umount2(target, flags), target)


def unshare(flags: int) -> None:
    """Move this process into new namespaces (CLONE_NEW* flags; unshare(2))."""
    _check(_libc.unshare(flags))


def clone_file(source_fd: int, target_fd: int) -> bool:
    """Share the blocks of one open file with another; False where the filesystem cannot."""
    try:
        fcntl.ioctl(target_fd, FICLONE, source_fd)
    except OSError:
        return False
    return True


def start_writeback(fd: int) -> None:
    """Begin to write a file's contents to disk, without waiting (sync_file_range(2))."""
    _check(_libc.sync_file_range(fd, ctypes.c_int64(0), ctypes.c_int64(0), SYNC_FILE_RANGE_WRITE))


def has_capability(capability: int) -> bool:
    """Whether this process has ``capability`` in its own user namespace (capabilities(7))."""
    with open("/proc/self/status", encoding="ascii") as status:
        for line in status:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> capability & 1)
    return False


def raise_descriptor_limit() -> int:
    """Lift the soft limit on open descriptors to the hard one, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
