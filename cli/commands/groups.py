"""The groups of commands: ``lamina image``, ``lamina container`` and ``lamina system``."""

from __future__ import annotations

import click

from ..lazy import LazyGroup

_IMAGE_COMMANDS = {
    "history": (".commands.history:history", "Show the history of an image"),
    "import": (".commands.import_:import_", "Create an image from a root filesystem tarball"),
    "inspect": (".commands.inspect:inspect_images", "Show everything about images"),
    "load": (".commands.load:load", "Load images from a tar archive or standard input"),
    "ls": (".commands.images:images", "List images"),
    "prune": (".commands.prune:images", "Remove unused images"),
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
    "prune": (".commands.prune:containers", "Remove all stopped containers"),
    "rm": (".commands.rm:rm", "Remove containers"),
    "run": (".commands.run:run", "Run a command in a new container"),
}

_SYSTEM_COMMANDS = {
    "df": (".commands.system:df", "Show how much of the disk is used"),
    "info": (".commands.info:info", "Show what lamina finds on this machine and in the store"),
    "prune": (".commands.prune:system", "Remove unused data"),
}


@click.group(cls=LazyGroup, commands_at=_IMAGE_COMMANDS)
def image() -> None:
    """Manage images."""


@click.group(cls=LazyGroup, commands_at=_CONTAINER_COMMANDS)
def container() -> None:
    """Manage containers."""


@click.group(cls=LazyGroup, commands_at=_SYSTEM_COMMANDS)
def system() -> None:
    """Manage what lamina keeps."""
