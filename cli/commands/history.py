"""``lamina history``: what an image was made by."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..output.listing import format_option, show
from ..output.text import ellipsis, short_id
from ..output.units import ago, human_size, timestamp
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.store import Image, Store

_CREATED_BY_WIDTH = 45
_MISSING = "<missing>"

_HEADINGS = {
    "ID": "IMAGE",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "CreatedBy": "CREATED BY",
    "Size": "SIZE",
    "Comment": "COMMENT",
}
_COLUMNS = ("ID", "CreatedSince", "CreatedBy", "Size", "Comment")


@click.command()
@click.argument("name", metavar="IMAGE")
@click.option("-q", "--quiet", is_flag=True, help="Only print IDs.")
@click.option("--no-trunc", is_flag=True, help="Print everything in full.")
@format_option
@pass_session
def history(session: Session, name: str, quiet: bool, no_trunc: bool, template: str | None) -> None:
    """Show the history of an image, newest step first."""
    with session.store() as store:
        rows = history_rows(store, store.image(name), no_trunc)
    if quiet:
        for row in rows:
            click.echo(row["ID"])
        return
    show(rows, _HEADINGS, _COLUMNS, template)


def history_rows(store: Store, image: Image, no_trunc: bool) -> list[dict[str, str]]:
    """One row for each step. Steps an image of this store ends with show its ID."""
    from snapshotter.models import History, parse_time  # noqa: PLC0415

    # An image without a history still has layers, and each of them is worth a line.
    steps = image.config.history or [History() for _ in image.layers]
    identities = _identities(store, image, len(steps))
    sizes = iter([layer.size for layer in image.layers])
    rows = []
    for step, identity in zip(steps, reversed(identities), strict=True):
        created = parse_time(step.created)
        text = step.created_by or ""
        rows.append(
            {
                "ID": identity if no_trunc or identity == _MISSING else short_id(identity),
                "CreatedSince": ago(created) if step.created else "N/A",
                "CreatedAt": timestamp(created),
                "CreatedBy": text if no_trunc else ellipsis(text, _CREATED_BY_WIDTH),
                "Size": human_size(0 if step.empty_layer else next(sizes, 0)),
                "Comment": step.comment or "",
            }
        )
    return rows[::-1]


def _identities(store: Store, image: Image, count: int) -> list[str]:
    """The IDs to show, newest step first: the image, and the parents the store still has."""
    known = {other.id: other for other in store.images()}
    shown = [_MISSING] * count
    current: Image | None = image
    while current is not None:
        position = count - len(current.config.history or current.layers)
        if not 0 <= position < count or shown[position] != _MISSING:
            break
        shown[position] = current.id
        current = known.get(current.parent or "")
    return shown
