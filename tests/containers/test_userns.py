"""Which ids a user has, and becoming root with them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapshotter.containers.errors import ContainerError
from snapshotter.containers.userns import (
    Mapping,
    best_mapping,
    call_inside,
    single_mapping,
)
from tests.support.machine import SEARCH_PATH


@pytest.fixture
def tools(tmp_path: Path) -> str:
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).touch(0o755)
    return str(tmp_path)


def mapping_for(tmp_path: Path, tools: str, subuid: str, subgid: str) -> Mapping:
    (tmp_path / "subuid").write_text(subuid)
    (tmp_path / "subgid").write_text(subgid)
    return best_mapping(tools, tmp_path / "subuid", tmp_path / "subgid")


def test_subordinate_ranges_follow_the_users_own_id(tmp_path: Path, tools: str) -> None:
    me = os.geteuid()
    lines = f"other:5:5\n{me}:100000:65536\n\nbroken\n{me}:300000:10\n{me}:7:0\n"
    made = mapping_for(tmp_path, tools, lines, f"{me}:200000:100\n")
    assert made.uids == ((0, me, 1), (1, 100000, 65536), (65537, 300000, 10))
    assert made.gids == ((0, os.getegid(), 1), (1, 200000, 100))
    assert not made.is_single
    assert made.has_uid(33)
    assert not made.has_uid(70000)
    assert made.has_gid(100)
    assert not made.has_gid(101)


@pytest.mark.parametrize(("subuid", "subgid"), [("", "{me}:1:9"), ("{me}:1:9", ""), ("x", "y")])
def test_without_ranges_there_is_one_id(
    tmp_path: Path, tools: str, subuid: str, subgid: str
) -> None:
    me = str(os.geteuid())
    made = mapping_for(tmp_path, tools, subuid.format(me=me), subgid.format(me=me))
    assert made == single_mapping()
    assert made.is_single


def test_without_the_tools_or_files_there_is_one_id(tmp_path: Path, tools: str) -> None:
    me = os.geteuid()
    assert mapping_for(tmp_path, "/nonexistent", f"{me}:1:9", f"{me}:1:9").is_single
    assert best_mapping(tools, tmp_path / "a", tmp_path / "b").is_single


def test_the_caller_is_root_inside(tmp_path: Path) -> None:
    answer = tmp_path / "answer"

    def look() -> None:
        text = Path("/proc/self/uid_map").read_text().split()
        answer.write_text(f"{os.geteuid()} {os.getegid()} {text}")

    call_inside(single_mapping(), SEARCH_PATH, look)
    assert answer.read_text() == f"0 0 ['0', '{os.geteuid()}', '1']"


def test_an_error_inside_is_an_error_outside() -> None:
    def fail() -> None:
        raise ValueError("it broke inside")

    with pytest.raises(ContainerError, match="it broke inside"):
        call_inside(single_mapping(), SEARCH_PATH, fail)


def test_ids_that_were_not_given_are_refused(tmp_path: Path) -> None:
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).write_text("#!/bin/sh\necho not yours >&2\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    mapping = Mapping(((0, os.geteuid(), 1), (1, 5, 5)), ((0, os.getegid(), 1), (1, 5, 5)))
    with pytest.raises(ContainerError, match="subordinate ids of this user: not yours"):
        call_inside(mapping, str(tmp_path), lambda: None)
