"""Sizes, times, tables and lists, as Docker shows them."""

from __future__ import annotations

import io
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.output.progress import ProgressBars, bar
from cli.output.text import ellipsis, printable, quoted, short_id, table
from cli.output.units import ago, human_duration, human_size, rfc3339, timestamp

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0B"),
        (7, "7B"),
        (999, "999B"),
        (1000, "1kB"),
        (74_912, "74.9kB"),
        (1_980_000, "1.98MB"),
        (12_100_000, "12.1MB"),
        (203_000_000, "203MB"),
        (999_600, "1e+03kB"),
        (3 * 10**24, "3YB"),
    ],
)
def test_a_size_has_three_digits_and_a_decimal_unit(size: int, shown: str) -> None:
    assert human_size(size) == shown


@given(st.integers(0, 10**18))
def test_a_size_is_right_to_three_digits(size: int) -> None:
    number, unit = re.fullmatch(r"([\d.]+(?:e\+03)?)(\w*B)", human_size(size)).groups()  # type: ignore[union-attr]
    factor = 1000 ** ["B", "kB", "MB", "GB", "TB", "PB", "EB"].index(unit)
    assert float(number) * factor == pytest.approx(size, rel=0.005)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "Less than a second"),
        (0.9, "Less than a second"),
        (1, "1 second"),
        (59.9, "59 seconds"),
        (60, "About a minute"),
        (120, "2 minutes"),
        (3599, "59 minutes"),
        (3600, "About an hour"),
        (5399, "About an hour"),
        (5400, "2 hours"),
        (47 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (14 * 86400, "2 weeks"),
        (60 * 86400, "2 months"),
        (729 * 86400, "24 months"),
        (730 * 86400, "2 years"),
    ],
)
def test_a_duration_is_told_in_round_words(seconds: float, shown: str) -> None:
    assert human_duration(seconds) == shown


def test_times_are_told_from_now() -> None:
    assert ago(NOW - timedelta(minutes=2), NOW) == "2 minutes ago"
    assert ago(NOW + timedelta(days=2), NOW) == "Less than a second ago"
    assert timestamp(NOW) == "2026-03-01 12:00:00 +0000 UTC"
    assert rfc3339(NOW) == "2026-03-01T12:00:00Z"
    assert rfc3339(None) == "0001-01-01T00:00:00Z"


def test_columns_are_at_least_ten_wide_and_three_apart() -> None:
    text = table(
        ["A", "IMAGE ID", "SIZE"], [["x", "0123456789ab", "1B"], ["longer than ten", "", ""]]
    )
    assert text.splitlines() == [
        "A                 IMAGE ID       SIZE",
        "x                 0123456789ab   1B",
        "longer than ten                  ",
    ]
    assert table(["A", "B"], []) == "A         B\n"


@given(st.text())
def test_nothing_from_an_image_steers_the_terminal(text: str) -> None:
    shown = printable(text)
    assert all(char.isprintable() or char.isspace() for char in shown)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f]", shown)
    if text.isprintable():
        assert shown == text


def test_escape_sequences_in_a_table_are_shown_as_text() -> None:
    text = table(["NAME"], [["\x1b[2Jevil\nname"], [b"\xff".decode(errors="surrogateescape")]])
    assert text == "NAME\n\\x1b[2Jevil\\nname\n\\udcff\n"


def test_texts_are_cut_with_an_ellipsis() -> None:
    assert ellipsis("exactly ten", 11) == "exactly ten"
    assert ellipsis("one too long", 11) == "one too lo…"
    assert short_id("sha256:" + "ab" * 32) == "ab" * 6
    assert quoted('sh -c "x"') == '"sh -c \\"x\\""'


def test_a_progress_bar_shows_what_fits_the_terminal() -> None:
    assert bar(45_680_000, 126_700_000, 120) == f"[{'=' * 18}>{' ' * 32}]  45.68MB/126.7MB"
    assert bar(45_680_000, 126_700_000, 80) == " 45.68MB/126.7MB"
    assert bar(126_700_000, 126_700_000, 120) == f"[{'=' * 50}>]  126.7MB/126.7MB"
    assert bar(1_000, None, 120) == "     1kB"


def test_every_layer_has_a_progress_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    bars = ProgressBars(stream)
    bars("a" * 12, "Loading layer", 10, 10)
    bars("b" * 12, "Loading layer", 10, 10)
    bars("a" * 12, "Loading layer", 10, 10)
    assert _screen(stream.getvalue()) == [
        "aaaaaaaaaaaa: Loading layer      10B/10B",
        "bbbbbbbbbbbb: Loading layer      10B/10B",
    ]


def _screen(written: str) -> list[str]:
    """What a terminal shows after the few sequences that progress lines consist of."""
    lines: list[str] = [""]
    row = 0
    for piece in re.findall(r"\x1b\[\d*[ABK]|\r|\n|[^\x1b\r\n]+", written):
        if piece == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif piece.endswith("A") and piece[0] == "\x1b":
            row -= int(piece[2:-1])
        elif piece.endswith("B") and piece[0] == "\x1b":
            row += int(piece[2:-1])
        elif piece == "\x1b[2K":
            lines[row] = ""
        elif piece != "\r":
            lines[row] = piece
    return [line for line in lines if line]
