"""Packs: an image layer in one file, and the merged index of several layers.

docs/formats.md describes the files. Layers are hostile input: they are never unpacked, and nothing
on the host is ever named after what is in them.
"""

from __future__ import annotations

from .chunks import Chunks
from .decompress import Readable, decompress
from .format import CHUNK_SIZE, Inode, Location
from .ingest import Ingested, ingest
from .merge import Merged, merge
from .reader import Pack
from .rebuild import rebuild
from .tar import Limits
from .verify import verify

__all__ = [
    "CHUNK_SIZE",
    "Chunks",
    "Ingested",
    "Inode",
    "Limits",
    "Location",
    "Merged",
    "Pack",
    "Readable",
    "decompress",
    "ingest",
    "merge",
    "rebuild",
    "verify",
]
