"""Which layers are merged with which."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from snapshotter.store.layers import FACTOR, StoredLayer, plan

LAYERS = st.lists(
    st.builds(
        StoredLayer,
        number=st.just(0),
        diff_id=st.just(""),
        tar_size=st.just(0),
        content_size=st.just(0),
        entries=st.one_of(st.integers(0, 5), st.integers(0, 100_000)),
        unresolved=st.sampled_from([False] * 9 + [True]),
        complete=st.booleans(),
    ),
    max_size=40,
)


@given(LAYERS)
def test_runs_cover_all_layers_and_grow_downwards(layers: list[StoredLayer]) -> None:
    runs = plan(layers)
    assert [0, *(end for _, end in runs)] == [*(first for first, _ in runs), len(layers)]
    sizes = [sum(layer.entries for layer in layers[first:end]) for first, end in runs]
    assert all(below > FACTOR * above for below, above in pairwise(sizes))


@given(LAYERS)
def test_a_run_is_the_same_in_every_image_that_begins_with_its_layers(
    layers: list[StoredLayer],
) -> None:
    for first, end in plan(layers):
        assert plan(layers[:end])[-1] == (first, end)


@given(LAYERS)
def test_hardlinks_into_lower_layers_are_merged_with_all_of_them(
    layers: list[StoredLayer],
) -> None:
    for first, end in plan(layers):
        assert first == 0 or not any(layer.unresolved for layer in layers[first:end])
