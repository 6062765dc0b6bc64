"""Making union mounts in tests, and making sure that none is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .machine import REPOSITORY, program

_PATIENCE = 20
"""Seconds a mount may take to appear or to go away."""


def mountpoints_below(directory: Path) -> list[Path]:
    """The mountpoints of this mount namespace inside ``directory``, innermost last."""
    table = Path("/proc/self/mountinfo").read_bytes().splitlines()
    # Octal escapes stand for space, tab, newline and backslash: proc(5).
    fields = (line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in table)
    paths = [Path(os.fsdecode(field)) for field in fields]
    return [path for path in paths if path.is_relative_to(directory)]


def unmount(mountpoint: Path, *, lazy: bool = False) -> None:
    """Unmount, as root directly, otherwise through fusermount3."""
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), str(mountpoint)]
    else:
        helper = program("fusermount3") or "fusermount3"
        command = [helper, "-u", *(["-z"] if lazy else []), str(mountpoint)]
    subprocess.run(command, check=True, capture_output=True, timeout=_PATIENCE)


def tracebacks_in(directory: Path) -> list[str]:
    """The log files below ``directory`` that hold a traceback, with their ends."""
    found = []
    for log in sorted(directory.rglob("*.log")):
        text = log.read_text(errors="replace")
        if "Traceback (most recent call last)" in text:
            found.append(f"{log}:\n{text[-4000:]}")
    return found


@contextmanager
def mounted(
    mountpoint: Path,
    lowers: Sequence[Path],
    upper: Path | None = None,
    work: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[Path]:
    """A union of directories or packs, topmost first, while the block runs.

    The daemon is ``fuse-lamina`` in the foreground, in a process of its own. The mountpoint and
    the upper and work directories are made when they are missing. Whatever happens the mount is
    gone afterwards. Fails when the daemon ends early, exits with an error or logs a traceback.
    """
    for directory in (mountpoint, upper, work):
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
    log = mountpoint.with_name(f"{mountpoint.name}.daemon.log")
    settings = ["lowerdir=" + ":".join(map(str, lowers)), *options]
    settings += [f"upperdir={upper}"] if upper else []
    settings += [f"workdir={work}"] if work else []
    command = [sys.executable, "-m", "cli.fuse_lamina", "-f", "-o", ",".join(settings)]
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [*command, str(mountpoint)],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            _wait_for_mount(mountpoint, daemon, log)
            yield mountpoint
        finally:
            ended = _end(mountpoint, daemon)
    text = log.read_text(errors="replace")
    assert ended, f"the mount daemon was still there {_PATIENCE} s after the unmount:\n{text}"
    assert "Traceback" not in text, f"the mount daemon logged a traceback:\n{text}"
    assert daemon.returncode == 0, f"the mount daemon exited with {daemon.returncode}:\n{text}"


def _wait_for_mount(mountpoint: Path, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not os.path.ismount(mountpoint):
        text = log.read_text(errors="replace")
        assert daemon.poll() is None, f"fuse-lamina exited with {daemon.returncode}:\n{text}"
        assert time.monotonic() < deadline, f"no mount after {_PATIENCE} s:\n{text}"
        time.sleep(0.01)


def _end(mountpoint: Path, daemon: subprocess.Popen[bytes]) -> bool:
    """Unmount; whether the daemon ended by itself. It is gone in any case."""
    if mountpoint in mountpoints_below(mountpoint):
        try:
            unmount(mountpoint)
        except subprocess.CalledProcessError:
            # Something still has a file open: let the test fail for its own reason.
            unmount(mountpoint, lazy=True)
    try:
        daemon.wait(timeout=_PATIENCE)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
        return False
    return True
