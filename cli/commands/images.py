"""``lamina images``: the list of images."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..output.listing import format_option, show
from ..output.text import printable, short_id
from ..output.units import ago, human_size, timestamp
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.reference import Reference
    from snapshotter.store import Image, Store

NONE = "<none>"

_HEADINGS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "Digest": "DIGEST",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "CreatedAt": "CREATED AT",
    "Size": "SIZE",
}
_COLUMNS = ("Repository", "Tag", "ID", "CreatedSince", "Size")
_COLUMNS_DIGESTS = ("Repository", "Tag", "Digest", "ID", "CreatedSince", "Size")


@click.command()
@click.argument("repository", metavar="[REPOSITORY[:TAG]]", required=False)
@click.option("-a", "--all", "every", is_flag=True, help="Also unnamed images others build on.")
@click.option("-q", "--quiet", is_flag=True, help="Only print IDs.")
@click.option("--no-trunc", is_flag=True, help="Print IDs in full.")
@click.option("--digests", is_flag=True, help="Add a column with digests.")
@format_option
@pass_session
def images(
    session: Session,
    *,
    repository: str | None,
    every: bool,
    quiet: bool,
    no_trunc: bool,
    digests: bool,
    template: str | None,
) -> None:
    """List images, newest first."""
    with session.store() as store:
        selected = _select(store, repository, every)
    if quiet:
        for identity in dict.fromkeys(image.id for image, _ in selected):
            click.echo(identity if no_trunc else short_id(identity))
        return
    rows = [_row(image, reference, no_trunc) for image, reference in selected]
    show(rows, _HEADINGS, _COLUMNS_DIGESTS if digests else _COLUMNS, template)


def _select(
    store: Store, repository: str | None, every: bool
) -> list[tuple[Image, Reference | None]]:
    """One pair for each name of each image that is wanted."""
    found = store.images()
    parents = {image.parent for image in found}
    pairs: list[tuple[Image, Reference | None]] = []
    for image in found:
        pairs.extend((image, reference) for reference in image.references)
        if not image.references and (every or image.id not in parents):
            pairs.append((image, None))
    if repository is None:
        return pairs
    wanted = _parse(repository)
    return [(image, name) for image, name in pairs if name is not None and _fits(name, wanted)]


def _parse(text: str) -> Reference:
    from snapshotter.reference import Reference  # noqa: PLC0415

    return Reference.parse(text)


def _fits(reference: Reference, wanted: Reference) -> bool:
    same_name = reference.repository == wanted.repository
    return same_name and wanted.tag in (None, reference.tag)


def _row(image: Image, reference: Reference | None, no_trunc: bool) -> dict[str, str]:
    return {
        "Repository": printable(reference.repository) if reference else NONE,
        "Tag": (reference.tag or NONE) if reference else NONE,
        "Digest": (reference.digest or NONE) if reference else NONE,
        "ID": image.id if no_trunc else short_id(image.id),
        "CreatedSince": ago(image.created),
        "CreatedAt": timestamp(image.created),
        "Size": human_size(image.size),
    }
