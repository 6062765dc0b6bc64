"""``lamina mount`` and ``lamina umount``."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Lamina, environment

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Iterator[Lamina]:
    command = Lamina(tmp_path_factory.mktemp("box") / "store")
    command("import", busybox_tar, "box")
    yield command
    command.close()


@pytest.fixture
def mountpoint(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "mountpoint"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        subprocess.run(["umount", "-l", path], check=True)


def test_an_image_is_mounted_read_only(box: Lamina, mountpoint: Path) -> None:
    assert box("mount", "box", mountpoint).stdout == ""
    assert (mountpoint / "etc" / "motd").read_text() == "welcome\n"
    with pytest.raises(OSError, match="Read-only file system"):
        (mountpoint / "new").touch()
    options = [
        line for line in Path("/proc/mounts").read_text().splitlines() if str(mountpoint) in line
    ]
    assert "nosuid" in options[0]
    assert "nodev" in options[0]
    box("umount", mountpoint)
    assert not os.path.ismount(mountpoint)
    assert not list(mountpoint.iterdir())


def test_changes_go_to_the_upper(box: Lamina, mountpoint: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper"
    upper.mkdir()
    box("mount", "--upper", upper, "box", mountpoint)
    (mountpoint / "etc" / "motd").write_text("changed\n")
    (mountpoint / "new").write_text("new\n")
    box("umount", mountpoint)
    assert (upper / "etc" / "motd").read_text() == "changed\n"
    assert sorted(path.name for path in upper.iterdir()) == ["etc", "new"]
    box("mount", "--upper", upper, "--read-only", "box", mountpoint)
    assert (mountpoint / "new").read_text() == "new\n"
    with pytest.raises(OSError, match="Read-only file system"):
        (mountpoint / "new").unlink()
    box("umount", mountpoint)


def test_a_mount_outlives_its_image(box: Lamina, mountpoint: Path, busybox_tar: Path) -> None:
    image = box("import", "-m", "other", busybox_tar, "other").stdout.strip()
    box("mount", "other", mountpoint)
    box("rmi", "-f", image)
    assert (mountpoint / "var" / "zeros").read_bytes() == bytes(300_000)
    box("umount", mountpoint)


def test_a_foreground_mount_ends_with_its_unmount(box: Lamina, mountpoint: Path) -> None:
    process = subprocess.Popen(box.argv("mount", "-f", "box", mountpoint), env=environment())
    deadline = time.monotonic() + 20
    while not os.path.ismount(mountpoint):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    box("umount", mountpoint)
    assert process.wait(20) == 0


def test_a_busy_mount_is_named_and_stays(box: Lamina, mountpoint: Path) -> None:
    box("mount", "box", mountpoint)
    with (mountpoint / "etc" / "motd").open():
        done = box("umount", mountpoint, check=False)
        assert done.returncode == 1
        assert str(mountpoint) in done.stderr
        assert done.stderr.count("\n") == 1
        assert os.path.ismount(mountpoint)
        box("umount", "--lazy", mountpoint)
        assert not os.path.ismount(mountpoint)


def test_wrong_directories_are_refused(box: Lamina, mountpoint: Path, tmp_path: Path) -> None:
    missing = box("mount", "box", tmp_path / "missing", check=False)
    assert missing.returncode == 125
    assert "does not exist" in missing.stderr
    unknown = box("mount", "nope", mountpoint, check=False)
    assert (unknown.returncode, unknown.stderr) == (1, "lamina: No such image: nope:latest\n")
    no_upper = box("mount", "--work", tmp_path, "box", mountpoint, check=False)
    assert no_upper.returncode == 125
    for wrong in (mountpoint, tmp_path / "missing"):
        done = box("umount", wrong, check=False)
        assert done.returncode == 1
        assert str(wrong) in done.stderr
        assert done.stderr.count("\n") == 1
    assert not os.path.ismount(mountpoint)
