"""What a container is to run: the image's own settings, changed by what the user asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import ContainerError

if TYPE_CHECKING:
    from ..store import ContainerConfig, Image

NETWORKS = ("none", "host")

_HOSTNAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?")
_HOSTNAME_MAX = 64


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for; None and empty values leave it to the image.

    ``entrypoint`` replaces the image's, and drops the image's command as well; an empty string
    means none at all. ``env`` are complete ``NAME=value`` texts.
    """

    command: list[str] = field(default_factory=list)
    entrypoint: str | None = None
    env: list[str] = field(default_factory=list)
    working_dir: str = ""
    user: str = ""
    hostname: str = ""
    network: str = "none"
    tty: bool = False
    interactive: bool = False
    read_only: bool = False
    auto_remove: bool = False


def container_config(image: Image, request: Request) -> ContainerConfig:
    """The settings of a new container. Raises :class:`ContainerError` for contradictions."""
    from ..store import ContainerConfig  # noqa: PLC0415

    process = image.config.process
    entrypoint = list(process.entrypoint or [])
    command = request.command or list(process.cmd or [])
    if request.entrypoint is not None:
        entrypoint = [request.entrypoint] if request.entrypoint else []
        command = request.command
    if not entrypoint and not command:
        raise ContainerError("no command specified")
    working_dir = request.working_dir or process.working_dir or ""
    if working_dir and not working_dir.startswith("/"):
        raise ContainerError(
            f"the working directory '{working_dir}' is invalid, it needs to be an absolute path"
        )
    if request.network not in NETWORKS:
        raise ContainerError(f"network {request.network} not found: use none or host")
    return ContainerConfig(
        cmd=command,
        entrypoint=entrypoint,
        env=merge_env(process.env or [], request.env),
        working_dir=working_dir,
        user=request.user or process.user or "",
        labels=dict(process.labels or {}),
        stop_signal=process.stop_signal or "",
        tty=request.tty,
        interactive=request.interactive,
        hostname=_hostname(request.hostname),
        network=request.network,
        read_only=request.read_only,
        auto_remove=request.auto_remove,
    )


def _hostname(name: str) -> str:
    if name and (len(name) > _HOSTNAME_MAX or not _HOSTNAME.fullmatch(name)):
        raise ContainerError(f"invalid hostname: {name}")
    return name


def merge_env(base: list[str], changes: list[str]) -> list[str]:
    """``NAME=value`` texts of ``base`` with those of ``changes`` in their place or after them."""
    merged = {text.partition("=")[0]: text for text in base}
    merged.update((text.partition("=")[0], text) for text in changes)
    return list(merged.values())
