"""How a union behaves: what may be chosen for one mount without changing what its layers are."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .owners import Owners


class Redirects(Enum):
    """``redirect_dir`` of kernel overlayfs (Documentation/filesystems/overlayfs.rst, "Renaming").

    A directory with lower parts is renamed by noting where they are (``ON``), else not at all
    (EXDEV). Notes found in layers are followed, except with ``NOFOLLOW``.
    """

    ON = "on"
    FOLLOW = "follow"
    NOFOLLOW = "nofollow"


class Durability(Enum):
    """What a copied-up file waits for before it shows: nothing, its writeback's start, the disk."""

    VOLATILE = "volatile"
    ORDERED = "ordered"
    SYNCED = "synced"


@dataclass(frozen=True, kw_only=True)
class TreeOptions:
    """The choices. The defaults are those of ``fuse-lamina`` without options.

    ``metacopy``: changed attributes are copied up without contents. ``aufs``: whiteouts are written
    as ``.wh.`` files; None leaves it to what the upper holds. ``show_whiteouts``: a read-only union
    shows its whiteouts in that form. ``count_subdirectories``: a directory's link count counts its
    subdirectories, else it is 1. ``short_numbers``: inode numbers fit 32 bits. ``owners``: whose
    files are shown. ``override``: the xattr that owners, modes and types are kept in; empty for
    none, None for what the layers' roots say, and where the host refuses them.
    """

    redirects: Redirects = Redirects.ON
    metacopy: bool = False
    aufs: bool | None = None
    show_whiteouts: bool = False
    count_subdirectories: bool = True
    short_numbers: bool = False
    durability: Durability = Durability.ORDERED
    owners: Owners = field(default_factory=Owners)
    override: bytes | None = None
