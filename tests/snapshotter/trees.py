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

from tests.unionfs.test_tree_model import NAMES, PATHS, attempt, pack, plant
from tests.unionfs.trees import PlainSide, Seen, UnionSide
from unionfs.opening import open_finished, open_union
from unionfs.options import TreeOptions
from unionfs.reading import ReadableTree

CHANGES = st.one_of(
    st.builds(partial, st.just(UnionSide.create), path=PATHS, data=st.binary(max_size=9)),
    st.builds(partial, st.just(UnionSide.write), path=PATHS, offset=st.just(2), data=st.just(b"!")),
    st.builds(partial, st.just(UnionSide.truncate), path=PATHS, size=st.integers(0, 3)),
    st.builds(partial, st.just(UnionSide.chmod), path=PATHS, mode=st.sampled_from([0o600, 0o755])),
    st.builds(partial, st.just(UnionSide.mkdir), path=PATHS),
    st.builds(partial, st.just(UnionSide.symlink), path=PATHS, target=st.just(b"x")),
    st.builds(partial, st.just(UnionSide.link), source=PATHS, target=PATHS),
    st.builds(partial, st.just(UnionSide.unlink), path=PATHS),
    st.builds(partial, st.just(UnionSide.rmdir), path=PATHS),
    st.builds(partial, st.just(UnionSide.rename), source=PATHS, target=PATHS),
    st.builds(partial, st.just(UnionSide.rename), source=NAMES, target=PATHS),
    st.builds(partial, st.just(UnionSide.exchange), one=PATHS, other=PATHS),
)
LOW = st.dictionaries(PATHS, st.binary(max_size=12), max_size=7)
LINKS = st.lists(st.tuples(st.integers(0, 9), PATHS), max_size=4)
STEPS = st.lists(CHANGES, max_size=12)


def is_within(change: partial[None]) -> bool:
    """Whether a rename leads into itself, which the kernel refuses before it asks."""
    paths = [value + b"/" for value in change.keywords.values() if isinstance(value, bytes)]
    moves = change.func in (UnionSide.rename, UnionSide.exchange)
    return moves and (paths[0].startswith(paths[1]) or paths[1].startswith(paths[0]))


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
    """A lower layer of files, some with several names, and an upper made by ``steps``.

    The union is still open for writing, as while a container runs.
    """
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


def in_seconds(seen: dict[bytes, Seen]) -> dict[bytes, Seen]:
    """What a layer can say: times in seconds."""
    return {path: one._replace(mtime_ns=one.mtime_ns // 10**9) for path, one in seen.items()}
