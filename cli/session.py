"""What every command needs of its surroundings: the store's place and the store."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from snapshotter.store import Store

SYSTEM_ROOT = Path("/var/lib/lamina")


@dataclass(frozen=True)
class Session:
    """The global options, as one command sees them."""

    root: Path
    debug: bool = False

    @contextmanager
    def store(self) -> Iterator[Store]:
        """The store, open. Raises :class:`snapshotter.errors.StoreError`."""
        from snapshotter.store import Store  # noqa: PLC0415

        with Store.open(self.root) as store:
            yield store


pass_session = click.make_pass_decorator(Session)


def default_root() -> Path:
    """Where images live unless ``--root`` says otherwise: the system's place, or the user's."""
    if os.geteuid() == 0:
        return SYSTEM_ROOT
    data_home = os.environ.get("XDG_DATA_HOME", "")
    # The base directory specification: a relative path is to be ignored.
    base = Path(data_home) if data_home.startswith("/") else Path.home() / ".local" / "share"
    return base / "lamina"
