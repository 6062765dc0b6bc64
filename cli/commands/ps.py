"""``lamina ps``: the list of containers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from ..output.listing import format_option, show
from ..output.text import ellipsis, quoted, short_id
from ..output.units import ago, elapsed, human_duration, timestamp
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.store import Container, Store

_COMMAND_WIDTH = 20

_HEADINGS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "RunningFor": "CREATED",
    "CreatedAt": "CREATED AT",
    "Status": "STATUS",
    "State": "STATE",
    "Ports": "PORTS",
    "Names": "NAMES",
    "Labels": "LABELS",
    "Mounts": "MOUNTS",
    "Networks": "NETWORKS",
}
_COLUMNS = ("ID", "Image", "Command", "RunningFor", "Status", "Ports", "Names")


@click.command()
@click.option("-a", "--all", "every", is_flag=True, help="Also containers that do not run.")
@click.option("-q", "--quiet", is_flag=True, help="Only print IDs.")
@click.option("--no-trunc", is_flag=True, help="Print IDs and commands in full.")
@click.option("-l", "--latest", is_flag=True, help="Only the one created last, in any state.")
@click.option("-n", "--last", type=int, default=-1, help="Only the last N created, in any state.")
@format_option
@pass_session
def ps(
    session: Session,
    *,
    every: bool,
    quiet: bool,
    no_trunc: bool,
    latest: bool,
    last: int,
    template: str | None,
) -> None:
    """List containers, newest first; without options only those that run."""
    count = 1 if latest else last
    with session.store() as store:
        found = store.containers()
        if count > 0:
            found = found[:count]
        elif not every:
            found = [container for container in found if container.status == "running"]
        if quiet:
            for container in found:
                click.echo(container.id if no_trunc else short_id(container.id))
            return
        names = _image_names(store)
    show([_row(item, names, no_trunc) for item in found], _HEADINGS, _COLUMNS, template)


def _image_names(store: Store) -> dict[str, set[str]]:
    """The names every image has now, with and without the default tag."""
    names: dict[str, set[str]] = {}
    for image in store.images():
        texts = {str(reference) for reference in image.references}
        names[image.id] = texts | {text.removesuffix(":latest") for text in texts}
    return names


def _row(container: Container, names: dict[str, set[str]], no_trunc: bool) -> dict[str, str]:
    config = container.config
    program, *arguments = [*config.entrypoint, *config.cmd] or [""]
    command = " ".join([program, *(f"'{text}'" if " " in text else text for text in arguments)])
    return {
        "ID": container.id if no_trunc else short_id(container.id),
        "Image": _image_shown(container, names),
        "Command": quoted(command if no_trunc else ellipsis(command, _COMMAND_WIDTH)),
        "RunningFor": ago(container.created),
        "CreatedAt": timestamp(container.created),
        "Status": status(container),
        "State": container.status,
        "Ports": "",
        "Names": container.name,
        "Labels": ",".join(f"{key}={value}" for key, value in sorted(config.labels.items())),
        "Mounts": "",
        "Networks": config.network,
    }


def _image_shown(container: Container, names: dict[str, set[str]]) -> str:
    """The image's name as it was typed, unless that name now means another image, or none."""
    if container.image_name in names.get(container.image, ()):
        return container.image_name
    return short_id(container.image)


def status(container: Container) -> str:
    """The STATUS column: ``Up 3 seconds``, ``Exited (0) 2 minutes ago``, ``Created``."""
    if container.status == "running" and container.started is not None:
        return f"Up {human_duration(elapsed(container.started))}"
    if container.status == "exited":
        since = f" {ago(container.finished)}" if container.finished is not None else ""
        return f"Exited ({container.exit_code or 0}){since}"
    return container.status.capitalize()
