"""Random operations on a union and on a plain directory with the same contents do the same.

The lower layers are directories or packs; in between the union is closed and opened anew, and it
must show the same after that. What a union may do differently is stated where it is allowed.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.unionfs.trees import PlainSide, UnionSide, open_tree
from unionfs.changes import WritableTree
from unionfs.layers import Layer
from unionfs.layers.packed import PackedLayer
from unionfs.layers.upper import Upper
from unionfs.nodes import Node
from unionfs.options import TreeOptions
from unionfs.pack import Pack, ingest

pytestmark = pytest.mark.usefixtures("no_umask")

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
DATA = st.binary(max_size=12)

# One instant for what time would tell apart: the two sides work one after the other.
NOW = 1_700_000_000_123_456_789


def attempt(action: Callable[[], None]) -> int:
    """The errno of an action, 0 if it succeeds."""
    try:
        action()
    except OSError as error:
        # Which of two reasons comes first is for the kernel, which has looked up the paths before.
        return errno.ENOENT if error.errno == errno.ENOTDIR else error.errno or errno.EISDIR
    return 0


class UnionMachine(RuleBasedStateMachine):
    """Both sides, step by step."""

    packed = False
    options = TreeOptions()

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(dir="/dev/shm"))
        for name in ("plain", "upper", "work", "low", "middle"):
            (self.directory / name).mkdir()
        self.plain = PlainSide(self.directory / "plain")
        self.tree: WritableTree | None = None
        self.held: list[tuple[Node, int]] = []

    def teardown(self) -> None:
        self.let_go()
        if self.tree is not None:
            self.tree.close()
        shutil.rmtree(self.directory)

    @initialize(
        low=st.dictionaries(PATHS, DATA, max_size=6),
        middle=st.dictionaries(PATHS, DATA, max_size=4),
        gone=st.lists(PATHS, max_size=2),
        links=st.lists(st.tuples(st.integers(0, 9), PATHS), max_size=3),
    )
    def layers(
        self,
        low: dict[bytes, bytes],
        middle: dict[bytes, bytes],
        gone: list[bytes],
        links: list[tuple[int, bytes]],
    ) -> None:
        """Fill the lower layers, and the plain directory with what they show together."""
        if links and not self.packed:
            # Only a pack knows which names of a file layers above it hide, and counts without them.
            middle, gone = {}, []
        for layer, contents in (("low", low), ("middle", middle)):
            side = PlainSide(self.directory / layer)
            for path, data in contents.items():
                plant(side, path, data)
            if layer == "low":
                self.link_below(side, sorted(contents), links)
        for path in gone:
            whiteout(PlainSide(self.directory / "middle"), path)
        subprocess.run(
            ["cp", "-a", f"{self.directory}/low/.", f"{self.directory}/plain"], check=True
        )
        overlay(self.directory / "middle", self.directory / "plain")
        if self.packed:
            for layer in ("low", "middle"):
                pack(self.directory / layer)
        self.open()

    def link_below(
        self, side: PlainSide, paths: list[bytes], links: list[tuple[int, bytes]]
    ) -> None:
        """Give files of a lower layer more names."""
        for which, target in links:
            source = paths[which % len(paths)] if paths else b""
            if side.kind(source) == stat.S_IFREG:
                attempt(partial(side.link, source, target))

    def open(self) -> None:
        if not self.packed:
            lowers = [self.directory / "middle", self.directory / "low"]
            places = (self.directory / "upper", self.directory / "work")
            self.tree = open_tree(lowers, *places, self.options)
        else:
            base = Pack(self.directory / "low.pack")
            above = Pack(self.directory / "middle.pack")
            layers: list[Layer] = [
                PackedLayer(above, 0, base.inode_count),
                PackedLayer(base, 0, 0),
            ]
            upper = Upper(*(os.fsencode(self.directory / name) for name in ("upper", "work")))
            self.tree = WritableTree(layers, upper, options=self.options)
        self.union = UnionSide(self.tree)

    def both(self, name: str, path: bytes, *arguments: object) -> None:
        results = [
            attempt(partial(getattr(side, name), path, *arguments))
            for side in (self.union, self.plain)
        ]
        assert results[0] == results[1], (
            name,
            path,
            arguments,
            [errno.errorcode.get(r) for r in results],
        )
        if results[0] == 0:
            self.settle(path)

    def settle(self, path: bytes) -> None:
        """Give a file that was changed the same time on both sides."""
        if self.plain.kind(path):
            self.union.utime(path, NOW)
            self.plain.utime(path, NOW)

    @rule(path=PATHS, data=DATA)
    def create(self, path: bytes, data: bytes) -> None:
        self.both("create", path, data)

    @rule(path=PATHS, offset=st.integers(0, 20), data=DATA)
    def write(self, path: bytes, offset: int, data: bytes) -> None:
        self.both("write", path, offset, data)

    @rule(path=PATHS, size=st.integers(0, 30))
    def truncate(self, path: bytes, size: int) -> None:
        self.both("truncate", path, size)

    @rule(path=PATHS)
    def mkdir(self, path: bytes) -> None:
        self.both("mkdir", path)

    @rule(path=PATHS)
    def symlink(self, path: bytes) -> None:
        self.both("symlink", path, b"target")

    @rule(source=PATHS, new=PATHS)
    def link(self, source: bytes, new: bytes) -> None:
        if self.plain.kind(source) != stat.S_IFDIR:
            self.both("link", source, new)

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        self.both("unlink", path)

    @rule(path=PATHS)
    def rmdir(self, path: bytes) -> None:
        self.both("rmdir", path)

    @rule(path=PATHS, mode=st.sampled_from([0o600, 0o755, 0o4755, 0o2775]))
    def chmod(self, path: bytes, mode: int) -> None:
        if self.plain.kind(path) != stat.S_IFLNK:
            self.both("chmod", path, mode)

    @rule(path=PATHS, value=DATA)
    def set_xattr(self, path: bytes, value: bytes) -> None:
        if self.plain.kind(path) != stat.S_IFLNK:
            self.both("set_xattr", path, value)

    @rule(source=PATHS, new=PATHS)
    def rename(self, source: bytes, new: bytes) -> None:
        if (new + b"/").startswith(source + b"/") or (source + b"/").startswith(new + b"/"):
            return  # the kernel settles these before it asks
        here = attempt(lambda: self.union.rename(source, new))
        there = attempt(lambda: self.plain.rename(source, new))
        assert here == there, (source, new, here, there)
        if here == 0:
            self.settle(new)

    @rule(one=PATHS, other=PATHS)
    def exchange(self, one: bytes, other: bytes) -> None:
        if (other + b"/").startswith(one + b"/") or (one + b"/").startswith(other + b"/"):
            return
        here = attempt(lambda: self.union.exchange(one, other))
        there = attempt(lambda: self.plain.exchange(one, other))
        assert here == there, (one, other, here, there)
        if here == 0:
            self.settle(one)
            self.settle(other)

    @rule(path=PATHS)
    def hold(self, path: bytes) -> None:
        """Open a file, and keep it open whatever becomes of its name."""
        assert self.tree is not None
        if self.plain.kind(path) == stat.S_IFREG:
            node = self.union.node(path)
            self.tree.open_file(node)
            self.held.append((node, os.open(self.plain.at(path), os.O_RDWR)))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9), offset=st.integers(0, 20), data=DATA)
    def write_held(self, which: int, offset: int, data: bytes) -> None:
        assert self.tree is not None
        node, fd = self.held[which % len(self.held)]
        self.tree.write(node, offset, data)
        os.pwrite(fd, data, offset)
        self.tree.utimens(node, None, NOW)
        os.utime(fd, ns=(NOW, NOW))

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 9))
    def close_held(self, which: int) -> None:
        assert self.tree is not None
        node, fd = self.held.pop(which % len(self.held))
        self.tree.close_file(node)
        os.close(fd)

    def let_go(self) -> None:
        while self.held:
            self.close_held(0)

    @rule()
    def reopen(self) -> None:
        """Nothing of the union is in memory only."""
        assert self.tree is not None
        self.let_go()
        self.tree.close()
        self.open()

    @rule()
    def forget(self) -> None:
        """The kernel forgets every file that nobody uses."""
        self.union.forget()

    @invariant()
    def same(self) -> None:
        if self.tree is not None:
            assert self.union.walk() == self.plain.walk()
            assert os.listdir(self.directory / "work" / "work") == []
            for node, fd in self.held:
                info = os.fstat(fd)
                assert self.tree.read(node, 0, 100) == os.pread(fd, 100, 0)
                assert self.tree.attributes(node).nlink == info.st_nlink


def plant(side: PlainSide, path: bytes, data: bytes) -> None:
    """Make a file and its parents, unless something is in the way."""
    parts = path.split(b"/")
    for depth in range(1, len(parts)):
        attempt(partial(side.mkdir, b"/".join(parts[:depth])))
    if attempt(lambda: side.create(path, data)) == 0:
        side.utime(path, NOW)


def whiteout(side: PlainSide, path: bytes) -> None:
    """Hide a name of the layer below, unless this layer has it."""
    above, _, name = path.rpartition(b"/")
    if side.kind(above) == stat.S_IFDIR and not side.kind(path):
        attempt(lambda: side.create(above + b"/.wh." + name if above else b".wh." + name, b""))


def overlay(layer: Path, target: Path) -> None:
    """Lay one directory over another as an image layer is applied."""
    for directory, directories, files in os.walk(layer):
        here = target / Path(directory).relative_to(layer)
        for name in directories:
            if not (here / name).is_dir() or (here / name).is_symlink():
                (here / name).unlink(missing_ok=True)
                (here / name).mkdir()
            shutil.copystat(Path(directory, name), here / name)
        for name in files:
            gone = here / name.removeprefix(".wh.")
            if gone.is_dir() and not gone.is_symlink():
                shutil.rmtree(gone)
            gone.unlink(missing_ok=True)
            if gone.name == name:
                shutil.copy2(Path(directory, name), gone)


def pack(directory: Path) -> None:
    """Make a pack of a directory."""
    tar = directory.with_suffix(".tar")
    command = ["tar", "-C", str(directory), "--format=pax", "--xattrs", "-cf", str(tar), "."]
    subprocess.run(command, check=True)
    with tar.open("rb") as stream:
        ingested = ingest(stream, directory.with_suffix(".tmp"))
    directory.with_suffix(".tmp").rename(directory.with_suffix(".pack"))
    assert ingested.entries


class PackedMachine(UnionMachine):
    """The same over packs."""

    packed = True


class MetacopyMachine(UnionMachine):
    """Changed attributes go up alone."""

    options = TreeOptions(metacopy=True)


class PackedMetacopyMachine(PackedMachine):
    """The same over packs, as lamina's own containers are."""

    options = TreeOptions(metacopy=True)


class AufsMachine(UnionMachine):
    """Whiteouts are marker files."""

    options = TreeOptions(aufs=True)


@pytest.mark.parametrize(
    "machine",
    [UnionMachine, PackedMachine, MetacopyMachine, PackedMetacopyMachine, AufsMachine],
)
def test_a_union_behaves_like_a_directory(machine: type[UnionMachine]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
