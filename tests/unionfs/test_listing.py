"""Positions of names in a directory: stable, never used again, and no more kept than needed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from unionfs.nodes import Listing

NAMES = st.binary(min_size=1, max_size=2)
STEPS = st.lists(st.tuples(st.booleans(), NAMES), max_size=300)


@given(st.sets(NAMES, max_size=20), STEPS)
def test_a_name_keeps_its_position_until_it_goes(
    names: set[bytes], steps: list[tuple[bool, bytes]]
) -> None:
    listing = Listing(iter(names))
    known = {name: following - 1 for name, following in listing.after(0)}
    assert set(known) == names
    highest = max(known.values(), default=-1)
    for comes, name in steps:
        if comes:
            listing.add(name)
        else:
            listing.remove(name)
            known.pop(name, None)
        found = {shown: following - 1 for shown, following in listing.after(0)}
        if comes and name not in known:
            assert found[name] > highest
            highest = known[name] = found[name]
        assert found == known
        for position in (0, highest // 2, highest + 1):
            rest = [shown for shown, _ in listing.after(position)]
            assert rest == [shown for shown, at in known.items() if at >= position]


def test_names_that_went_are_not_kept_for_ever() -> None:
    listing = Listing(iter([b"stays"]))
    for number in range(10_000):
        listing.add(b"%d" % number)
        listing.remove(b"%d" % number)
    listing.add(b"last")
    assert list(listing.after(0)) == [(b"stays", 1), (b"last", 10_002)]
    assert len(listing._names) < 200
