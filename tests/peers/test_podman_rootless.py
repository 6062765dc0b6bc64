"""podman as an ordinary user, with lamina as mount program inside its user namespace."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.peers import box
from tests.peers.podman import ENGINE, Work, lamina_launcher, storage_settings
from tests.peers.tartrees import (
    Tree,
    assert_same,
    read_layers,
    read_tree,
    without_mounts,
)
from tests.support.command import environment
from tests.support.machine import REPOSITORY

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.peer("podman", "runc", "useradd", "newuidmap"),
]

AS_USER = REPOSITORY / "tests/containers/as_user.py"

# Devices cannot be made here.
CHANGE = box.CHANGE.replace("mknod", ": mknod")

CYCLE = """\
set -eu
cd ~
cp given/change given/script
podman run --name "$1" --no-hosts --volume ~/given:/given:ro box sh /given/script
cp given/change-again given/script
podman start --attach "$1"
podman diff "$1" >changes
podman commit --quiet "$1" "$1" >/dev/null
podman export --output exported.tar "$1"
podman save --quiet --output saved.tar "$1"
podman run --rm "$1" cat /tree/directory/below/0 /tree/deep/er/still/0
podman unshare sh -c 'cat "$(podman mount '"$1"')/tree/back"; podman unmount '"$1"' >/dev/null'
podman rm --force --all >/dev/null
"""


class Ordinary:
    """An account that was made for a test, with podman set up in its home."""

    def __init__(self, name: str) -> None:
        self.account = pwd.getpwnam(name)
        self.home = Path(self.account.pw_dir)
        self.given = self.home / "given"
        for directory in ("given", "runtime"):
            (self.home / directory).mkdir(mode=0o700)
        (self.home / "engine.conf").write_text(ENGINE.format(directory=self.home / "runtime"))
        settings = storage_settings(self.home, lamina_launcher(self.home))
        (self.home / "storage.conf").write_text(settings)

    def run(self, *command: str) -> str:
        """Run a command as the user; podman's mounts are made by lamina."""
        for path in (self.home, *self.home.glob("*")):
            os.chown(path, self.account.pw_uid, self.account.pw_gid)
        settings = environment(
            HOME=str(self.home),
            XDG_RUNTIME_DIR=str(self.home / "runtime"),
            TMPDIR=str(self.home),
            CONTAINERS_CONF=str(self.home / "engine.conf"),
            CONTAINERS_STORAGE_CONF=str(self.home / "storage.conf"),
        )
        reach = [sys.base_prefix, sys.prefix, str(REPOSITORY)]
        wrapper = [sys.executable, str(AS_USER), self.account.pw_name, "open", *reach, "--"]
        done = subprocess.run(
            [*wrapper, *command],
            env=settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def results(self) -> tuple[list[str], Tree, Tree]:
        """The changes, the tree and the layer that :data:`CYCLE` has left."""
        said = (self.home / "changes").read_text(errors="surrogateescape")
        changes = sorted(said.splitlines())
        with (self.home / "exported.tar").open("rb") as stream:
            tree = without_mounts(read_tree(stream))
        layer = without_mounts(read_layers(self.home / "saved.tar")[-1])
        for name in ("exported.tar", "saved.tar"):
            (self.home / name).unlink()
        return changes, tree, layer

    def is_busy(self) -> bool:
        """Whether a process of the user is still there."""
        return any(
            path.stat().st_uid == self.account.pw_uid
            for path in Path("/proc").glob("[0-9]*")
            if path.exists()
        )


@pytest.fixture
def user() -> Iterator[Ordinary]:
    name = f"lamina-podman-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", name], check=True, capture_output=True)
    try:
        made = Ordinary(name)
        yield made
        # podman's own process, which keeps the user namespace
        made.run("podman", "system", "migrate")
        deadline = time.monotonic() + 10
        while made.is_busy() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not made.is_busy()
    finally:
        subprocess.run(["userdel", "--remove", "--force", name], check=True, capture_output=True)


def test_an_ordinary_user_gets_the_same_files(
    boxes: box.Boxes, user: Ordinary, tmp_path: Path
) -> None:
    truth = Work(boxes.truth, "box", tmp_path)
    for name, script in (("change", CHANGE), ("change-again", box.CHANGE_AGAIN)):
        truth.run(script)
        (user.given / name).write_text(script)
    (user.given / "box.tar").write_bytes((boxes.ours.directory / "box.tar").read_bytes())
    user.run("podman", "import", "--quiet", str(user.given / "box.tar"), "box")
    said = user.run("sh", "-c", CYCLE, "cycle", "ours")
    assert said.splitlines()[-3:] == ["directory/0 of the image", "recreated", "again"]
    changes, tree, layer = user.results()
    assert_same(tree, truth.tree())
    assert_same(layer, truth.commit())
    assert changes == truth.changes()
