"""``lamina rm``: remove containers."""

from __future__ import annotations

import click

from ..environment import search_path
from ..errors import for_each
from ..session import Session, pass_session


@click.command()
@click.argument("names", metavar="CONTAINER...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Kill those that run.")
@pass_session
def rm(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Remove containers and what they have written."""
    from snapshotter.containers.run import kill, remove  # noqa: PLC0415

    with session.store() as store:

        def remove_one(name: str) -> None:
            container = store.container(name)
            if force:
                kill(store, container)
            remove(store, container, search_path())
            click.echo(name)

        for_each(names, remove_one, forced=force)
