"""The pyfuse3 session: one mounted ``/dev/fuse`` served until its end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable

import pyfuse3
import trio

from .operations import UnionOperations

log = logging.getLogger(__name__)


def run(operations: UnionOperations, fd: int, ready: Callable[[], None]) -> None:
    """Serve the session of an already mounted descriptor until unmount, SIGTERM or SIGINT.

    The caller takes the mount away afterwards; the descriptor is closed here.
    """
    pyfuse3.init(operations, f"/dev/fd/{fd}", set())
    try:
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
