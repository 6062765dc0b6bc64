"""A real Docker daemon, of Debian's packages, unpacked in the cache and run from a directory.

Nothing is installed. The daemon has no network, and all it writes is below one directory.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.machine import SEARCH_PATH, Unavailable, program
from tests.support.rootfs import cache_directory

PACKAGES = ("docker.io", "containerd")
START_PATIENCE = 30.0


class Docker:
    """A running daemon's client."""

    def __init__(self, programs: Path, directory: Path) -> None:
        self.directory = directory
        self._environment = {
            "PATH": f"{programs}/usr/bin:{programs}/usr/sbin:{SEARCH_PATH}",
            "HOME": str(directory),
            "DOCKER_HOST": f"unix://{directory}/docker.sock",
            "DOCKER_CONFIG": str(directory / "config"),
        }

    def __call__(self, *arguments: str | Path, stdin: bytes | None = None) -> str:
        """Run ``docker ARGUMENTS``; its output. Raises AssertionError with what it complained."""
        done = subprocess.run(
            ["docker", *arguments],
            input=stdin,
            capture_output=True,
            env=self._environment,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, f"docker {arguments}: {done.stderr.decode()}"
        return done.stdout.decode()

    def image_id(self, name: str) -> str:
        """The ID of an image."""
        return self("image", "inspect", "--format", "{{.Id}}", name).strip()

    def remove_everything(self) -> None:
        """Forget every container and every image."""
        self("container", "prune", "--force")
        self("image", "prune", "--all", "--force")

    def start(self) -> subprocess.Popen[bytes]:
        """Start the daemon and wait until it answers."""
        (self.directory / "daemon.json").write_text(
            json.dumps(
                {
                    "storage-driver": "overlay2",
                    "data-root": f"{self.directory}/data",
                    "exec-root": f"{self.directory}/exec",
                    "pidfile": f"{self.directory}/pid",
                    "hosts": [self._environment["DOCKER_HOST"]],
                    "bridge": "none",
                    "iptables": False,
                    "ip6tables": False,
                    "ip-forward": False,
                    "userland-proxy": False,
                }
            )
        )
        with (self.directory / "log").open("wb") as log:
            daemon = subprocess.Popen(
                ["dockerd", "--config-file", str(self.directory / "daemon.json")],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_PATIENCE
        while not self._answers():
            if daemon.poll() is not None or time.monotonic() > deadline:
                daemon.kill()
                daemon.wait()
                lines = (self.directory / "log").read_text().splitlines()
                raise Unavailable(f"the Docker daemon does not start: {lines[-1:]}")
            time.sleep(0.1)
        return daemon

    def _answers(self) -> bool:
        command = ["docker", "version"]
        done = subprocess.run(
            command, capture_output=True, env=self._environment, check=False, timeout=30
        )
        return done.returncode == 0


@contextmanager
def running(directory: Path) -> Iterator[Docker]:
    """A daemon that lives in ``directory`` and stops at the end of the block.

    Raises :class:`Unavailable` where it cannot be had: no root, or no packages to be downloaded.
    """
    if os.geteuid() != 0:
        raise Unavailable("a Docker daemon needs root")
    for needed in ("runc", "apt-get", "dpkg"):
        if program(needed) is None:
            raise Unavailable(f"a Docker daemon needs {needed}")
    docker = Docker(_programs(), directory)
    daemon = docker.start()
    try:
        yield docker
    finally:
        daemon.terminate()
        try:
            daemon.wait(30)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        _unmount_below(directory)


def _programs() -> Path:
    """The unpacked packages, downloaded once into the cache."""
    cache = cache_directory()
    target = cache / "docker"
    with (cache / ".docker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            unfinished = cache / ".docker.part"
            shutil.rmtree(unfinished, ignore_errors=True)
            _download(unfinished)
            unfinished.rename(target)
    return target


def _download(directory: Path) -> None:
    packages = directory / "packages"
    packages.mkdir(parents=True)
    done = subprocess.run(
        ["apt-get", "download", "-q", *PACKAGES], cwd=packages, capture_output=True, check=False
    )
    if done.returncode:
        raise Unavailable("the packages of a Docker daemon cannot be downloaded")
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, directory], check=True)
    shutil.rmtree(packages)


def _unmount_below(directory: Path) -> None:
    """Unmount what a daemon that was killed has left."""
    for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
        mountpoint = line.split()[4]
        if mountpoint.startswith(f"{directory}/"):
            subprocess.run(["umount", "-l", mountpoint], check=True)
