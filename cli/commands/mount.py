"""``lamina mount`` and ``lamina umount``: an image on a directory of the host."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..errors import Failure, for_each
from ..session import Session, pass_session

if TYPE_CHECKING:
    from unionfs.mounting import MountOptions

# A foreign image must not be able to hand out privileges on the host it is mounted on.
_SAFE_FLAGS = ("nosuid", "nodev", "noatime")

_DIRECTORY = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("name", metavar="IMAGE")
@click.argument("directory", type=_DIRECTORY)
@click.option("--upper", type=_DIRECTORY, help="Keep changes in this directory.")
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    help="An empty directory on the filesystem of --upper.  [default: UPPER.work, created]",
)
@click.option("--read-only", is_flag=True, help="Allow no changes, even with --upper.")
@click.option("-f", "--foreground", is_flag=True, help="Stay in the foreground until unmounted.")
@pass_session
def mount(
    session: Session,
    *,
    name: str,
    directory: Path,
    upper: Path | None,
    work: Path | None,
    read_only: bool,
    foreground: bool,
) -> None:
    """Mount IMAGE on DIRECTORY: read-only, unless --upper says where changes go."""
    from unionfs.mounting import serve, start  # noqa: PLC0415

    with session.store() as store:
        image = store.image(name)
        lowers = store.runs(image)
    options = _options(lowers, directory, upper, work, read_only)
    if foreground:
        serve(options)
    else:
        start(options, None)


def _options(
    lowers: list[Path], directory: Path, upper: Path | None, work: Path | None, read_only: bool
) -> MountOptions:
    from unionfs.mounting import MountOptions  # noqa: PLC0415

    if work is not None and upper is None:
        raise click.UsageError("--work is of no use without --upper")
    if upper is not None and work is None:
        work = upper.absolute().with_name(upper.absolute().name + ".work")
    if work is not None:
        work.mkdir(exist_ok=True)
    is_root = os.geteuid() == 0
    return MountOptions(
        lowers=tuple(os.fsencode(path) for path in lowers),
        upper=os.fsencode(upper.absolute()) if upper is not None else None,
        work=os.fsencode(work.absolute()) if work is not None else None,
        mountpoint=os.fsencode(directory.absolute()),
        read_only=read_only or upper is None,
        allow_other=is_root,
        # Only root may give files away; for others, root's files show as their own.
        uid_map=() if is_root else ((0, os.geteuid(), 1),),
        gid_map=() if is_root else ((0, os.getegid(), 1),),
        flags=_SAFE_FLAGS,
    )


@click.command()
@click.argument("directories", metavar="DIRECTORY...", nargs=-1, required=True)
@click.option("-l", "--lazy", is_flag=True, help="Detach now, end when nothing uses it any more.")
@pass_session
def umount(_session: Session, directories: tuple[str, ...], lazy: bool) -> None:
    """Unmount directories that lamina has mounted."""
    from unionfs.mounting import unmount  # noqa: PLC0415

    def end(directory: str) -> None:
        if not os.path.lexists(directory):
            raise Failure(f"{directory}: no such directory")
        unmount(os.fsencode(Path(directory).absolute()), lazy=lazy)

    for_each(directories, end)
