"""The floors and rooms of the house, and what may not be done in which of them."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.machine import REPOSITORY

FLOORS = ("cli", "snapshotter", "unionfs")
LONGEST_MODULE = 500
"""Lines. The aim is 400; nothing is an excuse for more than this."""


def modules(*packages: str) -> list[Path]:
    found = [path for package in packages for path in (REPOSITORY / package).rglob("*.py")]
    assert found, "no modules: the search is wrong"
    return sorted(path.relative_to(REPOSITORY) for path in found)


def dotted(node: ast.AST) -> str:
    """``a.b.c`` for such an expression, the empty string for any other."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ""


def surroundings_touched(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every (line, what) where a module reads the environment or arguments, prints, or uses click.

    Standard streams count as printing; imports are followed under their own names only.
    """
    forbidden = {
        "os.environ", "os.environb", "os.getenv", "os.getenvb", "sys.argv", "sys.stdout",
        "sys.stderr", "sys.stdin", "sys.exit",
    }  # fmt: skip
    calls = {"print", "input", "breakpoint"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, a.name) for a in node.names if a.name.startswith("click"))
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from ((node.lineno, name) for name in names & forbidden)
            if (node.module or "").partition(".")[0] == "click":
                yield node.lineno, "click"
        elif isinstance(node, ast.Attribute) and dotted(node) in forbidden:
            yield node.lineno, dotted(node)
        elif isinstance(node, ast.Call) and dotted(node.func) in calls:
            yield node.lineno, dotted(node.func)


def test_no_floor_reaches_up() -> None:
    program = (
        "import sys; from importlinter.cli import lint_imports as run; sys.exit(run(no_cache=True))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("module", modules("snapshotter", "unionfs"), ids=str)
def test_only_the_command_line_knows_of_its_surroundings(module: Path) -> None:
    tree = ast.parse((REPOSITORY / module).read_bytes())
    assert list(surroundings_touched(tree)) == []


def test_the_search_for_surroundings_finds_them() -> None:
    source = "import os, click\nfrom sys import argv\nos.environ['A']\nos.getenv('B')\nprint(1)\n"
    found = {what for _, what in surroundings_touched(ast.parse(source))}
    assert found == {"click", "sys.argv", "os.environ", "os.getenv", "print"}


@pytest.mark.parametrize("module", modules(*FLOORS), ids=str)
def test_a_module_can_be_read_at_one_sitting(module: Path) -> None:
    assert len((REPOSITORY / module).read_bytes().splitlines()) <= LONGEST_MODULE


@pytest.mark.parametrize("module", ["unionfs.tree", "unionfs.copyup", "unionfs.layers.directory"])
def test_what_a_union_means_needs_no_fuse(module: str) -> None:
    program = (
        f"import sys, {module}\n"
        "loaded = {'pyfuse3', 'trio'} & set(sys.modules)\n"
        "sys.exit(f'loads {loaded}' if loaded else 0)"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
