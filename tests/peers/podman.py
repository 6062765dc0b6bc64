"""podman and buildah with a storage of their own, in which a chosen program makes the mounts."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.peers.tartrees import Tree, read_layers, read_tree, without_mounts
from tests.support.machine import REPOSITORY, SEARCH_PATH, program
from tests.support.mounts import mountpoints_below, unmount
from tests.support.rootfs import EPOCH

_TIMEOUT = 300
ENGINE = """\
[containers]
netns = "none"
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{directory}/tmp"
"""
"""What makes podman run where there is no network, no systemd and no right to raise limits. The
locks are files, because other storages of the machine share those in memory."""

_STORAGE = """\
[storage]
driver = "{driver}"
graphroot = "{directory}/graph"
runroot = "{directory}/run"
{options}
"""
_MOUNT_PROGRAM = """\
[storage.options.overlay]
mount_program = "{}"
"""


class Storage:
    """Runs podman and buildah with the images and containers of one directory.

    The program is what makes the mounts of the overlay driver. Without one nothing is mounted:
    the vfs driver gives each container a copy of its image, which is a plain directory.
    """

    def __init__(self, directory: Path, mount_program: Path | None) -> None:
        self.directory = directory
        self.name = mount_program.name if mount_program else "vfs"
        settings = directory / f"storage-{self.name}.conf"
        settings.write_text(storage_settings(directory, mount_program))
        (directory / "engine.conf").write_text(ENGINE.format(directory=directory))
        self._environment = {
            "PATH": SEARCH_PATH,
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
            "TMPDIR": str(directory),
            "BUILDAH_ISOLATION": "chroot",  # its own runtime call would raise limits
            "CONTAINERS_CONF": str(directory / "engine.conf"),
            "CONTAINERS_STORAGE_CONF": str(settings),
        }

    def using(self, mount_program: Path) -> Storage:
        """The same images and containers, mounted by another program."""
        return Storage(self.directory, mount_program)

    def podman(self, *arguments: str | Path) -> str:
        """Run ``podman ARGUMENTS``; its output. Any failure fails the test with its messages."""
        return self._run("podman", *arguments)

    def buildah(self, *arguments: str | Path) -> str:
        """The same with buildah."""
        return self._run("buildah", *arguments)

    def _run(self, *command: str | Path) -> str:
        with tempfile.TemporaryFile(dir=self.directory) as messages:
            # A file and not a pipe: nobody waits for a daemon that holds on to it.
            done = subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=messages,
                timeout=_TIMEOUT,
                check=False,
            )
            messages.seek(0)
            complaint = messages.read().decode(errors="replace")[-4000:]
        said = done.stdout.decode(errors="surrogateescape")
        assert done.returncode == 0, f"{command}: {done.returncode}\n{said[-2000:]}{complaint}"
        return said.strip()

    def close(self) -> None:
        """Remove all containers; fail when the engines left a mount behind."""
        left: list[Path] = []
        try:
            self._remove_containers()
            self.buildah("rm", "--all")
            self.podman("image", "unmount", "--all", "--force")
            # The driver makes its own directory a mountpoint, and leaves it so.
            left = [path for path in mountpoints_below(self.directory) if path.name != "overlay"]
        finally:
            for mountpoint in reversed(mountpoints_below(self.directory)):
                unmount(mountpoint, lazy=True)
        assert not left, f"mounts were left behind: {left}"

    def _remove_containers(self) -> None:
        """podman now and then does not wait for its own mounts of ``/dev/shm`` to go."""
        try:
            self.podman("rm", "--force", "--all")
        except AssertionError:
            for mountpoint in mountpoints_below(self.directory):
                if mountpoint.name == "shm":
                    unmount(mountpoint, lazy=True)
            self.podman("rm", "--force", "--all")


def storage_settings(directory: Path, mount_program: Path | None) -> str:
    """A storage.conf for the overlay driver with a mount program, or for the vfs driver."""
    return _STORAGE.format(
        directory=directory,
        driver="overlay" if mount_program else "vfs",
        options=_MOUNT_PROGRAM.format(mount_program) if mount_program else "",
    )


def lamina_launcher(directory: Path) -> Path:
    """A program that can be started by its path alone, as ``fuse-lamina`` is once installed."""
    launcher = directory / "fuse-lamina"
    python, sources = shlex.quote(sys.executable), shlex.quote(str(REPOSITORY))
    launcher.write_text(f'#!/bin/sh\nPYTHONPATH={sources} exec {python} -m cli.fuse_lamina "$@"\n')
    launcher.chmod(0o755)
    return launcher


def fuse_overlayfs() -> Path:
    """The program that podman calls when nothing else is said."""
    return Path(program("fuse-overlayfs") or "fuse-overlayfs")


@contextmanager
def storage(*, vfs: bool = False) -> Iterator[Storage]:
    """An empty storage, mounted by lamina, while the block runs. podman wants a short path."""
    with tempfile.TemporaryDirectory(prefix="podman") as name:
        directory = Path(os.path.realpath(name))
        made = Storage(directory, None if vfs else lamina_launcher(directory))
        try:
            yield made
        finally:
            made.close()


class Work:
    """One container in which scripts are run one after the other, and what became of it.

    It sees the directory as ``/given``. Trees are told without what podman puts into them.
    """

    def __init__(self, engine: Storage, image: str, directory: Path) -> None:
        self.engine = engine
        self.name = f"{directory.name}-{engine.name}"
        self._files = directory / self.name
        self._files.mkdir()
        directory.chmod(0o755)  # root of a user namespace reads it too
        self._create = ["--name", self.name, "--hostname", "box", "--no-hosts", "--cap-add=mknod"]
        self._create += [f"--env=SOURCE_DATE_EPOCH={EPOCH}", f"--volume={directory}:/given:ro"]
        self._create += [image, "sh", f"/given/{self.name}/script"]

    def run(self, script: str, *options: str) -> str:
        """Run a script, in the container as the last one left it; options are for the first."""
        first = not (self._files / "script").exists()
        (self._files / "script").write_text(script)
        if first:
            return self.engine.podman("run", *options, *self._create)
        return self.engine.podman("start", "--attach", self.name)

    def tree(self) -> Tree:
        """What the container holds."""
        path = self._files / "exported.tar"
        path.unlink(missing_ok=True)
        self.engine.podman("export", "--output", path, self.name)
        with path.open("rb") as stream:
            return without_mounts(read_tree(stream))

    def changes(self) -> list[str]:
        """What ``podman diff`` says, sorted."""
        return sorted(self.engine.podman("diff", self.name).splitlines())

    def commit(self) -> Tree:
        """The layer of what was changed in the container, which becomes an image of its name."""
        self.engine.podman("commit", "--quiet", self.name, self.name)
        return layers_of(self.engine, self.name)[-1]


def layers_of(engine: Storage, image: str) -> list[Tree]:
    """The layers of an image, lowest first, without what podman puts into containers."""
    with tempfile.TemporaryDirectory(dir=engine.directory) as directory:
        path = Path(directory) / "saved.tar"
        engine.podman("save", "--quiet", "--output", path, image)
        return [without_mounts(layer) for layer in read_layers(path)]
