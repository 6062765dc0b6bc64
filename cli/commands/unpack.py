"""``lamina unpack``: the files of an image in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import say
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.unpack import Losses


@click.command()
@click.argument("name", metavar="IMAGE")
@click.argument("directory", type=click.Path(path_type=Path))
@pass_session
def unpack(session: Session, name: str, directory: Path) -> None:
    """Write the files of IMAGE to DIRECTORY, which is empty or does not exist.

    What only root may do is left out for others, as tar does, and told in a warning.
    """
    from snapshotter.unpack import unpack as unpack_image  # noqa: PLC0415

    with session.store() as store:
        losses = unpack_image(store, store.image(name), directory)
    if message := _describe(losses):
        say(f"not everything could be set here: {message}")


def _describe(losses: Losses) -> str:
    parts = (
        (losses.owners, "owners ({} files)"),
        (losses.setids, "setuid and setgid bits ({} files)"),
        (losses.xattrs, "extended attributes ({} files)"),
        (losses.devices, "devices ({} left out)"),
    )
    return ", ".join(text.format(count) for count, text in parts if count)
