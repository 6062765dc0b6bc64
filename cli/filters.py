"""``--filter`` of the prune commands: Docker's keys and Docker's ways to write a time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from .errors import Failure

if TYPE_CHECKING:
    from snapshotter.store import Selection

_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|ms|s|m|h)")
_SECONDS = re.compile(r"\d+(?:\.\d{1,9})?")


def selection(filters: Sequence[str], now: datetime | None = None) -> Selection:
    """What ``until=``, ``label=`` and ``label!=`` select. Raises :class:`Failure` for others."""
    from snapshotter.store import Selection  # noqa: PLC0415

    until: datetime | None = None
    labels, without = [], []
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise Failure(f"invalid filter '{text}': want key=value")
        if key == "until" and until is None:
            until = moment(value, now or datetime.now(UTC))
        elif key == "until":
            raise Failure("more than one until filter specified")
        elif key == "label":
            labels.append(value)
        elif key == "label!":
            without.append(value)
        else:
            raise Failure(f"Invalid filter '{key}'")
    return Selection(until, tuple(labels), tuple(without))


def moment(text: str, now: datetime) -> datetime:
    """A time as Docker's commands take it: a Go duration before now, a date, or Unix seconds.

    A date without a zone is local time. Raises :class:`Failure`.
    """
    parts = _DURATION.findall(text)
    try:
        if parts and "".join(number + unit for number, unit in parts) == text:
            seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
            return now - timedelta(seconds=seconds)
        if _SECONDS.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        raise Failure(f'failed to parse value as time or duration: "{text}"') from None
