"""``lamina commit``: an image from what a container has changed."""

from __future__ import annotations

from datetime import datetime

import click

from ..environment import source_date_epoch
from ..session import Session, pass_session
from ..uppers import container_to_read


@click.command()
@click.argument("container", metavar="CONTAINER")
@click.argument("reference", metavar="[REPOSITORY[:TAG]]", required=False)
@click.option("-a", "--author", default="", help="Who made it, e.g. 'Ada <ada@example.org>'.")
@click.option("-m", "--message", default="", help="A comment for the history of the image.")
@click.option(
    "-c", "--change", "changes", multiple=True, help="A Dockerfile instruction to apply: CMD, ENV…"
)
@click.option(
    "-p",
    "--pause/--no-pause",
    default=None,
    help="Pause the container meanwhile, or fail; or let it run on.  [default: pause if possible]",
)
@click.option("--squash", is_flag=True, help="Make a single layer that holds the whole image.")
@pass_session
def commit(
    session: Session,
    *,
    container: str,
    reference: str | None,
    author: str,
    message: str,
    changes: tuple[str, ...],
    pause: bool | None,
    squash: bool,
) -> None:
    """Create a new image from a container's changes, and print its ID.

    With SOURCE_DATE_EPOCH set, the same changes make the same image, always and everywhere.
    """
    from snapshotter.images import commit as commit_container  # noqa: PLC0415

    epoch = source_date_epoch()
    created: datetime | None = epoch.moment if epoch else None
    with container_to_read(session, container, pause=pause) as (store, found):
        image = commit_container(
            store,
            found,
            reference=reference,
            author=author,
            message=message,
            changes=changes,
            created=created,
            clamp=epoch.seconds if epoch else None,
            squash=squash,
        )
    click.echo(image.id)
