"""What containers have changed and hold, and images as files, through the command line."""

from __future__ import annotations

import io
import os
import pty
import stat
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapshotter.images import import_rootfs
from snapshotter.store import Store
from tests.snapshotter.helpers import new_container, small_image, tar
from tests.support.command import Lamina, environment


@pytest.fixture
def box(lamina: Lamina) -> Iterator[Lamina]:
    """A store with the image ``box`` and a container ``made`` of it, which never ran."""
    with Store.open(lamina.root) as store:
        container = new_container(store, small_image(store, "box", a=b"1", b=b"2"))
        store.update_container(container, name="made")
        (container.upper / "new").write_text("new")
        (container.upper / "line\nbreak").touch()
    yield lamina
    lamina("rm", "made")


def test_changes_are_listed(box: Lamina) -> None:
    expected = "A /line\\nbreak\nA /new\n"
    assert box("diff", "made").stdout == expected
    assert box("container", "diff", "made").stdout == expected


def test_an_export_goes_to_a_file_or_a_pipe(box: Lamina, tmp_path: Path) -> None:
    piped = box.run("export", "made").stdout
    box("container", "export", "--output", tmp_path / "made.tar", "made")
    file = tmp_path / "made.tar"
    assert file.read_bytes() == piped
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with tarfile.open(fileobj=io.BytesIO(piped)) as archive:
        names = archive.getnames()
    assert names == ["bin", "bin/a", "bin/b", "line\nbreak", "new"]


def test_an_export_to_a_terminal_is_refused(box: Lamina) -> None:
    ours, theirs = pty.openpty()
    try:
        done = subprocess.run(
            box.argv("export", "made"),
            stdout=theirs,
            stderr=subprocess.PIPE,
            env=environment(),
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)
    assert done.returncode == 1
    assert b"cowardly refusing to save to a terminal" in done.stderr


@pytest.mark.parametrize("name", ["", "nowhere/made.tar"])
def test_an_export_to_no_file_is_refused(box: Lamina, tmp_path: Path, name: str) -> None:
    done = box("export", "-o", tmp_path / name, "made", check=False)
    assert done.returncode == 1
    assert "failed to export container: invalid output path" in done.stderr


def test_a_container_that_is_not_there_is_named(box: Lamina, tmp_path: Path) -> None:
    for command in (["diff"], ["export", "-o", str(tmp_path / "x")]):
        done = box(*command, "nope", check=False)
        assert (done.returncode, done.stderr) == (1, "lamina: No such container: nope\n")
    assert not (tmp_path / "x").exists()


def test_an_image_is_unpacked(box: Lamina, tmp_path: Path) -> None:
    done = box("unpack", "box", tmp_path / "files")
    assert (tmp_path / "files" / "bin" / "a").read_bytes() == b"1"
    assert done.stdout == ""
    done = box("image", "unpack", "box", tmp_path / "files", check=False)
    assert done.returncode == 1
    assert done.stderr == f"lamina: {tmp_path}/files is not empty: choose another directory\n"


@pytest.mark.root
def test_what_a_filesystem_does_not_take_is_told_once(lamina: Lamina, tmp_path: Path) -> None:
    archive = io.BytesIO(tar({"a": b"1", "b": b"2"}))
    content = io.BytesIO()
    with tarfile.open(fileobj=archive) as plain, tarfile.open(fileobj=content, mode="w") as made:
        for member in plain:
            member.pax_headers = {"SCHILY.xattr.nonsense.name": "value"}
            made.addfile(member, plain.extractfile(member))
    with Store.open(lamina.root) as store:
        import_rootfs(store, io.BytesIO(content.getvalue()), reference="odd")
    done = lamina("unpack", "odd", tmp_path / "files")
    assert done.stderr == (
        "lamina: not everything could be set here: extended attributes (2 files)\n"
    )
    assert sorted(os.listdir(tmp_path / "files")) == ["a", "b"]


def test_a_commit_is_squashed_on_request(box: Lamina) -> None:
    image = box("commit", "--squash", "made", "flat:1").stdout.strip()
    layers = box("inspect", "-f", "{{len .RootFS.Layers}}", image).stdout
    assert layers == "1\n"
    assert box("commit", "--no-pause", "-p", "made").stdout.startswith("sha256:")
