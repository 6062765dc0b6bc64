"""Owners on disk and owners shown: maps and squashing, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs.owners import OVERFLOW_ID, UNCHANGED, IdMap, Owners, check_map

ID_MAX = 2**32 - 2
IDS = st.one_of(st.integers(0, 300), st.integers(0, ID_MAX))

TWO: IdMap = ((0, 1000, 1), (1, 110_000, 65_536))
"""The example of fuse-overlayfs(1)."""


@st.composite
def maps(draw: st.DrawFn) -> IdMap:
    """Maps that make sense: ranges laid one after the other, in a different order on each side."""
    counts = draw(st.lists(st.integers(1, 100), min_size=1, max_size=5))
    sides = []
    for _ in range(2):
        starts = [0] * len(counts)
        at = draw(st.integers(0, 1000))
        for which in draw(st.permutations(range(len(counts)))):
            starts[which] = at
            at += counts[which] + draw(st.integers(0, 50))
        sides.append(starts)
    return tuple(zip(*sides, counts, strict=True))


@given(maps(), IDS, IDS)
def test_what_is_shown_leads_back_to_what_is_on_disk(mapping: IdMap, uid: int, gid: int) -> None:
    owners = Owners(mapping, mapping)
    covered = {first + offset for first, _, count in mapping for offset in range(count)}
    seen = owners.shown(uid, gid)
    for value, shown in zip((uid, gid), seen, strict=True):
        if value in covered:
            assert owners.kept(shown, shown) == (value, value)
        else:
            assert shown == (value if is_shown(mapping, value) else OVERFLOW_ID)


@given(maps(), IDS)
def test_what_can_be_asked_for_is_shown_afterwards(mapping: IdMap, wanted: int) -> None:
    owners = Owners(mapping, mapping)
    kept = owners.kept(wanted, UNCHANGED)
    assert kept[1] == UNCHANGED
    if is_shown(mapping, wanted) or not mapping:
        assert owners.shown(*kept)[0] == wanted
    else:
        on_disk = any(first <= wanted < first + count for first, _, count in mapping)
        assert kept[0] == (wanted if on_disk else OVERFLOW_ID)


def is_shown(mapping: IdMap, value: int) -> bool:
    """Whether an id is one that a file on disk is mapped to."""
    return any(shown <= value < shown + count for _, shown, count in mapping)


@given(IDS, IDS)
def test_without_maps_ids_are_as_they_are(uid: int, gid: int) -> None:
    owners = Owners()
    assert owners.shown(uid, gid) == owners.kept(uid, gid) == (uid, gid)
    assert not owners.changes


@pytest.mark.parametrize(
    ("disk", "shown"),
    [
        (0, 1000),
        (1, 110_000),
        (65_536, 175_535),
        (65_537, OVERFLOW_ID),
        (1000, 110_999),
        (110_001, 110_001),  # of a layer whose ids are mapped already
    ],
)
def test_ids_are_mapped_as_in_the_manual(disk: int, shown: int) -> None:
    assert Owners(uids=TWO).shown(disk, disk) == (shown, disk)
    assert Owners(gids=TWO).shown(disk, disk) == (disk, shown)


@pytest.mark.parametrize("value", [65_537, 109_999, 175_536, ID_MAX])
def test_an_id_outside_the_ranges_is_the_overflow_id_on_disk(value: int) -> None:
    assert Owners(uids=TWO).kept(value, 0) == (OVERFLOW_ID, 0)
    assert Owners(gids=TWO).kept(0, value) == (0, OVERFLOW_ID)


def test_squashing_is_shown_only() -> None:
    owners = Owners(squash_uid=42)
    assert owners.shown(5, 6) == (42, 6)
    assert owners.kept(77, 88) == (77, 88)
    root = Owners(squash_uid=0, squash_gid=0)
    assert root.shown(5, 6) == (0, 0)
    assert root.kept(5, 6) == (5, 6)


def test_squashing_goes_before_maps_and_forgives() -> None:
    owners = Owners(TWO, TWO, squash_uid=42)
    assert owners.shown(0, 0) == (42, 1000)
    assert owners.shown(200_000, 200_000) == (42, OVERFLOW_ID)
    assert owners.kept(1000, 1000) == (0, 0)
    assert owners.kept(70_000, 110_000) == (UNCHANGED, 1)


def test_an_id_to_be_left_alone_is_left_alone() -> None:
    assert Owners(TWO, TWO, 1, 2).kept(UNCHANGED, UNCHANGED) == (UNCHANGED, UNCHANGED)
    assert Owners(TWO, TWO).kept(UNCHANGED, 1000) == (UNCHANGED, 0)


@pytest.mark.parametrize(
    ("owners", "changes", "squashes"),
    [
        (Owners(), False, False),
        (Owners(uids=TWO), True, False),
        (Owners(gids=TWO), True, False),
        (Owners(squash_uid=0), True, True),
        (Owners(squash_gid=0), True, True),
    ],
)
def test_owners_know_whether_they_do_anything(
    owners: Owners, changes: bool, squashes: bool
) -> None:
    assert (owners.changes, owners.squashes) == (changes, squashes)


@pytest.mark.parametrize(
    ("mapping", "complaint"),
    [
        (((0, 0, 0),), "0:0:0 is empty"),
        (((0, 0, -1),), "is empty"),
        (((-1, 0, 2),), "-1:0:2 leaves"),
        (((0, -5, 2),), "leaves"),
        (((ID_MAX, 0, 2),), "leaves"),
        (((0, ID_MAX, 2),), "leaves"),
        (((0, 0, 2**40),), "leaves"),
        (((0, 0, 10), (9, 100, 1)), "9:100:1 overlaps another in its ids in the layers"),
        (((0, 100, 10), (50, 95, 6)), "0:100:10 overlaps another in its ids shown"),
        (((5, 5, 1), (5, 5, 1)), "overlaps"),
    ],
)
def test_ranges_that_make_no_sense_are_refused(mapping: IdMap, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        check_map(mapping)
    with pytest.raises(ValueError, match=complaint):
        Owners(gids=mapping)


@given(maps())
def test_ranges_that_make_sense_are_taken_in_any_order(mapping: IdMap) -> None:
    check_map(mapping)
    check_map(tuple(reversed(mapping)))
    assert Owners(mapping, ()).shown(mapping[0][0], 0)[0] == mapping[0][1]


def test_the_whole_range_of_ids_can_be_mapped() -> None:
    owners = Owners(((0, 0, ID_MAX + 1),))
    assert owners.shown(ID_MAX, 7) == owners.kept(ID_MAX, 7) == (ID_MAX, 7)


@pytest.mark.parametrize("value", [-1, 2**32 - 1])
def test_everybody_cannot_be_squashed_to_no_id(value: int) -> None:
    with pytest.raises(ValueError, match="is no id"):
        Owners(squash_uid=value)
    with pytest.raises(ValueError, match="is no id"):
        Owners(squash_gid=value)
