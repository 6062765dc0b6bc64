"""``lamina inspect``: everything about images and containers, as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from ..documents import Document, container_document, image_document
from ..errors import FAILURE, Failure
from ..output.listing import template_failure
from ..output.template import TemplateError, compile_template, unescape
from ..output.text import printable
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.store import Store

_NAMES = click.argument("names", metavar="NAME|ID...", nargs=-1, required=True)
_FORMAT = click.option(
    "-f", "--format", "template", metavar="FORMAT", help="'json', or a Go template such as {{.Id}}."
)


@click.command()
@_NAMES
@_FORMAT
@click.option("--type", "kind", type=click.Choice(["image", "container"]), help="Only this type.")
@pass_session
def inspect(
    session: Session, names: tuple[str, ...], template: str | None, kind: str | None
) -> None:
    """Show everything about images and containers, as JSON."""
    _inspect(session, names, template, kind)


@click.command(name="inspect")
@_NAMES
@_FORMAT
@pass_session
def inspect_images(session: Session, names: tuple[str, ...], template: str | None) -> None:
    """Show everything about images, as JSON."""
    _inspect(session, names, template, "image")


@click.command(name="inspect")
@_NAMES
@_FORMAT
@pass_session
def inspect_containers(session: Session, names: tuple[str, ...], template: str | None) -> None:
    """Show everything about containers, as JSON."""
    _inspect(session, names, template, "container")


def _inspect(
    session: Session, names: tuple[str, ...], template: str | None, kind: str | None
) -> None:
    """Print what was found, then complain about what was not, as Docker does."""
    show = _renderer(template)
    documents = []
    missing = []
    with session.store() as store:
        for name in names:
            document = _find(store, name, kind)
            if document is None:
                missing.append(name)
            else:
                documents.append(document)
    click.echo(show(documents), nl=False)
    for name in missing:
        click.echo(f"Error: No such {kind or 'object'}: {printable(name)}", err=True)
    if missing:
        raise click.exceptions.Exit(FAILURE)


def _find(store: Store, name: str, kind: str | None) -> Document | None:
    """The document of the container or image ``name``; None if there is neither."""
    from snapshotter.errors import (  # noqa: PLC0415
        InvalidReference,
        NoSuchContainer,
        NoSuchImage,
    )

    if kind != "image":
        try:
            return container_document(store, store.container(name))
        except NoSuchContainer:
            pass
    if kind != "container":
        try:
            return image_document(store, store.image(name))
        except (NoSuchImage, InvalidReference):
            pass
    return None


def _renderer(template: str | None) -> Callable[[list[Document]], str]:
    if not template:
        return lambda documents: json.dumps(documents, indent=4, ensure_ascii=False) + "\n"
    if template == "json":
        return lambda documents: json.dumps(documents, ensure_ascii=False) + "\n"
    try:
        fill = compile_template(unescape(template))
    except TemplateError as error:
        raise template_failure(error) from error

    def render(documents: list[Document]) -> str:
        try:
            return "".join(f"{printable_lines(fill(document))}\n" for document in documents)
        except TemplateError as error:
            raise Failure(f"template parsing error: {error}", FAILURE) from error

    return render


def printable_lines(text: str) -> str:
    """``text`` with control characters escaped, but for line ends and tabs."""
    return "\n".join("\t".join(map(printable, line.split("\t"))) for line in text.split("\n"))
