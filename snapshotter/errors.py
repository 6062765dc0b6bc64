"""What can go wrong with images, containers, archives and the store.

The messages are shown to users as they stand, in the words Docker uses where it has any. Problems
inside a layer are :class:`unionfs.errors.UnionError`; failing system calls stay :class:`OSError`.
"""

from __future__ import annotations


class SnapshotterError(Exception):
    """The root of all errors of this package."""


class NoSuchImage(SnapshotterError):
    """No image has that name or ID."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No such image: {name}")


class NoSuchContainer(SnapshotterError):
    """No container has that name or ID."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No such container: {name}")


class NoSuchSnapshot(SnapshotterError):
    """No snapshot has that name or key."""

    def __init__(self, name: str) -> None:
        super().__init__(f"No such snapshot: {name}")


class AmbiguousId(SnapshotterError):
    """A prefix that is the beginning of several IDs."""

    def __init__(self, prefix: str) -> None:
        super().__init__(f"multiple IDs found with provided prefix: {prefix}")


class Conflict(SnapshotterError):
    """The request contradicts something that is in use: a name, a running container."""


class InvalidReference(SnapshotterError):
    """A text that is not the name of an image."""


class InvalidName(SnapshotterError):
    """A text that is not the name of a container."""


class InvalidChange(SnapshotterError):
    """A ``--change`` instruction that cannot be read or is not allowed."""


class InvalidPlatform(SnapshotterError):
    """A text that names no platform."""


class ArchiveError(SnapshotterError):
    """An image archive is malformed, incomplete, or not what its digests promise."""


class StoreError(SnapshotterError):
    """The store cannot be used: no access, another format, damaged, or full."""
