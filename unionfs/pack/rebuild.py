"""A pack becomes the layer archive again, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator

from .reader import Pack

_PIECE = 1 << 20


def rebuild(pack: Pack) -> Iterator[bytes]:
    """The exact tar that the pack of a layer was made of, in pieces of about 1 MiB.

    Raises :class:`unionfs.errors.PackError` for damage, also if the tar would not have its size.
    """
    pending: list[bytes] = []
    held = total = 0
    for piece in _pieces(pack):
        pending.append(piece)
        held += len(piece)
        total += len(piece)
        if total > pack.tar_size:
            break
        if held >= _PIECE:
            yield b"".join(pending)
            pending.clear()
            held = 0
    if total != pack.tar_size:
        pack.fail("its recipe does not lead to an archive of the right size")
    if pending:
        yield b"".join(pending)


def _pieces(pack: Pack) -> Iterator[bytes]:
    residue = pack.content(pack.header.residue_first, pack.header.residue_size)
    rest = b""
    for raw, payload, first in pack.recipe():
        wanted = raw
        while wanted:
            rest = rest or next(residue, b"")
            if not rest:
                pack.fail("its recipe needs more residue than there is")
            piece, rest = (rest, b"") if len(rest) <= wanted else (rest[:wanted], rest[wanted:])
            wanted -= len(piece)
            yield piece
        if payload:
            yield from pack.content(first, payload)
