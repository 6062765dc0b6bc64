"""What public suites and probing once found wrong, each in its smallest form."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.pack import archives
from tests.support.mounts import mounted
from tests.unionfs.trees import UnionSide, open_tree
from unionfs.layers import directory
from unionfs.layers.packed import PackedLayer
from unionfs.reading import ReadableTree

pytestmark = pytest.mark.usefixtures("no_umask")

LONG_AGO = 978_307_200_000_000_000


@pytest.fixture
def low(tmp_path: Path) -> Path:
    for name in ("low", "upper", "work"):
        (tmp_path / name).mkdir()
    return tmp_path / "low"


@pytest.fixture
def union(tmp_path: Path, low: Path) -> Iterator[UnionSide]:
    tree = open_tree([low], tmp_path / "upper", tmp_path / "work")
    yield UnionSide(tree)
    tree.close()


def test_names_of_a_copied_up_file_stay_together_though_the_kernel_forgets_it(
    low: Path, union: UnionSide
) -> None:
    (low / "one").write_text("lower")
    (low / "other").hardlink_to(low / "one")
    union.write(b"one", 0, b"UPPER")
    union.forget()
    seen = union.walk()
    assert (seen[b"other"].data, seen[b"other"].links) == (b"UPPER", 2)
    assert seen[b"other"].first == seen[b"one"].first
    union.unlink(b"one")
    union.unlink(b"other")
    union.forget()
    assert not union.tree.root.children


def test_counting_subdirectories_keeps_nothing(
    low: Path, union: UnionSide, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On btrfs, and where a lower layer is a union itself, directories do not count theirs."""
    for name in ("a", "b", "c/x"):
        (low / "d" / name).mkdir(parents=True)
    (low / "d/f").touch()
    union.mkdir(b"d/new")
    of_host = directory.attributes_of
    monkeypatch.setattr(directory, "attributes_of", lambda info: of_host(info)._replace(nlink=1))
    node = union.node(b"d")
    union.forget()
    node = union.node(b"d")
    assert union.tree.attributes(node).nlink == 2 + 4
    assert not node.children


@pytest.mark.parametrize("name", [b"d/f", b"d/sub", b"d/link"])
def test_a_copy_up_leaves_the_times_of_the_directory(
    low: Path, union: UnionSide, name: bytes
) -> None:
    (low / "d/sub").mkdir(parents=True)
    (low / "d/f").touch()
    (low / "d/link").symlink_to("f")
    os.utime(low / "d", ns=(LONG_AGO, LONG_AGO))
    union.utime(name, 1)
    assert union.tree.attributes(union.node(b"d")).mtime_ns == LONG_AGO


def test_a_removed_directory_that_only_lower_layers_had_can_be_changed_and_synced(
    low: Path, union: UnionSide
) -> None:
    (low / "d").mkdir()
    node = union.node(b"d")
    union.tree.open_directory(node)
    union.rmdir(b"d")
    union.tree.chmod(node, 0o711)
    assert stat.S_IMODE(union.tree.attributes(node).mode) == 0o711
    assert union.tree.sync_fd(node) is None
    union.tree.close_directory(node)


def test_a_file_that_can_have_no_acl_has_none(union: UnionSide) -> None:
    union.symlink(b"link", b"nowhere")
    with pytest.raises(OSError, match="No data") as caught:
        union.tree.xattr(union.node(b"link"), b"system.posix_acl_access")
    assert caught.value.errno == errno.ENODATA


@pytest.mark.fuse
def test_a_changed_acl_shows_in_the_mode_at_once(tmp_path: Path, low: Path) -> None:
    (low / "f").touch(0o600)
    with mounted(tmp_path / "mnt", [low], tmp_path / "upper", tmp_path / "work") as mountpoint:
        file = mountpoint / "f"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        subprocess.run(["setfacl", "-m", "u:1:rwx", file], check=True)
        assert stat.S_IMODE(file.stat().st_mode) == 0o670
        file.chmod(0o640)
        shown = subprocess.run(
            ["getfacl", "-cn", file], check=True, capture_output=True, text=True
        ).stdout
        assert "mask::r--" in shown


def test_a_directory_that_is_only_above_a_file_has_the_xattrs_of_the_one_below(
    tmp_path: Path,
) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("d")
        member.type, member.mode = tarfile.DIRTYPE, 0o711
        member.pax_headers = {"SCHILY.xattr.user.mine": "1"}
        archive.addfile(member)
    below = PackedLayer(archives.pack_of(tmp_path, out.getvalue()), 0, 0)
    above = PackedLayer(
        archives.pack_of(tmp_path, archives.tar_of([archives.file("d/f")])), 0, 1000
    )
    with closing(ReadableTree([above, below])) as tree:
        node = tree.lookup(tree.root, b"d")
        assert stat.S_IMODE(tree.attributes(node).mode) == 0o711
        assert tree.xattrs(node) == {b"user.mine": b"1"}
