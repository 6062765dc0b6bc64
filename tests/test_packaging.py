"""What a user gets who installs the wheel, in an environment that has never seen the sources."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.machine import REPOSITORY

TOP_LEVEL = {"cli", "snapshotter", "unionfs"}
SHIPPED = ("pyproject.toml", "README.md", "LICENSE", *TOP_LEVEL, "tests", "bench")


class Installed(NamedTuple):
    wheel: Path
    environment: Path
    elsewhere: Path

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of the environment in a directory that is not the repository."""
        result = subprocess.run(
            [self.environment / "bin" / program, *arguments],
            cwd=self.elsewhere,
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout


def pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel, built from a copy, in a new environment that borrows only the dependencies."""
    place = tmp_path_factory.mktemp("packaging")
    source = place / "source"
    source.mkdir()
    for name in SHIPPED:
        path = REPOSITORY / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source)
    pip("wheel", "--quiet", "--no-deps", "--wheel-dir", place, source)
    (wheel,) = place.glob("*.whl")

    environment = place / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    pip("--python", environment / "bin" / "python", "install", "--quiet", "--no-deps", wheel)
    # The editable install of the sources is not borrowed: it works through .pth files, and
    # those are only read in an environment's own directory.
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (place / "elsewhere").mkdir()
    return Installed(wheel, environment, place / "elsewhere")


def project_version() -> str:
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert isinstance(version, str)
    return version


def test_the_wheel_holds_the_three_packages_and_nothing_else(installed: Installed) -> None:
    names = zipfile.ZipFile(installed.wheel).namelist()
    top_level = {name.partition("/")[0] for name in names}
    (metadata,) = {name for name in top_level if name.endswith(".dist-info")}
    assert top_level - {metadata} == TOP_LEVEL
    assert {f"{package}/py.typed" for package in TOP_LEVEL} <= set(names)


def test_the_wheel_holds_every_module_of_the_sources(installed: Installed) -> None:
    modules = {
        str(path.relative_to(REPOSITORY))
        for package in TOP_LEVEL
        for path in (REPOSITORY / package).rglob("*.py")
    }
    assert modules - set(zipfile.ZipFile(installed.wheel).namelist()) == set()


@pytest.mark.parametrize("program", ["lamina", "fuse-lamina"])
def test_an_installed_command_tells_its_version(installed: Installed, program: str) -> None:
    assert project_version() in installed.run(program, "--version")


def test_the_installed_packages_come_from_the_wheel(installed: Installed) -> None:
    program = (
        "import importlib.metadata as metadata, cli, snapshotter, unionfs\n"
        "owners = metadata.packages_distributions()\n"
        "for package in (cli, snapshotter, unionfs):\n"
        "    print(package.__file__, *set(owners[package.__name__]))\n"
    )
    lines = installed.run("python", "-c", program).splitlines()
    assert len(lines) == len(TOP_LEVEL)
    for line in lines:
        path, owner = line.split()
        assert Path(path).is_relative_to(installed.environment)
        assert owner == "lamina"
