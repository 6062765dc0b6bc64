"""mount(8) and fstab(5): the type ``fuse.lamina`` makes mount.fuse3 run ``lamina``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from cli.main import _is_called_by_mount
from tests.support.machine import REPOSITORY

_TIMEOUT = 60

LAUNCHER = f"""\
#!/bin/sh
PYTHONPATH={REPOSITORY} exec {sys.executable} -m cli.main "$@"
"""


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["lamina", "/mnt", "-o", "rw"], True),
        (["layers", "/mnt", "-o", "rw"], True),
        (["/mnt", "-o", "rw"], True),
        (["/srv/a", "/mnt", "-o", "rw"], True),
        (["run", "/mnt", "-o", "rw"], False),
        (["save", "-o", "file", "image"], False),
        (["save", "/image", "-o", "file"], False),
        (["sav", "image", "-o", "file"], False),
        (["-D", "/mnt", "-o", "rw"], False),
        (["lamina", "/mnt"], False),
        (["--root", "/store", "save", "-o", "file", "image"], False),
        (["-o", "rw"], False),
        ([], False),
    ],
)
def test_a_call_of_mount_is_told_from_a_command(arguments: list[str], expected: bool) -> None:
    assert _is_called_by_mount(arguments) == expected


def test_an_ordinary_start_imports_nothing_of_it() -> None:
    code = (
        "import sys; sys.argv = ['lamina', '--version']\n"
        "from cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "assert not {'cli.fuse_lamina', 'unionfs', 'pyfuse3'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, capture_output=True)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Layers, and a directory with the program as it would be installed."""
    for name in ("low", "upper", "work", "mnt", "with blank", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/f").write_text("lower\n")
    (tmp_path / "bin/lamina").write_text(LAUNCHER)
    (tmp_path / "bin/lamina").chmod(0o755)
    return tmp_path


def run(base: Path, steps: Sequence[str]) -> list[str]:
    """What shell commands print in a mount namespace of their own, in which lamina is installed.

    mount(8) takes PATH out of the environment, so only the places that a shell knows by itself
    are searched; /usr/local/bin is one of them.
    """
    script = "\n".join(
        [
            "set -e",
            f"cd '{base}'",
            "trap 'umount -l mnt \"with blank\" 2>/dev/null' EXIT",
            "mount --bind bin /usr/local/bin",
            *steps,
            "trap - EXIT",
        ]
    )
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout.splitlines()


FUSE = ",user_id=0,group_id=0,default_permissions,allow_other"


def places(base: Path) -> str:
    return f"lowerdir={base}/low,upperdir={base}/upper,workdir={base}/work"


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.peer("mount.fuse3")
@pytest.mark.parametrize("kind", ["fuse.lamina", "fuse.{base}/bin/lamina"])
@pytest.mark.parametrize("source", ["lamina", "layers"])
def test_mount_by_hand(base: Path, kind: str, source: str) -> None:
    said = run(
        base,
        [
            f"mount -t {kind.format(base=base)} {source} mnt -o {places(base)} -o nodev,noexec",
            "findmnt -rno SOURCE,FSTYPE,OPTIONS --mountpoint mnt",
            "cat mnt/f",
            "echo changed > mnt/f",
            "umount mnt",
        ],
    )
    assert said == [f"{source} fuse.lamina rw,nodev,noexec,noatime{FUSE}", "lower"]
    assert (base / "upper/f").read_text() == "changed\n"
    assert (base / "low/f").read_text() == "lower\n"


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.peer("mount.fuse3")
def test_lines_of_fstab(base: Path) -> None:
    blank = str(base / "with blank").replace(" ", "\\040")
    options = "rw,nofail,x-systemd.automount,x-systemd.requires-mounts-for=/srv"
    (base / "fstab").write_text(
        f"lamina {base}/mnt fuse.lamina {options},{places(base)} 0 0\n"
        f"layers {blank} fuse.lamina {options},noauto,lowerdir={base}/low 0 0\n"
    )
    show = 'findmnt -rno SOURCE,TARGET,OPTIONS -t fuse.lamina | grep -F "$PWD"'
    said = run(
        base,
        [
            "mount --fstab fstab -a",
            "mount --fstab fstab -a",
            "mount --fstab fstab layers",
            show,
            "cat mnt/f 'with blank/f'",
            "touch mnt/new",
            "umount mnt 'with blank'",
            f"mount --fstab fstab -o ro '{base}/mnt'",
            show,
            "ls mnt",
            "umount mnt",
        ],
    )
    blank = blank.replace("\\040", "\\x20")
    assert said == [
        f"lamina {base}/mnt rw,noatime{FUSE}",
        f"layers {blank} ro,noatime{FUSE}",
        "lower",
        "lower",
        f"lamina {base}/mnt ro,noatime{FUSE}",
        "f",
        "new",
    ]


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.peer("mount.fuse3")
def test_a_mistake_is_told_through_mount(base: Path) -> None:
    said = run(
        base,
        [
            f"mount -t fuse.lamina lamina mnt -o lowerdir={base}/none 2>&1 || echo $?",
            f"mount -t fuse.lamina lamina mnt -o lowerdir={base}/low,what=1 2>&1 || echo $?",
            f"mount -t fuse.lamina lamina mnt -o lowerdir={base}/low",
            f"mount -t fuse.lamina lamina mnt -o remount,ro,lowerdir={base}/low 2>&1 || echo $?",
            "umount mnt",
        ],
    )
    assert said[0] == f"fuse-lamina: lowerdir {base}/none does not exist; create it first"
    assert said[1] != "0"
    assert said[2] == "fuse-lamina: unknown option: what"
    assert said[4] != "0"
    assert "option remount: a mount cannot be changed" in " ".join(said[5:])
