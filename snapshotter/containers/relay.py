"""Waiting for a container's process while passing on signals, terminal input and output."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import select
import signal
import socket
import struct
import termios
from dataclasses import dataclass, field
from pathlib import Path

from .errors import ContainerError

_log = logging.getLogger(__name__)

_CHUNK = 65536
_CONSOLE_WAIT_SECONDS = 30


class Console:
    """The socket through which the runtime hands over the container's terminal.

    It is bound by a relative name, because absolute ones soon exceed the 107 bytes of a socket's
    address; so the bundle must be the current directory of this process and of the runtime.
    """

    NAME = "console.sock"

    def __init__(self, bundle: Path) -> None:
        self._path = bundle / self.NAME
        os.chdir(bundle)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(self.NAME)
        self._socket.listen(1)
        self._socket.settimeout(_CONSOLE_WAIT_SECONDS)

    def receive(self) -> int:
        """The terminal's descriptor. Raises :class:`ContainerError` if the runtime sent none."""
        connection, _ = self._socket.accept()
        with connection:
            _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        if not descriptors:
            raise ContainerError("the runtime did not hand over the terminal of the container")
        os.set_blocking(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        """Remove the socket."""
        self._socket.close()
        self._path.unlink(missing_ok=True)


@dataclass
class Relay:
    """Stands between a container's process and the user until the process has ended.

    ``channel`` brings the requests of the caller's process, ``terminal`` is the container's, if it
    has one, ``stdin`` (None: no input) and ``stdout`` are the user's.
    """

    pid: int
    channel: socket.socket
    terminal: int | None
    stdin: int | None
    stdout: int
    _pending: bytes = field(default=b"", init=False)
    _poll: select.poll = field(default_factory=select.poll, init=False)

    def wait(self) -> int:
        """The wait status of the process, once it has ended and its output has been passed on."""
        pidfd = os.pidfd_open(self.pid)
        self._poll.register(pidfd, select.POLLIN)
        self._poll.register(self.channel, select.POLLIN)
        if self.terminal is not None:
            self.resize()
            self._poll.register(self.terminal, select.POLLIN)
            if self.stdin is not None:
                self._poll.register(self.stdin, select.POLLIN)
        ended = False
        while not ended:
            for fd, _ in self._poll.poll():
                if fd == pidfd:
                    ended = True
                elif fd == self.channel.fileno():
                    self._obey()
                elif fd == self.terminal:
                    self._exchange()
                elif fd == self.stdin:
                    self._take_input()
        os.close(pidfd)
        if self.terminal is not None:
            self._pass_output(until_empty=True)
        return os.waitpid(self.pid, 0)[1]

    def resize(self) -> None:
        """Give the container's terminal the size of the user's."""
        if self.terminal is None:
            return
        for fd in (self.stdout, self.stdin):
            if fd is not None and os.isatty(fd):
                size = fcntl.ioctl(fd, termios.TIOCGWINSZ, bytes(8))
                if any(struct.unpack("HHHH", size)[:2]):
                    fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, size)
                return

    def kill(self, number: int) -> None:
        """Send a signal to the process, unless it has ended."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            _log.debug("signal %d came too late", number)

    def _obey(self) -> None:
        """Do what the caller's process asks for; its end means that of the container."""
        message = self.channel.recv(4096)
        if not message:
            _log.debug("the caller is gone: killing the container")
            self._poll.unregister(self.channel)
            self.kill(signal.SIGKILL)
            return
        number = json.loads(message)["signal"]
        if number == signal.SIGWINCH:
            self.resize()
        else:
            self.kill(number)

    def _take_input(self) -> None:
        """Read from the user only what can wait here until the container takes it."""
        assert self.stdin is not None
        assert self.terminal is not None
        self._poll.unregister(self.stdin)
        try:
            self._pending = os.read(self.stdin, _CHUNK)
        except OSError as error:
            _log.debug("input: %s", error)
        if self._pending:
            self._poll.modify(self.terminal, select.POLLIN | select.POLLOUT)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        """The user's terminal is gone: so is the container's."""
        if self.terminal is not None:
            self._poll.unregister(self.terminal)
            os.close(self.terminal)
            self.terminal = None

    def _exchange(self) -> None:
        assert self.terminal is not None
        if self._pending:
            self._pass_input()
        if not self._pass_output(until_empty=False):
            # The last program has closed the terminal. Programs may open it again, but not
            # before this process has been told of the container's end.
            self._poll.unregister(self.terminal)

    def _pass_input(self) -> None:
        assert self.terminal is not None
        try:
            written = os.write(self.terminal, self._pending)
        except BlockingIOError:
            return
        except OSError as error:
            _log.debug("terminal: %s", error)
            written = len(self._pending)
        self._pending = self._pending[written:]
        if not self._pending and self.stdin is not None:
            self._poll.modify(self.terminal, select.POLLIN)
            self._poll.register(self.stdin, select.POLLIN)

    def _pass_output(self, *, until_empty: bool) -> bool:
        """Copy what the container has written; False once its terminal is closed."""
        assert self.terminal is not None
        while True:
            try:
                data = os.read(self.terminal, _CHUNK)
            except BlockingIOError:
                return True
            except OSError:
                return False  # EIO: nobody has the other end open
            if not data:
                return False
            self._write(data)
            if not until_empty:
                return True

    def _write(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self.stdout, data) :]
            except BlockingIOError:
                select.select([], [self.stdout], [])
            except OSError as error:
                _log.debug("output: %s", error)
                return
