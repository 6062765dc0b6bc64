"""Committing, comparing and exporting containers that run."""

from __future__ import annotations

import os
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapshotter.containers import pausing
from snapshotter.containers.pausing import CannotPause, paused
from snapshotter.store import Container, Store
from tests.support.command import Lamina, environment

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.peer("runc")]

COUNT = "i=0; while :; do i=$((i+1)); echo $i > /count; done"


@contextmanager
def running(box: Lamina, name: str, script: str, marker: str) -> Iterator[Container]:
    """A container that runs; its script has made the file ``marker`` when the block begins."""
    command = box.argv("run", "--name", name, "box", "sh", "-c", script)
    process = subprocess.Popen(command, env=environment())
    try:
        with Store.open(box.root) as store:
            deadline = time.monotonic() + 20
            while True:
                found = [one for one in store.containers() if one.name == name]
                if found and (found[0].upper / marker).exists():
                    break
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield store.container(name)
    finally:
        box("rm", "-f", name)
        process.wait(20)


def stands_still(container: Container) -> bool:
    """Whether the counter of a container keeps its value for as long as it never would."""
    count = container.upper / "count"
    before = count.stat().st_mtime_ns
    time.sleep(0.3)
    return count.stat().st_mtime_ns == before


def moves(container: Container) -> bool:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if not stands_still(container):
            return True
    return False


def test_a_paused_container_stands_still_and_goes_on(box: Lamina) -> None:
    with running(box, "counting", COUNT, "count") as container:
        assert moves(container)
        with paused(container):
            assert stands_still(container)
        assert moves(container)


def test_a_container_goes_on_when_the_one_who_paused_it_is_killed(box: Lamina) -> None:
    with running(box, "abandoned", COUNT, "count") as container:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with paused(container):
                os.write(writing, b"x")
                time.sleep(100)
            os._exit(1)
        os.read(reading, 1)
        assert stands_still(container)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert moves(container)


def test_a_container_without_a_cgroup_cannot_be_paused(
    box: Lamina, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pausing, "_CGROUPS", tmp_path)
    with (
        running(box, "loose", COUNT, "count") as container,
        pytest.raises(CannotPause, match="cannot be paused"),
        paused(container),
    ):
        pass


def test_a_container_that_has_ended_needs_no_pause(box: Lamina) -> None:
    box("run", "--name", "ended", "box", "sh", "-c", "echo x > /count")
    with Store.open(box.root) as store, paused(store.container("ended")):
        pass
    box("commit", "--pause", "ended")
    box("rm", "ended")


# What is in an open file is with the kernel only, until the file is closed or half a minute old.
OPEN = "mkfifo /pipe; (exec 3>/pipe; echo written >&3; touch /ready; sleep 60) & cat /pipe > /open"


def test_what_is_in_open_files_is_there(box: Lamina, tmp_path: Path) -> None:
    with running(box, "writing", OPEN, "ready"):
        time.sleep(0.5)
        assert box("diff", "writing").stdout.splitlines() == ["A /open", "A /pipe", "A /ready"]
        box("export", "-o", tmp_path / "all.tar", "writing")
        for options in ([], ["-p"], ["--no-pause"]):
            image = box("commit", *options, "writing").stdout.strip()
            assert box("run", "--rm", image, "cat", "/open").stdout == "written\n"
            box("rmi", image)
    with tarfile.open(tmp_path / "all.tar") as archive:
        content = archive.extractfile("open")
        assert content is not None
        assert content.read() == b"written\n"
