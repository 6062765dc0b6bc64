"""The helpers that other tests trust."""

from __future__ import annotations

import tarfile
from pathlib import Path

import pytest

from tests.support.mounts import mountpoints_below, tracebacks_in

pytest_plugins = "pytester"

SAMPLE = """
import pytest

@pytest.mark.peer("no-such-program-anywhere")
def test_peer(): raise AssertionError("must not run")
"""


def test_the_small_root_has_one_of_everything(busybox_tar: Path) -> None:
    with tarfile.open(busybox_tar) as tar:
        entries = tar.getmembers()
    assert {entry.type for entry in entries} == {
        tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE,
        tarfile.CHRTYPE,
    }  # fmt: skip
    names = {entry.name for entry in entries}
    assert {"bin/busybox", "bin/sh", "bin/httpd", "etc/passwd"} <= names
    assert len(names) == len(entries) > 250


@pytest.mark.peer("mmdebstrap")
def test_the_big_root_is_a_debian(debian_tar: Path) -> None:
    with tarfile.open(debian_tar) as tar:
        names = tar.getnames()
    assert len(names) > 3000
    assert "./usr/bin/dpkg" in names


def test_mounts_of_this_machine_are_found() -> None:
    assert Path("/proc") in mountpoints_below(Path("/"))


def test_a_traceback_in_a_log_is_found(tmp_path: Path) -> None:
    (tmp_path / "quiet.log").write_text("all is well\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "loud.log").write_text("Traceback (most recent call last):\n  boom\n")
    (found,) = tracebacks_in(tmp_path)
    assert "loud.log" in found


def test_what_the_machine_cannot_run_is_counted_and_named(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).with_name("conftest.py")).read_text())
    pytester.makepyprojecttoml("[tool.pytest.ini_options]\nmarkers = ['peer', 'fuse', 'root']\n")
    pytester.makepyfile(SAMPLE)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.stdout.fnmatch_lines(["*1 tests cannot run on this machine*", "*needs no-such-program*"])
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED, "a run without any test must not pass"
