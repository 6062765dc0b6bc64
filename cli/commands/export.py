"""``lamina export``: the filesystem of a container as a tar archive."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from ..errors import Failure
from ..session import Session, pass_session
from ..uppers import container_to_read


@click.command()
@click.argument("container", metavar="CONTAINER")
@click.option("-o", "--output", "file", type=click.Path(path_type=Path), help="The file to write.")
@pass_session
def export(session: Session, container: str, file: Path | None) -> None:
    """Write a container's filesystem to a tar archive.

    It goes to standard output unless -o is given. A file appears only when it is complete.
    """
    from snapshotter.export import export as export_container  # noqa: PLC0415

    if file is None and sys.stdout.isatty():
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    with container_to_read(session, container) as (store, found), ExitStack() as stack:
        export_container(store, found, _open(file, stack))


def _open(file: Path | None, stack: ExitStack) -> BinaryIO:
    from snapshotter.archive import atomic_output  # noqa: PLC0415

    if file is None:
        return sys.stdout.buffer
    if file.is_dir() or not file.absolute().parent.is_dir():
        reason = "is a directory" if file.is_dir() else "its directory does not exist"
        raise Failure(f"failed to export container: invalid output path: {file}: {reason}")
    return stack.enter_context(atomic_output(file))
