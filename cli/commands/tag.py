"""``lamina tag``: another name for an image."""

from __future__ import annotations

import click

from ..session import Session, pass_session


@click.command()
@click.argument("source", metavar="SOURCE_IMAGE[:TAG]")
@click.argument("target", metavar="TARGET_IMAGE[:TAG]")
@pass_session
def tag(session: Session, source: str, target: str) -> None:
    """Give SOURCE_IMAGE the name TARGET_IMAGE as well."""
    with session.store() as store:
        store.tag(source, target)
