"""What may be chosen for a mount, beside others that know the choice: the forms on disk."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pack.archives import directory, file, link, symlink, take_in, tar_of
from tests.unionfs.trees import PlainSide, Seen
from tests.unionfs.unions import (
    FUSE_OVERLAYFS,
    KERNEL,
    LAMINA,
    names,
    plant,
    refusal,
    sights,
    timeless,
    union,
)
from unionfs import xattrs

pytestmark = [pytest.mark.fuse, pytest.mark.root]

TWO = ("top", "low")


def mark(path: Path, name: bytes) -> bytes | None:
    return xattrs.marks(os.fsencode(path)).get(name)


# -- renamed directories, and attributes without contents ----------------------------------------


def make_layers(base: Path) -> None:
    plant(base / "low", "a/f", "a/b/c/deep", "a/b/x", "d/y", "e/z", "one", "two", "three", "moved")
    plant(base / "top", "a/top", "a/b/x", "g/h", "only/in/top")
    os.mknod(base / "top/two", 0o020000, 0)
    (base / "low/big").write_bytes(os.urandom(300_000))


def rename(root: Path) -> None:
    """Directories renamed several times, in one another, exchanged; attributes that change."""
    side = PlainSide(root)
    side.rename(b"a", b"a2")
    side.rename(b"a2", b"a3")
    side.rename(b"a3/b/c", b"d/c")
    side.rename(b"a3/b", b"a3/b2")
    side.rename(b"a3/b2", b"e/b3")
    side.exchange(b"d", b"g")
    side.exchange(b"only/in", b"a3/top")
    side.mkdir(b"a")
    side.create(b"a/new", b"new")
    os.chmod(root / "one", 0o4711)
    os.chown(root / "three", 12, 34)
    os.chmod(root / "moved", 0o600)
    side.rename(b"moved", b"e/moved")
    os.chmod(root / "e/b3/x", 0o640)
    side.rename(b"e/b3/x", b"e/b3/x2")
    os.setxattr(root / "a3/f", "user.kept", b"value")
    os.chown(root / "big", 5, 6)
    side.link(b"big", b"a3/linked")
    side.rename(b"e/z", b"d/z")


def rename_more(root: Path) -> None:
    """Contents for what has attributes only, and directories that move once more."""
    side = PlainSide(root)
    side.write(b"one", 1, b"X")
    side.write(b"e/moved", 0, b"X")
    side.rename(b"e/b3", b"b4")
    side.rename(b"b4", b"g/b5")
    side.rename(b"g/c", b"c")
    side.write(b"g/b5/x2", 0, b"X")
    os.chmod(root / "three", 0o700)
    side.exchange(b"a", b"a3")


def write_linked(root: Path) -> None:
    """Write by one name to a file with two; while both are in the upper, that is."""
    PlainSide(root).write(b"big", 0, b"X")


@pytest.mark.parametrize("kernel_options", [("redirect_dir=on", "metacopy=on"), ()])
def test_kernel_overlayfs_reads_what_lamina_renamed(
    tmp_path: Path, kernel_options: tuple[str, ...]
) -> None:
    """Without options this kernel follows redirects too, but no metacopy."""
    metacopy = "metacopy=on" if kernel_options else "metacopy=off"
    make_layers(tmp_path)
    written: dict[bytes, Seen] = {}
    for change in (rename, rename_more, write_linked):
        with union(LAMINA, tmp_path, metacopy, lowers=TWO) as mountpoint:
            change(mountpoint)
            written = sights(mountpoint)
        with union(KERNEL, tmp_path, *kernel_options, lowers=TWO) as mountpoint:
            assert sights(mountpoint) == written
    with union(LAMINA, tmp_path, lowers=TWO) as mountpoint:
        assert sights(mountpoint) == written
    assert mark(tmp_path / "upper/three", b"metacopy") == (b"" if kernel_options else None)
    assert mark(tmp_path / "upper/g/b5", b"redirect") == b"/a/b"


@pytest.mark.parametrize("metacopy", ["on", "off"])
def test_lamina_reads_what_kernel_overlayfs_renamed_and_goes_on(
    tmp_path: Path, metacopy: str
) -> None:
    options = ("redirect_dir=on", f"metacopy={metacopy}")
    make_layers(tmp_path)
    with union(KERNEL, tmp_path, *options, lowers=TWO) as mountpoint:
        rename(mountpoint)
        written = sights(mountpoint)
    with union(LAMINA, tmp_path, *options, lowers=TWO) as mountpoint:
        assert sights(mountpoint) == written
        rename_more(mountpoint)
        write_linked(mountpoint)
        written = sights(mountpoint)
    with union(KERNEL, tmp_path, *options, lowers=TWO) as mountpoint:
        assert sights(mountpoint) == written
        (mountpoint / "c/deep").rename(mountpoint / "d/deep")
        (mountpoint / "a3/new").rename(mountpoint / "one")
        (mountpoint / "g").rename(mountpoint / "g2")
        written = sights(mountpoint)
    with union(LAMINA, tmp_path, lowers=TWO) as mountpoint:
        assert sights(mountpoint) == written


def test_an_upper_of_renames_is_a_layer_for_both(tmp_path: Path) -> None:
    make_layers(tmp_path)
    seen = []
    with union(LAMINA, tmp_path, "metacopy=on", lowers=TWO) as mountpoint:
        rename(mountpoint)
        seen.append(sights(mountpoint))
    (tmp_path / "upper").rename(tmp_path / "first")
    three = ("first", *TWO)
    with union(LAMINA, tmp_path, "metacopy=on", lowers=three) as mountpoint:
        assert sights(mountpoint) == seen[0]
        rename_more(mountpoint)
        seen.append(sights(mountpoint))
    for kind, options in ((KERNEL, ("redirect_dir=on", "metacopy=on")), (LAMINA, ())):
        with union(kind, tmp_path, *options, lowers=three) as mountpoint:
            assert sights(mountpoint) == seen[1]
    (tmp_path / "upper").rename(tmp_path / "second")
    for kind, options in ((KERNEL, ("redirect_dir=follow", "metacopy=on")), (LAMINA, ())):
        with union(kind, tmp_path, *options, lowers=("second", *three), writable=False) as place:
            assert sights(place) == seen[1]


@pytest.mark.parametrize("choice", ["off", "follow", "nofollow"])
def test_directories_that_may_not_be_redirected_are_not_renamed(
    tmp_path: Path, choice: str
) -> None:
    """mv(1) copies then. What was redirected before is followed, as kernel overlayfs does."""
    seen = {}
    for kind in (LAMINA, KERNEL):
        base = tmp_path / kind
        plant(base / "low", "a/f", "d/g", "e/h")
        with union(KERNEL, base, "redirect_dir=on") as mountpoint:
            (mountpoint / "a").rename(mountpoint / "moved")
        with union(kind, base, f"redirect_dir={choice}") as mountpoint:
            side = PlainSide(mountpoint)
            refusals = [
                refusal(side.rename, b"d", b"d2"),
                refusal(side.rename, b"moved", b"e/moved"),
                refusal(side.rename, b"d/g", b"e/g"),
            ]
            subprocess.run(["mv", "e", "e2"], cwd=mountpoint, check=True)
            (mountpoint / "mine").mkdir()
            (mountpoint / "mine").rename(mountpoint / "mine2")
            seen[kind] = (refusals, sights(mountpoint))
    assert seen[LAMINA][1] == seen[KERNEL][1]
    assert (b"moved/f" in seen[LAMINA][1]) == (choice != "nofollow")
    for refusals, _ in seen.values():
        assert refusals[::2] == [errno.EXDEV, 0]
        assert refusals[1] in ((errno.EIO, errno.EPERM) if choice == "nofollow" else (errno.EXDEV,))


# -- whiteouts in the dialect of AUFS ------------------------------------------------------------


def remove(root: Path) -> None:
    """Names that go, come again as something else, and move, with directories."""
    side = PlainSide(root)
    side.unlink(b"one")
    for path in ("d", "g", "a/b/c"):
        subprocess.run(["rm", "-r", path], cwd=root, check=True)
    side.mkdir(b"d")
    side.create(b"d/new", b"new")
    side.create(b"g", b"a file now")
    side.rename(b"three", b"two")
    subprocess.run(["mv", "a/b", "e/b2"], cwd=root, check=True)
    side.mkdir(b"a/b")
    side.mkdir(b"one")
    side.rmdir(b"one")


def test_whiteouts_of_aufs_are_files_that_are_not_shown(tmp_path: Path) -> None:
    """fuse-overlayfs reads and writes them too, and a mount without the option goes on so."""
    make_layers(tmp_path)
    with union(LAMINA, tmp_path, "whiteout=aufs", "redirect_dir=off", lowers=TWO) as mountpoint:
        remove(mountpoint)
        written = sights(mountpoint)
        assert refusal((mountpoint / ".wh.x").touch) == errno.EINVAL
        for hidden in (".wh.one", ".wh..wh.aufs", "d/.wh..wh..opq"):
            assert refusal((mountpoint / hidden).lstat) == errno.ENOENT
    assert not any(b".wh." in path for path in written)
    assert not {b"d/y", b"a/b/x", b"three"} & set(written)
    assert {path for path in names(tmp_path / "upper") if ".wh." in path} == {
        ".wh..wh.aufs", ".wh.one", ".wh.three", "a/b/.wh..wh..opq", "d/.wh..wh..opq",
    }  # fmt: skip
    assert not any(path.is_char_device() for path in (tmp_path / "upper").rglob("*"))
    with union(LAMINA, tmp_path, lowers=TWO) as mountpoint:
        assert sights(mountpoint) == written
        (mountpoint / "big").unlink()
        (mountpoint / "e").rename(mountpoint / "e2")
        (mountpoint / "e").mkdir()
        (mountpoint / "d").rename(mountpoint / "only/d")
        written = sights(mountpoint)
    later = {path for path in names(tmp_path / "upper") if ".wh." in path}
    assert {".wh.big", ".wh.d", "e/.wh..wh..opq", "only/d/.wh..wh..opq"} <= later
    with union(LAMINA, tmp_path, lowers=TWO) as mountpoint:
        assert sights(mountpoint) == written


@pytest.mark.peer(FUSE_OVERLAYFS)
def test_fuse_overlayfs_and_lamina_understand_each_others_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same variable of the environment chooses that form for both."""
    monkeypatch.setenv("FUSE_OVERLAYFS_DISABLE_OVL_WHITEOUT", "1")
    for writer, reader in ((LAMINA, FUSE_OVERLAYFS), (FUSE_OVERLAYFS, LAMINA)):
        base = tmp_path / writer
        make_layers(base)
        with union(writer, base, "redirect_dir=off", lowers=TWO) as mountpoint:
            remove(mountpoint)
            written = sights(mountpoint)
        assert (base / "upper/.wh.one").exists()
        with union(reader, base, lowers=TWO) as mountpoint:
            # fuse-overlayfs 1.10 lets the kernel show a time that is not on disk
            assert timeless(sights(mountpoint)) == timeless(written)


# -- whiteouts that are shown --------------------------------------------------------------------


def ingested(base: Path, tar: bytes) -> str:
    """The name of the pack of an archive, in a directory."""
    return f"{take_in(base, tar).diff_id.hex()}.pack"


LAYER = tar_of(
    [
        file(".wh.moved"),
        directory("e"),
        file("e/.wh..wh..opq"),
        file("e/x", b"x of the pack"),
        directory("p"),
        file("p/.wh.never there"),
        file("p/q", b"pack"),
        link("p/r", "p/q"),
        symlink("p/s", "q"),
    ]
)


@pytest.mark.peer(FUSE_OVERLAYFS)
def test_an_archive_of_shown_whiteouts_is_the_layers_it_was_made_of(tmp_path: Path) -> None:
    """Unpacked by tar(1) over an image, and read as a layer of one."""
    make_layers(tmp_path)
    layers = ("upper", "top", ingested(tmp_path, LAYER))
    with union(LAMINA, tmp_path, "redirect_dir=off", lowers=(*layers[1:], "low")) as mountpoint:
        remove(mountpoint)
        os.chown(mountpoint / "big", 12, 34)
        os.setxattr(mountpoint / "big", "user.kept", b"value")
        expected = sights(mountpoint)
    tar = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--format=posix"]
    with union(LAMINA, tmp_path, "shwh", lowers=layers, writable=False) as mountpoint:
        for marker in (".wh.one", ".wh.moved", "d/.wh..wh..opq", "e/.wh..wh..opq"):
            assert (mountpoint / marker).lstat().st_size == 0
        assert refusal((mountpoint / "new").touch) == errno.EROFS
        archive = subprocess.run(
            [*tar, "-cC", mountpoint, "."], check=True, stdout=subprocess.PIPE
        ).stdout
    (tmp_path / "unpacked").mkdir()
    subprocess.run([*tar, "-xpC", tmp_path / "unpacked"], input=archive, check=True)
    # of a name that one layer removed and another made again: an archive has the marker before the
    # file, and whoever unpacks it removes first, but in a directory fuse-overlayfs takes the marker
    (tmp_path / "unpacked/.wh.two").unlink()
    again = ingested(tmp_path, archive)
    for kind, layer in ((LAMINA, again), (LAMINA, "unpacked"), (FUSE_OVERLAYFS, "unpacked")):
        with union(kind, tmp_path, lowers=(layer, "low"), writable=False) as mountpoint:
            assert sights(mountpoint) == expected, (kind, layer)


def test_whiteouts_are_not_shown_where_something_is_written(tmp_path: Path) -> None:
    (tmp_path / "low").mkdir()
    with (
        pytest.raises(AssertionError, match="option shwh: whiteouts are shown by a mount without"),
        union(LAMINA, tmp_path, "shwh"),
    ):
        raise OSError  # it is mounted


@pytest.mark.parametrize(
    "change", [lambda at: os.rename(at / "d", at / "new"), lambda at: os.chmod(at / "one", 0o600)]
)
def test_an_archive_of_shown_whiteouts_lacks_nothing_silently(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """What a layer has by name alone is elsewhere below, and may not be in the mount."""
    make_layers(tmp_path)
    with union(LAMINA, tmp_path, "metacopy=on") as mountpoint:
        change(mountpoint)
        written = names(mountpoint)
    for lowers, errors in ((("upper",), True), (("upper", "low"), False)):
        with union(LAMINA, tmp_path, "shwh", lowers=lowers, writable=False) as mountpoint:
            done = subprocess.run(
                ["tar", "-cC", mountpoint, "."], stdout=subprocess.DEVNULL, check=False
            )
            assert (done.returncode != 0) == errors
            assert errors or written <= names(mountpoint)


# -- unions of unions ----------------------------------------------------------------------------


@pytest.mark.parametrize("outer", [LAMINA, KERNEL])
@pytest.mark.parametrize("inner", [LAMINA, KERNEL])
def test_a_union_is_a_layer_of_another(tmp_path: Path, inner: str, outer: str) -> None:
    """With marks of its own: set through a mount they are those of the mount above it."""
    make_layers(tmp_path)
    plant(tmp_path / "base", "a/base", "d/base", "z")
    (tmp_path / "outside").mkdir()
    (tmp_path / "base").rename(tmp_path / "outside/base")
    with union(inner, tmp_path, lowers=TWO) as mountpoint:
        PlainSide(mountpoint).unlink(b"one")
        os.setxattr(mountpoint / "a", "trusted.overlay.opaque", b"y")
        os.setxattr(mountpoint / "d", "user.overlay.opaque", b"y")
        for path, name in (("a", "trusted.overlay.opaque"), ("d", "user.overlay.opaque")):
            assert os.listxattr(mountpoint / path) == [name]
            assert os.getxattr(mountpoint / path, name) == b"y"
        outside = tmp_path / "outside"
        (outside / "inner").symlink_to(mountpoint)
        with union(outer, outside, lowers=("inner", "base")) as above:
            assert b"a/base" not in sights(above)
            assert (b"d/base" in sights(above)) == (outer == KERNEL)  # without userxattr
            PlainSide(above).write(b"a/f", 0, b"X")
            PlainSide(above).unlink(b"a/top")
            os.setxattr(above / "a", "trusted.overlay.opaque", b"deeper")
            seen = sights(above)
            assert os.getxattr(above / "a", "trusted.overlay.opaque") == b"deeper"
        with union(outer, outside, lowers=("inner", "base")) as above:
            assert sights(above) == seen
        os.removexattr(mountpoint / "a", "trusted.overlay.opaque")
        assert os.listxattr(mountpoint / "a") == []
