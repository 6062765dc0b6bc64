"""Layers that show their whiteouts: what is seen, and that an archive of it is all of them."""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.pack import archives
from tests.pack.archives import TIME, Entry, Shown, directory, file, symlink
from tests.unionfs.trees import Seen, UnionSide
from unionfs import whiteouts
from unionfs.changes import WritableTree
from unionfs.entry import WHITEOUT, Handle
from unionfs.layers import Content, Layer
from unionfs.layers.directory import DirectoryLayer
from unionfs.layers.packed import PackedLayer
from unionfs.layers.shown import ShownWhiteouts, marks_first
from unionfs.redirects import Redirect

OPAQUE = whiteouts.OPAQUE_MARKER
NANO = 10**9

Maker = Callable[[Path, Sequence[Entry]], Layer]
"""Makes a layer of some entries, with files in an empty directory."""


# -- layers of three kinds -----------------------------------------------------------------------


def packed(place: Path, entries: Sequence[Entry]) -> Layer:
    """A pack."""
    pack = archives.pack_of(place, archives.tar_of(entries))
    return PackedLayer(pack, space=5, base=int.from_bytes(os.urandom(3), "big"))


def with_devices(place: Path, entries: Sequence[Entry]) -> Layer:
    """A directory with whiteouts as kernel overlayfs makes them."""
    return _unpacked(place, entries, whiteouts.create, whiteouts.make_opaque)


def with_markers(place: Path, entries: Sequence[Entry]) -> Layer:
    """A directory with whiteouts as AUFS makes them."""

    def mark(fd: int, name: bytes) -> bool:
        os.close(os.open(b".wh." + name, os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        return True

    def make_opaque(fd: int) -> None:
        mark(fd, b".wh..opq")

    return _unpacked(place, entries, mark, make_opaque)


def _unpacked(
    place: Path,
    entries: Sequence[Entry],
    remove: Callable[[int, bytes], bool],
    make_opaque: Callable[[int], None],
) -> Layer:
    """A directory with what a pack of the same entries shows."""
    root = place / "layer"
    with closing(archives.pack_of(place, archives.tar_of(entries))) as pack:
        shown = archives.shown(pack)
        opaque = archives.opaque_paths(pack)
    for path, found in sorted(shown.items()):
        target = os.path.join(os.fsencode(root), path)
        if found is None:
            fd = os.open(os.path.dirname(target), os.O_RDONLY)
            assert remove(fd, os.path.basename(target))
            os.close(fd)
        else:
            _make(target, found)
        if path in opaque:
            fd = os.open(target, os.O_RDONLY)
            make_opaque(fd)
            os.close(fd)
    return DirectoryLayer(os.fsencode(root))


def _make(target: bytes, found: Shown) -> None:
    if found.kind == stat.S_IFDIR:
        os.makedirs(target)
    elif found.kind == stat.S_IFLNK:
        os.symlink(found.content, target)
    elif found.kind == stat.S_IFIFO:
        os.mkfifo(target)
    else:
        Path(os.fsdecode(target)).write_bytes(found.content)
    if found.kind != stat.S_IFLNK:
        os.chmod(target, found.mode)
    os.utime(target, (TIME, TIME), follow_symlinks=False)


MAKERS = [packed, with_devices, with_markers]


@pytest.fixture(params=MAKERS)
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ShownWhiteouts]:
    """A layer in which the names gone and d/gone are gone, and d/opaque hides what is below."""
    made = request.param(
        tmp_path,
        [
            file(".wh.gone"),
            directory("d"),
            file("d/.wh.gone"),
            file("d/there", b"content"),
            symlink("d/link", "there"),
            directory("d/opaque"),
            file("d/opaque/.wh..wh..opq"),
            file("d/opaque/there"),
        ],
    )
    shown = ShownWhiteouts(made)
    yield shown
    shown.close()


def find(layer: Layer, *names: bytes) -> Handle:
    handle = layer.root()
    for name in names:
        entry = layer.lookup(handle, name)
        assert entry is not None, name
        handle = entry.handle
    return handle


# -- what one layer shows ------------------------------------------------------------------------


def test_whiteouts_are_there_twice_hiding_and_to_be_seen(layer: ShownWhiteouts) -> None:
    assert dict(layer.names(layer.root())) == {
        b"d": stat.S_IFDIR,
        b"gone": WHITEOUT,
        b".wh.gone": stat.S_IFREG,
    }
    assert dict(layer.names(find(layer, b"d"))) == {
        b"there": stat.S_IFREG,
        b"link": stat.S_IFLNK,
        b"opaque": stat.S_IFDIR,
        b"gone": WHITEOUT,
        b".wh.gone": stat.S_IFREG,
    }
    assert dict(layer.names(find(layer, b"d", b"opaque"))) == {
        b"there": stat.S_IFREG,
        OPAQUE: stat.S_IFREG,
    }
    assert layer.lookup(layer.root(), b"gone") == (WHITEOUT, None)


def test_a_listing_and_lookups_say_the_same(layer: ShownWhiteouts) -> None:
    for path in [(), (b"d",), (b"d", b"opaque")]:
        handle = find(layer, *path)
        for name, kind in layer.names(handle):
            found = layer.lookup(handle, name)
            assert found is not None
            assert found.kind == kind
    root = layer.root()
    for name in [b".wh.d", b".wh.nothing", b".wh.", b".wh..wh.plnk", OPAQUE, b"nothing"]:
        assert layer.lookup(root, name) is None
    assert layer.lookup(find(layer, b"d", b"opaque"), b".wh.there") is None


def test_marks_are_empty_files_of_root(layer: ShownWhiteouts) -> None:
    above = find(layer, b"d")
    of_directory = layer.attributes(above)
    mark = find(layer, b"d", b".wh.gone")
    found = layer.attributes(mark)
    assert found._replace(number=0) == (
        of_directory.space, 0, stat.S_IFREG | 0o444, 1, 0, 0, 0, 0, 0,
        of_directory.atime_ns, of_directory.mtime_ns, of_directory.ctime_ns,
    )  # fmt: skip
    content: Content = layer.open(mark)
    assert content.read(0, 100) == b""
    assert list(content.extents()) == []
    content.close()
    assert layer.xattrs(mark) == {}
    assert layer.links(mark) == []
    assert layer.redirect(mark) is None
    assert not layer.is_metacopy(mark)
    with pytest.raises(OSError, match=os.strerror(errno.EINVAL)):
        layer.target(mark)


def test_marks_have_numbers_of_their_own(layer: ShownWhiteouts) -> None:
    paths = [(b".wh.gone",), (b"d", b".wh.gone"), (b"d", b"opaque", OPAQUE)]
    numbers = [layer.attributes(find(layer, *path)).number for path in paths]
    assert len(set(numbers)) == len(numbers)
    assert all(number >= 1 << 48 for number in numbers)
    assert numbers == [layer.attributes(find(layer, *path)).number for path in paths]


def test_everything_else_passes_through(layer: ShownWhiteouts) -> None:
    protocol: Layer = layer
    assert protocol.path
    there = find(layer, b"d", b"there")
    content = layer.open(there)
    assert content.read(0, 100) == b"content"
    content.close()
    assert layer.attributes(there).size == 7
    assert layer.target(find(layer, b"d", b"link")) == b"there"
    assert layer.xattrs(there) == {}
    assert layer.is_opaque(find(layer, b"d", b"opaque"))
    assert not layer.is_opaque(find(layer, b"d"))
    assert not layer.is_implicit(find(layer, b"d"))


def test_links_and_directories_without_attributes_are_the_packs(tmp_path: Path) -> None:
    entries = [file("a"), archives.link("in/b", "a")]
    shown = ShownWhiteouts(packed(tmp_path, entries))
    assert sorted(shown.links(find(shown, b"a"))) == [(b"a",), (b"in", b"b")]
    assert shown.is_implicit(find(shown, b"in"))
    shown.close()


def test_redirects_and_missing_contents_are_the_layers(tmp_path: Path) -> None:
    elsewhere = Redirect(is_absolute=True, names=(b"elsewhere",))

    class Moved(DirectoryLayer):
        def redirect(self, handle: Handle) -> Redirect | None:
            return elsewhere if handle.parent is not None else None

        def is_metacopy(self, handle: Handle) -> bool:
            return handle.parent is not None

    (tmp_path / "d").mkdir()
    shown = ShownWhiteouts(Moved(os.fsencode(tmp_path)))
    assert shown.redirect(shown.root()) is None
    assert shown.redirect(find(shown, b"d")) == elsewhere
    assert shown.is_metacopy(find(shown, b"d"))
    assert not shown.is_metacopy(shown.root())
    shown.close()


def test_what_no_marker_can_say_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    assert whiteouts.create(fd, b"x" * 251)
    shown = ShownWhiteouts(DirectoryLayer(os.fsencode(tmp_path)))
    assert b".wh." + b"x" * 251 in dict(shown.names(shown.root()))
    assert whiteouts.create(fd, b"x" * 252)
    os.close(fd)
    with pytest.raises(OSError, match="no marker can show") as caught:
        list(shown.names(shown.root()))
    assert caught.value.errno == errno.ENAMETOOLONG
    assert caught.value.filename == b"x" * 252
    shown.close()


def test_a_covered_file_is_a_directory_with_nothing_but_its_mark(layer: ShownWhiteouts) -> None:
    covered = layer.covered(find(layer, b"d", b"there"))
    assert dict(layer.names(covered)) == {OPAQUE: stat.S_IFREG}
    assert layer.is_opaque(covered)
    assert layer.is_implicit(covered)
    assert layer.lookup(covered, b"there") is None
    assert layer.lookup(covered, b".wh.there") is None
    assert layer.redirect(covered) is None
    assert layer.xattrs(covered) == {}
    assert layer.attributes(covered).mode == stat.S_IFDIR | 0o755
    mark = layer.lookup(covered, OPAQUE)
    assert mark is not None
    assert layer.attributes(mark.handle).mode == stat.S_IFREG | 0o444


def test_marks_are_listed_before_their_siblings() -> None:
    names = [b"z", b".wh.z", b"-a", OPAQUE, b".w", b".wh.-a"]
    assert marks_first(names) == [b".wh.z", OPAQUE, b".wh.-a", b"z", b"-a", b".w"]
    assert marks_first([]) == []


# -- unions --------------------------------------------------------------------------------------


def made_whole(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, each after entries for the directories it is in."""
    whole = [directory(".")]
    for entry in entries:
        parts = entry.path.split("/")[:-1]
        whole += [directory("/".join(parts[:end])) for end in range(1, len(parts) + 1)]
        whole.append(entry)
    return whole


LAYERS = st.lists(
    st.lists(
        archives.entries().filter(lambda entry: entry.type != tarfile.LNKTYPE), max_size=6
    ).map(made_whole),
    min_size=1,
    max_size=3,
)


def union(stack: ExitStack, layers: Sequence[Layer]) -> dict[bytes, Seen]:
    """What a read-only union of layers shows."""
    tree = WritableTree(layers, None)
    stack.callback(tree.close)
    return UnionSide(tree).walk()


def opened(stack: ExitStack, make: Maker, layers: Sequence[Sequence[Entry]]) -> list[Layer]:
    """A layer for each list of entries."""
    return [
        make(Path(stack.enter_context(tempfile.TemporaryDirectory())), entries)
        for entries in layers
    ]


_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def archived(seen: dict[bytes, Seen]) -> list[Entry]:
    """The archive of what a mount shows, directory by directory, marks first."""
    children: dict[bytes, list[bytes]] = {}
    for path in seen:
        children.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    entries = []
    waiting = [b""]
    while waiting:
        above = waiting.pop()
        for name in marks_first(children.get(above, [])):
            path = os.path.join(above, name)
            found = seen[path]
            entries.append(Entry(path.decode(), _TYPES[found.kind], found.data, found.mode))
            if found.kind == stat.S_IFDIR:
                waiting.append(path)
    return entries


def without_marks(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    return {
        path: found
        for path, found in seen.items()
        if not whiteouts.is_marker(os.path.basename(path))
    }


@pytest.mark.parametrize("make", MAKERS)
@given(layers=LAYERS)
@settings(max_examples=40, deadline=None)
def test_showing_whiteouts_hides_and_shows_nothing_else(
    make: Maker, layers: list[list[Entry]]
) -> None:
    with ExitStack() as stack:
        plain = union(stack, opened(stack, make, layers))
        shown = union(stack, [ShownWhiteouts(layer) for layer in opened(stack, make, layers)])
        assert list(without_marks(shown)) == list(plain)
        for path, found in without_marks(shown).items():
            assert found == plain[path]
        marks = shown.keys() - plain.keys()
        for path in marks:
            found = shown[path]
            assert found[:4] == (stat.S_IFREG, 0o444, 1, 0)
            assert found.data == b""
            assert found.first == path  # no two files have one number


@pytest.mark.parametrize("make", MAKERS)
@given(layers=LAYERS, base=LAYERS)
@settings(max_examples=60, deadline=None)
def test_an_archive_of_the_mount_is_all_its_layers_in_one(
    make: Maker, layers: list[list[Entry]], base: list[list[Entry]]
) -> None:
    with ExitStack() as stack:
        expected = union(stack, opened(stack, make, [*layers, *base]))
        shown = union(stack, [ShownWhiteouts(layer) for layer in opened(stack, make, layers)])
        merged = opened(stack, packed, [archived(shown)])
        assert union(stack, [*merged, *opened(stack, make, base)]) == expected


@pytest.mark.parametrize("make", MAKERS)
def test_a_name_made_anew_is_beside_its_mark(tmp_path: Path, make: Maker) -> None:
    (tmp_path / "top").mkdir()
    (tmp_path / "low").mkdir()
    top = make(tmp_path / "top", made_whole([file("d/a", b"new"), file("n/.wh.a")]))
    low = make(tmp_path / "low", made_whole([file(".wh.d"), file("n/a", b"old"), file("n/b")]))
    with ExitStack() as stack:
        seen = union(stack, [ShownWhiteouts(top), ShownWhiteouts(low)])
    assert list(seen) == [b".wh.d", b"d", b"d/a", b"n", b"n/.wh.a", b"n/b"]
    assert seen[b"d/a"].mtime_ns == TIME * NANO
