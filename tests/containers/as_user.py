"""Runs a program as an ordinary user, in a mount namespace made fit for that.

Usage: ``as_user.py USER open|closed PATH... -- PROGRAM ARGUMENT...``. ``/dev/fuse`` is made one
that everybody may open, or only root, and every PATH one that the user can reach, although it may
lie below somebody's private home directory. All of it ends with the program.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
import tempfile
from pathlib import Path

from unionfs.syscalls import CLONE_NEWNS, MS_BIND, MS_PRIVATE, MS_REC, mount, unshare

FUSE_DEVICE = os.makedev(10, 229)


def main(user: str, fuse: str, *rest: str) -> None:
    split = rest.index("--")
    unshare(CLONE_NEWNS)
    mount(b"none", b"/", b"", MS_REC | MS_PRIVATE, b"")
    stage = Path(tempfile.mkdtemp())
    mount(b"stage", os.fsencode(stage), b"tmpfs", 0, b"mode=755")
    provide_fuse(stage, 0o666 if fuse == "open" else 0o600)
    make_reachable([Path(path) for path in rest[:split]], stage)
    account = pwd.getpwnam(user)
    os.initgroups(user, account.pw_gid)
    os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
    os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    os.chdir(account.pw_dir)
    program = rest[split + 1 :]
    os.execvpe(program[0], program, os.environ | {"HOME": account.pw_dir, "USER": user})


def provide_fuse(stage: Path, mode: int) -> None:
    node = stage / "fuse"
    os.mknod(node, stat.S_IFCHR | mode, FUSE_DEVICE)
    node.chmod(mode)
    mount(os.fsencode(node), b"/dev/fuse", b"", MS_BIND, b"")


def make_reachable(paths: list[Path], stage: Path) -> None:
    """Cover private directories with public ones in which only the paths are seen."""
    private = {path: private_ancestor(path) for path in paths}
    held = {}
    for number, path in enumerate(path for path in paths if private[path]):
        place = stage / str(number)
        place.mkdir()
        mount(os.fsencode(path), os.fsencode(place), b"", MS_BIND | MS_REC, b"")
        held[path] = place
    for ancestor in {ancestor for ancestor in private.values() if ancestor}:
        mount(b"public", os.fsencode(ancestor), b"tmpfs", 0, b"mode=755")
    for path, place in held.items():
        path.mkdir(parents=True, exist_ok=True)
        mount(os.fsencode(place), os.fsencode(path), b"", MS_BIND | MS_REC, b"")


def private_ancestor(path: Path) -> Path | None:
    """The topmost directory on the way to ``path`` that others may not enter."""
    for directory in (*reversed(path.parents), path):
        if not directory.stat().st_mode & stat.S_IXOTH:
            return directory
    return None


if __name__ == "__main__":
    main(*sys.argv[1:])
