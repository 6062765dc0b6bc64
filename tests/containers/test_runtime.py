"""Finding a runtime that works, and understanding what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snapshotter.containers.bundle import Surroundings
from snapshotter.containers.errors import ContainerError, RuntimeUnavailable
from snapshotter.containers.runtime import Finder, Instance, Runtime, Streams, classify, installed

SURROUNDINGS = Surroundings(
    in_user_namespace=False, has_tty_group=True, unified_cgroups=False, bounding=0
)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        # What runc 1.1 and crun 1.8 really say.
        ('runc create failed: unable to start container process: exec: "nope": executable file '
         "not found in $PATH", 127),
        ('runc create failed: exec: "/nope": stat /nope: no such file or directory', 127),
        ('runc create failed: exec: "/etc": permission denied', 126),
        ("executable file `nope` not found in $PATH: No such file or directory", 127),
        ("open executable: Permission denied", 126),
        ("open executable: Operation not permitted", 126),
        ("cgroups in hybrid mode not supported, drop all controllers from cgroupv2", 125),
        ("error mounting \"/x\" to rootfs at \"/y\": no such file or directory", 125),
        ("error setting rlimits for ready process: operation not permitted", 125),
        ("", 125),
    ],
)  # fmt: skip
def test_an_error_of_a_runtime_becomes_an_exit_code(message: str, code: int) -> None:
    assert classify(message) == code


def fake_runtime(directory: Path, name: str, message: str) -> Path:
    """A runtime that counts its calls and always fails with ``message``."""
    path = directory / name
    path.write_text(
        "#!/bin/sh\n"
        f"echo call >> {directory}/{name}.calls\n"
        'while [ "$1" != --log ]; do shift; done\n'
        f"""printf '%s\\n' '{json.dumps({"level": "error", "msg": message})}' > "$2"\nexit 1\n"""
    )
    path.chmod(0o755)
    return path


def calls(directory: Path, name: str) -> int:
    log = directory / f"{name}.calls"
    return len(log.read_text().splitlines()) if log.exists() else 0


def finder(tmp_path: Path, key: str = "me") -> Finder:
    return Finder(
        cache=tmp_path / "runtimes.json",
        scratch=tmp_path,
        search_path=f"{tmp_path}/bin",
        surroundings=SURROUNDINGS,
        key=key,
        prepare=lambda _runtime: None,
    )


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    (tmp_path / "bin").mkdir()
    return tmp_path / "bin"


def test_without_a_runtime_the_packages_are_named(tmp_path: Path, programs: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match="install the package runc or crun") as caught:
        finder(tmp_path).find()
    assert caught.value.code == 125


def test_a_runtime_that_misses_only_the_program_works_and_is_remembered(
    tmp_path: Path, programs: Path
) -> None:
    fake_runtime(programs, "runc", 'exec: "/x": stat /x: no such file or directory')
    for _ in range(3):
        assert finder(tmp_path).find() == Runtime("runc", programs / "runc")
    assert calls(programs, "runc") == 1
    assert finder(tmp_path, key="somebody else").find().name == "runc"
    assert calls(programs, "runc") == 2
    assert not list(tmp_path.glob("probe-*"))


def test_a_runtime_is_tried_again_when_it_has_changed_or_failed(
    tmp_path: Path, programs: Path
) -> None:
    fake_runtime(programs, "runc", 'exec: "/x": not found')
    finder(tmp_path).find()
    fake_runtime(programs, "runc", 'exec: "/xy": not found')
    finder(tmp_path).find()
    assert calls(programs, "runc") == 2
    finder(tmp_path).forget()
    finder(tmp_path).find()
    assert calls(programs, "runc") == 3


def test_a_damaged_memory_is_as_good_as_none(tmp_path: Path, programs: Path) -> None:
    fake_runtime(programs, "runc", 'exec: "/x": not found')
    for text in ("{", "[]", '{"me": 5}', ""):
        (tmp_path / "runtimes.json").write_text(text)
        assert finder(tmp_path).find().name == "runc"


def test_when_no_runtime_works_each_says_why(tmp_path: Path, programs: Path) -> None:
    fake_runtime(programs, "runc", "no cgroups today")
    fake_runtime(programs, "crun", "hybrid mode not supported")
    with pytest.raises(RuntimeUnavailable) as caught:
        finder(tmp_path).find()
    assert "runc does not work here: runc: no cgroups today" in str(caught.value)
    assert "crun does not work here: crun: hybrid mode not supported" in str(caught.value)
    assert not (tmp_path / "runtimes.json").exists()


def test_the_last_error_in_the_log_is_the_message(tmp_path: Path, programs: Path) -> None:
    path = programs / "runc"
    path.write_text(
        "#!/bin/sh\n"
        'while [ "$1" != --log ]; do shift; done\n'
        "cat > \"$2\" <<'END'\n"
        '{"level":"error","msg":"first"}\nnot json\n{"level":"error","msg":"second"}\n'
        '{"level":"warning","msg":"harmless"}\nEND\nexit 1\n'
    )
    path.chmod(0o755)
    runtime = next(iter(installed(str(programs))))
    with pytest.raises(ContainerError, match=r"^runc: second$"):
        Instance(runtime, tmp_path, "id", "/usr/bin:/bin").create({}, Streams(0, 1, 2), None)
