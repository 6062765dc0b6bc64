"""Where the ``lamina`` program begins: it imports nothing before an interrupt is harmless."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line and exit. No exception leaves this function but SystemExit."""
    # An interrupt during the imports ends the program as it would any other, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = sys.argv[1:]
    if _is_called_by_mount(arguments):
        from .fuse_lamina import main as mount  # noqa: PLC0415

        signal.signal(signal.SIGINT, signal.default_int_handler)
        mount(arguments)
        return
    from .app import run  # noqa: PLC0415

    sys.exit(run(arguments))


def _is_called_by_mount(arguments: list[str]) -> bool:
    """Whether this is ``lamina SOURCE /MOUNTPOINT -o OPTIONS``, where SOURCE is no command.

    mount(8) says so for the type ``fuse.lamina``: mount.fuse3 runs what the type is named after.
    It leaves out a source that is empty.
    """
    head = arguments[: arguments.index("-o")] if "-o" in arguments else []
    if len(head) not in (1, 2) or not head[-1].startswith("/") or head[0].startswith("-"):
        return False
    import click  # noqa: PLC0415

    from .app import lamina  # noqa: PLC0415

    return head[0] not in lamina.list_commands(click.Context(lamina))


if __name__ == "__main__":
    main()
