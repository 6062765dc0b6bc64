"""``make bench``: the same tree through lamina, fuse-overlayfs, kernel overlayfs and none of them.

Each round mounts every peer afresh, one after the other, so that a machine that gets slower or
faster meanwhile does so for all. Files are in the page cache (nothing is dropped); everything
lies on the filesystem of ``--directory``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tests.support.machine import Unavailable
from tests.support.rootfs import busybox_tar, debian_tar
from unionfs.pack import ingest

from . import workloads
from .peers import LAMINA, Peer, Tree, peers, versions
from .report import Timings, table

TREES = {"busybox": busybox_tar, "debian": debian_tar}


def arguments() -> argparse.Namespace:
    """What is asked for on the command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=...", description=__doc__)
    parser.add_argument("--tree", choices=sorted(TREES), default="debian")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, help="where to work (default: the system's)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every timing there")
    return parser.parse_args()


def prepare(tree: str, place: Path) -> Tree:
    """The tree as tar, as directory and as pack."""
    tar = TREES[tree]()
    directory, pack = place / "lower", place / "lower.pack"
    directory.mkdir()
    # An ordinary user cannot make device nodes; nobody times those.
    command = ["tar", "-xf", str(tar), "-C", str(directory), "--exclude=./dev/*", "--exclude=dev/*"]
    subprocess.run(command, check=True)
    packed = subprocess.Popen(
        ["tar", "-cf", "-", "-C", str(directory), "."], stdout=subprocess.PIPE
    )
    assert packed.stdout is not None
    with closing(packed.stdout) as stream:
        ingest(stream, pack)
    if packed.wait():
        raise SystemExit(f"tar failed with exit code {packed.returncode}")
    return Tree(tar, directory, pack)


@contextmanager
def shown(peer: Peer, tree: Tree, place: Path) -> Iterator[Path]:
    """The tree as one peer shows it, on a mount of its own."""
    scratch = place / "scratch"
    scratch.mkdir()
    try:
        with peer.show(tree, scratch) as directory:
            yield directory
    finally:
        shutil.rmtree(scratch)


def agree(present: list[Peer], tree: Tree, place: Path) -> None:
    """End the program when two peers show different trees: their times would mean nothing."""
    expected = workloads.fingerprint(tree.directory)
    for peer in present:
        with shown(peer, tree, place) as directory:
            if workloads.fingerprint(directory) != expected:
                raise SystemExit(f"{peer.name} shows another tree than the plain directory")


def measure(present: list[Peer], tree: Tree, place: Path, rounds: int) -> Timings:
    """All rounds; a peer that was last in one round is first in the next."""
    archive = place / "archive.tar"
    workloads.make_archive(archive)
    timings: Timings = {w.name: {peer.name: [] for peer in present} for w in workloads.WORKLOADS}
    for number in range(rounds):
        for peer in present[number % len(present) :] + present[: number % len(present)]:
            say(f"round {number + 1} of {rounds}: {peer.name}")
            with shown(peer, tree, place) as directory:
                for w in workloads.WORKLOADS:
                    timings[w.name][peer.name].append(workloads.run(w, directory, archive))
    return timings


def say(text: str) -> None:
    """Progress, where it does not mix with the table."""
    print(text, file=sys.stderr)


def main() -> None:
    """Measure and print."""
    asked = arguments()
    everyone = peers()
    present = [peer for peer in everyone if peer.missing is None]
    with tempfile.TemporaryDirectory(prefix="lamina-bench.", dir=asked.directory) as name:
        place = Path(name)
        try:
            tree = prepare(asked.tree, place)
        except Unavailable as why:
            raise SystemExit(f"no {asked.tree} tree: {why}") from None
        agree(present, tree, place)
        timings = measure(present, tree, place, asked.rounds)
    facts: dict[str, Any] = {
        "tree": asked.tree,
        "rounds": asked.rounds,
        "cpus": os.cpu_count(),
        "versions": versions(),
        "missing": {peer.name: peer.missing for peer in everyone if peer.missing},
    }
    print(table(timings, [peer.name for peer in present]))
    print(f"\n'to': {LAMINA}, divided by that peer; below 1 lamina is faster")
    print(f"{asked.tree} tree, {asked.rounds} rounds, {facts['cpus']} CPUs, {facts['versions']}")
    for peer, reason in facts["missing"].items():
        print(f"not measured: {peer}: {reason}")
    if asked.json:
        asked.json.write_text(json.dumps({**facts, "seconds": timings}, indent=1) + "\n")


if __name__ == "__main__":
    main()
