"""``lamina diff``: what a container has changed."""

from __future__ import annotations

import os

import click

from ..output.text import printable
from ..session import Session, pass_session
from ..uppers import container_to_read


@click.command()
@click.argument("container", metavar="CONTAINER")
@pass_session
def diff(session: Session, container: str) -> None:
    """Show what a container has added (A), changed (C) and deleted (D), also while it runs."""
    from snapshotter.changes import changes  # noqa: PLC0415

    with container_to_read(session, container) as (store, found):
        for kind, path in changes(store, found):
            click.echo(f"{kind} {printable(os.fsdecode(path))}")
