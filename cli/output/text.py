"""Text for a terminal: nothing that comes out of an image may steer it."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence

_MIN_WIDTH = 10
_GAP = 3


def printable(text: str) -> str:
    """``text`` with control characters and undecodable bytes escaped as Python would."""
    if text.isprintable():
        return text
    return "".join(char if _is_safe(char) else _escape(char) for char in text)


def _is_safe(char: str) -> bool:
    return char.isprintable() or unicodedata.category(char) == "Zs"


def _escape(char: str) -> str:
    return repr(char)[1:-1]


def ellipsis(text: str, width: int) -> str:
    """At most ``width`` characters of ``text``; a cut one ends in an ellipsis."""
    if len(text) <= width:
        return text
    return text[: width - 1] + "…" if width > 1 else text[:width]


def short_id(digest: str) -> str:
    """The first twelve hex digits of an ID, without the name of the algorithm."""
    return digest.rpartition(":")[2][:12]


def quoted(text: str) -> str:
    """``text`` in double quotes, as the COMMAND column shows it."""
    return '"' + printable(text).replace('"', '\\"') + '"'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Aligned columns as Docker prints them: at least ten wide, three apart, the last one ragged.

    Every cell is made :func:`printable`. The result ends in a newline.
    """
    lines = [list(headings), *([printable(cell) for cell in row] for row in rows)]
    widths = [
        max(_MIN_WIDTH, *(len(line[column]) + _GAP for line in lines))
        for column in range(len(headings) - 1)
    ]
    return "".join(_line(line, widths) for line in lines)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return "".join(padded) + cells[-1] + "\n"
