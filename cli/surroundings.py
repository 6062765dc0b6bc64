"""What commands read from the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime

from .errors import Failure


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
