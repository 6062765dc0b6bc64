"""Sizes and times in the words Docker uses for them."""

from __future__ import annotations

from datetime import UTC, datetime

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


def human_size(size: int, digits: int = 3) -> str:
    """A size in bytes as a decimal unit with ``digits`` significant digits: ``12.1MB``."""
    value = float(size)
    unit = 0
    while value >= 1000 and unit < len(_UNITS) - 1:
        value /= 1000
        unit += 1
    # 999.6 with three digits rounds to 1e+03, and so Docker prints it.
    return f"{value:.{digits}g}{_UNITS[unit]}"


def human_duration(seconds: float) -> str:
    """A duration in round words: ``Less than a second``, ``About an hour``, ``3 weeks``."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole < 60:
        return "1 second" if whole == 1 else f"{whole} seconds"
    minutes = whole // 60
    if minutes < 60:
        return "About a minute" if minutes == 1 else f"{minutes} minutes"
    return _long_duration(int(seconds / 3600 + 0.5))


def _long_duration(hours: int) -> str:
    if hours <= 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    days = hours // 24
    if hours < 24 * 14:
        return f"{days} days"
    if hours < 24 * 60:
        return f"{days // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{days // 30} months"
    return f"{days // 365} years"


def ago(moment: datetime, now: datetime | None = None) -> str:
    """How long ago ``moment`` was: ``2 minutes ago``. Moments to come count as now."""
    return f"{human_duration(elapsed(moment, now))} ago"


def elapsed(moment: datetime, now: datetime | None = None) -> float:
    """Seconds from ``moment`` until ``now`` (default: the clock), never negative."""
    return max(((now or datetime.now(UTC)) - moment).total_seconds(), 0.0)


def timestamp(moment: datetime) -> str:
    """A time as Docker's lists show it with ``--format``: ``2026-01-02 03:04:05 +0000 UTC``."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S +0000 UTC")


def rfc3339(moment: datetime | None) -> str:
    """A time for JSON output; Go's zero time where there is none."""
    if moment is None:
        return "0001-01-01T00:00:00Z"
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")
