"""Running containers as root, through the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.command import Lamina, environment
from tests.support.machine import SEARCH_PATH, program

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.peer("runc")]


def sh(box: Lamina, script: str, *options: str) -> str:
    """What a shell script prints in a new container."""
    return box("run", "--rm", *options, "box", "sh", "-c", script).stdout


def assert_nothing_left(box: Lamina) -> None:
    """No container, mount, process or cgroup."""
    assert str(box.root) not in Path("/proc/self/mounts").read_text()
    assert_no_cgroup_stays()
    assert not list((box.root / "containers").iterdir())


def test_the_command_of_the_image_runs(box: Lamina) -> None:
    done = box("run", "--rm", "box")
    assert (done.stdout, done.stderr) == ("it runs\n", "")
    assert_nothing_left(box)


def assert_no_cgroup_stays() -> None:
    """Cgroups may belong to other tests that run just now; but one that stays is left over."""
    seen = [*Path("/sys/fs/cgroup").glob("lamina-*"), *Path("/sys/fs/cgroup").glob("*/lamina-*")]
    deadline = time.monotonic() + 20
    while left := [path for path in seen if path.exists()]:
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["box", "sh", "-c", "exit 7"], 7, ""),
        (["box", "nope"], 127, 'lamina: exec: "nope": executable file not found in $PATH\n'),
        (["box", "/nope"], 127, 'lamina: exec: "/nope": stat /nope: no such file or directory\n'),
        (["box", "/etc"], 126, 'lamina: exec: "/etc": is a directory\n'),
        (["box", "/etc/motd"], 126, 'lamina: exec: "/etc/motd": permission denied\n'),
        (["nope"], 125, "lamina: No such image: nope:latest\n"),
        (
            ["-u", "nobody-here", "box"],
            125,
            "lamina: unable to find user nobody-here: no matching entries in passwd file\n",
        ),
        (["--entrypoint", "", "box"], 125, "lamina: no command specified\n"),
        (["--name", "-x", "box"], 125, None),
        (["-w", "relative", "box"], 125, None),
        (["--env-file", "/nonexistent", "box"], 125, None),
    ],
)
def test_exit_codes_tell_what_happened(
    box: Lamina, arguments: list[str], code: int, message: str | None
) -> None:
    done = box("run", "--rm", *arguments, check=False)
    assert done.returncode == code
    assert done.stdout == ""
    if message is not None:
        assert done.stderr == message
    assert_nothing_left(box)


def test_a_container_that_did_not_start_is_removed(box: Lamina) -> None:
    assert box("run", "--name", "gone", "box", "nope", check=False).returncode == 127
    assert_nothing_left(box)


def test_the_process_gets_what_was_asked_for(box: Lamina, tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text("B=2\nFROM_HERE\n")
    done = box(
        "run", "--rm", "-e", "C=3", "--env-file", file, "-u", "www-data", "-w", "/made/here",
        "--hostname", "named", "box", "sh", "-c", "echo $A$B$C$FROM_HERE $HOME; id; pwd; hostname",
        environ={"FROM_HERE": "!"},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "123! /var/www",
        "uid=33(www-data) gid=33(www-data)",
        "/made/here",
        "named",
    ]


def test_the_container_is_isolated_as_docker_does_it(box: Lamina) -> None:
    script = "id -u; echo $$; ls /sys/class/net; ping -c1 -W1 127.0.0.1 | tail -2 | head -1"
    lines = sh(box, script).splitlines()
    assert lines[:3] == ["0", "1", "lo"]
    assert "1 packets received" in lines[3]
    status = sh(box, "grep -E 'Cap(Prm|Bnd)|NoNewPrivs' /proc/self/status")
    assert "CapBnd:\t00000000a80425fb" in status
    assert "NoNewPrivs:\t0" in status
    assert sh(
        box, "cat /proc/kcore | wc -c; echo x 2>/dev/null > /proc/sys/kernel/hostname || echo ro"
    )
    assert "127.0.0.1\tlocalhost" in sh(box, "cat /etc/hosts")
    assert sh(box, "stat -c %F /dev/null; ls /dev/pts").startswith("character special file")


def test_the_host_network_is_shared_when_asked_for(box: Lamina) -> None:
    inside = sh(box, "ls /sys/class/net", "--network", "host").split()
    assert inside == sorted(os.listdir("/sys/class/net"))


def test_a_read_only_container_cannot_write(box: Lamina) -> None:
    assert sh(box, "touch /x 2>/dev/null || echo no", "--read-only") == "no\n"


def test_files_keep_owners_modes_and_kinds(box: Lamina) -> None:
    script = "stat -c '%a %u %F' /home/www/owned /var/setuid /dev/null /tmp; cat /etc/motd.hardlink"
    assert sh(box, script).splitlines() == [
        "640 33 regular file",
        "4755 0 regular file",
        "666 0 character special file",
        "1777 0 directory",
        "welcome",
    ]


def test_standard_streams_are_connected_as_asked(box: Lamina) -> None:
    assert box("run", "--rm", "-i", "box", "cat", stdin="through\n").stdout == "through\n"
    assert box("run", "--rm", "box", "cat", stdin="not through\n").stdout == ""
    done = box("run", "--rm", "box", "sh", "-c", "echo out; echo err >&2")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")
    blob = os.urandom(1 << 20)
    assert box.run("run", "--rm", "-i", "box", "cat", stdin=blob).stdout == blob


def test_a_kept_container_is_listed_inspected_and_removed(box: Lamina) -> None:
    box("run", "--name", "kept", "box", "sh", "-c", "echo new > /new; exit 3", check=False)
    assert box("ps", "-q").stdout == ""
    heading, row = box("ps", "-a").stdout.splitlines()
    assert heading.split("   ")[0] == "CONTAINER ID"
    assert re.fullmatch(
        r'[0-9a-f]{12}   box       "sh -c \'echo new > /…"   .* ago +Exited \(3\) .* ago +kept', row
    )
    (document,) = json.loads(box("inspect", "kept").stdout)
    assert document["State"]["Status"] == "exited"
    assert document["State"]["ExitCode"] == 3
    assert document["Path"] == "sh"
    assert document["Name"] == "/kept"
    upper = Path(document["GraphDriver"]["Data"]["UpperDir"])
    # Nothing but what the command wrote: no mount points, no files of the runtime.
    assert [path.name for path in upper.iterdir()] == ["new"]
    assert box("run", "--name", "kept", "box", check=False).returncode == 125
    image = box("commit", "-m", "why", "kept", "made:1").stdout.strip()
    assert re.fullmatch("sha256:[0-9a-f]{64}", image)
    assert box("run", "--rm", "made:1", "cat", "/new").stdout == "new\n"
    assert box("rm", "kept").stdout == "kept\n"
    box("rmi", "made:1")
    assert_nothing_left(box)


def test_the_same_changes_make_the_same_image(box: Lamina) -> None:
    made = set()
    for name in ("first", "second"):
        box("run", "--name", name, "box", "sh", "-c", "mkdir /d; echo x > /d/f; rm /etc/motd")
        epoch = {"SOURCE_DATE_EPOCH": "1700000000"}
        made.add(box("commit", name, environ=epoch).stdout)
        box("rm", name)
    assert len(made) == 1
    box("rmi", made.pop().strip())


def started(box: Lamina, *arguments: str) -> subprocess.Popen[str]:
    """A running container; its first line of output has been read."""
    process = subprocess.Popen(
        box.argv("run", *arguments),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", (line, process.stderr and process.stderr.read())
    return process


WAIT = "trap 'echo got it; exit 9' TERM INT HUP USR1; echo ready; while :; do sleep 0.05; done"
DEAF = "trap '' TERM INT; echo ready; while :; do sleep 0.05; done"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(box: Lamina, number: signal.Signals) -> None:
    process = started(box, "--rm", "box", "sh", "-c", WAIT)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (9, "got it\n", "")
    assert_nothing_left(box)


def test_a_running_container_is_seen_and_killed(box: Lamina) -> None:
    process = started(box, "--name", "busy", "box", "sh", "-c", DEAF)
    (row,) = box("ps", "--format", "{{.Names}} {{.State}} {{.Status}}").stdout.splitlines()
    assert re.fullmatch("busy running Up .*", row)
    pid = int(box("inspect", "-f", "{{.State.Pid}}", "busy").stdout)
    assert b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    refused = box("rm", "busy", check=False)
    assert refused.returncode == 1
    assert "container is running" in refused.stderr
    assert box("rm", "-f", "busy").stdout == "busy\n"
    process.communicate(timeout=20)
    assert process.returncode == 137
    assert_nothing_left(box)


def test_a_container_ends_with_the_program_that_started_it(box: Lamina) -> None:
    process = started(box, "--name", "orphan", "box", "sh", "-c", DEAF)
    pid = int(box("inspect", "-f", "{{.State.Pid}}", "orphan").stdout)
    process.kill()
    process.communicate(timeout=20)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() or "Exited" not in box("ps", "-a").stdout:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert box("inspect", "-f", "{{.State.ExitCode}}", "orphan").stdout == "137\n"
    assert str(box.root) not in Path("/proc/self/mounts").read_text()
    box("rm", "orphan")
    assert_nothing_left(box)


def wait_for_store(process: subprocess.Popen[str]) -> None:
    """Wait until a lamina has opened its store: interpreter and imports are done."""
    while True:
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            with suppress(FileNotFoundError):
                if "lamina.db" in os.readlink(descriptor):
                    return
        assert process.poll() is None
        time.sleep(0.001)


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1, 0.15])
def test_an_interrupt_at_any_time_leaves_nothing(box: Lamina, delay: float) -> None:
    process = subprocess.Popen(
        box.argv("run", "--rm", "box", "sh", "-c", "trap 'exit 3' INT; sleep 100 & wait"),
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_store(process)
    time.sleep(delay)
    deadline = time.monotonic() + 20
    while process.poll() is None:
        # The shell, process 1 of its container, is deaf to those that come before its trap.
        process.send_signal(signal.SIGINT)
        assert time.monotonic() < deadline
        time.sleep(0.5)
    _, err = process.communicate(timeout=20)
    # The last by a signal that came when Python was about to exit.
    assert process.returncode in (3, 130, -signal.SIGINT)
    assert "Traceback" not in err
    assert_nothing_left(box)


def test_without_a_runtime_the_packages_are_named(box: Lamina, tmp_path: Path) -> None:
    done = box("run", "box", check=False, environ={"PATH": str(tmp_path)})
    assert done.returncode == 125
    assert done.stderr == (
        "lamina: no OCI runtime is installed: install the package runc or crun\n"
    )
    assert_nothing_left(box)


@pytest.mark.peer("crun")
def test_crun_does_as_well(box: Lamina, tmp_path: Path) -> None:
    (tmp_path / "crun").symlink_to(program("crun") or "")
    path = {"PATH": str(tmp_path)}
    done = box("run", "--rm", "box", "sh", "-c", "id -u; exit 4", check=False, environ=path)
    assert (done.returncode, done.stdout, done.stderr) == (4, "0\n", "")
    assert box("run", "--rm", "box", "nope", check=False, environ=path).returncode == 127
    assert_nothing_left(box)


def test_a_script_without_an_interpreter_says_so(box: Lamina) -> None:
    box("run", "--name", "maker", "box", "sh", "-c", "echo '#!/nope' > /script; chmod 755 /script")
    box("commit", "-c", "CMD /script", "maker", "scripted")
    box("rm", "maker")
    done = box("run", "--rm", "--entrypoint", "/script", "scripted", check=False)
    assert done.returncode != 0
    assert "no such file or directory" in done.stderr
    assert "Traceback" not in done.stderr
    box("rmi", "scripted")
    assert_nothing_left(box)


def test_root_of_a_user_namespace_runs_containers_too(box: Lamina, tmp_path: Path) -> None:
    nested = Lamina(tmp_path / "store")
    wrapper = ["unshare", "--user", "--map-root-user", "--mount"]
    tar = tmp_path / "box.tar"
    box("save", "-o", tar, "box")
    shown = []
    for arguments in (["load", "-i", tar], ["run", "--rm", "--network", "host", "box"]):
        done = subprocess.run(
            [*wrapper, *nested.argv(*arguments)],
            env=environment(),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
    assert shown[-1] == "it runs\n"
    nested.close()


def test_an_ordinary_search_path_is_enough() -> None:
    assert SEARCH_PATH.endswith(":/usr/sbin:/sbin")
