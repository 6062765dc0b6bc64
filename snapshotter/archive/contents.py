"""What an image archive holds, taken in while it passes by.

A layer becomes a pack of the store at once, whoever may refer to it; documents are kept, and so are
the bytes of compressed layers in an OCI layout, whose digests a manifest may name. Then the members
can be asked for by name, links followed.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO, NamedTuple

from unionfs.errors import LayerError, UnionError

from .. import compression, digest, models
from ..errors import ArchiveError
from ..progress import Counted, Progress, Readable
from ..store import Blob, NewBlob, Session, Store
from .members import Member, normalise

DOCUMENTS_MAX = 256 << 20
"""The most bytes of all documents of one archive, which are kept in memory."""

BLOBS = "blobs/sha256/"

_HEAD = 512
_PIECE = 1 << 18
_LINKS_MAX = 40


class Contents:
    """The members of one archive, taken into a session of the store."""

    def __init__(self, store: Store, session: Session, progress: Progress | None) -> None:
        self._store = store
        self._session = session
        self._progress = progress
        self._documents: dict[str, bytes] = {}
        self._documents_size = 0
        self._layers: dict[str, str] = {}
        self._blobs: dict[str, tuple[str, int]] = {}
        self._kept: dict[str, _Kept] = {}
        self._new_blobs: dict[str, NewBlob] = {}
        self._copies = 0
        self._links: dict[str, str] = {}
        self._problems: dict[str, UnionError] = {}

    def take(self, member: Member) -> None:
        """Take in one member, according to what it is. Of two with one name the last counts."""
        name = member.name
        self._documents.pop(name, None)
        self._layers.pop(name, None)
        self._blobs.pop(name, None)
        self._kept.pop(name, None)
        self._links.pop(name, None)
        self._problems.pop(name, None)
        if member.target is not None:
            self._links[name] = member.target
        elif member.is_file:
            content = compression.Prefixed(member)
            head = content.peek(_HEAD)
            if _is_document(head, member.size):
                self._take_document(name, content)
            elif member.size >= _HEAD or compression.is_compressed(head):
                self._take_layer(member, content, compression.is_compressed(head))

    def _take_document(self, name: str, content: Readable) -> None:
        data = b"".join(iter(lambda: content.read(_PIECE), b""))
        self._documents_size += len(data)
        if self._documents_size > DOCUMENTS_MAX:
            raise ArchiveError(f"the archive has more than {DOCUMENTS_MAX} bytes of documents")
        self._documents[name] = data
        self._blobs[name] = (digest.of(data), len(data))

    def _take_layer(self, member: Member, content: compression.Prefixed, compressed: bool) -> None:
        """Make a pack of a layer; what is wrong with it matters only if an image has it."""
        name, size = member.name, member.size
        form = compression.kind(content.peek(_HEAD))
        stream: Readable = content
        if self._progress is not None:
            stream = Counted(stream, self._progress, _label(name), "Loading layer", size)
        known = self._known_layer(name, compressed)
        copy = self._new_copy() if compressed and known is None and name.startswith(BLOBS) else None
        # The digest of a plain layer is its diff_id, which is computed on the way in.
        hashed = _Hashed(stream, copy) if compressed or known is not None else None
        diff_id = known or self._ingest(name, hashed or stream)
        while (hashed or stream).read(_PIECE):
            pass
        found = hashed.close() if hashed is not None else diff_id
        if found is not None:
            self._blobs[name] = (found, size)
        if diff_id is not None:
            self._layers[name] = diff_id
            if copy is not None:
                self._kept[name] = _Kept(copy, form)

    def _ingest(self, name: str, stream: Readable) -> str | None:
        try:
            return self._session.add_layer(compression.plain(stream)).diff_id
        except LayerError as error:
            self._problems[name] = error
            return None

    def _new_copy(self) -> Path:
        """A file for a compressed layer; the session's directory goes with what is not needed."""
        self._copies += 1
        return self._session.directory / f"blob-{self._copies}"

    def _known_layer(self, name: str, compressed: bool) -> str | None:
        """The layer of the store that a blob of this name must be; its digest will tell."""
        candidate = digest.PREFIX + name.removeprefix(BLOBS)
        if not name.startswith(BLOBS) or not digest.is_valid(candidate):
            return None
        if compressed:
            blob = self._store.blobs.get(candidate)
            return blob.diff_id if blob is not None else None
        return candidate if self._store.layers.get(candidate) is not None else None

    def kept(self, descriptor: models.Descriptor) -> NewBlob | None:
        """The compressed layer of a descriptor, for the store; None if it has that, or it is plain.

        The descriptor must have been checked by :meth:`blob`.
        """
        member = self._resolve(BLOBS + digest.hexadecimal(descriptor.digest))
        if member in self._new_blobs:
            return self._new_blobs[member]
        kept, diff_id = self._kept.get(member), self._layers.get(member)
        if kept is None or diff_id is None:
            return None
        media_type = f"{models.OCI_LAYER}+{kept.form}" if kept.form else descriptor.media_type
        recipe = compression.RECIPE if self._can_be_made(diff_id, kept.path) else None
        blob = Blob(descriptor.digest, diff_id, descriptor.size, media_type, recipe)
        self._new_blobs[member] = NewBlob(blob, kept.path if recipe is None else None)
        return self._new_blobs[member]

    def _can_be_made(self, diff_id: str, path: Path) -> bool:
        """Whether compressing the layer gives the bytes of this file; others soon differ."""
        with path.open("rb") as stream:
            for piece in compression.compress_layer(self._store.layers.rebuilt(diff_id)):
                if stream.read(len(piece)) != piece:
                    return False
            return not stream.read(1)

    def has_document(self, name: str) -> bool:
        """Whether there is a JSON document with this name."""
        return self._resolve(name) in self._documents

    def has_compressed(self) -> bool:
        """Whether a manifest may name layers by other digests than their diff_ids."""
        return any(
            digest.PREFIX + name.removeprefix(BLOBS) != diff_id
            for name, diff_id in self._layers.items()
            if name.startswith(BLOBS)
        )

    def document(self, name: str) -> bytes:
        """The JSON document with this name. Raises :class:`ArchiveError` if there is none."""
        found = self._documents.get(self._resolve(name))
        if found is None:
            raise ArchiveError(f"the archive has no document {name}")
        return found

    def layer(self, name: str) -> str:
        """The diff_id of the layer with this name.

        Raises :class:`ArchiveError` if there is none, :class:`LayerError` for what was wrong
        with it when it was read.
        """
        member = self._resolve(name)
        if member in self._problems:
            raise LayerError(f"layer {name}: {self._problems[member]}")
        if member not in self._layers:
            raise ArchiveError(f"the archive has no layer {name}")
        return self._layers[member]

    def blob(self, descriptor: models.Descriptor) -> str:
        """The name of a blob of an OCI layout, once its digest and size are checked."""
        name = BLOBS + digest.hexadecimal(descriptor.digest)
        member = self._resolve(name)
        if member not in self._blobs and member not in self._problems:
            raise ArchiveError(f"the archive has no blob {descriptor.digest}")
        found, size = self._blobs.get(member, (descriptor.digest, descriptor.size))
        if size != descriptor.size:
            raise ArchiveError(
                f"blob {descriptor.digest} has {size} bytes, but should have {descriptor.size}"
            )
        if found != descriptor.digest:
            raise ArchiveError(f"blob {descriptor.digest} is damaged: its digest is {found}")
        return name

    def checked(self, name: str) -> str:
        """A name; if it gives a digest, the member's must be that (Docker's archives)."""
        stem = name.rpartition("/")[2].removesuffix(".json")
        promised = digest.PREFIX + stem
        found = self._blobs.get(self._resolve(name))
        if digest.is_valid(promised) and found is not None and found[0] != promised:
            raise ArchiveError(f"{name} is damaged: its digest is {found[0]}")
        return name

    def _resolve(self, name: str) -> str:
        """The member a name stands for: links are followed inside the archive only."""
        key = normalise(name.encode(errors="surrogateescape"))
        for _ in range(_LINKS_MAX):
            if key not in self._links:
                return key
            key = self._links[key]
        raise ArchiveError(f"{name}: too many links")


def _is_document(head: bytes, size: int) -> bool:
    """Whether a member is JSON rather than a layer."""
    is_tar = head[257:262] == b"ustar"
    return size <= models.JSON_MAX and not is_tar and head.lstrip()[:1] in (b"{", b"[")


def _label(name: str) -> str:
    """The 12 characters users see of a layer: of its digest, or of the directory it is in."""
    directory, _, last = name.rpartition("/")
    return (directory if last == "layer.tar" else last)[:12]


class _Kept(NamedTuple):
    """The file with a compressed layer, and whether it is gzip, zstd or (empty) else."""

    path: Path
    form: str


class _Hashed:
    """A stream that computes the digest of what is read, and may write it to a file as well."""

    def __init__(self, stream: Readable, copy: Path | None) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()
        self._copy: BinaryIO | None = copy.open("wb") if copy is not None else None

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._hash.update(data)
        if self._copy is not None:
            self._copy.write(data)
        return data

    def close(self) -> str:
        """The digest of all that was read; the file is on the disk. The other stream stays open."""
        if self._copy is not None:
            with self._copy:
                self._copy.flush()
                os.fsync(self._copy.fileno())
        return digest.text(self._hash.digest())
