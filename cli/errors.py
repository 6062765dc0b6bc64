"""The one place where exceptions become a message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

import click

FAILURE = 1
USAGE = 125
INTERRUPTED = 130


class Failure(Exception):
    """A command ends with ``message`` on the error output and the exit code ``code``."""

    def __init__(self, message: str, code: int = FAILURE) -> None:
        super().__init__(message)
        self.code = code


def report(error: BaseException) -> int:
    """Show what went wrong as one line, and return the exit code for it.

    Errors that users can cause carry a message meant for them. Whatever else arrives here is a
    mistake in this program: it gets a line as well, and ``--debug`` shows where it happened.
    """
    try:
        return _report(error)
    finally:
        # What a full disk did not take is still buffered. Python would try again at exit, complain
        # a second time and turn the exit code into 120.
        _silence_output()


def _report(error: BaseException) -> int:
    if isinstance(error, BrokenPipeError):
        # Whoever read the output has seen enough; click ends so, too, where it notices first.
        return FAILURE
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return INTERRUPTED
    if isinstance(error, click.ClickException):
        error.show()
        return USAGE
    say(describe(error))
    return error.code if isinstance(error, Failure) else FAILURE


def describe(error: BaseException) -> str:
    """The message of an error, on one line."""
    from snapshotter.errors import SnapshotterError  # noqa: PLC0415
    from unionfs.errors import UnionError  # noqa: PLC0415

    if isinstance(error, OSError):
        return _describe_os_error(error)
    if isinstance(error, (Failure, SnapshotterError, UnionError)):
        return str(error)
    kind = type(error).__name__
    return f"internal error: {kind}: {error} (run with --debug to see where)"


def _describe_os_error(error: OSError) -> str:
    reason = error.strerror or str(error)
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if _is_path(name)]
    return f"{' -> '.join(names)}: {reason}" if names else reason


def _is_path(name: object) -> bool:
    return isinstance(name, (str, bytes)) and bool(name)


def for_each(names: Iterable[str], action: Callable[[str], None], *, forced: bool = False) -> None:
    """Do ``action`` for every name, reporting errors as they come; raise Exit(1) if there were any.

    ``forced``: what does not exist is reported and is no error, as with Docker's ``--force``.
    """
    from snapshotter.errors import NoSuchContainer, NoSuchImage, SnapshotterError  # noqa: PLC0415
    from unionfs.errors import UnionError  # noqa: PLC0415

    failed = False
    for name in names:
        try:
            action(name)
        except (SnapshotterError, UnionError, Failure, OSError) as error:
            if isinstance(error, BrokenPipeError):
                raise
            say(describe(error))
            failed = failed or not (forced and isinstance(error, (NoSuchImage, NoSuchContainer)))
    if failed:
        raise click.exceptions.Exit(FAILURE)


def say(message: str) -> None:
    """One line on the error output, control characters escaped."""
    from .output.text import printable  # noqa: PLC0415

    line = " ".join(part.strip() for part in message.splitlines() if part.strip())
    try:
        click.echo(f"lamina: {printable(line)}", err=True)
    except OSError:
        # Nobody reads the error output any more; the exit code still tells.
        _silence_output()


def _silence_output() -> None:
    """Point those standard streams nowhere that take no more, so that none fails again at exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    # A stream is None if the caller has closed its descriptor.
    for stream in filter(None, (sys.stdout, sys.stderr)):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
