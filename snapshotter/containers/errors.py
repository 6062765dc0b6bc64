"""What can go wrong with running a container."""

from __future__ import annotations

from ..errors import SnapshotterError

FAILED = 125
NOT_EXECUTABLE = 126
NOT_FOUND = 127


class ContainerError(SnapshotterError):
    """The container did not run. ``code`` is the exit code that says why, as Docker's do."""

    def __init__(self, message: str, code: int = FAILED) -> None:
        super().__init__(message)
        self.code = code


class RuntimeUnavailable(ContainerError):
    """No OCI runtime works here."""
