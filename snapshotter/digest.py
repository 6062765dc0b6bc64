"""Digests as the OCI image specification writes them, and chain IDs.

Only sha256 is understood (image-spec, descriptor.md: every implementation must have it). A digest
is a ``str`` ``"sha256:<64 lower-case hex digits>"``; :func:`raw` gives its 32 bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator

from .errors import ArchiveError

PREFIX = "sha256:"
EMPTY_TAR = PREFIX + hashlib.sha256(bytes(1024)).hexdigest()
"""The diff_id of a layer without entries: two zero blocks."""

_HEX = re.compile(r"[0-9a-f]{64}")


def of(data: bytes) -> str:
    """The digest of ``data``."""
    return PREFIX + hashlib.sha256(data).hexdigest()


def text(raw_digest: bytes) -> str:
    """The 32 bytes of a digest as text."""
    return PREFIX + raw_digest.hex()


def raw(digest: str) -> bytes:
    """The 32 bytes of a digest. Raises :class:`ArchiveError` for anything but sha256."""
    return bytes.fromhex(hexadecimal(digest))


def is_valid(digest: str) -> bool:
    """Whether a text is a sha256 digest."""
    return digest.startswith(PREFIX) and _HEX.fullmatch(digest, len(PREFIX)) is not None


def hexadecimal(digest: str) -> str:
    """The 64 hex digits of a digest.

    Checked strictly, because the result becomes part of file names. Raises
    :class:`ArchiveError` for any other text.
    """
    if not is_valid(digest):
        raise ArchiveError(f"invalid or unsupported digest {digest[:100]!r}: want sha256:<64 hex>")
    return digest[len(PREFIX) :]


def short(digest: str) -> str:
    """The 12 hex digits that users see of an ID or a digest."""
    return digest.removeprefix(PREFIX)[:12]


def chain(diff_ids: Iterable[str]) -> Iterator[str]:
    """The chain ID of each layer, bottom first (image-spec, config.md, "Layer ChainID")."""
    current: str | None = None
    for diff_id in diff_ids:
        current = diff_id if current is None else of(f"{current} {diff_id}".encode())
        yield current
