"""Interactive containers on a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Sequence

import pytest

from tests.support.command import Lamina, environment

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.peer("runc")]

Step = tuple[bytes, bytes | Callable[[int], object]]
"""Wait for the first, then type the second, or call it with the terminal."""


def set_size(terminal: int, rows: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def converse(argv: list[str], steps: Sequence[Step], *, patience: float = 30) -> tuple[int, bytes]:
    """Run a program on a terminal of its own; the exit code, and everything shown."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(argv[0], argv, environment(TERM="dumb", PS1="$ "))
    set_size(terminal, 33, 101)
    shown = b""
    seen = 0
    waiting = list(steps)
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 0.2)
        if ready:
            try:
                data = os.read(terminal, 65536)
            except OSError:
                break
            if not data:
                break
            shown += data
        if waiting and waiting[0][0] in shown[seen:]:
            expected, action = waiting.pop(0)
            seen = shown.index(expected, seen) + len(expected)
            if callable(action):
                action(terminal)
            else:
                os.write(terminal, action)
    else:
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert not waiting, f"never saw {waiting[0][0]!r} in {shown!r}"
    return os.waitstatus_to_exitcode(status), shown


def test_a_shell_is_used_as_on_any_terminal(box: Lamina) -> None:
    def resize(terminal: int) -> None:
        set_size(terminal, 44, 120)
        time.sleep(0.3)
        os.write(terminal, b"stty size; tty\n")

    def interrupt(terminal: int) -> None:
        time.sleep(0.5)  # until the shell has started sleep
        os.write(terminal, b"\x03")

    code, shown = converse(
        box.argv("run", "-it", "--rm", "box", "sh"),
        [
            (b"# ", b"stty size\n"),
            (b"33 101\r\n", resize),
            (b"44 120\r\n", b"echo 'go'ing; sleep 100\n"),
            (b"going\r\n", interrupt),
            (b"^C", b"echo st'ill' here\n"),
            (b"still here\r\n", b"exit 5\n"),
        ],
    )
    assert code == 5
    assert b"/dev/pts/0\r\n" in shown
    assert box("ps", "-aq").stdout == ""


def test_the_terminal_is_as_before_afterwards(box: Lamina) -> None:
    modes = []

    def remember(terminal: int) -> None:
        modes.append(termios.tcgetattr(terminal))

    script = " ".join(
        box.argv("run", "-it", "--rm", "box", "sh", "-c", "'echo in''side; sleep 0.3'")
    )
    code, _ = converse(
        [
            "/bin/sh",
            "-c",
            f"stty -a >/dev/null; echo before; sleep 0.3; {script}; echo af''ter; sleep 0.3",
        ],
        [(b"before", remember), (b"inside", remember), (b"after", remember)],
    )
    assert code == 0
    before, inside, after = modes
    assert before == after
    assert inside != before


def test_a_lot_of_output_and_input_goes_through(box: Lamina) -> None:
    line = b"x" * 200 + b"\n"
    code, shown = converse(
        box.argv(
            "run", "-it", "--rm", "box", "sh", "-c", "stty -echo; echo rea''dy; wc -c; seq 20000"
        ),
        [(b"ready", line * 200 + b"\x04")],
    )
    assert code == 0
    assert b"%d\r\n" % (201 * 200) in shown
    assert b"\r\n19999\r\n20000\r\n" in shown


def test_a_terminal_for_output_needs_none_here(box: Lamina) -> None:
    done = box("run", "-t", "--rm", "box", "sh", "-c", "tty; exit 6", check=False)
    assert (done.returncode, done.stdout) == (6, "/dev/pts/0\r\n")


def test_input_for_a_terminal_must_come_from_one(box: Lamina) -> None:
    done = box("run", "-it", "--rm", "box", check=False)
    assert done.returncode == 125
    assert "stdin is not a terminal" in done.stderr


def test_errors_on_a_terminal_are_one_line_and_leave_it_alone(box: Lamina) -> None:
    code, shown = converse(box.argv("run", "-it", "--rm", "box", "nope"), [])
    assert code == 127
    assert shown == b'lamina: exec: "nope": executable file not found in $PATH\r\n'


def test_a_hangup_ends_the_container(box: Lamina) -> None:
    process = None
    controller, terminal = pty.openpty()
    try:
        process = subprocess.Popen(
            box.argv("run", "-it", "--rm", "box", "sh"),
            env=environment(),
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)
        assert select.select([controller], [], [], 20)[0]
        time.sleep(0.3)
    finally:
        os.close(controller)
    assert process is not None
    process.send_signal(signal.SIGHUP)
    process.wait(20)
    assert box("ps", "-aq").stdout == ""
