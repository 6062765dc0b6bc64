"""``lamina verify`` as a user meets it."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.support.command import Lamina, environment

pytestmark = pytest.mark.timeout(100)


@pytest.fixture
def box(lamina: Lamina, busybox_tar: Path) -> Lamina:
    """A store with two images that are the same layer."""
    lamina("import", busybox_tar, "box:1")
    lamina("tag", "box:1", "box:2")
    return lamina


def pack(box: Lamina) -> Path:
    (path,) = (box.root / "layers").glob("*.pack")
    return path


def test_a_sound_store_is_said_to_be_sound(box: Lamina) -> None:
    done = box("verify")
    assert done.stdout == (
        "Verified 1 images, 0 containers, 1 layers, 0 compressed layers: nothing is wrong\n"
    )
    assert done.stderr == f"{pack(box).name[:12]}: Verified\n"
    quiet = box("verify", "-q", "box:2")
    assert (quiet.stdout, quiet.stderr) == ("", "")
    assert "No such image: nope:latest" in box("verify", "nope", check=False).stderr


def test_a_terminal_gets_a_bar(box: Lamina) -> None:
    parent, child = pty.openpty()
    done = subprocess.run(
        box.argv("verify"),
        check=False,
        env=environment(COLUMNS="120"),
        stdout=subprocess.PIPE,
        stderr=child,
    )
    os.close(child)
    shown = os.read(parent, 1 << 16).decode()
    os.close(parent)
    assert done.returncode == 0
    assert f"{pack(box).name[:12]}: Verifying [=" in shown


def test_what_is_lost_is_told_with_those_it_concerns(box: Lamina) -> None:
    path = pack(box)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    looked = box("verify", "-q", check=False)
    assert looked.returncode == 1
    assert looked.stdout.startswith(f"found: layers/{path.name}: ")
    assert looked.stdout.endswith(" (images: box:1, box:2)\n")
    assert path.read_bytes() == data
    mended = box("verify", "--repair", check=False)
    assert mended.returncode == 1
    assert mended.stdout.startswith(f"lost: layers/{path.name}: ")
    document = json.loads(box("verify", "--format", "json", check=False).stdout)
    (finding,) = document["Findings"]
    assert (finding["State"], finding["Images"]) == ("found", ["box:1", "box:2"])
    assert (document["Images"], document["Layers"]) == (1, 1)


def test_a_lost_layer_comes_back_from_an_archive(box: Lamina, tmp_path: Path) -> None:
    box("save", "-o", tmp_path / "box.tar.gz", "box:1")
    path = pack(box)
    whole = path.read_bytes()
    for damaged in (whole[:9000], whole[:5000] + b"?" + whole[5001:]):
        path.write_bytes(damaged)
        assert box("verify", "--repair", check=False).returncode == 1
        done = box("verify", "--from", tmp_path / "box.tar.gz")
        assert done.stdout.startswith(f"repaired: layers/{path.name}: ")
        assert path.read_bytes() == whole
    assert box("verify", "-q").stdout == ""
    assert list((box.root / "tmp").iterdir()) == []


def test_what_is_repaired_is_told_once(box: Lamina) -> None:
    (box.root / "layers" / "left.pack").write_bytes(b"left")
    assert box("verify", check=False).returncode == 1
    repaired = box("verify", "--repair")
    assert repaired.stdout.splitlines()[0] == "repaired: layers/left.pack: belongs to nothing"
    assert repaired.stdout.splitlines()[1].endswith(": 1 repaired")
    assert box("verify", "-q").stdout == ""


def test_the_store_of_a_newer_lamina_is_refused(box: Lamina) -> None:
    connection = sqlite3.connect(box.root / "lamina.db")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    for command in (["verify"], ["images"], ["ps"]):
        done = box(*command, check=False)
        assert done.returncode == 1
        assert "was written by a newer lamina (store format 99, this one knows 2)" in done.stderr
