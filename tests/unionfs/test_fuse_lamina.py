"""The options of fuse-lamina: those of mount(8) and fuse-overlayfs, read the same way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.fuse_lamina import main, read
from cli.mount_options import Given, UsageError, build_options, split_escaped
from tests.support.machine import REPOSITORY
from unionfs.attach import FLAGS
from unionfs.mounting import MountOptions

PATHS = st.text(st.sampled_from("a \\:,=/é\n"), min_size=1)


def parsed(*arguments: str) -> MountOptions:
    line = read(list(arguments))
    return build_options(line.given, line.places)


def escape(path: str) -> str:
    """As the documentation says: colons for lowerdir, then commas for -o."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


@given(st.lists(PATHS, min_size=1, max_size=4))
def test_any_path_can_be_written_with_escapes(names: list[str]) -> None:
    paths = [f"/-{name}" for name in names]
    found = parsed("-o", "lowerdir=" + ":".join(map(escape, paths)) + ",ro", "/mnt")
    assert found.lowers == tuple(os.path.abspath(os.fsencode(path)) for path in paths)
    assert found.read_only


def test_a_backslash_before_anything_else_is_itself() -> None:
    assert split_escaped(r"a\b:c\:d:e\\:f", ":") == ["a\\b", "c:d", "e\\", "f"]
    assert split_escaped("a\\", ":") == ["a\\"]


def test_the_last_of_a_repeated_option_decides() -> None:
    found = parsed("-o", "lowerdir=/a,fsname=one", "-o", "fsname=two", "-olowerdir=/b", "/mnt")
    assert (found.lowers, found.fsname) == ((b"/b",), "two")
    assert Given(["ro,rw", "ro,,"]).names() == ["rw", "ro"]
    assert Given(["a=b=c"]).text("a") == "b=c"


@pytest.mark.parametrize(
    ("words", "read_only"),
    [("ro", True), ("rw", False), ("ro,rw", False), ("rw,ro", True), ("noatime", False)],
)
def test_read_only_or_not(words: str, read_only: bool) -> None:
    assert parsed("-o", f"lowerdir=/a,{words}", "/mnt").read_only == read_only


def test_flags_keep_their_order() -> None:
    found = parsed("-o", "lowerdir=/a,nosuid,suid,nodev,ro,noexec", "/mnt")
    assert found.flags == ("nosuid", "suid", "nodev", "noexec")
    everything = parsed("-o", "lowerdir=/a," + ",".join(FLAGS), "/mnt")
    assert set(everything.flags) == FLAGS.keys() - {"ro", "rw"}


def test_options_may_stand_anywhere_and_be_repeated() -> None:
    """mount(8) runs ``lamina SOURCE MOUNTPOINT -o OPTIONS``, with options of its own among them."""
    expected = parsed("-o", "lowerdir=/a,upperdir=/u,workdir=/w,nodev", "/mnt")
    assert (expected.mountpoint, expected.lowers, expected.read_only) == (b"/mnt", (b"/a",), False)
    for arguments in (
        ["lamina", "/mnt", "-o", "rw,lowerdir=/a,upperdir=/u,workdir=/w,nodev"],
        ["-o", "lowerdir=/a", "lamina", "-o", "upperdir=/u,workdir=/w", "/mnt", "-o", "nodev,rw"],
        ["-orw,nodev", "/mnt", "-olowerdir=/b", "-olowerdir=/a,upperdir=/u,workdir=/w"],
        ["-o", "upperdir=/u,lowerdir=/a,workdir=/w,nodev,nodev", "--", "lamina", "/mnt"],
    ):
        assert parsed(*arguments) == expected


def test_the_source_is_shown_unless_fsname_says_otherwise() -> None:
    """So that ``mount -a`` knows that a line of fstab is mounted."""
    assert parsed("layers", "/mnt", "-o", "lowerdir=/a").fsname == "layers"
    assert parsed("layers", "/mnt", "-o", "lowerdir=/a,fsname=name").fsname == "name"
    assert parsed("/mnt", "-o", "lowerdir=/a").fsname == "lamina"
    assert parsed("", "/mnt", "-o", "lowerdir=/a").fsname == "lamina"


def test_relative_paths_are_of_the_starting_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = parsed("-o", "lowerdir=a:../b,upperdir=u,workdir=w", "mnt")
    here, above = os.fsencode(tmp_path), os.fsencode(tmp_path.parent)
    assert found.lowers == (here + b"/a", above + b"/b")
    assert (found.upper, found.work) == (here + b"/u", here + b"/w")
    assert found.mountpoint == here + b"/mnt"


def test_foreground_and_debug() -> None:
    assert read(["-o", "lowerdir=/a", "/m"])[2:] == (False, False)
    assert read(["-f", "-s", "-o", "lowerdir=/a", "/m"])[2:] == (True, False)
    assert read(["-o", "lowerdir=/a", "/m", "--debug"])[2:] == (True, True)
    assert read(["-o", "lowerdir=/a,debug", "/m"])[2:] == (True, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "say one mountpoint"),
        (["a", "b", "c"], "say one mountpoint"),
        (["/mnt", "-o"], "option -o needs a value"),
        (["/mnt", "-x"], "unknown option: -x"),
        (["/mnt", "-o", "lowerdir=/a,frobnicate=3"], "unknown option: frobnicate"),
        (["/mnt", "-o", "lowerdir=/a,Ro"], "unknown option: Ro"),
    ],
)
def test_nonsense_is_named(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parsed(*arguments)
    assert str(raised.value) == said


def test_usage_errors_exit_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fuse-lamina", "--what"])
    with pytest.raises(SystemExit) as raised:
        main()
    assert raised.value.code == 2
    assert capsys.readouterr() == (
        "",
        "fuse-lamina: unknown option: --what\ntry 'fuse-lamina --help'\n",
    )


@pytest.mark.parametrize("option", ["-h", "--help", "-V", "--version"])
def test_help_and_version_need_nothing_heavy(option: str) -> None:
    """They come at once: neither pyfuse3 nor a union is imported for them."""
    code = (
        "import sys; from cli.fuse_lamina import main; main(); "
        "heavy = {'pyfuse3', 'trio', 'unionfs.mounting'} & set(sys.modules); assert not heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, option],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    if "PackageNotFoundError" in done.stderr:
        pytest.skip("not on this machine: lamina is not installed")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fuse-lamina" in done.stdout
