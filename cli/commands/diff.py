"""``lamina diff``: what a container has changed."""

from __future__ import annotations

import os

import click

from ..environment import search_path
from ..output.text import printable
from ..session import Session, pass_session


@click.command()
@click.argument("container", metavar="CONTAINER")
@pass_session
def diff(session: Session, container: str) -> None:
    """Show what a container has added (A), changed (C) and deleted (D), also while it runs."""
    from snapshotter.changes import changes  # noqa: PLC0415
    from snapshotter.containers.userns import become_owner  # noqa: PLC0415

    # What the container's users own can be read, and has the right owner, only as their root.
    become_owner(search_path())
    with session.store() as store:
        for kind, path in changes(store, store.container(container)):
            click.echo(f"{kind} {printable(os.fsdecode(path))}")
