"""Unions over packs, changed at random, for whatever reads what they have become."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from tests.snapshotter.test_commit_union import CHANGES, is_within
from tests.unionfs.test_tree_model import PATHS, attempt, pack, plant
from tests.unionfs.trees import PlainSide, Seen, UnionSide
from unionfs.opening import open_finished, open_union
from unionfs.options import TreeOptions
from unionfs.reading import ReadableTree

LOW = st.dictionaries(PATHS, st.binary(max_size=12), max_size=7)
LINKS = st.lists(st.tuples(st.integers(0, 9), PATHS), max_size=4)
STEPS = st.lists(CHANGES, max_size=12)


class Changed(NamedTuple):
    """A finished union: what was shown below, what is shown now, and the tree to read."""

    before: dict[bytes, Seen]
    now: dict[bytes, Seen]
    tree: ReadableTree
    directory: Path


@contextmanager
def changed(
    low: dict[bytes, bytes], links: list[tuple[int, bytes]], steps: list[partial[None]]
) -> Iterator[Changed]:
    """A lower layer of files, some with several names, and an upper made by ``steps``."""
    base = Path(tempfile.mkdtemp(dir="/dev/shm"))
    try:
        for name in ("low", "upper", "work"):
            (base / name).mkdir()
        plain = PlainSide(base / "low")
        for path, data in low.items():
            plant(plain, path, data)
        for which, target in links:
            source = sorted(low)[which % len(low)] if low else b""
            if plain.kind(source) == stat.S_IFREG:
                attempt(partial(plain.link, source, target))
        pack(base / "low")
        lowers = [os.fsencode(base / "low.pack")]
        places = (os.fsencode(base / "upper"), os.fsencode(base / "work"))
        with closing(open_union(lowers)) as tree:
            before = UnionSide(tree).walk()
        with closing(open_union(lowers, *places, options=TreeOptions(metacopy=True))) as tree:
            side = UnionSide(tree)
            for step in steps:
                if not is_within(step):
                    attempt(partial(step, side))
            now = side.walk()
        with closing(open_finished(*places, lowers)) as finished:
            yield Changed(before, now, finished, base)
    finally:
        shutil.rmtree(base)
