"""``lamina system df``: how much of the disk is used, and by what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click

from ..errors import Failure
from ..output.listing import format_option, show, template_failure
from ..output.template import TemplateError, compile_template, unescape
from ..output.text import ellipsis, quoted, short_id, table
from ..output.units import ago, human_size, timestamp
from ..session import Session, pass_session
from .ps import status

if TYPE_CHECKING:
    from snapshotter.store import BlobUsage, ContainerUsage, ImageUsage, Usage

_NONE = "<none>"
_HEADINGS = {
    "Type": "TYPE",
    "TotalCount": "TOTAL",
    "Active": "ACTIVE",
    "Size": "SIZE",
    "Reclaimable": "RECLAIMABLE",
}
_IMAGE_HEADINGS = {
    "Repository": "REPOSITORY",
    "Tag": "TAG",
    "ID": "IMAGE ID",
    "CreatedSince": "CREATED",
    "Size": "SIZE",
    "SharedSize": "SHARED SIZE",
    "UniqueSize": "UNIQUE SIZE",
    "Containers": "CONTAINERS",
}
_CONTAINER_HEADINGS = {
    "ID": "CONTAINER ID",
    "Image": "IMAGE",
    "Command": "COMMAND",
    "LocalVolumes": "LOCAL VOLUMES",
    "Size": "SIZE",
    "RunningFor": "CREATED",
    "Status": "STATUS",
    "Names": "NAMES",
}
_BLOB_HEADINGS = {"ID": "LAYER ID", "Layer": "DIFF ID", "Size": "SIZE", "Images": "IMAGES"}
_VOLUMES = ("VOLUME NAME", "LINKS", "SIZE")
_CACHE = ("CACHE ID", "CACHE TYPE", "SIZE", "CREATED", "LAST USED", "USAGE", "SHARED")


@click.command()
@click.option("-v", "--verbose", is_flag=True, help="Show each image and each container.")
@format_option
@pass_session
def df(session: Session, *, verbose: bool, template: str | None) -> None:
    """Show how much of the disk is used.

    Sizes of images are those of their files on the disk, where layers are compressed and share
    what they have in common.
    """
    with session.store() as store:
        usage = store.usage()
    if not verbose:
        show(_summary(usage), _HEADINGS, tuple(_HEADINGS), template)
    elif template in (None, "", "table"):
        _show_details(usage)
    else:
        click.echo(_formatted(_document(usage), template or ""))


def _summary(usage: Usage) -> list[dict[str, str]]:
    running = [each for each in usage.containers if each.container.status == "running"]
    total = sum(each.size for each in usage.containers)
    kept = sum(each.blob.size for each in usage.blobs)
    return [
        _line(
            "Images",
            (len(usage.images), sum(each.containers > 0 for each in usage.images)),
            usage.size,
            usage.reclaimable,
        ),
        _line(
            "Containers",
            (len(usage.containers), len(running)),
            total,
            total - sum(each.size for each in running),
        ),
        _line("Local Volumes", (0, 0), 0, 0),
        _line("Build Cache", (0, 0), 0, 0),
        _line(
            "Compressed Layers",
            (len(usage.blobs), sum(bool(each.images) for each in usage.blobs)),
            kept,
            kept,
        ),
    ]


def _line(kind: str, counts: tuple[int, int], size: int, reclaimable: int) -> dict[str, str]:
    share = f" ({reclaimable * 100 // size}%)" if size else ""
    return {
        "Type": kind,
        "TotalCount": str(counts[0]),
        "Active": str(counts[1]),
        "Size": human_size(size, 4),
        "Reclaimable": human_size(reclaimable, 4) + share,
    }


def _show_details(usage: Usage) -> None:
    names = _names(usage)
    sections: list[tuple[str, Sequence[str], list[list[str]]]] = [
        ("Images space usage:", *_cells(_IMAGE_HEADINGS, _image_rows(usage.images))),
        ("Containers space usage:", *_cells(_CONTAINER_HEADINGS, _container_rows(usage, names))),
        ("Local Volumes space usage:", _VOLUMES, []),
        ("Build cache usage: 0B", _CACHE, []),
    ]
    if usage.blobs:
        cells = _cells(_BLOB_HEADINGS, _blob_rows(usage.blobs, names))
        sections.append(("Compressed layers space usage:", *cells))
    for title, headings, rows in sections:
        click.echo(f"{title}\n\n{table(headings, rows)}")


def _cells(
    headings: Mapping[str, str], rows: Sequence[Mapping[str, str]]
) -> tuple[tuple[str, ...], list[list[str]]]:
    return tuple(headings.values()), [[row[key] for key in headings] for row in rows]


def _document(usage: Usage) -> dict[str, object]:
    """All details, with the keys Docker uses."""
    names = _names(usage)
    return {
        "Images": [
            {**row, "CreatedAt": timestamp(each.image.created), "ID": each.image.id}
            for each, row in zip(usage.images, _image_rows(usage.images), strict=True)
        ],
        "Containers": [
            {**row, "ID": each.container.id, "State": each.container.status}
            for each, row in zip(usage.containers, _container_rows(usage, names), strict=True)
        ],
        "Volumes": [],
        "BuildCache": [],
        "CompressedLayers": [
            {**row, "ID": each.blob.digest, "Layer": each.blob.diff_id}
            for each, row in zip(usage.blobs, _blob_rows(usage.blobs, names), strict=True)
        ],
    }


def _formatted(document: dict[str, object], template: str) -> str:
    if template == "json":
        return json.dumps(document, ensure_ascii=False)
    if template.startswith("table "):
        raise Failure("the details are several tables: give a template, or json")
    try:
        return compile_template(unescape(template))(document)
    except TemplateError as error:
        raise template_failure(error) from error


def _names(usage: Usage) -> dict[str, list[str]]:
    """What users call each image."""
    return {
        each.image.id: [str(name) for name in each.image.references] or [each.image.short_id]
        for each in usage.images
    }


def _image_rows(images: Sequence[ImageUsage]) -> list[dict[str, str]]:
    rows = []
    for each in images:
        name = each.image.references[0] if each.image.references else None
        rows.append(
            {
                "Repository": name.repository if name is not None else _NONE,
                "Tag": (name.tag or _NONE) if name is not None else _NONE,
                "ID": each.image.short_id,
                "CreatedSince": ago(each.image.created),
                "Size": human_size(each.shared + each.unique),
                "SharedSize": human_size(each.shared, 4),
                "UniqueSize": human_size(each.unique, 4),
                "Containers": str(each.containers),
            }
        )
    return rows


def _container_rows(usage: Usage, names: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    return [_container_row(each, names) for each in usage.containers]


def _container_row(usage: ContainerUsage, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    container = usage.container
    command = " ".join([*container.config.entrypoint, *container.config.cmd])
    return {
        "ID": container.short_id,
        "Image": names.get(container.image, [short_id(container.image)])[0],
        "Command": quoted(ellipsis(command, 20)),
        "LocalVolumes": "0",
        "Size": human_size(usage.size, 3),
        "RunningFor": ago(container.created),
        "Status": status(container),
        "Names": container.name,
    }


def _blob_rows(
    blobs: Sequence[BlobUsage], names: Mapping[str, Sequence[str]]
) -> list[dict[str, str]]:
    return [
        {
            "ID": short_id(each.blob.digest),
            "Layer": short_id(each.blob.diff_id),
            "Size": human_size(each.blob.size, 4),
            "Images": ", ".join(name for image in each.images for name in names.get(image, ())),
        }
        for each in blobs
    ]
