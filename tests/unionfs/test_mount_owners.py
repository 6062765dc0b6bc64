"""Whose files a mount shows and writes: maps, squashing, and owners kept in xattrs."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unionfs.unions import FUSE_OVERLAYFS, LAMINA, owners, plant, refusal, union
from unionfs import overrides

pytestmark = [pytest.mark.fuse, pytest.mark.root]

# -- owners that are mapped or hidden ------------------------------------------------------------

BY_OTHERS = """
import json, os, sys
directory, callers, wanted = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
os.chdir(directory)
os.setgroups([])
os.umask(0o022)
errors = []

def attempt(action, *arguments, **options):
    try:
        action(*arguments, **options)
    except OSError as error:
        errors.append((action.__name__, arguments, error.errno))

def touch(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

for uid, gid in callers:
    os.setegid(gid)
    os.seteuid(uid)
    attempt(touch, f"public/{uid}")
    attempt(os.mkdir, f"public/{uid} d")
    attempt(touch, f"public/{uid} d/f")
    attempt(os.symlink, "target", f"public/{uid} link")
    attempt(os.chmod, f"public/{uid}", 0o6711)
    attempt(os.chown, f"public/{uid} d", -1, gid)
    for number, path in enumerate(sorted(os.listdir("files"))):
        attempt(os.chmod, f"files/{path}", 0o640 + number % 2)
        attempt(os.truncate, f"files/{path}", number)
    os.seteuid(0)
    os.setegid(0)
for number, (uid, gid) in enumerate(wanted):
    attempt(os.chown, sorted("files/" + path for path in os.listdir("files"))[number], uid, gid)
    attempt(os.chown, f"public/{callers[0][0]} link", uid, gid, follow_symlinks=False)
print(json.dumps(errors))
"""

MAPS = ["uidmapping=0:1000:1:1:110000:65536", "gidmapping=0:1000:1:1:110000:65536"]
MAPPED_CALLERS = [(1000, 1000), (110_006, 110_007), (300_000, 300_001)]
ALL_CALLERS = [(0, 0), (1000, 1001), (7, 8)]


def make_owned(base: Path) -> None:
    """Files of several users in both layers."""
    for layer in ("low", "upper"):
        (base / layer / "files").mkdir(parents=True)
        (base / layer / "public").mkdir(mode=0o777)
        (base / layer / "public").chmod(0o1777)
        for owner in (0, 5, 70, 300_000):
            path = base / layer / "files" / f"{owner} {layer}"
            path.write_text("contents")
            os.chown(path, owner, owner)
    base.chmod(0o755)


@pytest.mark.peer(FUSE_OVERLAYFS)
@pytest.mark.parametrize(
    ("options", "callers"),
    [
        (MAPS, MAPPED_CALLERS),
        (MAPS[:1], [(1000, 1000), (110_006, 7)]),
        (["squash_to_root"], ALL_CALLERS),
        (["squash_to_uid=7"], ALL_CALLERS),
        (["squash_to_gid=8", "squash_to_uid=1000"], ALL_CALLERS),
        ([*MAPS[:1], "squash_to_gid=3"], [(1000, 1000), (110_006, 110_007)]),
    ],
)
def test_owners_are_those_of_fuse_overlayfs(
    tmp_path: Path, options: list[str], callers: list[tuple[int, int]]
) -> None:
    """On both sides of the mount, for files that are there, made, and given away."""
    seen = []
    wanted = [(1000, -1), (-1, 110_010), (110_011, 110_012), (400_000, 400_000)]
    for kind in (LAMINA, FUSE_OVERLAYFS):
        base = tmp_path / kind
        base.mkdir()
        make_owned(base)
        with union(kind, base, *options) as mountpoint:
            before = owners(mountpoint)
            errors = by_others(mountpoint, callers, wanted)
            seen.append((before, errors, owners(mountpoint), owners(base / "upper")))
    assert seen[0] == seen[1]


def by_others(directory: Path, callers: object, wanted: object) -> object:
    arguments = [str(directory), json.dumps(callers), json.dumps(wanted)]
    command = [sys.executable, "-c", BY_OTHERS, *arguments]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def test_owners_are_more_than_those_of_fuse_overlayfs(tmp_path: Path) -> None:
    """What it does otherwise: the group of a setgid directory, and ids that are mapped already."""
    (tmp_path / "low/d").mkdir(parents=True)
    os.chown(tmp_path / "low/d", 5, 6)
    (tmp_path / "low/d").chmod(0o2777)
    plant(tmp_path / "low", "shifted")
    os.chown(tmp_path / "low/shifted", 110_004, 110_005)
    with union(LAMINA, tmp_path, *MAPS) as mountpoint:
        shown = owners(mountpoint)
        (mountpoint / "d/new").mkdir()
        (mountpoint / "by root").touch()
        assert owners(mountpoint)["d/new"] == (0o42755, 1000, 110_005, 0)
    assert shown["shifted"][1:3] == (110_004, 110_005)
    assert shown["d"][1:3] == (110_004, 110_005)
    written = owners(tmp_path / "upper")
    assert written["by root"][1:3] == (0, 0)
    assert written["d/new"] == (0o42755, 0, 6, 0)
    with union(LAMINA, tmp_path, "squash_to_root") as mountpoint:
        (mountpoint / "d/squashed").touch()
        assert {found[1:3] for found in owners(mountpoint).values()} == {(0, 0)}
    assert owners(tmp_path / "upper")["d/squashed"][1:3] == (0, 6)


# -- owners kept in xattrs -----------------------------------------------------------------------

FORMS = [("1", overrides.PRIVILEGED), ("2", overrides.CONTAINERS), ("2", overrides.FUSE_OVERLAYFS)]
"""The option, and the xattr: the last is what fuse-overlayfs before 1.14 wrote."""


def give_away(root: Path) -> None:
    (root / "new").touch()
    os.chown(root / "new", 12, 34)
    (root / "new").chmod(0o4711)
    (root / "dir").mkdir()
    os.chown(root / "dir", 5, 6)
    os.chown(root / "f", 7, 8)


def make_specials(root: Path) -> None:
    (root / "g").chmod(0o600)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", 0o020666, os.makedev(1, 3))
    os.mknod(root / "disk", 0o060600, os.makedev(8, 1))
    os.chown(root / "disk", 0, 6)
    os.chmod(root / "disk", 0o660)
    (root / "link").symlink_to("target")
    os.chown(root / "link", 3, 4, follow_symlinks=False)
    os.link(root / "null", root / "dir/null")
    (root / "fifo").rename(root / "dir/fifo")


def make_overridden(base: Path, xattr: bytes) -> None:
    """A layer and an upper in which owners and modes are kept in xattrs."""
    plant(base / "low", "f", "g")
    (base / "upper").mkdir()
    for path, value in (("low", "0:0:40755"), ("upper", "0:0:40755"), ("low/f", "55:56:100640")):
        os.setxattr(base / path, xattr, value.encode())
    os.setxattr(base / "low/g", xattr, b"57:58:4750")


@pytest.mark.parametrize(("option", "xattr"), FORMS)
@pytest.mark.peer(FUSE_OVERLAYFS)
def test_owners_are_kept_in_xattrs_that_fuse_overlayfs_reads(
    tmp_path: Path, option: str, xattr: bytes
) -> None:
    make_overridden(tmp_path, xattr)
    choice = f"xattr_permissions={option}"
    with union(LAMINA, tmp_path, choice) as mountpoint:
        assert owners(mountpoint) == {"f": (0o100640, 55, 56, 0), "g": (0o104750, 57, 58, 0)}
        give_away(mountpoint)
        written = owners(mountpoint)
    assert {"new": (0o104711, 12, 34, 0), "f": (0o100640, 7, 8, 0)}.items() <= written.items()
    assert {found[1:3] for found in owners(tmp_path / "upper").values()} == {(0, 0)}
    reading = [] if xattr == overrides.CONTAINERS else [choice]
    with union(FUSE_OVERLAYFS, tmp_path, *reading) as mountpoint:
        assert owners(mountpoint) == written
    with union(LAMINA, tmp_path, choice) as mountpoint:
        assert owners(mountpoint) == written
        make_specials(mountpoint)
        written = owners(mountpoint)
    assert written["null"] == written["dir/null"] == (0o020644, 0, 0, os.makedev(1, 3))
    assert written["disk"] == (0o060660, 0, 6, os.makedev(8, 1))
    assert written["link"][1:3] == (3, 4)
    assert {found[0] >> 12 for found in owners(tmp_path / "upper").values()} == {0o4, 0o10, 0o12}
    with union(LAMINA, tmp_path) as mountpoint:
        assert owners(mountpoint) == written, "the root of the upper says it"


@pytest.mark.parametrize(("option", "xattr"), [FORMS[0], FORMS[2]])
@pytest.mark.peer(FUSE_OVERLAYFS)
def test_owners_that_fuse_overlayfs_keeps_in_xattrs_are_read(
    tmp_path: Path, option: str, xattr: bytes
) -> None:
    make_overridden(tmp_path, xattr)
    choice = f"xattr_permissions={option}"
    with union(FUSE_OVERLAYFS, tmp_path, choice) as mountpoint:
        give_away(mountpoint)
        written = owners(mountpoint)
    for options in ([choice], []):
        with union(LAMINA, tmp_path, *options) as mountpoint:
            assert owners(mountpoint) == written


@pytest.mark.parametrize(("option", "xattr"), FORMS[:2])
def test_the_xattr_is_the_unions_own(tmp_path: Path, option: str, xattr: bytes) -> None:
    make_overridden(tmp_path, xattr)
    name = os.fsdecode(xattr)
    with union(LAMINA, tmp_path, f"xattr_permissions={option}") as mountpoint:
        give_away(mountpoint)
        for path in ("f", "g", "new", "dir", "."):
            place = mountpoint / path
            assert os.listxattr(place) == []
            assert refusal(os.getxattr, place, name) == errno.ENODATA
            assert refusal(os.setxattr, place, name, b"1:1:0777") == errno.EPERM
            assert refusal(os.removexattr, place, name) == errno.ENODATA
