"""Lists of things: a table by default, or whatever ``--format`` asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import click

from ..errors import Failure
from .template import TemplateError, compile_template, unescape
from .text import printable, table

TEMPLATE_ERROR = 64
"""The exit code for a template that cannot be used, as Docker's."""

format_option = click.option(
    "--format",
    "template",
    metavar="FORMAT",
    help="'table' (the default), 'json', 'table TEMPLATE', or a Go template.",
)


def show(
    rows: Sequence[Mapping[str, str]],
    headings: Mapping[str, str],
    columns: Sequence[str],
    template: str | None,
) -> None:
    """Print ``rows``, dictionaries with the keys of ``headings``.

    ``columns`` are the keys of the default table. Raises :class:`Failure` for a bad template.
    """
    if template in (None, "", "table"):
        shown = [[row[key] for key in columns] for row in rows]
        click.echo(table([headings[key] for key in columns], shown), nl=False)
    elif template == "json":
        for row in rows:
            click.echo(json.dumps(dict(sorted(row.items())), ensure_ascii=False))
    else:
        _show_template(rows, headings, unescape(template or ""))


def _show_template(
    rows: Sequence[Mapping[str, str]], headings: Mapping[str, str], template: str
) -> None:
    is_table = template.startswith("table ")
    try:
        fill = compile_template(template.removeprefix("table ").lstrip() if is_table else template)
        lines = [fill({key: printable(value) for key, value in row.items()}) for row in rows]
        heading = fill(dict(headings)) if is_table else ""
    except TemplateError as error:
        raise template_failure(error) from error
    if is_table:
        cells = [line.split("\t") for line in lines]
        click.echo(table(heading.split("\t"), cells), nl=False)
        return
    for line in lines:
        click.echo(line)


def template_failure(error: TemplateError) -> Failure:
    """The error a command ends with when its ``--format`` cannot be used."""
    return Failure(f"template parsing error: {error}", TEMPLATE_ERROR)
