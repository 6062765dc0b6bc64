"""The matrix of docs/conformance.md names tests that are there."""

from __future__ import annotations

import re

from tests.support.machine import REPOSITORY


def test_every_test_that_is_named_exists() -> None:
    page = (REPOSITORY / "docs/conformance.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", page))
    there = {
        name
        for file in (REPOSITORY / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_\w+)\(", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 100
    assert named - there == set()
