"""``lamina image prune``, ``lamina container prune`` and ``lamina system prune``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from ..filters import selection
from ..output.text import printable
from ..output.units import human_size
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.store import BlobUsage, ContainerUsage, Deleted, Store, Untagged

_DANGLING = "all dangling images"
_UNUSED = "all images without at least one container associated to them"
_STOPPED = "all stopped containers"
_COMPRESSED = "all compressed layers that are kept"


def _options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("-f", "--force", is_flag=True, help="Do not ask."),
        click.option(
            "--filter",
            "filters",
            multiple=True,
            metavar="FILTER",
            help="Only what until=TIME, label=KEY[=VALUE] or label!=KEY[=VALUE] selects.",
        ),
    ):
        command = option(command)
    return command


_compressed_option = click.option(
    "--compressed",
    is_flag=True,
    help="Also give up compressed layers that are kept: saved as OCI archives, their images get "
    "other digests.",
)


@click.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="All images without containers.")
@_compressed_option
@_options
@pass_session
def images(
    session: Session, *, every: bool, compressed: bool, force: bool, filters: tuple[str, ...]
) -> None:
    """Remove images that have no name and no use."""
    chosen = selection(filters)
    with session.store() as store:
        what = [_UNUSED if every else _DANGLING, *([_COMPRESSED] if compressed else [])]
        warning = [f"This will remove {' and '.join(what)}.", *_losses(store, compressed)]
        if not force and not _agreed("\n".join(warning)):
            return
        before = store.size()
        _show_images(store.prune_images(chosen, every=every))
        if compressed:
            _show_blobs(store.give_up_blobs())
        _show_total(before - store.size())


@click.command("prune")
@_options
@pass_session
def containers(session: Session, *, force: bool, filters: tuple[str, ...]) -> None:
    """Remove all containers that do not run."""
    chosen = selection(filters)
    with session.store() as store:
        if not force and not _agreed(f"This will remove {_STOPPED}."):
            return
        removed = store.prune_containers(chosen)
        _show_containers(removed)
        _show_total(sum(usage.size for usage in removed))


@click.command("prune")
@click.option("-a", "--all", "every", is_flag=True, help="All images without containers.")
@click.option("--volumes", is_flag=True, help="Accepted: there are no volumes.")
@_compressed_option
@_options
@pass_session
def system(
    session: Session,
    *,
    every: bool,
    volumes: bool,
    compressed: bool,
    force: bool,
    filters: tuple[str, ...],
) -> None:
    """Remove stopped containers and images that have no name and no use."""
    chosen = selection(filters)
    with session.store() as store:
        what = [_STOPPED, _UNUSED if every else _DANGLING, *([_COMPRESSED] if compressed else [])]
        warning = ["This will remove:", *(f"  - {each}" for each in what)]
        warning += [f"    {line}" for line in _losses(store, compressed)]
        if filters:
            warning += ["", "  Items to be pruned will be filtered with:"]
            warning += [f"  - {printable(text)}" for text in filters]
        if not force and not _agreed("\n".join([*warning, ""])):
            return
        before = store.size()
        removed = store.prune_containers(chosen)
        _show_containers(removed)
        _show_images(store.prune_images(chosen, every=every))
        if compressed:
            _show_blobs(store.give_up_blobs())
        _show_total(before - store.size() + sum(usage.size for usage in removed))


def _agreed(warning: str) -> bool:
    """Whether the user wants it; the end of the input is no."""
    click.echo(f"WARNING! {warning}")
    click.echo("Are you sure you want to continue? [y/N] ", nl=False)
    return sys.stdin.readline().strip().lower() == "y"


def _losses(store: Store, compressed: bool) -> list[str]:
    """Which images lose their digests if the compressed layers are given up."""
    if not compressed:
        return []
    named = {image for usage in store.usage().blobs for image in usage.images}
    names = _names(store, named)
    return [f"Saved as OCI archives, these images get other digests: {names}"] if names else []


def _names(store: Store, images: set[str]) -> str:
    names = [
        str(reference)
        for image in store.images()
        if image.id in images
        for reference in image.references or (image.short_id,)
    ]
    return printable(", ".join(sorted(names)))


def _show_containers(removed: Sequence[ContainerUsage]) -> None:
    _show("Deleted Containers:", [usage.container.id for usage in removed])


def _show_images(removed: Sequence[Untagged | Deleted]) -> None:
    # Docker writes these in small letters here, and not where images are removed by name.
    _show("Deleted Images:", [str(record)[0].lower() + str(record)[1:] for record in removed])


def _show_blobs(given_up: Sequence[BlobUsage]) -> None:
    _show("Given Up Compressed Layers:", [usage.blob.digest for usage in given_up])


def _show(heading: str, lines: Sequence[str]) -> None:
    if lines:
        click.echo("\n".join([heading, *map(printable, lines), ""]))


def _show_total(size: int) -> None:
    click.echo(f"Total reclaimed space: {human_size(max(size, 0), 4)}")
