"""Whatever is done to a union over packs, its commit shows the same: random changes, committed."""

from __future__ import annotations

import os
from contextlib import closing
from functools import partial

import pytest
from hypothesis import HealthCheck, example, given, settings

from snapshotter.diff import Difference
from tests.snapshotter.trees import LINKS, LOW, STEPS, changed, in_seconds
from tests.unionfs.trees import UnionSide
from unionfs.opening import open_union
from unionfs.pack import ingest

pytestmark = pytest.mark.usefixtures("no_umask")


@example(
    low={b"b/a": b""},
    links=[(0, b"a"), (0, b"b/b")],
    steps=[partial(UnionSide.unlink, path=b"a")],
)
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(low=LOW, links=LINKS, steps=STEPS)
def test_a_commit_shows_what_the_union_shows(
    low: dict[bytes, bytes], links: list[tuple[int, bytes]], steps: list[partial[None]]
) -> None:
    with changed(low, links, steps) as union:
        new = union.directory / "new.pack"
        ingest(Difference(union.tree), new)
        layers = [os.fsencode(path) for path in (new, union.directory / "low.pack")]
        with closing(open_union(layers)) as tree:
            assert in_seconds(UnionSide(tree).walk()) == in_seconds(union.now)
