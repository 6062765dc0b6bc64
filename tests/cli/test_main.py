"""The way in and the way out: help, versions, errors and exit codes."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import cli
from cli.app import _COMMANDS, lamina
from cli.app import run as run_lamina
from cli.environment import read_env_file, source_date_epoch, with_values
from cli.errors import Failure, report
from cli.session import default_root
from snapshotter.errors import NoSuchImage
from tests.support.command import Lamina, environment
from tests.support.machine import REPOSITORY

HEAVY = {"msgspec", "sqlite3", "trio", "pyfuse3", "rich", "isal", "lz4", "ctypes", "asyncio"}


def loaded_by(*arguments: str) -> set[str]:
    """The modules that a call of ``lamina`` imports."""
    program = (
        "import sys\nfrom cli.app import run\n"
        f"run({list(arguments)!r})\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_load_nothing_heavy(option: str) -> None:
    modules = loaded_by(option)
    assert not modules & HEAVY
    assert not {name for name in modules if name.startswith(("snapshotter", "unionfs"))}


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert cli.__version__ == project["version"]
    result = CliRunner().invoke(lamina, ["--version"])
    assert result.output == f"lamina version {cli.__version__}\n"


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(lamina, [name, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith(f"Usage: lamina {name} ")
    # The line in the list of commands and the command's own first line must not contradict.
    command = lamina.get_command(click.Context(lamina), name)
    assert command is not None
    assert command.help


@pytest.mark.parametrize("group", ["image", "container"])
def test_every_command_of_a_group_explains_itself(group: str) -> None:
    command = lamina.get_command(click.Context(lamina), group)
    assert isinstance(command, click.Group)
    for name in command.list_commands(click.Context(command)):
        result = CliRunner().invoke(lamina, [group, name, "--help"])
        assert result.exit_code == 0
        assert result.output.startswith(f"Usage: lamina {group} {name} ")


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["--nonsense"], ["images", "--nonsense"], ["tag", "only-one"], ["run"], ["rm"]],
)
def test_wrong_usage_ends_with_125(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_lamina(arguments) == 125
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage: lamina" in captured.err
    assert "Error: " in captured.err


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (NoSuchImage("x:latest"), 1, "lamina: No such image: x:latest\n"),
        (Failure("it broke", 42), 42, "lamina: it broke\n"),
        (FileNotFoundError(2, "No such file or directory", "/x"), 1, None),
        (OSError(28, "No space left on device"), 1, "lamina: No space left on device\n"),
        (OSError(18, "Cross", b"/a\xff", None, b"/b"), 1, "lamina: /a\\udcff -> /b: Cross\n"),
        (Failure("two\nlines \x1b[2J"), 1, "lamina: two lines \\x1b[2J\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    error: BaseException, code: int, shown: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error) == code
    captured = capsys.readouterr()
    assert captured.err == (shown if shown is not None else f"lamina: /x: {error.strerror}\n")  # type: ignore[attr-defined]


def test_a_mistake_in_the_program_is_one_line_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ZeroDivisionError("oops")) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("lamina: internal error: ZeroDivisionError: oops")
    assert shown.count("\n") == 1


def test_the_traceback_is_shown_only_with_debug(lamina: Lamina, tmp_path: Path) -> None:
    lamina.root = tmp_path / "file" / "store"
    (tmp_path / "file").touch()
    plain = lamina("images", check=False)
    assert plain.returncode == 1
    assert plain.stderr.count("\n") == 1
    assert plain.stderr.startswith("lamina: ")
    debugging = subprocess.run(
        [sys.executable, "-m", "cli.main", "--debug", "--root", lamina.root, "images"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert debugging.returncode == 1
    assert "Traceback" in debugging.stderr


def test_a_closed_pipe_ends_quietly() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "--help"],
            env=environment(),
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.stderr == b""
    assert done.returncode == 1


def test_a_full_disk_is_reported() -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cli.main", "--help"],
            env=environment(),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr == "lamina: No space left on device\n"
    assert done.returncode == 1


def test_the_root_follows_the_user(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == Path("/var/lib/lamina")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert default_root() == tmp_path / ".local/share/lamina"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    assert default_root() == tmp_path / ".local/share/lamina"
    monkeypatch.setenv("XDG_DATA_HOME", "/data")
    assert default_root() == Path("/data/lamina")


def test_the_source_date_epoch_is_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    assert source_date_epoch() is None
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    epoch = source_date_epoch()
    assert epoch is not None
    assert epoch.seconds == epoch.moment.timestamp() == 1700000000
    for wrong in ("-1", "yesterday", "9" * 30):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", wrong)
        with pytest.raises(Failure, match="SOURCE_DATE_EPOCH"):
            source_date_epoch()


def test_an_environment_file_is_read_as_docker_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FROM_HERE", "value")
    file = tmp_path / "env"
    file.write_text("# comment\n\nA=1\n  B=with space \nFROM_HERE\nNOT_SET\nQ='kept'\n")
    assert with_values(read_env_file(file)) == [
        "A=1",
        "B=with space ",
        "FROM_HERE=value",
        "Q='kept'",
    ]
    file.write_text("has space=1\n")
    with pytest.raises(Failure, match="has space") as caught:
        read_env_file(file)
    assert caught.value.code == 125
