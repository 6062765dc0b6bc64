"""``lamina rmi``: remove images, or names of them."""

from __future__ import annotations

import click

from ..errors import for_each
from ..session import Session, pass_session


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option("-f", "--force", is_flag=True, help="Also images with several names or containers.")
@pass_session
def rmi(session: Session, names: tuple[str, ...], force: bool) -> None:
    """Remove names of images, and images without a name left."""
    with session.store() as store:

        def remove(name: str) -> None:
            for removed in store.remove_image(name, force=force):
                click.echo(str(removed))

        for_each(names, remove, forced=force)
