"""What tests of the union share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mounts import mountpoints_below, unmount
from tests.unionfs.trees import Union, UnionSide, open_tree
from unionfs.changes import WritableTree
from unionfs.options import TreeOptions


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A lower directory with a file, and empty directories; what is mounted is taken away."""
    for name in ("low", "upper", "work", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/f").write_bytes(b"lower")
    yield tmp_path
    for mountpoint in reversed(mountpoints_below(tmp_path)):
        unmount(mountpoint, lazy=True)


@pytest.fixture
def tree_options() -> TreeOptions:
    """The options of ``union``; modules may have their own."""
    return TreeOptions()


@pytest.fixture
def union(tmp_path: Path, tree_options: TreeOptions) -> Iterator[Union]:
    """Opens the union of top, low, upper and work below the test's directory; again if asked."""
    for name in ("top", "low", "upper", "work"):
        (tmp_path / name).mkdir(exist_ok=True)
    trees: list[WritableTree] = []

    def make() -> UnionSide:
        if trees:
            trees.pop().close()
        lowers = [tmp_path / "top", tmp_path / "low"]
        trees.append(open_tree(lowers, tmp_path / "upper", tmp_path / "work", tree_options))
        return UnionSide(trees[-1])

    yield make
    for tree in trees:
        tree.close()
