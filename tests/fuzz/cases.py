"""Bytes to feed parsers with: noise, and valid inputs that were damaged.

A parser may return or raise what its documentation says; anything else is a crash. Every test says
how many cases it tries in a normal run; ``slow`` ones try :data:`MANY`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FEW = 300
"""Cases of each parser in a normal run."""
MANY = 5_000
"""Cases of each parser in a long run."""

_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
_INTERESTING = (
    b"\0", b"\xff", b"\x80", b"\x7f", b" ", b"/", b".", b"..", b"-", b"=", b"\n", b":", b"0", b"9",
    b"-1", b"\0" * 8, b"\xff" * 8, b"99999999999999999999", b"../", b".wh.", b"{", b"[", b'"', b"e",
    b"null", b"1e400", b"\\ud800", b"\xed\xa0\x80", b"\xc3\xa9", b"+", b"@", b"sha256:",
)  # fmt: skip


def mutations(*seeds: bytes) -> st.SearchStrategy[bytes]:
    """One of the seeds with a few pieces changed, put in, taken out, doubled or cut off."""

    @st.composite
    def mutate(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(seeds)))
        for _ in range(draw(st.integers(1, 4))):
            at = draw(st.integers(0, len(data)))
            length = draw(st.sampled_from([0, 1, 1, 2, 8, 64, 512]))
            piece = draw(st.one_of(st.sampled_from(_INTERESTING), st.binary(max_size=12)))
            match draw(st.integers(0, 5)):
                case 0:
                    data[at : at + len(piece)] = piece
                case 1:
                    data[at:at] = piece
                case 2:
                    del data[at : at + length]
                case 3:
                    data[at:at] = data[at : at + length]
                case 4 if at < len(data):
                    data[at] ^= 1 << draw(st.integers(0, 7))
                case _:
                    del data[at:]
        return bytes(data)

    return mutate()


def inputs(*seeds: bytes, largest: int = 2000) -> st.SearchStrategy[bytes]:
    """Noise and mutations."""
    return st.one_of(mutations(*seeds), mutations(*seeds), st.binary(max_size=largest))


def allowing(
    parse: Callable[[bytes], object], errors: type[Exception] | tuple[type[Exception], ...]
) -> Callable[[bytes], None]:
    """A parser that may raise some errors, whose messages can be shown."""

    def run(data: bytes) -> None:
        try:
            parse(data)
        except errors as error:
            message = str(error)
        else:
            return
        assert message.encode()  # no lone surrogates, which could not be printed

    return run


def fuzz(run: Callable[[bytes], None], data: st.SearchStrategy[bytes], count: int) -> None:
    """Try ``count`` cases."""
    tries = settings(
        max_examples=count, deadline=None, database=None, suppress_health_check=_CHECKS
    )
    tries(given(data)(run))()


COUNTS: Sequence[object] = [
    FEW,
    pytest.param(MANY, marks=[pytest.mark.slow, pytest.mark.timeout(0)]),
]
"""For the parameter ``count`` of a test."""
