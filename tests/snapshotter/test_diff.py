"""The layer of an upper directory, as tarfile and GNU tar see it."""

from __future__ import annotations

import io
import os
import socket
import stat
import subprocess
import tarfile
from contextlib import closing
from pathlib import Path

import pytest

from snapshotter.diff import Difference
from unionfs.errors import LayerError
from unionfs.layers.directory import DirectoryLayer
from unionfs.reading import ReadableTree

TIME = 1_700_000_000


def layer_of(upper: Path, *, clamp: int | None = None, with_root: bool = False) -> bytes:
    with closing(ReadableTree([DirectoryLayer(os.fsencode(upper))])) as tree:
        return Difference(tree, clamp=clamp, with_root=with_root).read()


def listed(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        return tar.getmembers()


def test_an_empty_upper_is_the_empty_layer(tmp_path: Path) -> None:
    assert layer_of(tmp_path) == bytes(1024)


def test_entries_come_in_one_order_whatever_order_they_were_made_in(tmp_path: Path) -> None:
    for upper, names in (("a", ("z", "b", "d/y", "d/x")), ("b", ("d/x", "d/y", "b", "z"))):
        for name in names:
            path = tmp_path / upper / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            os.utime(path, (0, TIME))
        os.utime(tmp_path / upper / "d", (0, TIME))
    first, second = layer_of(tmp_path / "a"), layer_of(tmp_path / "b")
    assert first == second
    assert [member.name for member in listed(first)] == ["b", "d", "d/x", "d/y", "z"]


@pytest.mark.root
def test_whiteouts_and_opaque_markers_come_before_their_siblings(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").touch()
    for name in ("gone", "0"):
        os.mknod(tmp_path / name, stat.S_IFCHR, 0)
    os.mknod(tmp_path / "d" / "hidden-anyway", stat.S_IFCHR, 0)
    os.setxattr(tmp_path / "d", "trusted.overlay.opaque", b"y")
    members = listed(layer_of(tmp_path))
    assert [member.name for member in members] == [
        ".wh.0",
        ".wh.gone",
        "d",
        "d/.wh..wh..opq",
        "d/a",
    ]
    marker = members[0]
    assert (marker.mtime, marker.mode, marker.size, marker.isreg()) == (0, 0, 0, True)
    assert not members[2].pax_headers


def test_every_kind_of_file_is_kept_but_sockets(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 700)
    (tmp_path / "file").chmod(0o4751)
    os.link(tmp_path / "file", tmp_path / "link")
    os.symlink("/no/where", tmp_path / "symlink")
    os.link(tmp_path / "symlink", tmp_path / "symlink2", follow_symlinks=False)
    os.mkfifo(tmp_path / "fifo")
    with closing(socket.socket(socket.AF_UNIX)) as unix:
        unix.bind(str(tmp_path / "socket"))
    os.setxattr(tmp_path / "file", "user.k", b"\0v")
    with (tmp_path / "sparse").open("wb") as sparse:
        sparse.truncate(1_000_001)
    found = {member.name: member for member in listed(layer_of(tmp_path))}
    assert set(found) == {"fifo", "file", "link", "sparse", "symlink", "symlink2"}
    assert (found["file"].size, found["file"].mode) == (700, 0o4751)
    assert found["file"].pax_headers["SCHILY.xattr.user.k"] == "\0v"
    assert found["link"].islnk()
    assert found["link"].linkname == "file"
    assert found["symlink"].linkname == "/no/where"
    assert found["symlink2"].islnk()
    assert found["fifo"].isfifo()
    assert found["sparse"].size == 1_000_001
    assert not found["sparse"].issparse()


@pytest.mark.root
def test_gnu_tar_extracts_the_same_tree(tmp_path: Path) -> None:
    upper, copy = tmp_path / "upper", tmp_path / "copy"
    (upper / "d" / ("n" * 200)).mkdir(parents=True)
    (upper / "d" / "f").write_bytes(os.urandom(3 << 20))
    (upper / "latin-\udce9").write_text("not UTF-8")
    (upper / "long").symlink_to("t" * 300)
    os.mknod(upper / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.chown(upper / "d" / "f", 1234, 2**21 + 5)
    for path in upper.rglob("*"):
        os.utime(path, (TIME, TIME), follow_symlinks=False)
    copy.mkdir()
    subprocess.run(["tar", "--xattrs", "-xpf", "-", "-C", copy], input=layer_of(upper), check=True)

    def facts(root: Path) -> dict[str, object]:
        return {
            str(path.relative_to(root)): (
                (info := path.lstat()).st_mode,
                info.st_uid,
                info.st_gid,
                info.st_rdev,
                info.st_mtime,
                path.is_symlink() and os.readlink(path),
                stat.S_ISREG(info.st_mode) and path.read_bytes(),
            )
            for path in root.rglob("*")
        }

    assert facts(copy) == facts(upper)


def test_times_are_whole_seconds_and_clamped(tmp_path: Path) -> None:
    for name, moment in (("new", TIME * 10**9 + 999_999_999), ("old", 5 * 10**9), ("pre", -1)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(0, moment))
    times = {member.name: member.mtime for member in listed(layer_of(tmp_path))}
    assert times == {"new": TIME, "old": 5, "pre": -1}
    times = {member.name: member.mtime for member in listed(layer_of(tmp_path, clamp=6))}
    assert times == {"new": 6, "old": 5, "pre": -1}


def test_the_root_is_an_entry_only_on_request(tmp_path: Path) -> None:
    tmp_path.chmod(0o751)
    (member,) = listed(layer_of(tmp_path, with_root=True))
    assert (member.name, member.mode, member.isdir()) == (".", 0o751, True)


def test_a_tree_deeper_than_path_max_is_read(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 100, dir_fd=fd)
        below = os.open("d" * 100, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert len(listed(layer_of(tmp_path))[-1].name) == 60 * 101 - 1


@pytest.mark.root
def test_contents_that_no_lower_layer_has_are_missed(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    os.setxattr(tmp_path / "f", "trusted.overlay.metacopy", b"")
    with pytest.raises(LayerError, match=r"f in layer .* is a metacopy"):
        layer_of(tmp_path)
