"""Locks on open files, which end with the process that holds them (flock(2))."""

from __future__ import annotations

import fcntl
import time


def lock_within(fd: int, operation: int, seconds: float) -> bool:
    """Lock with LOCK_EX or LOCK_SH; False if another holds the lock for longer than this."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        else:
            return True
