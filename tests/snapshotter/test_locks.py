"""Locks, workspaces, and removing trees of any shape."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapshotter.store.locks import locked, remove_tree, workspace


def test_an_exclusive_lock_waits_for_nobody_if_told_so(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        locked(lock, exclusive=False) as first,
        locked(lock, exclusive=False) as second,
        locked(lock, exclusive=True, wait=False) as third,
    ):
        assert (first, second, third) == (True, True, False)
    with locked(lock, exclusive=True, wait=False) as held:
        assert held


def test_a_workspace_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with workspace(tmp_path) as place:
        (place / "d").mkdir()
        (place / "d" / "f").touch()
    assert list(tmp_path.iterdir()) == []


def test_symlinks_are_removed_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "f").touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "link").symlink_to("../keep")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    assert (tmp_path / "keep" / "f").exists()
    assert not (tmp_path / "tree").exists()


def test_a_tree_deeper_than_there_are_descriptors_is_removed(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    remove_tree(root)
    assert not root.exists()


@pytest.mark.root
def test_closed_directories_are_removed_by_their_owner(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "closed" / "inner").mkdir(parents=True)
    for path in (tmp_path, tree, tree / "closed", tree / "closed" / "inner"):
        os.chown(path, 65534, 65534)
    (tree / "closed" / "inner").chmod(0)
    (tree / "closed").chmod(0)
    outer = [part for part in tmp_path.parents if part.stat().st_mode & 0o005 != 0o005]
    modes = {part: part.stat().st_mode for part in outer}
    for part in outer:
        part.chmod(0o755)
    try:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.setgid(65534)
                os.setuid(65534)
                remove_tree(tree)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    finally:
        for part, mode in modes.items():
            part.chmod(mode & 0o7777)
    assert not tree.exists()
