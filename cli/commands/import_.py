"""``lamina import``: an image from a root filesystem."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import click

from ..environment import source_date_epoch
from ..output.progress import progress_for
from ..session import Session, pass_session


@click.command(name="import")
@click.argument("file", metavar="FILE|-")
@click.argument("reference", metavar="[REPOSITORY[:TAG]]", required=False)
@click.option(
    "-c", "--change", "changes", multiple=True, help="A Dockerfile instruction to apply: CMD, ENV…"
)
@click.option("-m", "--message", default="", help="A comment for the history of the image.")
@click.option("--platform", default=None, help="The platform of the image, as os/architecture.")
@pass_session
def import_(
    session: Session,
    *,
    file: str,
    reference: str | None,
    changes: tuple[str, ...],
    message: str,
    platform: str | None,
) -> None:
    """Create an image from a tarball of a root filesystem (plain, gzip or zstd), and print its ID.

    FILE may be - for standard input.
    """
    from snapshotter.images import import_rootfs  # noqa: PLC0415

    epoch = source_date_epoch()
    with ExitStack() as stack:
        stream = sys.stdin.buffer if file == "-" else stack.enter_context(open(file, "rb"))
        store = stack.enter_context(session.store())
        image = import_rootfs(
            store,
            stream,
            reference=reference,
            changes=changes,
            message=message,
            platform=platform,
            source=file,
            created=epoch.moment if epoch else None,
            progress=progress_for(sys.stderr),
        )
    click.echo(image.id)
