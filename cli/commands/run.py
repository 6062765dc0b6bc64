"""``lamina run``: a command in a new container."""

from __future__ import annotations

import sys
import termios
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import click

from ..environment import read_env_file, search_path, with_values
from ..errors import USAGE, Failure, describe
from ..session import Session, pass_session

if TYPE_CHECKING:
    from snapshotter.containers.settings import Request


@click.command(context_settings={"allow_interspersed_args": False})
@click.argument("image_name", metavar="IMAGE")
@click.argument("command", metavar="[COMMAND] [ARG...]", nargs=-1, type=click.UNPROCESSED)
@click.option("--rm", "auto_remove", is_flag=True, help="Remove the container when it ends.")
@click.option("-i", "--interactive", is_flag=True, help="Connect standard input.")
@click.option("-t", "--tty", "has_tty", is_flag=True, help="Give it a terminal.")
@click.option("-e", "--env", multiple=True, help="NAME=value, or NAME to take the value from here.")
@click.option(
    "--env-file",
    "env_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with such lines.",
)
@click.option("-w", "--workdir", default="", help="The directory to start in.")
@click.option("-u", "--user", default="", help="The user, as name or number, [:group] added.")
@click.option("--name", help="A name for the container.")
@click.option("-h", "--hostname", default="", help="The hostname.")
@click.option("--entrypoint", help="Replace the image's entrypoint.")
@click.option("--read-only", is_flag=True, help="Make the root filesystem read-only.")
@click.option(
    "--network",
    type=click.Choice(["none", "host"]),
    default="none",
    show_default=True,
    help="No network but loopback, or that of the host.",
)
@pass_session
def run(
    session: Session,
    *,
    image_name: str,
    command: tuple[str, ...],
    auto_remove: bool,
    interactive: bool,
    has_tty: bool,
    env: tuple[str, ...],
    env_files: tuple[Path, ...],
    workdir: str,
    user: str,
    name: str | None,
    hostname: str,
    entrypoint: str | None,
    read_only: bool,
    network: str,
) -> None:
    """Run a command in a new container, and exit with its exit code.

    125: lamina failed; 126: the command cannot be executed; 127: the command was not found.
    """
    from snapshotter.containers.settings import Request  # noqa: PLC0415

    if interactive and has_tty and not sys.stdin.isatty():
        raise Failure(
            "cannot attach stdin to a TTY-enabled container because stdin is not a terminal", USAGE
        )
    try:
        given = [line for file in env_files for line in read_env_file(file)]
        request = Request(
            command=list(command),
            entrypoint=entrypoint,
            env=with_values([*given, *env]),
            working_dir=workdir,
            user=user,
            hostname=hostname,
            network=network,
            tty=has_tty,
            interactive=interactive,
            read_only=read_only,
            auto_remove=auto_remove,
        )
        code = _run(session, image_name, name, request)
    except Exception as error:
        _fail(error)
    raise click.exceptions.Exit(code)


def _run(session: Session, image_name: str, name: str | None, request: Request) -> int:
    from snapshotter.containers import run as containers  # noqa: PLC0415
    from snapshotter.containers.runtime import Streams  # noqa: PLC0415
    from snapshotter.containers.settings import container_config  # noqa: PLC0415

    sys.stdout.flush()
    with session.store() as store, _terminal(wanted=request.tty and request.interactive) as raw:
        image = store.image(image_name)
        return containers.run(
            store,
            image,
            image_name=image_name,
            config=container_config(image, request),
            name=name,
            streams=Streams(0, 1, 2),
            search_path=search_path(),
            on_start=raw,
        )


@contextmanager
def _terminal(*, wanted: bool) -> Iterator[Callable[[], None]]:
    """Gives what makes the terminal raw, if ``wanted``; it is as before after the block."""
    saved = termios.tcgetattr(0) if wanted else None

    def make_raw() -> None:
        if saved is not None:
            # The container has a terminal of its own that knows about lines and interrupts.
            tty.setraw(0, termios.TCSADRAIN)

    try:
        yield make_raw
    finally:
        if saved is not None:
            termios.tcsetattr(0, termios.TCSADRAIN, saved)


def _fail(error: Exception) -> NoReturn:
    """Whatever keeps a container from running ends with 125, unless it knows better."""
    from snapshotter.containers.errors import ContainerError  # noqa: PLC0415

    if isinstance(error, (click.ClickException, click.exceptions.Exit, Failure)):
        raise error
    code = error.code if isinstance(error, ContainerError) else USAGE
    raise Failure(describe(error), code) from error
