"""``lamina commit``: an image from what a container has changed."""

from __future__ import annotations

from datetime import datetime

import click

from ..environment import search_path, source_date_epoch
from ..session import Session, pass_session


@click.command()
@click.argument("container", metavar="CONTAINER")
@click.argument("reference", metavar="[REPOSITORY[:TAG]]", required=False)
@click.option("-a", "--author", default="", help="Who made it, e.g. 'Ada <ada@example.org>'.")
@click.option("-m", "--message", default="", help="A comment for the history of the image.")
@click.option(
    "-c", "--change", "changes", multiple=True, help="A Dockerfile instruction to apply: CMD, ENV…"
)
@pass_session
def commit(
    session: Session,
    *,
    container: str,
    reference: str | None,
    author: str,
    message: str,
    changes: tuple[str, ...],
) -> None:
    """Create a new image from a container's changes, and print its ID.

    With SOURCE_DATE_EPOCH set, the same changes make the same image, always and everywhere.
    """
    from snapshotter.containers.userns import become_owner  # noqa: PLC0415
    from snapshotter.images import commit as commit_container  # noqa: PLC0415

    epoch = source_date_epoch()
    created: datetime | None = epoch.moment if epoch else None
    # What the container's users own can be read, and has the right owner, only as their root.
    become_owner(search_path())
    with session.store() as store:
        image = commit_container(
            store,
            store.container(container),
            reference=reference,
            author=author,
            message=message,
            changes=changes,
            created=created,
            clamp=epoch.seconds if epoch else None,
        )
    click.echo(image.id)
