"""Whatever is done to a union over packs, its commit shows the same: random changes, committed."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from snapshotter.diff import Difference
from tests.unionfs.test_tree_model import NAMES, PATHS, attempt, pack, plant
from tests.unionfs.trees import PlainSide, Seen, UnionSide
from unionfs.opening import open_finished, open_union
from unionfs.options import TreeOptions
from unionfs.pack import ingest

pytestmark = pytest.mark.usefixtures("no_umask")

Change = Callable[[UnionSide], None]

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


def is_within(change: partial[None]) -> bool:
    """Whether a rename leads into itself, which the kernel refuses before it asks."""
    paths = [value + b"/" for value in change.keywords.values() if isinstance(value, bytes)]
    moves = change.func in (UnionSide.rename, UnionSide.exchange)
    return moves and (paths[0].startswith(paths[1]) or paths[1].startswith(paths[0]))


def sights(side: UnionSide) -> dict[bytes, Seen]:
    """What a layer can say: times in seconds, no sizes of directories."""
    return {
        path: seen._replace(mtime_ns=seen.mtime_ns // 10**9) for path, seen in side.walk().items()
    }


@example(
    low={b"b/a": b""},
    links=[(0, b"a"), (0, b"b/b")],
    changes=[partial(UnionSide.unlink, path=b"a")],
)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    low=st.dictionaries(PATHS, st.binary(max_size=12), max_size=7),
    links=st.lists(st.tuples(st.integers(0, 9), PATHS), max_size=4),
    changes=st.lists(CHANGES, max_size=12),
)
def test_a_commit_shows_what_the_union_shows(
    low: dict[bytes, bytes],
    links: list[tuple[int, bytes]],
    changes: list[partial[None]],
) -> None:
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
        with closing(open_union(lowers, *places, options=TreeOptions(metacopy=True))) as tree:
            side = UnionSide(tree)
            for change in changes:
                if not is_within(change):
                    attempt(partial(change, side))
            expected = sights(side)
            with closing(open_finished(*places, lowers)) as finished:
                ingest(Difference(finished), base / "new.pack")
        with closing(open_union([os.fsencode(base / "new.pack"), *lowers])) as tree:
            assert sights(UnionSide(tree)) == expected
    finally:
        shutil.rmtree(base)
