"""How long operations tell their caller how far they are. The library itself prints nothing."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called now and then during an operation, from the thread that runs it."""

    def __call__(self, layer: str, action: str, done: int, total: int | None) -> None:
        """``done`` of ``total`` bytes (None: unknown) of ``layer`` (12 hex digits or a name)."""
        ...


class Readable(Protocol):
    """A stream that is only read forward."""

    def read(self, size: int = ..., /) -> bytes:
        """Up to ``size`` bytes; empty only at the end."""
        ...


class Counted:
    """A stream that reports every ``STEP`` bytes read from another one."""

    STEP = 1 << 20

    def __init__(
        self, stream: Readable, progress: Progress, layer: str, action: str, total: int | None
    ) -> None:
        self._stream = stream
        self._progress = progress
        self._about = (layer, action)
        self._total = total
        self._done = 0
        self._reported = 0
        progress(layer, action, 0, total)

    def read(self, size: int = -1, /) -> bytes:
        """Read from the stream below, and report; the last report is exact."""
        data = self._stream.read(size)
        self._done += len(data)
        at_end = not data and self._done != self._reported
        if at_end or self._done - self._reported >= self.STEP:
            self._reported = self._done
            self._progress(*self._about, self._done, self._total)
        return data
