"""Timings as a table for people."""

from __future__ import annotations

from statistics import median

from .peers import FUSE_OVERLAYFS, KERNEL, LAMINA

Timings = dict[str, dict[str, list[float]]]
"""Seconds of each round, by workload, by peer."""


def table(timings: Timings, peers: list[str]) -> str:
    """The median of each workload for each peer.

    The last columns are the time of lamina's pack divided by that of the peer they name: below 1
    lamina is faster.
    """
    rivals = [name for name in (KERNEL, FUSE_OVERLAYFS) if name in peers and LAMINA in peers]
    heads = ["seconds, median", *peers, *(f"to {rival}" for rival in rivals)]
    rows = [heads]
    for workload, by_peer in timings.items():
        medians = {name: median(by_peer[name]) for name in peers}
        ratios = [medians[LAMINA] / medians[rival] for rival in rivals]
        numbers = [f"{medians[name]:.3f}" for name in peers]
        rows.append([workload, *numbers, *(f"{ratio:.2f}" for ratio in ratios)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join(_line(row, widths) for row in rows)


def _line(row: list[str], widths: list[int]) -> str:
    first, *rest = [
        cell.rjust(width) if column else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return "  ".join([first, *rest]).rstrip()
