"""Root filesystems to test with, as tar files made once and kept in a cache directory.

Functions that make one raise :class:`Unavailable` where the machine lacks what it takes.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import platform
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .machine import REPOSITORY, SEARCH_PATH, Unavailable, program

EPOCH = 1_700_000_000
"""The time of every file made here, in seconds since 1970."""

DEBIAN_SUITE = "bookworm"

_PATIENCE = 110
"""Seconds for making the Debian tree: less than a test may take, so that it is skipped instead."""

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n"
_GROUP = b"root:x:0:\nwww-data:x:33:\n"


def cache_directory() -> Path:
    """Where big test data is kept from run to run; LAMINA_CACHE names another place."""
    directory = Path(os.environ.get("LAMINA_CACHE") or REPOSITORY / ".cache")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The file ``name`` of the cache, made by ``make(path)`` when it is not there.

    Of several processes that want it at the same time one makes it and the others wait. A file
    that is there is whole: it gets its name last.
    """
    path = cache_directory() / name
    with _locked(path.with_name(f".{name}.lock")):
        if not path.exists():
            unfinished = path.with_name(f".{name}.part")
            unfinished.unlink(missing_ok=True)
            make(unfinished)
            unfinished.replace(path)
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def static_busybox() -> Path:
    """The busybox that runs alone in an empty root."""
    found = program("busybox")
    if found is None:
        raise Unavailable("needs busybox (package busybox-static)")
    libraries = subprocess.run(["ldd", found], capture_output=True, text=True, check=False)
    if "=>" in libraries.stdout:
        raise Unavailable("busybox needs libraries (that of package busybox-static does not)")
    return Path(found)


def busybox_tar() -> Path:
    """A small root filesystem of a few hundred entries with one of everything tar can hold."""
    busybox = static_busybox()
    # Another busybox or another recipe is another file.
    recipe = hashlib.sha256(busybox.read_bytes() + Path(__file__).read_bytes()).hexdigest()
    return cached(f"busybox-{recipe[:16]}.tar", lambda path: _write_busybox(path, busybox))


def _write_busybox(path: Path, busybox: Path) -> None:
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for directory in (".", "bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var"):
            _add(tar, directory, tarfile.DIRTYPE, mode=0o1777 if directory == "tmp" else 0o755)
        _add(tar, "bin/busybox", content=busybox.read_bytes(), mode=0o755)
        for applet in sorted(set(applets.stdout.split()) - {"busybox"}):
            _add(tar, f"bin/{applet}", tarfile.SYMTYPE, mode=0o777, target="busybox")
        _add(tar, "etc/passwd", content=_PASSWD)
        _add(tar, "etc/group", content=_GROUP)
        _add(tar, "etc/motd", content=b"welcome\n")
        _add(tar, "etc/motd.hardlink", tarfile.LNKTYPE, target="etc/motd")
        _add(tar, "home/www", tarfile.DIRTYPE, mode=0o750, owner=33)
        _add(tar, "home/www/owned", content=b"not root's\n", mode=0o640, owner=33)
        _add(tar, "dev/fifo", tarfile.FIFOTYPE, mode=0o600)
        _add(tar, "dev/null", tarfile.CHRTYPE, mode=0o666, device=(1, 3))
        _add(tar, "var/setuid", content=b"#!/bin/sh\n", mode=0o4755)
        _add(tar, "var/empty", content=b"")
        _add(tar, "var/zeros", content=bytes(300_000))
        _add(tar, "var/labelled", content=b"has an attribute\n", xattrs={"user.label": "value"})


def _add(
    tar: tarfile.TarFile,
    name: str,
    kind: bytes = tarfile.REGTYPE,
    *,
    content: bytes = b"",
    mode: int = 0o644,
    owner: int = 0,
    target: str = "",
    device: tuple[int, int] = (0, 0),
    xattrs: dict[str, str] | None = None,
) -> None:
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.size = len(content)
    entry.mode = mode
    entry.uid = entry.gid = owner
    entry.mtime = EPOCH
    entry.linkname = target
    entry.devmajor, entry.devminor = device
    entry.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
    tar.addfile(entry, io.BytesIO(content))


def debian_tar() -> Path:
    """A Debian root filesystem of about 5,000 entries and 120 MB. The first time takes a minute."""
    if program("mmdebstrap") is None:
        raise Unavailable("needs mmdebstrap")
    name = f"debian-{DEBIAN_SUITE}-apt-{platform.machine()}-1.tar"
    return cached(name, _write_debian)


def _write_debian(path: Path) -> None:
    excludes = ("/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*", "/usr/share/info/*")
    command = ["mmdebstrap", "--quiet", "--variant=apt", "--format=tar"]
    command += [f"--dpkgopt=path-exclude={pattern}" for pattern in excludes]
    environment = os.environ | {"PATH": SEARCH_PATH, "SOURCE_DATE_EPOCH": str(EPOCH)}
    try:
        result = subprocess.run(
            [*command, DEBIAN_SUITE, path],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
    except subprocess.TimeoutExpired:
        path.unlink(missing_ok=True)
        raise Unavailable(f"mmdebstrap takes longer than {_PATIENCE} s") from None
    if result.returncode:
        path.unlink(missing_ok=True)
        why = (result.stderr.strip() or "no message").splitlines()[-1]
        raise Unavailable(f"mmdebstrap cannot make a Debian tree: {why}")
