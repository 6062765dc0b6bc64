"""The groups ``lamina image`` and ``lamina container``: the same commands under longer names."""

from __future__ import annotations

import click

from ..lazy import LazyGroup

_IMAGE_COMMANDS = {
    "history": (".commands.history:history", "Show the history of an image"),
    "import": (".commands.import_:import_", "Create an image from a root filesystem tarball"),
    "inspect": (".commands.inspect:inspect_images", "Show everything about images"),
    "load": (".commands.load:load", "Load images from a tar archive or standard input"),
    "ls": (".commands.images:images", "List images"),
    "rm": (".commands.rmi:rmi", "Remove images"),
    "save": (".commands.save:save", "Save images to a tar archive"),
    "tag": (".commands.tag:tag", "Give an image another name"),
    "unpack": (".commands.unpack:unpack", "Write the files of an image to a directory"),
}

_CONTAINER_COMMANDS = {
    "commit": (".commands.commit:commit", "Create a new image from a container's changes"),
    "diff": (".commands.diff:diff", "Show what a container has changed"),
    "export": (".commands.export:export", "Write a container's filesystem to a tar archive"),
    "inspect": (".commands.inspect:inspect_containers", "Show everything about containers"),
    "ls": (".commands.ps:ps", "List containers"),
    "rm": (".commands.rm:rm", "Remove containers"),
    "run": (".commands.run:run", "Run a command in a new container"),
}


@click.group(cls=LazyGroup, commands_at=_IMAGE_COMMANDS)
def image() -> None:
    """Manage images."""


@click.group(cls=LazyGroup, commands_at=_CONTAINER_COMMANDS)
def container() -> None:
    """Manage containers."""
