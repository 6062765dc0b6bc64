"""What a container has changed, beside a comparison of everything and beside ``docker diff``."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from snapshotter.changes import Change, changes, changes_of
from snapshotter.store import Store
from tests.peers.docker import Docker
from tests.snapshotter.helpers import new_container, small_image
from tests.snapshotter.trees import LINKS, LOW, STEPS, changed
from tests.support.command import Lamina
from tests.unionfs.trees import Seen
from unionfs.layers.directory import DirectoryLayer
from unionfs.opening import open_finished


def listed(found: Iterator[Change]) -> list[str]:
    return [f"{kind} {os.fsdecode(path)}" for kind, path in found]


def compared(before: dict[bytes, Seen], now: dict[bytes, Seen]) -> list[str]:
    """The same by comparing all names."""

    def is_directory(tree: dict[bytes, Seen], path: bytes) -> bool:
        return not path or (path in tree and tree[path].kind == stat.S_IFDIR)

    def look(seen: Seen) -> object:
        same = (seen.kind, seen.mode, seen.xattrs)
        return same if seen.kind == stat.S_IFDIR else (*same, seen.size, seen.mtime_ns, seen.data)

    kinds: dict[bytes, str] = {}
    for path in before.keys() | now.keys():
        parent = path.rpartition(b"/")[0]
        if path not in now:
            if is_directory(before, parent) and is_directory(now, parent):
                kinds[path] = "D"
        elif path not in before:
            kinds[path] = "A"
        elif look(before[path]) != look(now[path]):
            kinds[path] = "C"
    for path in list(kinds):
        parts = path.split(b"/")
        for depth in range(1, len(parts)):
            kinds.setdefault(b"/".join(parts[:depth]), "C")
    in_order = sorted(kinds, key=lambda path: path.split(b"/"))
    return [f"{kinds[path]} /{os.fsdecode(path)}" for path in in_order]


@pytest.mark.usefixtures("no_umask")
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(low=LOW, links=LINKS, steps=STEPS)
def test_changes_are_what_comparing_everything_finds(
    low: dict[bytes, bytes], links: list[tuple[int, bytes]], steps: list[partial[None]]
) -> None:
    with changed(low, links, steps) as union:
        assert listed(changes_of(union.tree)) == compared(union.before, union.now)


def test_a_new_container_has_changed_nothing(store: Store) -> None:
    container = new_container(store, small_image(store))
    assert listed(changes(store, container)) == []


def test_what_others_put_into_the_index_of_hardlinks_is_passed_over(store: Store) -> None:
    container = new_container(store, small_image(store))
    (container.work / "links").mkdir()
    (container.work / "links" / "notes.txt").touch()
    assert listed(changes(store, container)) == []


def test_a_directory_is_named_before_what_changed_in_it(store: Store) -> None:
    container = new_container(store, small_image(store, a=b"1", b=b"2"))
    (container.upper / "bin").mkdir()
    (container.upper / "bin" / "c").touch()
    (container.upper / "bin.d").touch()
    assert listed(changes(store, container)) == ["C /bin", "A /bin/c", "A /bin.d"]


@pytest.mark.root
def test_what_was_only_touched_by_the_union_has_not_changed(store: Store) -> None:
    container = new_container(store, small_image(store, a=b"1", b=b"2", c=b"3"))
    low = tuple(1_700_000_000_000_000_000 for _ in range(2))
    (container.upper / "bin").mkdir(mode=0o755)
    for name, data in (("a", b"1"), ("b", b"!")):
        (container.upper / "bin" / name).write_bytes(data)
        (container.upper / "bin" / name).chmod(0o644)
        os.utime(container.upper / "bin" / name, ns=(low[0], low[1]))
    os.mknod(container.upper / "bin" / "never", stat.S_IFCHR)  # hides nothing
    assert listed(changes(store, container)) == ["C /bin", "C /bin/b"]


@pytest.mark.root
def test_only_the_directories_of_changes_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("low/big/deep", "upper/big", "work"):
        (tmp_path / name).mkdir(parents=True)
    for number in range(50):
        (tmp_path / "low" / "big" / str(number)).touch()
    (tmp_path / "upper" / "big" / "new").touch()
    asked: list[bytes] = []
    plain = DirectoryLayer.names

    def names(layer: DirectoryLayer, place: object) -> Iterator[tuple[bytes, int]]:
        asked.append(layer.path)
        return plain(layer, place)

    monkeypatch.setattr(DirectoryLayer, "names", names)
    upper, work, low = (os.fsencode(tmp_path / name) for name in ("upper", "work", "low"))
    with closing(open_finished(upper, work, [low])) as tree:
        assert listed(changes_of(tree)) == ["C /big", "A /big/new"]
    assert set(asked) == {upper}


SCRIPT = """
rm /etc/passwd; chmod 600 /etc/group; mkdir /new; echo x > /new/a; ln /new/a /new/b
mv /home /home2; rm -r /tmp; mkdir -m 1777 /tmp; rm -r /root; mkdir -m 755 /root; echo a > /root/r
rm /bin/ls; mkdir /bin/ls; touch /bin/ls/in; mv /etc/motd /etc/motd2; rm /etc/motd.hardlink
mkfifo /ff; ln -s z /sl; mv /bin/vi /bin/vii; touch /again; rm /again; rm -r /var; echo > /var
rm /bin/cat; ln -s busybox /bin/cat; mknod /null c 1 3; chmod 711 /; chmod 640 /etc/group
"""


@pytest.mark.root
@pytest.mark.fuse
@pytest.mark.peer("runc")
@pytest.mark.parametrize(
    "script",
    [
        SCRIPT,
        "rm -r /var; mkdir /var; echo y > /var/y; touch -t 200001010101 /etc/group",
        "mkdir /var/e; rmdir /var/e; echo hi >> /var/setuid; chmod 700 /home/www; cp -a /etc /var",
    ],
)
def test_changes_are_those_that_docker_finds(
    lamina: Lamina, docker: Docker, busybox_tar: Path, script: str
) -> None:
    docker("import", busybox_tar, "box:1")
    docker("run", "--network", "none", "--name", "work", "box:1", "sh", "-c", script)
    lamina("import", busybox_tar, "box:1")
    lamina("run", "--name", "work", "box:1", "sh", "-c", script)
    theirs = docker("diff", "work").splitlines()
    assert theirs
    assert sorted(lamina("diff", "work").stdout.splitlines()) == sorted(theirs)
