"""A mount by an ordinary user: the same as a plain directory, but for what FUSE does not allow.

One way goes through fusermount3, the other through a user namespace in which the user is root.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.machine import REPOSITORY
from tests.unionfs.unions import copy, plant
from unionfs import xattrs

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.peer("fusermount3", "unshare")]

AS_USER = REPOSITORY / "tests/containers/as_user.py"
USER = "daemon"
"""An ordinary user that every system has."""

SCRIPT = """
import json, os, stat, subprocess, sys

base, repository, options = sys.argv[1:]
os.umask(0o022)
program = [sys.executable, "-m", "cli.fuse_lamina"]
places = f"lowerdir={base}/low,upperdir={base}/upper,workdir={base}/work"
end = ["umount"] if os.getuid() == 0 else ["fusermount3", "-u"]

def write(path, mode="a"):
    with open(path, mode) as file:
        file.write("more")

def act(root):
    os.chdir(root)
    said = []

    def attempt(action, *arguments):
        try:
            action(*arguments)
        except OSError as error:
            said.append((action.__name__, arguments, error.errno))
        else:
            said.append((action.__name__, arguments, 0))

    if os.getuid():
        for path in ("own/root", "own/setuid", "root/r"):
            for action in ((write,), (os.chmod, 0o640), (os.chown, 0, 0), (os.truncate, 0)):
                attempt(action[0], path, *action[1:])
        for name in ("root", "setuid", "null", "fifo", "link", "rdir"):
            attempt(os.rename, "own/" + name, "own/new " + name)
        attempt(os.link, "own/mine", "root/link")
        attempt(os.chown, "own/mine", 0, 0)
    attempt(os.rename, "closed", "closed2")
    attempt(os.rename, "closed2/f", "own/f")
    attempt(os.unlink, "closed2/g")
    attempt(write, "closed2/f")
    attempt(os.chmod, "closed2", 0o755)
    attempt(os.unlink, "closed2/g")
    attempt(write, "closed2/new", "w")
    attempt(os.chmod, "closed2/sub", 0)
    attempt(os.listdir, "closed2/sub")
    attempt(os.rename, "closed2/sub", "closed2/none")
    attempt(os.chmod, "closed2/none", 0o755)
    attempt(os.chmod, "closed2/f", 0o600)
    attempt(write, "closed2/f")
    attempt(os.chmod, "closed2/f", 0)
    attempt(write, "closed2/f")
    attempt(os.chmod, "closed2", 0o500)
    attempt(os.mkdir, "made", 0o555)
    attempt(write, "made/x", "w")
    attempt(os.rename, "made", "own/made")
    attempt(os.mkfifo, "pipe", 0o600)
    attempt(os.mknod, "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    attempt(os.symlink, "target", "symlink")
    attempt(os.unlink, "own/gone/x")
    attempt(os.rmdir, "own/gone")
    attempt(os.mkdir, "own/gone")
    attempt(os.rename, "tree", "tree2")
    attempt(os.rename, "tree2/a", "own/a")
    attempt(write, "own/a/b/c")
    attempt(os.chmod, "own/mine", 0o400)
    attempt(write, "own/mine")
    attempt(os.unlink, "own/linked")
    attempt(write, "own/linked2")
    attempt(os.rename, "own/linked2", "linked2")
    attempt(os.setxattr, "own/a", "trusted.x", b"1")
    attempt(os.setxattr, "own/a", "user.x", b"1")
    os.chdir("/")
    return [(name, list(map(str, arguments)), error) for name, arguments, error in said]

def content(path, kind):
    if kind == stat.S_IFLNK:
        return os.readlink(path)
    if kind != stat.S_IFREG:
        return ""
    try:
        with open(path) as file:
            return file.read()
    except PermissionError:
        return "closed"

def names(path):
    try:
        return os.listxattr(path, follow_symlinks=False)
    except PermissionError:
        return "closed"

def see(root):
    found = {}
    for directory, below, files in os.walk(root):
        for name in below + files:
            path = os.path.join(directory, name)
            info = os.lstat(path)
            kind = stat.S_IFMT(info.st_mode)
            found[os.path.relpath(path, root)] = (
                oct(info.st_mode), info.st_uid, info.st_gid, info.st_rdev,
                0 if kind == stat.S_IFDIR else info.st_nlink, content(path, kind), names(path),
            )
    return found

def mount():
    environment = {**os.environ, "PYTHONPATH": repository}
    command = [*program, "-o", places + options, base + "/mnt"]
    subprocess.run(command, check=True, env=environment)

plain = act(base + "/plain"), see(base + "/plain")
mount()
union = act(base + "/mnt"), see(base + "/mnt")
subprocess.run([*end, base + "/mnt"], check=True)
mount()
again = see(base + "/mnt")
subprocess.run([*end, base + "/mnt"], check=True)
print(json.dumps({"plain": plain, "union": union, "again": again}))
"""

Result = dict[str, Any]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Files of the user, and of root in directories of the user, in low and the same in plain."""
    account = pwd.getpwnam(USER)
    low = tmp_path / "low"
    plant(low, "own/mine", "own/gone/x", "own/linked", "closed/f", "closed/g", "closed/sub/x")
    plant(low, "tree/a/b/c")
    os.link(low / "own/linked", low / "own/linked2")
    for name in ("upper", "work", "mnt"):
        (tmp_path / name).mkdir()
    for path in tmp_path.rglob("*"):
        os.chown(path, account.pw_uid, account.pw_gid)
    (low / "closed/f").chmod(0o400)
    (low / "closed").chmod(0o555)
    plant(low, "own/root", "own/setuid", "own/rdir/x", "root/r")
    (low / "own/setuid").chmod(0o4755)
    os.mknod(low / "own/null", 0o020666, os.makedev(1, 3))
    os.mkfifo(low / "own/fifo")
    (low / "own/link").symlink_to("target")
    copy(low, tmp_path / "plain")
    tmp_path.chmod(0o755)
    return tmp_path


def run(base: Path, *way: str, options: str = "") -> Result:
    reach = [str(base), sys.base_prefix, sys.prefix, str(REPOSITORY)]
    command = [sys.executable, str(AS_USER), USER, "open", *reach, "--", *way]
    command += [sys.executable, "-c", SCRIPT, str(base), str(REPOSITORY), options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result: Result = json.loads(done.stdout)
    return result


def marks_in(upper: Path) -> set[str]:
    """The names of a union's own xattrs."""
    found = set()
    for path in upper.rglob("*"):
        found.update(os.listxattr(path, follow_symlinks=False))
    return {name for name in found if xattrs.shown_name(os.fsencode(name)) is None}


@pytest.mark.parametrize("options", ["", ",metacopy=on"])
def test_a_mount_of_an_ordinary_user_is_like_a_plain_directory(base: Path, options: str) -> None:
    """Only symlinks of others become the user's, when they are moved."""
    found = run(base, options=options)
    assert found["union"][0] == found["plain"][0]
    account = pwd.getpwnam(USER)
    expected = found["plain"][1]
    expected["own/new link"][1:3] = [account.pw_uid, account.pw_gid]
    assert found["union"][1] == found["again"] == expected
    assert expected["own/new null"][:4] == ["0o20644", 0, 0, os.makedev(1, 3)]
    assert expected["own/new setuid"][:3] == ["0o104755", 0, 0]
    assert (base / "upper/own/new null").is_file()
    assert (base / "upper/own/new fifo").is_file()
    assert (base / "upper/pipe").is_fifo()
    assert {path.lstat().st_uid for path in (base / "upper").rglob("*")} <= {0, account.pw_uid}
    expected_marks = {"lamina", "redirect", "opaque", "lamina.links"}
    expected_marks |= {"metacopy"} if options else set()
    assert marks_in(base / "upper") == {f"user.overlay.{name}" for name in expected_marks}


def test_a_mount_in_a_user_namespace_is_like_a_plain_directory(base: Path) -> None:
    """Ids that the namespace does not know are shown as nobody's, as the kernel shows them."""
    found = run(base, "unshare", "-Urm")
    assert found["union"][0] == found["plain"][0]
    assert found["union"][1] == found["again"] == found["plain"][1]
    assert found["again"]["own/root"][1:3] == [65534, 65534]
    marks = {f"user.overlay.{name}" for name in ("lamina", "redirect", "opaque", "lamina.links")}
    assert marks_in(base / "upper") == marks
