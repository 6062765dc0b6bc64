"""``lamina save``: images into an archive."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from ..errors import Failure
from ..output.progress import progress_for
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.archive import Writable
    from snapshotter.store import Image

_DOCKER, _OCI, _OCI_DIR = "docker-archive", "oci-archive", "oci-dir"
_SUFFIXES = {".gz": "gzip", ".tgz": "gzip", ".zst": "zstd", ".tzst": "zstd"}


@click.command()
@click.argument("names", metavar="IMAGE...", nargs=-1, required=True)
@click.option(
    "-o", "--output", "file", type=click.Path(path_type=Path), help="The archive to write."
)
@click.option(
    "--format",
    "form",
    type=click.Choice([_DOCKER, _OCI, _OCI_DIR]),
    default=_DOCKER,
    show_default=True,
    help="For Docker and every other reader; or an OCI layout that gives manifests and layers the "
    "digests they came with, as an archive or a directory.",
)
@click.option(
    "--compress",
    type=click.Choice(["gzip", "zstd", "none"]),
    help="Compress the archive.  [default: what its suffix says: .gz, .tgz, .zst]",
)
@click.option("--platform", metavar="OS/ARCH[/VARIANT]", help="Refuse images for another platform.")
@pass_session
def save(
    session: Session,
    *,
    names: tuple[str, ...],
    file: Path | None,
    form: str,
    compress: str | None,
    platform: str | None,
) -> None:
    """Save images to a tar archive that Docker, Podman and skopeo read as well.

    It goes to standard output unless -o is given. A file appears only when it is complete.
    """
    from snapshotter.archive import save as save_docker  # noqa: PLC0415
    from snapshotter.archive import save_oci, selected  # noqa: PLC0415

    if file is None and (form == _OCI_DIR or sys.stdout.isatty()):
        where = "a directory needs a name: use the -o flag"
        terminal = "cowardly refusing to save to a terminal. Use the -o flag or redirect"
        raise Failure(where if form == _OCI_DIR else terminal)
    with session.store() as store:
        images = selected(store, names)
        if platform is not None:
            _refuse_others(images, platform)
        progress = progress_for(sys.stderr)
        if form == _OCI_DIR and file is not None:
            if compress not in (None, "none"):
                raise Failure("a directory cannot be compressed; its layers are")
            _check_parent(file)
            save_oci(store, names, file, progress)
            return
        with _open(file, compress) as out:
            (save_oci if form == _OCI else save_docker)(store, names, out, progress)


def _refuse_others(images: list[Image], platform: str) -> None:
    """Raise unless all images are for a platform. A variant counts only if it is asked for."""
    from snapshotter import platforms  # noqa: PLC0415

    wanted = platforms.parse(platform)
    for image in images:
        config = image.config
        parts = {"os": config.os, "architecture": config.architecture, "variant": config.variant}
        if any(parts[key] != value for key, value in wanted.items()):
            found = "/".join(filter(None, parts.values()))
            name = image.references[0] if image.references else image.short_id
            raise Failure(
                f"image with reference {name} was found but its platform ({found}) does not match "
                f"the specified platform ({platform})"
            )


@contextmanager
def _open(file: Path | None, compress: str | None) -> Iterator[Writable]:
    """Where the archive goes, through a compressor if it is to be compressed."""
    from snapshotter.compression import Compressed  # noqa: PLC0415

    suffix = file.suffix if file is not None else ""
    chosen = compress or _SUFFIXES.get(suffix, "none")
    with _stream(file) as out:
        if chosen == "none":
            yield out
            return
        compressed = Compressed(out, chosen)
        yield compressed
        compressed.finish()


def _stream(file: Path | None) -> AbstractContextManager[BinaryIO]:
    from snapshotter.archive import atomic_output  # noqa: PLC0415

    if file is None:
        return nullcontext(sys.stdout.buffer)
    if file.is_dir():
        raise Failure(f"failed to save image: invalid output path: {file}: is a directory")
    _check_parent(file)
    return atomic_output(file)


def _check_parent(file: Path) -> None:
    if not file.absolute().parent.is_dir():
        reason = "its directory does not exist"
        raise Failure(f"failed to save image: invalid output path: {file}: {reason}")
