"""The pyfuse3 session: one mounted ``/dev/fuse`` served until its end."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable

import pyfuse3
import trio

from .errors import MountError
from .handshake import negotiate
from .operations import UnionOperations

log = logging.getLogger(__name__)


def run(
    operations: UnionOperations, fd: int, ready: Callable[[], None], *, only_root: bool = False
) -> None:
    """Serve the session of an already mounted descriptor until unmount, SIGTERM or SIGINT.

    ``only_root`` turns away everybody but root and the user of this process. The caller takes the
    mount away afterwards; the descriptor is closed here. Raises :class:`MountError`, before
    ``ready`` is called, if the session cannot begin.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    session_fd = theirs.detach()
    try:
        pyfuse3.init(operations, f"/dev/fd/{session_fd}", {"allow_root"} if only_root else set())
    except RuntimeError as error:
        raise MountError(f"libfuse does not start: {error}") from error
    try:
        with ours:
            negotiate(fd, session_fd, ours, pyfuse3.main)
        os.close(fd)
        trio.run(_serve, ready)
    finally:
        pyfuse3.close(unmount=False)


async def _serve(ready: Callable[[], None]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_end_on_signal)
        ready()
        await pyfuse3.main()
        nursery.cancel_scope.cancel()


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("ending the mount on %s", signal.Signals(number).name)
            pyfuse3.terminate()
            return
