"""What tests of the union share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def no_umask() -> Iterator[None]:
    """For a tree in the process of the test: an upper wants it to have no umask."""
    before = os.umask(0)
    yield
    os.umask(before)
