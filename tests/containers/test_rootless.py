"""Running containers as an ordinary user, by every way a machine may leave open."""

from __future__ import annotations

import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.support.command import environment
from tests.support.machine import REPOSITORY, SEARCH_PATH, program

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.peer("runc", "useradd", "newuidmap", "fusermount3"),
]

AS_USER = Path(__file__).with_name("as_user.py")
TOOLS = ("cat", "grep", "ls", "mkdir", "rm", "seq", "sleep", "stat")
WAYS = {
    "subordinate ids": (["-m", "cli.main"], True),
    "one id": (["-m", "cli.main"], False),
    # As if this process could not open /dev/fuse, and a fusermount3 could.
    "fusermount3": (
        [
            "-c",
            "import sys\n"
            "from snapshotter.containers import run, userns\n"
            "run.choose_route = lambda path: run.Route(userns.single_mapping(), outside=True)\n"
            "from cli.main import main\n"
            "main()",
        ],
        True,
    ),
}


@dataclass
class Ordinary:
    """An account that was made for these tests, and one way of running things with it."""

    name: str
    home: Path
    program: list[str]
    path: str
    fuse: str = "open"

    def run(
        self, *argv: str | Path, check: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        reach = [sys.base_prefix, sys.prefix, REPOSITORY]
        wrapper = [sys.executable, AS_USER, self.name, self.fuse, *reach, "--"]
        done = subprocess.run(
            [str(part) for part in (*wrapper, *argv)],
            env=environment(**{"PATH": self.path, **environ}),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def __call__(
        self, *arguments: str | Path, check: bool = True, **environ: str
    ) -> subprocess.CompletedProcess[str]:
        """Run lamina with the user's own store."""
        return self.run(sys.executable, *self.program, *arguments, check=check, **environ)

    def lamina(self) -> str:
        """How a shell script calls it."""
        return shlex.join([sys.executable, *self.program])

    @property
    def root(self) -> Path:
        return self.home / ".local/share/lamina"

    def processes(self) -> list[str]:
        """The command lines of all processes of the user."""
        uid = pwd.getpwnam(self.name).pw_uid
        found = []
        for directory in Path("/proc").glob("[0-9]*"):
            try:
                if directory.stat().st_uid == uid:
                    found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue  # it has ended meanwhile
        return found


@pytest.fixture(scope="module")
def account() -> Iterator[str]:
    """An ordinary user with subordinate ids, as ``useradd`` makes them."""
    name = f"lamina-test-{os.getpid()}"
    subprocess.run(["useradd", "--create-home", name], check=True, capture_output=True)
    try:
        yield name
    finally:
        subprocess.run(["userdel", "--remove", name], check=True, capture_output=True)


@pytest.fixture(
    scope="module",
    params=[
        "subordinate ids",
        pytest.param("one id", marks=pytest.mark.slow),
        pytest.param("fusermount3", marks=pytest.mark.slow),
    ],
)
def user(
    account: str,
    request: pytest.FixtureRequest,
    busybox_tar: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ordinary]:
    """The user by one of the ways, with the image ``box`` in their store."""
    program_, with_subordinate = WAYS[request.param]
    home = Path(pwd.getpwnam(account).pw_dir)
    tools = home / f"bin-{request.param.replace(' ', '-')}"
    tools.mkdir()
    for name in ("runc", "crun", "fusermount3", *TOOLS):
        if found := program(name):
            (tools / name).symlink_to(found)
    ordinary = Ordinary(account, home, program_, SEARCH_PATH if with_subordinate else str(tools))
    tar = home / "box.tar"
    shutil.copy(busybox_tar, tar)
    ordinary("import", tar, "box")
    yield ordinary
    left = ordinary("ps", "-aq").stdout.split()
    if left:
        ordinary("rm", "-f", *left)
    ordinary("rmi", "box")


@pytest.fixture(autouse=True)
def nothing_left(user: Ordinary) -> Iterator[None]:
    """Every container and process is gone after each test."""
    yield
    deadline = time.monotonic() + 10
    while left := user.processes():
        assert time.monotonic() < deadline, left
        time.sleep(0.05)
    assert not list((user.root / "containers").iterdir())


def has_users(user: Ordinary) -> bool:
    """Whether containers have other users than root."""
    return user.program[0] == "-m" and user.path == SEARCH_PATH


def test_root_of_the_container_is_the_user(user: Ordinary) -> None:
    script = "id -u; id -g; stat -c %u:%g / /bin /etc/motd; cat /proc/self/uid_map | head -1"
    lines = user("run", "--rm", "box", "sh", "-c", script).stdout.splitlines()
    assert lines[:5] == ["0", "0", "0:0", "0:0", "0:0"]
    assert lines[5].split()[1] == str(pwd.getpwnam(user.name).pw_uid)


def test_exit_codes_are_as_for_root(user: Ordinary) -> None:
    for command, code in ((["sh", "-c", "exit 7"], 7), (["nope"], 127), (["/etc/motd"], 126)):
        done = user("run", "--rm", "box", *command, check=False)
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr


def test_other_users_exist_where_there_are_ids_for_them(user: Ordinary) -> None:
    done = user("run", "--rm", "-u", "www-data", "box", "id", "-u", check=False)
    if has_users(user):
        assert (done.returncode, done.stdout) == (0, "33\n")
        owner = user("run", "--rm", "box", "stat", "-c", "%u", "/home/www/owned")
        assert owner.stdout == "33\n"
    else:
        assert done.returncode == 125
        assert "does not exist in this user namespace, which has only root" in done.stderr


def test_the_network_is_none_or_the_hosts(user: Ordinary) -> None:
    assert user("run", "--rm", "box", "ls", "/sys/class/net").stdout == "lo\n"
    host = user("run", "--rm", "--network", "host", "box", "ls", "/sys/class/net").stdout
    assert host.split() == sorted(os.listdir("/sys/class/net"))


def test_changes_are_committed_with_their_owners(user: Ordinary) -> None:
    give = "chown 33:33 /own /own/file; chmod 700 /own" if has_users(user) else "chmod 0 /own"
    script = f"mkdir /own; echo x > /own/file; rm /etc/motd; {give}"
    user("run", "--name", "made", "box", "sh", "-c", script)
    image = user("commit", "made", "changed").stdout.strip()
    assert re.fullmatch("sha256:[0-9a-f]{64}", image)
    user("rm", "made")
    look = "cat /own/file; stat -c '%u %a' /own /own/file; ls /etc/motd 2>/dev/null || echo gone"
    lines = user("run", "--rm", "changed", "sh", "-c", look).stdout.splitlines()
    owner = "33" if has_users(user) else "0"
    mode = "700" if has_users(user) else "0"
    assert lines == ["x", f"{owner} {mode}", f"{owner} 644", "gone"]
    user("rmi", "changed")


def test_what_no_longer_allows_its_removal_is_removed(user: Ordinary) -> None:
    script = "mkdir -p /a/b; touch /a/b/c; chmod 0 /a/b /a"
    user("run", "--rm", "box", "sh", "-c", script)


def test_a_killed_lamina_takes_its_container_along(user: Ordinary) -> None:
    lamina = user.lamina()
    script = f"""
        {lamina} run --name doomed box sh -c 'echo ready; trap "" TERM; sleep 100' > ~/out &
        pid=$!
        for i in $(seq 200); do grep -q ready ~/out && break; sleep 0.1; done
        kill -9 $pid; wait $pid
        for i in $(seq 200); do {lamina} ps -a | grep -q Exited && break; sleep 0.1; done
        {lamina} inspect -f '{{{{.State.Status}}}} {{{{.State.ExitCode}}}}' doomed
        {lamina} rm doomed
        grep -c lamina/containers /proc/self/mounts
        """
    done = user.run("/bin/sh", "-c", script, check=False)
    assert done.stdout.splitlines() == ["exited 137", "doomed", "0"], done.stderr


def test_a_running_container_is_killed_by_its_owner(user: Ordinary) -> None:
    lamina = user.lamina()
    script = f"""
        {lamina} run --name busy box sh -c 'echo ready; trap "" TERM; sleep 100' > ~/out2 &
        pid=$!
        for i in $(seq 200); do grep -q ready ~/out2 && break; sleep 0.1; done
        {lamina} rm -f busy
        wait $pid; echo $?
        """
    done = user.run("/bin/sh", "-c", script, check=False)
    assert done.stdout.splitlines() == ["busy", "137"], done.stderr


def test_an_image_is_mounted_and_unmounted(user: Ordinary) -> None:
    lamina = user.lamina()
    script = f"""
        mkdir -p ~/m ~/u; {lamina} mount --upper ~/u box ~/m || exit 1
        cat ~/m/etc/motd; stat -c %U ~/m/etc/motd; echo new > ~/m/new; cat ~/u/new
        {lamina} umount ~/m || exit 1; ls ~/m; rm -rf ~/u ~/u.work
        """
    done = user.run("/bin/sh", "-c", script)
    assert done.stdout.splitlines() == ["welcome", user.name, "new"]


def test_a_device_nobody_may_open_is_named(user: Ordinary) -> None:
    closed = replace(user, fuse="closed")
    for command in (["run", "--rm", "box", "true"], ["mount", "box", user.home / "nowhere"]):
        (user.home / "nowhere").mkdir(exist_ok=True)
        done = closed(*command, check=False)
        assert done.returncode in (1, 125)
        assert "/dev/fuse" in done.stderr
        assert done.stderr.count("\n") == 1
