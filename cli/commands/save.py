"""``lamina save``: images into an archive."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import click

from ..errors import Failure
from ..output.progress import progress_for
from ..session import Session, pass_session


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), help="The archive to write."
)
@pass_session
def save(session: Session, names: tuple[str, ...], file: Path | None) -> None:
    """Save images to a tar archive that Docker, Podman and skopeo read as well.

    It goes to standard output unless -o is given. A file appears only when it is complete.
    """
    from snapshotter.archive import save as save_archive  # noqa: PLC0415

    if file is None and sys.stdout.isatty():
        raise Failure("cowardly refusing to save to a terminal. Use the -o flag or redirect")
    with ExitStack() as stack:
        store = stack.enter_context(session.store())
        for name in names:
            store.image(name)
        save_archive(store, names, _open(file, stack), progress_for(sys.stderr))


def _open(file: Path | None, stack: ExitStack) -> BinaryIO:
    from snapshotter.archive import atomic_output  # noqa: PLC0415

    if file is None:
        return sys.stdout.buffer
    if file.is_dir() or not file.absolute().parent.is_dir():
        reason = "is a directory" if file.is_dir() else "its directory does not exist"
        raise Failure(f"failed to save image: invalid output path: {file}: {reason}")
    return stack.enter_context(atomic_output(file))
