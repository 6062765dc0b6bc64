"""Random operations on a lamina mount, a plain directory and kernel overlayfs do the same.

All three are reached through the kernel, by path and by descriptors that stay open, and compared
after each step: results, errno, listings, attributes, contents. In between the unions are unmounted
and mounted again, the kernel is made to forget what it knows, and the upper becomes a layer under a
fresh one. lamina's lower layers are directories or packs. Where kernel overlayfs documents that it
differs from a directory, lamina is compared with the plain directory only, and a comment says so.
"""

from __future__ import annotations

import mmap
import os
import shutil
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule, run_state_machine_as_test

from tests.unionfs.lowers import DATA, NAMES, PATHS, WHICH
from tests.unionfs.mount_sides import LAMINA, PLACES, Held, Place, Sides, agree, below, outcome
from tests.unionfs.sights import LONG_AGO
from unionfs import syscalls

pytestmark = [pytest.mark.fuse, pytest.mark.root]

LENGTHS = st.sampled_from([0, 1, 5, 5, 12, 4096, 20_000])
"""How much is written; what is written tells one step from the next."""
MODES = st.sampled_from([0o600, 0o755, 0o000, 0o4755, 0o2775, 0o1777])
XATTRS = st.sampled_from(["user.test", "trusted.test"])

IDS = st.sampled_from([-1, 0, 7])
CHANGES = st.one_of(
    st.tuples(st.just("chmod"), st.tuples(MODES)),
    st.tuples(st.just("chown"), st.tuples(IDS, IDS)),
    st.tuples(st.just("utime"), st.tuples(st.one_of(st.integers(1, 10**10), st.just(10**9)))),
    st.tuples(st.just("setxattr"), st.tuples(XATTRS, DATA, st.sampled_from([0, os.XATTR_CREATE]))),
    st.tuples(st.just("removexattr"), st.tuples(XATTRS)),
)


class MountMachine(Sides):
    """Operations by path, and on files that stay open."""

    @rule(
        path=PLACES,
        length=LENGTHS,
        flags=st.sampled_from(
            [os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_TRUNC, os.O_CREAT | os.O_TRUNC, os.O_APPEND]
        ),
        mode=MODES,
    )
    def open_and_write(self, path: Place, length: int, flags: int, mode: int) -> None:
        if self.kind(path) == stat.S_IFIFO:
            return
        data = self.some(length)

        def act(at: Callable[[Place], bytes]) -> None:
            fd = os.open(at(path), flags | os.O_WRONLY, mode)
            try:
                os.write(fd, data)
            finally:
                os.close(fd)

        self.every(act)

    @rule(path=PLACES, offset=st.sampled_from([0, 3, 20, 5000]), length=LENGTHS)
    def write_at(self, path: Place, offset: int, length: int) -> None:
        if self.kind(path) == stat.S_IFIFO:
            return
        data = self.some(length)

        def act(at: Callable[[Place], bytes]) -> None:
            fd = os.open(at(path), os.O_RDWR)
            try:
                os.pwrite(fd, data, offset)
            finally:
                os.close(fd)

        self.every(act)

    @rule(path=PLACES, size=st.sampled_from([0, 1, 10, 4096, 9000]))
    def truncate(self, path: Place, size: int) -> None:
        info = self.found(path)
        if info and (info.st_size == size or stat.S_ISFIFO(info.st_mode)):
            return  # filesystems differ in whether the same size again is a modification
        self.every(lambda at: os.truncate(at(path), size))

    @rule(path=PLACES, mode=MODES)
    def mkdir(self, path: Place, mode: int) -> None:
        self.every(lambda at: os.mkdir(at(path), mode))

    @rule(path=PLACES)
    def rmdir(self, path: Place) -> None:
        self.every(lambda at: os.rmdir(at(path)))

    @rule(path=PLACES)
    def unlink(self, path: Place) -> None:
        self.every(lambda at: os.unlink(at(path)))

    @rule(
        path=PLACES,
        by=st.sampled_from(["nothing", "mkdir", "mkdir and rename", "create", "rename"]),
        name=NAMES,
    )
    def replace(self, path: Place, by: str, name: bytes) -> None:
        """Remove all that is at a place, and put something new there, which shows only itself."""
        if self.kind(path) == stat.S_IFIFO:
            return
        path = os.path.relpath(below(b"/", self.known(), path), b"/")
        self.every(lambda at: remove_all(at(path)))
        new = path if by in ("mkdir", "create") else b"new"
        if by.startswith("mkdir"):
            self.every(lambda at: os.mkdir(at(new)))
            self.every(lambda at: os.mkdir(at(os.path.join(new, name))))
        elif by != "nothing":
            self.every(lambda at: os.mknod(at(new), 0o100644))
        if new == b"new":
            self.every(lambda at: os.rename(at(new), at(path)))

    @rule(old=PLACES, new=PLACES)
    def link(self, old: Place, new: Place) -> None:
        self.every(lambda at: os.link(at(old), at(new), follow_symlinks=False))

    @rule(path=PLACES, leads_to=PATHS)
    def symlink(self, path: Place, leads_to: bytes) -> None:
        self.every(lambda at: os.symlink(leads_to, at(path)))

    @rule(path=PLACES, mode=MODES)
    def fifo(self, path: Place, mode: int) -> None:
        self.every(lambda at: os.mkfifo(at(path), mode))

    @rule(
        old=PLACES,
        new=PLACES,
        flags=st.sampled_from([0, 0, syscalls.RENAME_NOREPLACE, syscalls.RENAME_EXCHANGE]),
    )
    def rename(self, old: Place, new: Place, flags: int) -> None:
        here = syscalls.AT_FDCWD
        self.every(lambda at: syscalls.renameat2(here, at(old), here, at(new), flags))

    @rule(path=PLACES, change=CHANGES)
    def change(self, path: Place, change: tuple[str, tuple[Any, ...]]) -> None:
        """chmod, chown, utime, setxattr or removexattr; only chmod follows symlinks."""
        name, arguments = change
        options: dict[str, Any] = {} if name == "chmod" else {"follow_symlinks": False}
        if name == "utime":
            options["ns"] = (LONG_AGO, LONG_AGO + arguments[0])
            arguments = ()
        self.every(lambda at: getattr(os, name)(at(path), *arguments, **options))

    # -- descriptors that stay open --------------------------------------------------------------

    @rule(path=PLACES, flags=st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_APPEND]))
    def hold(self, path: Place, flags: int) -> None:
        """Open a file, and keep it open whatever becomes of its name."""
        if self.kind(path) != stat.S_IFREG:
            return
        fds = {
            side: os.open(below(root, self.known(), path), flags)
            for side, root in self.roots.items()
        }
        view = None
        if os.fstat(fds[LAMINA]).st_size:
            view = mmap.mmap(fds[LAMINA], 1, mmap.MAP_SHARED, mmap.PROT_READ)
        self.held.append(Held(fds, view))

    def each_held(self, which: int, act: Callable[[int], Any]) -> None:
        held = self.held[which % len(self.held)]
        agree({side: outcome(partial(act, fd)) for side, fd in held.fds.items()})

    @precondition(lambda self: self.held)
    @rule(which=WHICH, offset=st.sampled_from([0, 3, 5000]), length=LENGTHS)
    def write_held(self, which: int, offset: int, length: int) -> None:
        data = self.some(length)
        self.each_held(which, lambda fd: os.pwrite(fd, data, offset))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, size=st.sampled_from([0, 1, 10, 9000]))
    def truncate_held(self, which: int, size: int) -> None:
        self.each_held(which, lambda fd: os.ftruncate(fd, size))

    @precondition(lambda self: self.held)
    @rule(which=WHICH, mode=MODES)
    def change_held(self, which: int, mode: int) -> None:
        self.each_held(which, lambda fd: os.fchmod(fd, mode))
        self.each_held(which, lambda fd: os.utime(fd, ns=(LONG_AGO, LONG_AGO)))

    @precondition(lambda self: self.held)
    @rule(which=WHICH)
    def sync_held(self, which: int) -> None:
        self.each_held(which, os.fsync)


class PackedMountMachine(MountMachine):
    """lamina over packs."""

    packed = True


def remove_all(place: bytes) -> None:
    if os.path.isdir(place) and not os.path.islink(place):
        shutil.rmtree(place)
    else:
        os.unlink(place)


def run(machine: type[MountMachine], examples: int, steps: int, phases: list[Phase]) -> None:
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("machine", [MountMachine, PackedMountMachine])
def test_a_mount_behaves_like_a_directory(machine: type[MountMachine]) -> None:
    run(machine, 5, 30, [Phase.reuse, Phase.generate])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("machine", [MountMachine, PackedMountMachine])
def test_a_mount_behaves_like_a_directory_for_long(
    machine: type[MountMachine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "place", str(tmp_path))
    run(machine, 120, 50, [Phase.reuse, Phase.generate, Phase.shrink])
