"""What commands read from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from .errors import USAGE, Failure

_SYSTEM_PLACES = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where distributions put container runtimes, although ordinary users may run them."""


@dataclass(frozen=True)
class Epoch:
    """The time SOURCE_DATE_EPOCH asks for; ``seconds`` since 1970."""

    seconds: int

    @property
    def moment(self) -> datetime:
        """The same as a time in UTC."""
        return datetime.fromtimestamp(self.seconds, UTC)


def source_date_epoch() -> Epoch | None:
    """The time that makes images reproducible, if the environment sets one.

    Raises :class:`Failure` for a value that is not a number of seconds: ignoring it would make
    an image that only seems reproducible.
    """
    text = os.environ.get("SOURCE_DATE_EPOCH")
    if not text:
        return None
    try:
        epoch = Epoch(int(text))
        if epoch.seconds < 0:
            raise ValueError
        epoch.moment  # noqa: B018 - raises for years that no calendar has
    except (ValueError, OverflowError, OSError):
        raise Failure(f"SOURCE_DATE_EPOCH: not a number of seconds since 1970: {text}") from None
    return epoch


def search_path() -> str:
    """Where programs are looked for: PATH, and what an ordinary user's PATH often lacks."""
    path = os.environ.get("PATH", os.defpath)
    if os.geteuid() == 0:
        return path
    missing = [place for place in _SYSTEM_PLACES if place not in path.split(":")]
    return ":".join([path, *missing])


def read_env_file(file: Path) -> list[str]:
    """The variables of an environment file: one on a line, comments and blank lines left out.

    Raises :class:`Failure` for a line that starts with no name.
    """
    lines = file.read_text("utf-8", "surrogateescape").splitlines()
    return [_checked(text, f"{file}: ") for line in lines if (text := line.lstrip())[:1] not in "#"]


def with_values(variables: list[str]) -> list[str]:
    """``NAME=value`` for all; a bare NAME gets its value from this environment, or is left out."""
    complete = []
    for text in variables:
        name, has_value, _ = _checked(text, "").partition("=")
        if has_value:
            complete.append(text)
        elif name in os.environ:
            complete.append(f"{name}={os.environ[name]}")
    return complete


def _checked(text: str, place: str) -> str:
    name = text.partition("=")[0]
    if not name or "\0" in text or any(char.isspace() for char in name):
        raise Failure(f"{place}invalid environment variable: {text}", USAGE)
    return text
