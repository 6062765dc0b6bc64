"""The INIT handshake of FUSE, with flags that pyfuse3 cannot ask for.

The kernel's first request says what it offers, and the reply says what of it the daemon wants.
libfuse writes that reply. So it is let to answer through a socket, and the reply is changed on its
way to the kernel (the structures: linux/fuse.h; what the kernel does with it: process_init_reply in
fs/fuse/inode.c). Nothing of this remains once the session runs.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import trio

from .errors import MountError

FUSE_DONT_MASK = 1 << 6
"""The umask is left to the daemon, which knows of default ACLs."""

WANTED = FUSE_DONT_MASK
"""What is asked for on top of what libfuse asks for, where the kernel offers it."""

UNWANTED = 0
"""What libfuse asks for and must not get."""

Main = Callable[[], Coroutine[Any, Any, None]]

_IN_HEADER = struct.Struct("=IIQQIIIHH")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding."""

_OUT_HEADER = struct.Struct("=IiQ")
"""struct fuse_out_header: len, error, unique."""

_INIT_FLAGS = struct.Struct("=I")
"""``flags``: the fourth word of struct fuse_init_in and of struct fuse_init_out alike, after
``major``, ``minor`` and ``max_readahead``."""

_FLAGS_OFFSET = 12
_FUSE_INIT = 26
_REQUEST_SIZE = 1 << 17
"""Bytes. The kernel refuses to be read with less than its largest request."""


def negotiate(fuse_fd: int, session_fd: int, channel: socket.socket, main: Main) -> None:
    """Let libfuse answer the first request of ``fuse_fd``; ``session_fd`` is its equal afterwards.

    libfuse reads from and writes to ``session_fd``, whose other end is ``channel``; ``main`` is
    its loop. Raises :class:`MountError` if the kernel and libfuse do not come to terms.
    """
    try:
        request = os.read(fuse_fd, _REQUEST_SIZE)
        channel.send(request)
        reply = trio.run(_answer, main, channel)
        os.write(fuse_fd, change_reply(request, reply))
    except OSError as error:
        raise MountError(f"the mount ended as it began: {error.strerror}") from error
    os.dup2(fuse_fd, session_fd, inheritable=False)


async def _answer(main: Main, channel: socket.socket) -> bytes:
    """What libfuse's loop replies to the request that waits for it; the loop is cancelled then.

    Cancelled while it waits for the next request it leaves nothing behind.
    """
    channel.setblocking(False)
    async with trio.open_nursery() as nursery:

        async def end_with_reply() -> None:
            await trio.lowlevel.wait_readable(channel)
            nursery.cancel_scope.cancel()

        nursery.start_soon(end_with_reply)
        await main()
        nursery.cancel_scope.cancel()
    return channel.recv(_REQUEST_SIZE)


def change_reply(request: bytes, reply: bytes) -> bytes:
    """The reply with the flags of :data:`WANTED` that the request offers, without the unwanted."""
    _, opcode, unique, *_ = _IN_HEADER.unpack_from(request)
    _, error, answered = _OUT_HEADER.unpack_from(reply)
    if opcode != _FUSE_INIT or answered != unique:
        raise MountError("the kernel began the mount with something else than INIT")
    if error:
        raise MountError(f"libfuse and the kernel do not agree: {os.strerror(-error)}")
    (offered,) = _INIT_FLAGS.unpack_from(request, _IN_HEADER.size + _FLAGS_OFFSET)
    place = _OUT_HEADER.size + _FLAGS_OFFSET
    (asked,) = _INIT_FLAGS.unpack_from(reply, place)
    changed = bytearray(reply)
    _INIT_FLAGS.pack_into(changed, place, (asked | WANTED & offered) & ~UNWANTED)
    return bytes(changed)
