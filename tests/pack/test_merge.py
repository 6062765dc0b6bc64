"""Merging layers gives what applying them one after the other gives."""

from __future__ import annotations

import io
import stat
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.pack import archives
from tests.pack.archives import Entry, directory, file, link
from unionfs.errors import LayerError
from unionfs.pack import Pack, ingest, merge, verify

IDENTITY = bytes(range(32))
_layers = st.lists(st.lists(archives.entries(), max_size=6), min_size=1, max_size=4)


def _ingest_all(stack: ExitStack, place: Path, layers: Sequence[Sequence[Entry]]) -> list[Pack]:
    packs = []
    for layer in layers:
        diff_id = archives.take_in(place, archives.tar_of(layer)).diff_id
        packs.append(stack.enter_context(Pack(place / f"{diff_id.hex()}.pack")))
    return packs


@settings(max_examples=400, deadline=None)
@given(_layers, st.integers(0, 4), st.integers(0, 4))
@example([[file("a/b", b"x")], [link("c", "a/b")], [file("a/.wh.b")]], 1, 3)
@example([[directory("a", 0o700), file("a/b")], [file("a")], [file("a/c")]], 1, 3)
@example([[file("a/b")], [file(".wh.a"), file("a/c")]], 0, 2)
def test_a_merge_is_what_applying_the_layers_gives(
    layers: list[list[Entry]], start: int, end: int
) -> None:
    try:
        expected = archives.applied(layers)
    except archives.Missing:
        expected = None
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        place = Path(name)
        try:
            packs = _ingest_all(stack, place, layers)
            merge(packs, place / "all", IDENTITY, complete=True)
        except LayerError:
            assert expected is None
            return
        whole = stack.enter_context(Pack(place / "all"))
        verify(whole)
        assert whole.is_complete
        assert archives.shown(whole) == expected
        assert archives.opaque_paths(whole) == set()

        # The same in two steps: some of the layers first, which may lie over others.
        some = packs[start:end]
        if some:
            merge(some, place / "some", IDENTITY, complete=start == 0)
            packs[start:end] = [stack.enter_context(Pack(place / "some"))]
            verify(packs[start])
            merge(packs, place / "again", IDENTITY, complete=True)
            again = stack.enter_context(Pack(place / "again"))
            assert archives.shown(again) == expected


def test_what_matters_for_layers_below_is_kept(tmp_path: Path) -> None:
    with ExitStack() as stack:
        packs = _ingest_all(
            stack,
            tmp_path,
            [
                [file("x/.wh.gone"), file("y/old"), link("linked", "below")],
                [file("x/new"), file(".wh.y"), file("y/.wh.old"), file("y/young")],
            ],
        )
        result = merge(packs, tmp_path / "top", IDENTITY, complete=False)
        top = stack.enter_context(Pack(tmp_path / "top"))
        assert (result.complete, result.unresolved, top.unresolved) == (False, True, 1)
        paths = dict(archives.walk(top))
        assert sorted(paths) == [b"linked", b"x", b"x/gone", b"x/new", b"y", b"y/young"]
        assert paths[b"x/gone"] is None
        assert archives.opaque_paths(top) == {b"y"}


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with ExitStack() as stack:
        packs = _ingest_all(stack, tmp_path, [[file("a")], [link("d/l", "no/such")]])
        with pytest.raises(LayerError, match=r"d/l.*no/such"):
            merge(packs, tmp_path / "m", IDENTITY, complete=True)
        assert not (tmp_path / "m").exists()


def test_a_link_to_what_a_layer_between_hides_is_refused_in_any_merge(tmp_path: Path) -> None:
    with ExitStack() as stack:
        packs = _ingest_all(stack, tmp_path, [[file("a")], [file(".wh.a")], [link("l", "a")]])
        with pytest.raises(LayerError, match="hardlink"):
            merge(packs[1:], tmp_path / "m", IDENTITY, complete=False)


def test_contents_are_read_from_the_packs_of_the_layers(tmp_path: Path) -> None:
    data = bytes(range(256)) * 2000
    with ExitStack() as stack:
        packs = _ingest_all(stack, tmp_path, [[file("a", data)], [file("b", data[1:])]])
        merge(packs, tmp_path / "m", IDENTITY, complete=True)
        merged = stack.enter_context(Pack(tmp_path / "m"))
        assert set(merged.sources) == {pack.identity for pack in packs}
        for name, content in ((b"a", data), (b"b", data[1:])):
            found = merged.lookup(0, name)
            assert found is not None
            assert found[0] == stat.S_IFREG
            assert merged.read(found[1], 100_000, 200_000) == content[100_000:300_000]


def test_merging_again_what_has_been_merged_takes_the_same_contents(tmp_path: Path) -> None:
    with ExitStack() as stack:
        packs = _ingest_all(stack, tmp_path, [[file("a", b"1")], [file("b", b"2")]])
        merge(packs, tmp_path / "m", IDENTITY, complete=True)
        first = stack.enter_context(Pack(tmp_path / "m"))
        (more,) = _ingest_all(stack, tmp_path, [[file("c", b"3"), link("d", "a")]])
        merge([first, more], tmp_path / "n", IDENTITY, complete=True)
        second = stack.enter_context(Pack(tmp_path / "n"))
        verify(second)
        assert archives.shown(second) == archives.applied(
            [[file("a", b"1")], [file("b", b"2")], [file("c", b"3"), link("d", "a")]]
        )


def test_a_merged_index_of_one_layer_shows_the_layer(tmp_path: Path, debian_tar: Path) -> None:
    with debian_tar.open("rb") as stream:
        ingested = ingest(stream, tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / f"{ingested.diff_id.hex()}.pack")
    with ExitStack() as stack:
        layer = stack.enter_context(Pack(tmp_path / f"{ingested.diff_id.hex()}.pack"))
        merge([layer], tmp_path / "m", IDENTITY, complete=True)
        merged = stack.enter_context(Pack(tmp_path / "m"))
        assert archives.shown(merged) == archives.shown(layer)


def test_an_empty_layer_can_be_merged(tmp_path: Path) -> None:
    with ExitStack() as stack:
        packs = _ingest_all(stack, tmp_path, [[]])
        ingest(io.BytesIO(bytes(1024)), tmp_path / "other")
        merge(packs, tmp_path / "m", IDENTITY, complete=True)
        merged = stack.enter_context(Pack(tmp_path / "m"))
        assert list(archives.shown(merged)) == [b""]
