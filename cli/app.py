"""The ``lamina`` command: global options, the list of commands, and the way out."""

from __future__ import annotations

import logging
import signal
import sys
from pathlib import Path

import click

from . import __version__
from .errors import report
from .lazy import LazyGroup
from .session import Session, default_root

_log = logging.getLogger(__name__)

_COMMANDS = {
    "commit": (".commands.commit:commit", "Create a new image from a container's changes"),
    "container": (".commands.groups:container", "Manage containers"),
    "diff": (".commands.diff:diff", "Show what a container has changed"),
    "export": (".commands.export:export", "Write a container's filesystem to a tar archive"),
    "history": (".commands.history:history", "Show the history of an image"),
    "image": (".commands.groups:image", "Manage images"),
    "images": (".commands.images:images", "List images"),
    "import": (".commands.import_:import_", "Create an image from a root filesystem tarball"),
    "info": (".commands.info:info", "Show what lamina finds on this machine and in the store"),
    "inspect": (".commands.inspect:inspect", "Show everything about images and containers"),
    "load": (".commands.load:load", "Load images from a tar archive or standard input"),
    "mount": (".commands.mount:mount", "Mount an image on a directory"),
    "ps": (".commands.ps:ps", "List containers"),
    "rm": (".commands.rm:rm", "Remove containers"),
    "rmi": (".commands.rmi:rmi", "Remove images"),
    "run": (".commands.run:run", "Run a command in a new container"),
    "save": (".commands.save:save", "Save images to a tar archive"),
    "system": (".commands.groups:system", "Manage what lamina keeps"),
    "tag": (".commands.tag:tag", "Give an image another name"),
    "umount": (".commands.mount:umount", "Unmount directories that lamina has mounted"),
    "unpack": (".commands.unpack:unpack", "Write the files of an image to a directory"),
    "verify": (".commands.verify:verify", "Check the store, and repair what can be repaired"),
    "version": (".commands.info:version", "Show the versions of lamina and what it stands on"),
}


@click.group(
    cls=LazyGroup,
    commands_at=_COMMANDS,
    context_settings={"max_content_width": 100},
)
@click.option(
    "--root",
    metavar="DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="Where images and containers are kept.  [default: /var/lib/lamina for root, "
    "~/.local/share/lamina otherwise]",
)
@click.option("-D", "--debug", is_flag=True, help="Log what happens, and show where errors occur.")
@click.version_option(__version__, "-v", "--version", message="lamina version %(version)s")
@click.pass_context
def lamina(ctx: click.Context, root: Path | None, debug: bool) -> None:
    """Mount, run, change and save container images, without privileges."""
    if debug:
        logging.basicConfig(level=logging.DEBUG, format="%(name)s: %(message)s")
    ctx.obj = Session((root or default_root()).absolute(), debug)


def run(arguments: list[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        result = lamina.main(args=arguments, prog_name="lamina", standalone_mode=False)
        sys.stdout.flush()
    except click.exceptions.Exit as end:
        return end.exit_code
    except Exception as error:
        _log.debug("the command failed", exc_info=True)
        return report(error)
    except KeyboardInterrupt as error:
        return report(error)
    return result if isinstance(result, int) else 0
