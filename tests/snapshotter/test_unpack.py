"""Images as plain files, beside GNU tar and umoci."""

from __future__ import annotations

import errno
import io
import os
import stat
import subprocess
import tarfile
import tempfile
import traceback
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import pytest

from snapshotter.containers.userns import call_inside, single_mapping
from snapshotter.errors import SnapshotterError
from snapshotter.images import commit, import_rootfs
from snapshotter.store import Image, Store
from snapshotter.unpack import Losses, unpack
from tests.snapshotter.helpers import new_container, saved, small_image, tar, with_layer

NOBODY = 65534


def facts(root: Path) -> dict[str, tuple[object, ...]]:
    """All that lstat(2) and the contents say of a tree, and which names are one file."""
    names: dict[int, list[str]] = defaultdict(list)
    paths = [root, *(root / name for name in _below(root))]
    for path in paths:
        names[path.lstat().st_ino].append(str(path.relative_to(root)))
    return {
        str(path.relative_to(root)): (
            (info := path.lstat()).st_mode,
            (info.st_uid, info.st_gid),
            info.st_rdev,
            info.st_mtime_ns,
            names[info.st_ino],
            path.is_symlink() and os.readlink(path),
            stat.S_ISREG(info.st_mode) and path.read_bytes(),
            {name: os.getxattr(path, name, follow_symlinks=False) for name in _xattrs(path)},
        )
        for path in paths
    }


def _below(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*"))


def _xattrs(path: Path) -> list[str]:
    return sorted(os.listxattr(path, follow_symlinks=False))


def with_tar(source: Path, directory: Path) -> dict[str, tuple[object, ...]]:
    directory.mkdir()
    options = ["--xattrs", "--xattrs-include=*", "--delay-directory-restore"]
    subprocess.run(["tar", "-xpf", str(source), *options, "-C", str(directory)], check=True)
    return facts(directory)


@pytest.mark.root
def test_the_files_are_those_that_tar_makes(
    store: Store, busybox_tar: Path, tmp_path: Path
) -> None:
    with busybox_tar.open("rb") as stream:
        image = import_rootfs(store, stream)
    assert unpack(store, image, tmp_path / "ours") == Losses()
    assert facts(tmp_path / "ours") == with_tar(busybox_tar, tmp_path / "theirs")


@pytest.mark.root
def test_a_debian_is_the_one_that_tar_makes(store: Store, debian_tar: Path, tmp_path: Path) -> None:
    with debian_tar.open("rb") as stream:
        image = import_rootfs(store, stream)
    assert unpack(store, image, tmp_path / "ours") == Losses()
    assert facts(tmp_path / "ours") == with_tar(debian_tar, tmp_path / "theirs")


@pytest.mark.root
@pytest.mark.peer("umoci")
def test_layers_are_merged_as_umoci_does_it(
    store: Store, busybox_tar: Path, tmp_path: Path
) -> None:
    with busybox_tar.open("rb") as stream:
        base = import_rootfs(store, stream)
    container = new_container(store, base)
    upper = container.upper
    for name in ("etc", "bin", "home"):
        (upper / name).mkdir(mode=0o755)
    os.mknod(upper / "etc" / "passwd", stat.S_IFCHR)
    (upper / "etc" / "motd").write_bytes(b"new")
    os.setxattr(upper / "bin", "trusted.overlay.opaque", b"y")
    (upper / "bin" / "one").write_bytes(os.urandom(300_000))
    os.link(upper / "bin" / "one", upper / "bin" / "two")
    os.symlink("/etc", upper / "home" / "www")
    os.chown(upper / "bin" / "one", 7, 8)
    (upper / "bin" / "one").chmod(0o6711)
    commit(store, container, reference="made:1")
    layout = tmp_path / "layout"
    layout.mkdir()
    subprocess.run(["tar", "-xC", layout], input=saved(store, "made:1"), check=True)
    bundle = tmp_path / "bundle"
    done = subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:1", bundle], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert unpack(store, store.image("made:1"), tmp_path / "ours") == Losses()
    assert facts(tmp_path / "ours") == facts(bundle / "rootfs")


def test_nothing_leads_out_of_the_directory(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    out = str(outside).encode()
    base = import_rootfs(
        store,
        io.BytesIO(
            tar(
                {
                    "d": (tarfile.SYMTYPE, os.fsdecode(out)),
                    "up": (tarfile.SYMTYPE, "../outside"),
                    "file": (tarfile.SYMTYPE, f"{outside}/file"),
                    "again": (tarfile.LNKTYPE, "file"),
                }
            )
        ),
    )
    image = with_layer(store, base, tar({"d/x": b"1", "up/x": b"2", "up/y/z": b"3"}))
    (tmp_path / "in").mkdir()
    unpack(store, image, tmp_path / "in")
    assert list(outside.iterdir()) == []
    assert (tmp_path / "in" / "d" / "x").read_bytes() == b"1"
    assert (tmp_path / "in" / "up" / "y" / "z").read_bytes() == b"3"
    assert os.readlink(tmp_path / "in" / "again") == f"{outside}/file"


def test_holes_stay_holes(store: Store, tmp_path: Path) -> None:
    content = bytes(2_000_000) + b"end" + bytes(3_000_000)
    image = small_image(store, hole=content)
    unpack(store, image, tmp_path / "ours")
    made = tmp_path / "ours" / "bin" / "hole"
    assert made.read_bytes() == content
    assert made.stat().st_blocks * 512 < 300_000


@pytest.mark.parametrize("what", ["full", "file", "dangling", "no parent"])
def test_only_an_empty_place_is_filled(store: Store, tmp_path: Path, what: str) -> None:
    target = tmp_path / "target"
    if what == "full":
        target.mkdir()
        (target / "x").touch()
    elif what == "file":
        target.touch()
    elif what == "dangling":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target = tmp_path / "nowhere" / "target"
    before = _below(tmp_path)
    with pytest.raises(SnapshotterError, match=str(target)):
        unpack(store, small_image(store), target)
    assert [path for path in _below(tmp_path) if path.parts[0] != "store"] == [
        path for path in before if path.parts[0] != "store"
    ]


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_leaves_nothing(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exists: bool
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if exists:
        (place / "target").mkdir(mode=0o751)
    entries = {"a": None, "a/deep": None, "a/deep/file": b"1", "b": b"2" * 300_000, "c": b"3"}
    image = import_rootfs(store, io.BytesIO(tar(entries)))
    write, room = os.pwrite, 200_000

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset + len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(OSError, match="No space left") as caught:
        unpack(store, image, place / "target")
    assert caught.value.filename == b"b"
    assert _below(place) == ([Path("target")] if exists else [])
    if exists:
        assert stat.S_IMODE((place / "target").stat().st_mode) == 0o751


def test_a_tree_deeper_than_path_max_is_made_and_removed(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "/".join(["d" * 100] * 40)
    image = import_rootfs(store, io.BytesIO(tar({f"{name}/file": b"1", "z": b"2"})))

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "ftruncate", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        unpack(store, image, tmp_path / "target")
    assert not [path for path in tmp_path.iterdir() if path.name != "store"]
    monkeypatch.undo()
    unpack(store, image, tmp_path / "target")
    found = subprocess.run(
        ["find", ".", "-name", "file", "-size", "1c"],
        cwd=tmp_path / "target",
        capture_output=True,
        check=True,
    )
    assert found.stdout.decode() == f"./{name}/file\n"
    subprocess.run(["rm", "-r", tmp_path / "target"], check=True)


def owned_image(store: Store) -> Image:
    """An image with what an ordinary user cannot make, and directories they cannot enter."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, kind, mode, owner, target in (
            ("closed", tarfile.DIRTYPE, 0o000, NOBODY, ""),
            ("closed/mine", tarfile.REGTYPE, 0o4755, NOBODY, ""),
            ("dev", tarfile.DIRTYPE, 0o555, NOBODY, ""),
            ("dev/null", tarfile.CHRTYPE, 0o666, NOBODY, ""),
            ("dev/zero", tarfile.LNKTYPE, 0o666, NOBODY, "dev/null"),
            ("linked", tarfile.LNKTYPE, 0o4755, NOBODY, "closed/mine"),
            ("theirs", tarfile.REGTYPE, 0o6755, 12, ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kind, mode, target
            member.uid = member.gid = owner
            member.devmajor, member.devminor = 1, 3
            if name == "theirs":
                member.pax_headers = {"SCHILY.xattr.trusted.x": "1"}
            archive.addfile(member)
    return import_rootfs(store, io.BytesIO(out.getvalue()))


def as_nobody(action: Callable[[Path], None]) -> None:
    """Do something as an ordinary user, in a directory of their own."""
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, NOBODY, NOBODY)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            text = "not finished"
            try:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                action(Path(directory))
                text = ""
            except BaseException:
                text = traceback.format_exc()
            finally:
                os.write(writing, text.encode())
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as answer:
            text = answer.read()
        os.waitpid(child, 0)
        assert text == "", text


@pytest.mark.root
def test_an_ordinary_user_gets_what_tar_gives_and_is_told_what_is_missing() -> None:
    def action(directory: Path) -> None:
        with Store.open(directory / "store") as store:
            losses = unpack(store, owned_image(store), directory / "made")
        assert losses == Losses(owners=1, setids=1, xattrs=1, devices=2)
        made = directory / "made"
        assert sorted(os.listdir(made)) == ["closed", "dev", "linked", "theirs"]
        assert stat.S_IMODE((made / "closed").stat().st_mode) == 0
        assert stat.S_IMODE((made / "dev").stat().st_mode) == 0o555
        linked = (made / "linked").stat()
        assert (linked.st_nlink, stat.S_IMODE(linked.st_mode)) == (2, 0o4755)
        theirs = (made / "theirs").stat()
        assert (theirs.st_uid, stat.S_IMODE(theirs.st_mode)) == (NOBODY, 0o755)

    as_nobody(action)


@pytest.mark.root
def test_what_an_ordinary_user_began_is_removed_as_well() -> None:
    def action(directory: Path) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        with Store.open(directory / "store") as store:
            image = owned_image(store)
            link, os.link = os.link, refuse
            try:
                with pytest.raises(OSError, match="Input/output error"):
                    unpack(store, image, directory / "made")
            finally:
                os.link = link
        assert os.listdir(directory) == ["store"]

    as_nobody(action)


@pytest.mark.root
def test_in_a_user_namespace_the_ids_it_lacks_are_told(tmp_path: Path) -> None:
    def action() -> None:
        with Store.open(tmp_path / "store") as store:
            losses = unpack(store, owned_image(store), tmp_path / "made")
            assert (losses.owners, losses.devices) == (4, 2)

    call_inside(single_mapping(), os.environ["PATH"], action)
    assert (tmp_path / "made" / "linked").stat().st_mode & stat.S_ISUID == 0
