"""Operating systems and architectures, named as images name them (Go's GOOS and GOARCH)."""

from __future__ import annotations

import os

from .errors import InvalidPlatform

_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "i686": "386",
    "i386": "386",
}


def native() -> tuple[str, str]:
    """The (os, architecture) of this machine."""
    machine = os.uname().machine
    return "linux", _ARCHITECTURES.get(machine, machine)


def parse(text: str) -> dict[str, str]:
    """The fields of an image configuration for ``os/architecture[/variant]``.

    Either of the first two may stand alone. Raises :class:`InvalidPlatform`.
    """
    parts = text.lower().split("/")
    if not all(parts) or len(parts) > 3:
        raise InvalidPlatform(f"invalid platform {text!r}: want os/architecture[/variant]")
    system, architecture = native()
    if len(parts) == 1:
        parts = [parts[0], architecture] if parts == [system] else [system, parts[0]]
    parts[1] = _ARCHITECTURES.get(parts[1], parts[1])
    return dict(zip(("os", "architecture", "variant"), parts, strict=False))
