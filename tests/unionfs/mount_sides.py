"""The sides that the machine of mounts keeps alike: lamina, a plain directory, kernel overlayfs.

Here they are made, mounted anew, listed while they change and compared. What else is done to them
is in :mod:`tests.unionfs.test_mount_machine`.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from snapshotter.diff import Difference
from tests.support.mounts import mounted
from tests.unionfs.lowers import LOWERS, PATHS, WHICH, Lowers, fill, kernel_overlay
from tests.unionfs.sights import Sight, entries_read, look, no_differences, without_directory_links
from unionfs.layers.directory import DirectoryLayer
from unionfs.opening import open_finished
from unionfs.pack import ingest
from unionfs.reading import ReadableTree

PLAIN, LAMINA, KERNEL = "plain", "lamina", "overlay"

PLACES = st.one_of(st.integers(0, 30), PATHS)
"""A path, or the number of one that is or lately was there: much at one place tells most."""

Place = int | bytes


class Held(NamedTuple):
    """A file that stays open on every side, with a shared map on lamina if it is not empty."""

    fds: dict[str, int]
    view: mmap.mmap | None


class Reading(NamedTuple):
    """A directory that is being read on lamina, and the names it had at the start."""

    fd: int
    plain_fd: int
    at_start: dict[bytes, int]
    seen: list[bytes]


def mapped(view: mmap.mmap, size: int) -> bytes:
    """Bytes of a map, read by the kernel: beyond the file that is an error and no SIGBUS."""
    reader, writer = os.pipe()
    try:
        os.write(writer, memoryview(view)[:size])
        return os.read(reader, size)
    finally:
        os.close(reader)
        os.close(writer)


def tree_of(directory: Path) -> ReadableTree:
    return ReadableTree([DirectoryLayer(bytes(directory))])


def below(root: bytes, known: list[bytes], place: Place) -> bytes:
    """Where a place is on a side."""
    return os.path.join(root, known[place % len(known)] if isinstance(place, int) else place)


def outcome(action: Callable[[], Any]) -> tuple[str, Any]:
    """What an action returns, or the errno it fails with."""
    try:
        return "returns", action()
    except OSError as error:
        return "fails", errno.errorcode.get(error.errno or 0, str(error))


def agree(results: dict[str, Any]) -> None:
    """Each union did what the plain directory did."""
    for result in results.values():
        assert result == results[PLAIN], results


def numbers_in(fd: int) -> dict[bytes, int]:
    """The names and inode numbers of an open directory."""
    with os.scandir(fd) as entries:
        return {os.fsencode(entry.name): entry.inode() for entry in entries}


class Sides(RuleBasedStateMachine):
    """The three sides, kept alike and compared."""

    packed = False
    place: str | None = "/dev/shm"

    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp(prefix="lamina-machine.", dir=self.place))
        for name in ("low", "middle", PLAIN, LAMINA, KERNEL):
            (self.base / name).mkdir()
        self.roots = {PLAIN: bytes(self.base / PLAIN)}
        self.layers: dict[str, list[Path]] = {}
        self.generation = 0
        self.written = 0
        self.lately: list[bytes] = []
        self.mounts = contextlib.ExitStack()
        self.held: list[Held] = []
        self.readings: list[Reading] = []
        self.numbers: dict[int, int] = {}
        self.linked_below = False
        self.whole_seconds = False
        self.watchful = True
        self.options: list[str] = []

    def teardown(self) -> None:
        try:
            if sys.exc_info()[0] is None:  # else the step that failed says more
                while self.readings:
                    self.finish_reading(0)
                self.compare()
                self.remount()
                self.compare()
        finally:
            self.let_go()
            self.mounts.close()
            shutil.rmtree(self.base)

    # -- layers and mounts ---------------------------------------------------------------------

    @initialize(lowers=LOWERS, watchful=st.booleans(), metacopy=st.booleans())
    def build(self, lowers: Lowers, watchful: bool, metacopy: bool) -> None:
        """Fill two lower layers, and the plain directory with what the kernel makes of them."""
        self.linked_below = fill(self.base, lowers)
        self.watchful = watchful
        self.options = ["metacopy=on"] if metacopy else []
        both = [self.base / "middle", self.base / "low"]
        self.layers = {LAMINA: both, KERNEL: both}
        with kernel_overlay(self.base / KERNEL, both):
            source = f"{self.base}/{KERNEL}/."
            subprocess.run(["cp", "-a", source, self.base / PLAIN], check=True)
        if self.packed:
            self.layers[LAMINA] = [self.pack(path, tree_of(path)) for path in both]
        self.mount()

    def mount(self) -> None:
        for side, layers in self.layers.items():
            mount = partial(mounted, options=self.options) if side == LAMINA else kernel_overlay
            self.mounts.enter_context(mount(self.base / side, layers, *self.upper(side)))
            self.roots[side] = bytes(self.base / side)

    def upper(self, side: str) -> tuple[Path, Path]:
        """The upper and work directories of a side, made anew in each generation.

        The attributes of a union's root are those of its upper.
        """
        upper = self.base / f"{side}.upper{self.generation}"
        if not upper.exists():
            upper.mkdir()
            shutil.copystat(self.base / PLAIN, upper)
        return upper, self.base / f"{side}.work{self.generation}"

    @staticmethod
    def pack(directory: Path, tree: ReadableTree) -> Path:
        """A pack of a directory, the topmost layer of a tree."""
        with contextlib.closing(tree):
            diff_id = ingest(
                Difference(tree, with_root=True), directory.with_suffix(".tmp")
            ).diff_id
        pack = directory.with_name(f"{diff_id.hex()}.pack")
        directory.with_suffix(".tmp").rename(pack)
        return pack

    def commit(self, upper: Path, work: Path) -> Path:
        """The upper as a pack."""
        lowers = [bytes(layer) for layer in self.layers[LAMINA]]
        return self.pack(upper, open_finished(bytes(upper), bytes(work), lowers))

    @rule()
    def remount(self) -> None:
        """What a union shows is on disk, and so are lamina's numbers."""
        self.let_go()
        self.mounts.close()
        self.mount()

    @rule()
    def layer(self) -> None:
        """The upper becomes the topmost lower layer, below a fresh upper.

        With hardlinks in a directory as a layer, some of which the upper may have, nobody can: that
        the others are the same file is known in that mount's upper or work directory only. A pack
        knows all names of a file, so lamina goes on over packs, and the kernel is left behind.
        """
        if self.linked_below and self.packed:
            self.layers.pop(KERNEL, None)
        elif self.linked_below:
            return
        self.let_go()
        self.mounts.close()
        self.roots = {PLAIN: self.roots[PLAIN]}
        for side, layers in self.layers.items():
            upper, work = self.upper(side)
            top = self.commit(upper, work) if self.packed and side == LAMINA else upper
            self.layers[side] = [top, *layers]
        self.generation += 1
        self.whole_seconds = self.packed
        self.numbers.clear()
        self.linked_below = self.links()
        self.mount()

    def links(self) -> bool:
        """Whether any file has several names."""
        seen, _ = look(self.roots[PLAIN])
        return any(one.links > 1 and one.kind != stat.S_IFDIR for one in seen.values())

    @rule()
    def forget(self) -> None:
        """The kernel forgets every file that nobody uses."""
        Path("/proc/sys/vm/drop_caches").write_text("2")

    # -- doing the same everywhere ---------------------------------------------------------------

    def every(self, act: Callable[[Callable[[Place], bytes]], Any]) -> None:
        """Do something on each side, given what makes paths of places, with the same result."""
        results = {}
        known, there = self.known(), self.there()
        for side in (LAMINA, PLAIN, KERNEL):
            if side in self.roots:
                results[side] = outcome(partial(act, partial(below, self.roots[side], known)))
        agree(results)
        self.lately = (sorted(there - self.there()) + self.lately)[:4]

    def there(self) -> set[bytes]:
        """The paths of the plain side."""
        root = self.roots[PLAIN]
        return {
            os.path.relpath(os.path.join(above, name), root)
            for above, directories, files in os.walk(root)
            for name in (*directories, *files)
        }

    def known(self) -> list[bytes]:
        """What a number may stand for: paths that are there or have lately gone."""
        return sorted(self.there() | set(self.lately)) or [b"a"]

    def found(self, place: Place) -> os.stat_result | None:
        """What is at a place of the plain side, symlinks followed."""
        try:
            return os.stat(below(self.roots[PLAIN], self.known(), place))
        except OSError:
            return None

    def kind(self, place: Place) -> int:
        """The file type at a place, 0 for nothing."""
        info = self.found(place)
        return stat.S_IFMT(info.st_mode) if info else 0

    def some(self, length: int) -> bytes:
        self.written += 1
        return (b"%d," % self.written * length)[:length]

    # -- directories that are read while they change ---------------------------------------------

    @rule(path=st.one_of(st.just(b""), PLACES))
    def begin_reading(self, path: Place) -> None:
        if self.kind(path) != stat.S_IFDIR:
            return
        fd, plain_fd = (
            os.open(below(self.roots[side], self.known(), path), os.O_RDONLY | os.O_DIRECTORY)
            for side in (LAMINA, PLAIN)
        )
        self.readings.append(Reading(fd, plain_fd, numbers_in(plain_fd), []))

    @precondition(lambda self: self.readings)
    @rule(which=WHICH)
    def read_some(self, which: int) -> None:
        reading = self.readings[which % len(self.readings)]
        reading.seen.extend([name for name, _ in entries_read(reading.fd, 32)])

    @precondition(lambda self: self.readings)
    @rule(which=WHICH)
    def finish_reading(self, which: int) -> None:
        """A file that was there all the time is listed exactly once."""
        reading = self.readings[which % len(self.readings)]
        while names := [name for name, _ in entries_read(reading.fd, 32)]:
            reading.seen.extend(names)
        at_end = numbers_in(reading.plain_fd)
        for name, number in reading.at_start.items():
            if at_end.get(name) == number:
                assert reading.seen.count(name) == 1, (name, reading.seen)
        self.readings.remove(reading)
        os.close(reading.fd)
        os.close(reading.plain_fd)

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def close_held(self, which: int) -> None:
        held = self.held.pop(which % len(self.held))
        if held.view is not None:
            held.view.close()
        for fd in held.fds.values():
            os.close(fd)

    def let_go(self) -> None:
        while self.held:
            self.close_held(0)
        while self.readings:
            reading = self.readings.pop()
            os.close(reading.fd)
            os.close(reading.plain_fd)

    # -- comparing -------------------------------------------------------------------------------

    @invariant()
    def same(self) -> None:
        """Half of the runs look at everything after each step, the others do not disturb."""
        if LAMINA in self.roots:
            self.forget_removed()
        if self.watchful and LAMINA in self.roots:
            self.compare()

    def forget_removed(self) -> None:
        """The filesystem gives the number of a removed file to the next that is made."""
        places = (
            os.path.join(above, name)
            for above, directories, files in os.walk(self.roots[PLAIN])
            for name in (*directories, *files)
        )
        present = {os.lstat(place).st_ino for place in places}
        self.numbers = {ino: number for ino, number in self.numbers.items() if ino in present}

    @rule()
    def compare(self) -> None:
        if LAMINA not in self.roots:
            return
        plain, plain_numbers = look(self.roots[PLAIN])
        seen, numbers = look(self.roots[LAMINA])
        no_differences(self.comparable(seen), self.comparable(plain))
        self.compare_numbers(plain_numbers, numbers)
        if KERNEL in self.roots:
            kernel, _ = look(self.roots[KERNEL])
            # Kernel overlayfs shows one link for a merged directory.
            no_differences(without_directory_links(kernel), without_directory_links(plain))
        for held in self.held:
            self.compare_held(held)

    def comparable(self, seen: dict[bytes, Sight]) -> dict[bytes, Sight]:
        """Once a layer was made of an upper, times that were set before are whole seconds."""
        if not self.whole_seconds:
            return seen
        return {path: one._replace(mtime_ns=one.mtime_ns // 10**9) for path, one in seen.items()}

    def compare_numbers(self, plain: dict[bytes, int], lamina: dict[bytes, int]) -> None:
        """A file keeps its number, through copy-up, rename and remount."""
        for path, number in lamina.items():
            known = self.numbers.setdefault(plain[path], number)
            assert number == known, f"{path!r} had number {known}, has {number}"
        assert len(set(lamina.values())) == len(set(plain.values()))

    def compare_held(self, held: Held) -> None:
        facts = {}
        for side, fd in held.fds.items():
            info = os.fstat(fd)
            facts[side] = (
                os.pread(fd, 30_000, 0),
                info.st_size,
                info.st_nlink,
                info.st_mode,
                (info.st_uid, info.st_gid),
            )
        agree(facts)
        # Kernel overlayfs lets a shared map of a lower file go stale at the copy-up.
        size = min(facts[PLAIN][1], mmap.PAGESIZE)
        if held.view is not None and size:
            assert mapped(held.view, 1) == facts[PLAIN][0][:1]
