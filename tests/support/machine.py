"""What this machine can and cannot do for the tests."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]

REASON_PREFIX = "not on this machine: "
"""Starts every skip reason that is about the machine and not about the test."""

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
"""Where programs are looked for; an ordinary user's PATH lacks the place Debian keeps runc in."""


class Unavailable(Exception):
    """This machine lacks something; the message is what, for a skip reason."""


def program(name: str) -> str | None:
    """The path of a program, or None."""
    return shutil.which(name, path=SEARCH_PATH)


@functools.cache
def why_no_fuse() -> str | None:
    """Why nothing can be mounted with FUSE here; None when it can."""
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        # fusermount3 is no way round: it opens the device as the user who calls it.
        return "only root may open /dev/fuse"
    return None if program("fusermount3") else "no fusermount3 (package fuse3)"


def obstacles(item: pytest.Item) -> Iterator[str]:
    """Why this machine cannot run a test, judged by the test's markers alone.

    ``peer`` names the programs it needs: ``@pytest.mark.peer("podman", "skopeo")``.
    """
    if item.get_closest_marker("fuse") and (reason := why_no_fuse()):
        yield reason
    if item.get_closest_marker("root") and os.geteuid() != 0:
        yield "needs root"
    for marker in item.iter_markers("peer"):
        for name in marker.args:
            if not program(name):
                yield f"needs {name}"
