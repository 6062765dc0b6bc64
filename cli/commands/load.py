"""``lamina load``: images from an archive."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from ..errors import Failure
from ..output.progress import progress_for
from ..output.text import printable
from ..session import Session, pass_session


@click.command()
@click.option(
    "-i",
    "--input",
    "file",
    type=click.Path(path_type=Path, allow_dash=True),
    help="The archive, or directory with an OCI layout, to read; standard input without it.",
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@pass_session
def load(session: Session, file: Path | None, quiet: bool) -> None:
    """Load images from an archive that lamina, Docker, Podman or skopeo has written.

    Plain, gzip and zstd archives are understood, also from a pipe.
    """
    from snapshotter.archive import load as load_archive  # noqa: PLC0415

    progress = None if quiet else progress_for(sys.stderr)
    with ExitStack() as stack:
        source = _open(file, stack)
        store = stack.enter_context(session.store())
        for loaded in load_archive(store, source, progress):
            for reference in loaded.references:
                click.echo(f"Loaded image: {printable(str(reference))}")
            if not loaded.references:
                click.echo(f"Loaded image ID: {loaded.image.id}")


def _open(file: Path | None, stack: ExitStack) -> BinaryIO | Path:
    if file is not None and file.is_dir():
        return file
    if file is not None and str(file) != "-":
        return stack.enter_context(open(file, "rb"))
    if sys.stdin.isatty():
        raise Failure("requested load from stdin, but stdin is a terminal: use -i FILE or a pipe")
    return sys.stdin.buffer
