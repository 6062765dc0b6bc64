"""The contract of containerd's snapshotters. Tests of its own suite are named in the docstrings."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapshotter.errors import Conflict, NoSuchSnapshot
from snapshotter.snapshots import Snapshotter
from snapshotter.store import SnapshotKind, Store
from tests.support.mounts import mounted
from unionfs import syscalls

Change = Callable[[Path], None]


@pytest.fixture
def snapshots(store: Store) -> Snapshotter:
    return Snapshotter(store)


@contextmanager
def seen(snapshots: Snapshotter, key: str, tmp_path: Path) -> Iterator[Path]:
    """An active snapshot or a view, mounted."""
    options = snapshots.mount_options(key, tmp_path / "mnt")
    lowers = [Path(os.fsdecode(path)) for path in options.lowers]
    upper, work = (
        Path(os.fsdecode(path)) if path is not None else None
        for path in (options.upper, options.work)
    )
    extra = ["metacopy=on"] if options.tree.metacopy else []
    with mounted(tmp_path / "mnt", lowers, upper, work, extra) as mountpoint:
        yield mountpoint


def grow(
    snapshots: Snapshotter, name: str, parent: str, tmp_path: Path, change: Change | None = None
) -> None:
    """Commit one snapshot more, changed through a mount, or in its empty upper without one."""
    key = f"extract-{name}"
    snapshots.prepare(key, parent)
    if change is not None:
        with seen(snapshots, key, tmp_path) as mountpoint:
            change(mountpoint)
    snapshots.commit(name, key)


def look(snapshots: Snapshotter, name: str, tmp_path: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and contents of everything that a committed snapshot shows."""
    snapshots.view(f"view-{name}", name)
    found = {}
    with seen(snapshots, f"view-{name}", tmp_path) as mountpoint:
        for path in sorted(mountpoint.rglob("*")):
            info = path.lstat()
            data = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
            found[str(path.relative_to(mountpoint))] = (info.st_mode, data)
    snapshots.remove(f"view-{name}")
    return found


def names(snapshots: Snapshotter, name: str, tmp_path: Path) -> list[str]:
    return list(look(snapshots, name, tmp_path))


# -- what there is -------------------------------------------------------------------------------


def test_a_snapshot_is_what_it_was_made_as(snapshots: Snapshotter) -> None:
    """StatActive, StatCommitted, Transitivity."""
    snapshots.prepare("active", labels={"a": "1"})
    made = snapshots.stat("active")
    assert (made.kind, made.parent, made.labels) == (SnapshotKind.ACTIVE, "", {"a": "1"})
    snapshots.commit("first", "active", labels={"b": "2"})
    with pytest.raises(NoSuchSnapshot, match="No such snapshot: active"):
        snapshots.stat("active")
    first = snapshots.stat("first")
    assert (first.kind, first.parent, first.labels) == (SnapshotKind.COMMITTED, "", {"b": "2"})
    snapshots.prepare("next", "first")
    snapshots.commit("second", "next")
    snapshots.view("look", "second")
    assert [snapshots.stat(name).parent for name in ("look", "second", "first")] == [
        "second", "first", "",
    ]  # fmt: skip
    assert snapshots.stat("look").kind is SnapshotKind.VIEW


def test_names_and_keys_are_one_space(snapshots: Snapshotter) -> None:
    """PrepareViewFailing."""
    snapshots.prepare("taken")
    for make in (snapshots.prepare, snapshots.view):
        with pytest.raises(Conflict, match="snapshot taken exists already"):
            make("taken")
    snapshots.commit("base", "taken")
    snapshots.prepare("other", "base")
    with pytest.raises(Conflict, match="snapshot base exists already"):
        snapshots.commit("base", "other")
    assert snapshots.stat("other").kind is SnapshotKind.ACTIVE
    with pytest.raises(Conflict, match="needs a name"):
        snapshots.prepare("")


def test_only_what_is_committed_can_be_a_parent(snapshots: Snapshotter) -> None:
    snapshots.prepare("active")
    snapshots.view("view")
    for parent in ("active", "view"):
        with pytest.raises(Conflict, match=f"{parent} is not committed"):
            snapshots.prepare("x", parent)
    with pytest.raises(NoSuchSnapshot):
        snapshots.prepare("x", "missing")
    with pytest.raises(NoSuchSnapshot):
        snapshots.stat("x")


def test_only_what_is_active_can_be_committed(snapshots: Snapshotter) -> None:
    snapshots.view("view")
    snapshots.prepare("active")
    snapshots.commit("done", "active")
    for key in ("view", "done"):
        with pytest.raises(Conflict, match=f"{key} is not active"):
            snapshots.commit("x", key)
    with pytest.raises(Conflict, match="done is committed"):
        snapshots.mount_options("done", Path("/mnt"))


def test_labels_are_replaced_and_some_are_inherited(snapshots: Snapshotter) -> None:
    """Update."""
    inherited = {"containerd.io/snapshot/x": "1", "mine": "2"}
    snapshots.prepare("a", labels=inherited)
    snapshots.commit("base", "a", labels=inherited)
    assert snapshots.prepare("b", "base", {"own": "3"}).labels == {
        "containerd.io/snapshot/x": "1", "own": "3",
    }  # fmt: skip
    before = snapshots.stat("base")
    after = snapshots.update("base", {"new": "1", "gone": ""})
    assert after.labels == {"new": "1"}
    assert after.updated > before.updated
    assert after.created == before.created
    with pytest.raises(NoSuchSnapshot):
        snapshots.update("missing", {})


def test_a_walk_finds_what_fits_and_may_look_and_remove_meanwhile(snapshots: Snapshotter) -> None:
    """Walk, StatInWalk, RemoveInWalk."""
    snapshots.prepare("a", labels={"k": "v"})
    snapshots.commit("base", "a", labels={"k": "v"})
    snapshots.prepare("b", "base", {"k": "w"})
    snapshots.view("c", "base")
    assert [found.name for found in snapshots.walk()] == ["base", "b", "c"]
    assert [found.name for found in snapshots.walk(parent="base")] == ["b", "c"]
    assert [found.name for found in snapshots.walk(kind=SnapshotKind.VIEW)] == ["c"]
    assert [found.name for found in snapshots.walk(label="k")] == ["base", "b"]
    assert [found.name for found in snapshots.walk(label="k=v")] == ["base"]
    for found in snapshots.walk(parent="base"):
        assert snapshots.stat(found.name) == found
        snapshots.remove(found.name)
    assert [found.name for found in snapshots.walk()] == ["base"]


def test_nothing_that_others_grow_from_is_removed(snapshots: Snapshotter) -> None:
    """Remove, RemoveIntermediateSnapshot, RemoveAfterCommit."""
    snapshots.prepare("a")
    snapshots.commit("base", "a")
    snapshots.prepare("b", "base")
    with pytest.raises(Conflict, match="cannot remove snapshot base: b grows from it"):
        snapshots.remove("base")
    snapshots.commit("middle", "b")
    snapshots.view("top", "middle")
    with pytest.raises(Conflict):
        snapshots.remove("middle")
    for name in ("top", "middle", "base"):
        snapshots.remove(name)
    assert list(snapshots.walk()) == []
    with pytest.raises(NoSuchSnapshot):
        snapshots.remove("base")


def test_a_layer_goes_with_its_last_snapshot_or_image(store: Store, snapshots: Snapshotter) -> None:
    snapshots.prepare("a")
    (store.snapshots.places("a")[0] / "file").write_bytes(os.urandom(1 << 20))
    snapshots.commit("base", "a")
    (pack,) = (store.root / "layers").glob("*.pack")
    assert snapshots.usage("base").size == pack.stat().st_size
    assert snapshots.usage("base").inodes == 1
    store.sweep()
    assert pack.exists()
    snapshots.remove("base")
    assert not pack.exists()


def test_usage_is_that_of_the_snapshot_alone(store: Store, snapshots: Snapshotter) -> None:
    snapshots.prepare("a")
    upper = store.snapshots.places("a")[0]
    (upper / "big").write_bytes(bytes(range(256)) * 4096)
    os.link(upper / "big", upper / "same")
    used = snapshots.usage("a")
    assert used.inodes == 2
    assert 1 << 20 <= used.size < 3 << 19
    snapshots.commit("base", "a")
    snapshots.prepare("b", "base")
    assert snapshots.usage("b").inodes == 1
    assert snapshots.view("c", "base").kind is SnapshotKind.VIEW
    assert snapshots.usage("c") == (0, 0)


# -- what they show ------------------------------------------------------------------------------


@pytest.mark.fuse
@pytest.mark.root
def test_what_was_changed_is_what_grows(snapshots: Snapshotter, tmp_path: Path) -> None:
    """Basic."""

    def begin(root: Path) -> None:
        (root / "foo").write_text("foo\n")
        (root / "a").mkdir()

    def change(root: Path) -> None:
        (root / "bar").write_text("bar\n")
        (root / "a/b").mkdir()

    grow(snapshots, "first", "", tmp_path, begin)
    grow(snapshots, "second", "first", tmp_path, change)
    assert names(snapshots, "first", tmp_path) == ["a", "foo"]
    assert names(snapshots, "second", tmp_path) == ["a", "a/b", "bar", "foo"]
    snapshots.prepare("third", "second")
    with seen(snapshots, "third", tmp_path) as root:
        assert (root / "foo").read_text() == "foo\n"


@pytest.mark.fuse
@pytest.mark.root
def test_files_are_replaced_removed_and_moved(snapshots: Snapshotter, tmp_path: Path) -> None:
    """LayerFileupdate, RemoveDirectoryInLowerLayer, DeletedFilesInChildSnapshot,
    MoveFileFromLowerLayer, Rename."""

    def begin(root: Path) -> None:
        for path in ("foo", "gone", "dir/a", "dir/b", "moved/f", "dir1/file", "dir2/x"):
            (root / path).parent.mkdir(exist_ok=True)
            (root / path).write_text(path)

    def change(root: Path) -> None:
        (root / "foo").write_text("changed")
        (root / "gone").unlink()
        shutil.rmtree(root / "dir")
        (root / "dir").mkdir()
        (root / "dir/new").write_text("new")
        (root / "moved/f").rename(root / "g")
        (root / "dir1").rename(root / "dir3")
        (root / "dir3/file").write_text("in the renamed")

    grow(snapshots, "first", "", tmp_path, begin)
    grow(snapshots, "second", "first", tmp_path, change)
    found = {path: data for path, (mode, data) in look(snapshots, "second", tmp_path).items()}
    assert found == {
        "dir": b"", "dir/new": b"new", "dir2": b"", "dir2/x": b"dir2/x", "dir3": b"",
        "dir3/file": b"in the renamed", "foo": b"changed", "g": b"moved/f", "moved": b"",
    }  # fmt: skip
    assert "gone" in names(snapshots, "first", tmp_path)


@pytest.mark.fuse
@pytest.mark.root
def test_owners_and_modes_are_kept(snapshots: Snapshotter, tmp_path: Path) -> None:
    """Chown, DirectoryPermissionOnCommit, RootPermission, Chmod."""

    def begin(root: Path) -> None:
        assert stat.S_IMODE(root.stat().st_mode) == 0o755
        for name in ("opt", "opt/a", "opt/b"):
            (root / name).mkdir()
        (root / "opt/a/file.txt").write_text("hello")
        (root / "opt").chmod(0o710)

    def change(root: Path) -> None:
        os.chown(root / "opt", 1, 1)
        os.chown(root / "opt/a/file.txt", 2, 3)
        (root / "opt/b").chmod(0o2770)
        root.chmod(0o711)

    grow(snapshots, "first", "", tmp_path, begin)
    grow(snapshots, "second", "first", tmp_path, change)
    grow(snapshots, "third", "second", tmp_path)
    snapshots.prepare("x", "third")
    with seen(snapshots, "x", tmp_path) as root:
        assert stat.S_IMODE(root.stat().st_mode) == 0o711
        facts = [
            (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode))
            for info in ((root / name).stat() for name in ("opt", "opt/a/file.txt", "opt/b"))
        ]
    assert facts == [(1, 1, 0o710), (2, 3, 0o644), (0, 0, 0o2770)]


@pytest.mark.fuse
@pytest.mark.root
def test_a_view_cannot_be_changed(snapshots: Snapshotter, tmp_path: Path) -> None:
    """ViewReadonly."""
    grow(snapshots, "base", "", tmp_path, lambda root: (root / "f").touch())
    for parent in ("base", ""):
        snapshots.view(f"view{parent}", parent)
        with seen(snapshots, f"view{parent}", tmp_path) as root:
            assert sorted(os.listdir(root)) == (["f"] if parent else [])
            with pytest.raises(OSError, match="Read-only"):
                (root / "new").touch()


@pytest.mark.fuse
@pytest.mark.root
def test_files_stay_what_they_are_when_they_are_copied_up(
    snapshots: Snapshotter, tmp_path: Path
) -> None:
    """DirectoryInodeStability, OpenFileInodeStability, GetCWD, UnixDomainSockets."""

    def begin(root: Path) -> None:
        (root / "d").mkdir()
        (root / "d/f").write_text("f")

    grow(snapshots, "base", "", tmp_path, begin)
    snapshots.prepare("x", "base")
    with seen(snapshots, "x", tmp_path) as root:
        before = ((root / "d").stat().st_ino, (root / "d/f").stat().st_ino)
        fd = os.open(root / "d/f", os.O_RDONLY)
        (root / "d/f").write_text("changed")
        assert os.fstat(fd).st_ino == before[1]
        assert os.pread(fd, 9, 0) == b"changed"
        os.close(fd)
        (root / "d/new").touch()
        assert ((root / "d").stat().st_ino, (root / "d/f").stat().st_ino) == before
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            os.symlink(root, tmp_path / "short")
            server.bind(str(tmp_path / "short/d/socket"))
            server.listen()
            client.connect(str(tmp_path / "short/d/socket"))
    snapshots.commit("after", "x")
    assert names(snapshots, "after", tmp_path) == ["d", "d/f", "d/new"]


@pytest.mark.fuse
@pytest.mark.root
def test_what_is_mounted_is_neither_committed_nor_removed(
    snapshots: Snapshotter, tmp_path: Path
) -> None:
    snapshots.prepare("x")
    with seen(snapshots, "x", tmp_path) as root:
        (root / "f").touch()
        with pytest.raises(Conflict, match="x is mounted"):
            snapshots.commit("y", "x")
        with pytest.raises(Conflict, match="x is mounted"):
            snapshots.remove("x")
    snapshots.commit("y", "x")
    assert names(snapshots, "y", tmp_path) == ["f"]


def long_chain(store: Store, snapshots: Snapshotter, tmp_path: Path, count: int) -> None:
    """A chain in which each snapshot adds a file, changes one and removes one."""
    parent = ""
    for number in range(count):
        snapshots.prepare(f"key{number}", parent)
        upper = store.snapshots.places(f"key{number}")[0]
        (upper / f"file{number}").write_text(str(number))
        (upper / "changed").write_text(str(number))
        if number >= 2:
            os.mknod(upper / f"file{number - 2}", stat.S_IFCHR, 0)
        parent = f"layer{number}"
        snapshots.commit(parent, f"key{number}")
    snapshots.prepare("top", parent)
    assert len(store.snapshots.lowers("top")) <= 8
    found = look(snapshots, parent, tmp_path)
    last = count - 1
    assert {path: data for path, (_, data) in found.items()} == {
        "changed": b"%d" % last,
        f"file{last - 1}": b"%d" % (last - 1),
        f"file{last}": b"%d" % last,
    }


@pytest.mark.fuse
@pytest.mark.root
def test_a_chain_of_128_layers_is_mounted(
    store: Store, snapshots: Snapshotter, tmp_path: Path
) -> None:
    """128LayersMount."""
    long_chain(store, snapshots, tmp_path, 128)


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.slow
def test_a_chain_of_500_layers_is_mounted(
    store: Store, snapshots: Snapshotter, tmp_path: Path
) -> None:
    long_chain(store, snapshots, tmp_path, 500)


@pytest.mark.fuse
@pytest.mark.root
def test_renameat2_works_in_a_snapshot(snapshots: Snapshotter, tmp_path: Path) -> None:
    def begin(root: Path) -> None:
        (root / "a").write_text("a")
        (root / "b").write_text("b")

    def swap(root: Path) -> None:
        here = syscalls.AT_FDCWD
        flags = syscalls.RENAME_EXCHANGE
        syscalls.renameat2(here, bytes(root / "a"), here, bytes(root / "b"), flags)

    grow(snapshots, "first", "", tmp_path, begin)
    grow(snapshots, "second", "first", tmp_path, swap)
    found = look(snapshots, "second", tmp_path)
    assert [found[name][1] for name in ("a", "b")] == [b"b", b"a"]


def test_a_store_can_be_closed_twice(tmp_path: Path) -> None:
    """CloseTwice."""
    with Store.open(tmp_path / "store") as store:
        Snapshotter(store).prepare("x")
        store.close()
    with Store.open(tmp_path / "store") as store:
        assert Snapshotter(store).stat("x").kind is SnapshotKind.ACTIVE
