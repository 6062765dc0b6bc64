"""The INIT handshake: flags that pyfuse3 does not ask for, and a mount that ends as it begins."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import unionfs.attach
from cli.fuse_lamina import read
from cli.mount_options import build_options
from tests.support.mounts import mountpoints_below
from unionfs import handshake, mounting
from unionfs.errors import MountError
from unionfs.mounting import MountOptions


def places(base: Path) -> str:
    return f"lowerdir={base}/low,upperdir={base}/upper,workdir={base}/work"


def _messages(offered: int, asked: int, error: int = 0) -> tuple[bytes, bytes]:
    """INIT of protocol 7.45 and its reply, laid out by hand."""
    words = (7, 45, 1 << 17, offered)
    request = b"".join(
        number.to_bytes(size, sys.byteorder)
        for number, size in [(104, 4), (26, 4), (2, 8), (0, 8), (0, 4), (0, 4), (1, 4), (0, 4)]
        + [(word, 4) for word in words]
    ) + bytes(48)
    reply = (80).to_bytes(4, sys.byteorder) + error.to_bytes(4, sys.byteorder, signed=True)
    reply += (2).to_bytes(8, sys.byteorder)
    reply += b"".join(word.to_bytes(4, sys.byteorder) for word in (7, 36, 1 << 17, asked)) + bytes(
        48
    )
    return request, reply


@pytest.mark.parametrize(
    ("offered", "asked", "expected"),
    [
        (0xFFFFFFFF, 0x1, 0x41),
        (0xFFFFFFFF & ~0x40, 0x1, 0x1),
        (0x40, 0x41, 0x41),
    ],
)
def test_only_flags_that_the_kernel_offers_are_asked_for(
    offered: int, asked: int, expected: int
) -> None:
    request, reply = _messages(offered, asked)
    assert handshake.change_reply(request, reply) == _messages(offered, expected)[1]


def test_a_reply_that_is_an_error_is_told() -> None:
    request, reply = _messages(0, 0, -errno.EPROTO)
    with pytest.raises(MountError, match=os.strerror(errno.EPROTO)):
        handshake.change_reply(request, reply)


@pytest.mark.fuse
@pytest.mark.root
def test_a_mount_that_is_gone_before_it_began_is_an_error(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone unmounts between the system call and the first request."""

    def attach(options: MountOptions) -> tuple[int, None]:
        fd, _ = original(options)
        subprocess.run(["umount", "-l", options.mountpoint], check=True)
        return fd, None

    original = unionfs.attach.attach
    monkeypatch.setattr(mounting, "attach", attach)
    line = read(["-o", places(base), str(base / "mnt")])
    with pytest.raises(MountError, match="the mount ended as it began"):
        mounting.start(build_options(line.given, line.places))
    assert mountpoints_below(base) == []
