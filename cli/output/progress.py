"""Progress bars as Docker draws them, one line for each layer; silent off a terminal."""

from __future__ import annotations

import shutil
import time
from typing import TextIO

from .text import printable
from .units import human_size

_CELLS = 50
_REDRAW_SECONDS = 0.05


def progress_for(stream: TextIO) -> ProgressBars | None:
    """Bars on a terminal; None, which is silence, anywhere else."""
    return ProgressBars(stream) if stream.isatty() else None


class ProgressBars:
    """Redraws one line per layer on a terminal. Call it as ``snapshotter.progress.Progress``."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: dict[str, int] = {}
        self._drawn: dict[str, float] = {}

    def __call__(self, layer: str, action: str, done: int, total: int | None) -> None:
        """Show that ``layer`` is at ``done`` of ``total`` bytes (None: unknown)."""
        now = time.monotonic()
        is_last = total is not None and done >= total
        if not is_last and now - self._drawn.get(layer, float("-inf")) < _REDRAW_SECONDS:
            return
        self._drawn[layer] = now
        columns = shutil.get_terminal_size((80, 24)).columns
        text = f"{printable(layer)}: {printable(action)} {bar(done, total, columns)}"
        if layer not in self._lines:
            self._lines[layer] = len(self._lines)
            self._stream.write("\n")
        up = len(self._lines) - self._lines[layer]
        self._stream.write(f"\x1b[{up}A\x1b[2K\r{text[:columns]}\x1b[{up}B\r")
        self._stream.flush()


def bar(done: int, total: int | None, columns: int) -> str:
    """The bar and the numbers that fit a terminal of ``columns``: ``[==>   ]  1.2MB/2.4MB``."""
    if not total or total <= 0:
        return f"{human_size(done, 4):>8}"
    numbers = f"{human_size(done, 4):>8}" + (f"/{human_size(total, 4)}" if done <= total else "")
    if columns <= 110:
        return numbers
    full = min(_CELLS, int(done / total * 100) // 2)
    return f"[{'=' * full}>{' ' * (_CELLS - full)}] {numbers}"
