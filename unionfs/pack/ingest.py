"""A layer archive becomes a pack, in one pass over the stream."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ..errors import LayerError, display
from .chunks import Chunks, ChunkWriter, Content, expand
from .decompress import Readable
from .draft import Draft, DraftTree
from .emit import Tables, emit, write_index
from .format import (
    CHUNK_SIZE,
    COMPLETE,
    HEADER_SIZE,
    LAYER,
    RECIPE_ROW,
    SOURCE_ROW,
    Header,
    Location,
    little_endian,
)
from .tar import Limits, Member, TarReader

_BUFFER = 1 << 20


class Ingested(NamedTuple):
    """What came of a layer archive.

    ``entries`` counts the entries of the archive. ``new_chunks`` are those that only this pack has,
    with their digests; ``sources`` the diff_ids of other packs it takes chunks from. ``stored`` is
    the size of the pack in bytes. ``unresolved`` says that hardlinks point into lower layers.
    """

    diff_id: bytes
    tar_size: int
    entries: int
    new_chunks: list[tuple[bytes, Location]]
    sources: tuple[bytes, ...]
    stored: int
    unresolved: bool


def ingest(
    tar: Readable, path: Path, chunks: Chunks | None = None, limits: Limits | None = None
) -> Ingested:
    """Write the pack of an uncompressed tar stream, read to its end, to ``path``.

    ``chunks`` knows what need not be stored again. Memory grows with the number of entries, not
    with their contents. Raises :class:`LayerError` for an archive that is malformed, truncated or
    beyond a limit, and :class:`OSError` as it comes; ``path`` is then removed. On success the file
    is on disk (fsync), its directory entry not yet.
    """
    with path.open("wb", buffering=_BUFFER) as file:
        try:
            return _Ingest(file, chunks, limits or Limits()).run(tar)
        except BaseException:
            path.unlink(missing_ok=True)
            raise


class _Recipe:
    """What else the tar was made of, and in which order."""

    def __init__(self, writer: ChunkWriter) -> None:
        self._writer = writer
        self._pending = bytearray()
        self._raw = 0
        self._refs = array("I")
        self.size = 0
        self.rows = bytearray()

    def record(self, data: bytes) -> None:
        """Bytes of the tar that are no payload."""
        self._raw += len(data)
        self._pending += data
        while len(self._pending) >= CHUNK_SIZE:
            self._flush(CHUNK_SIZE)

    def _flush(self, size: int) -> None:
        self._refs.append(self._writer.chunk(bytes(self._pending[:size]), tight=True))
        del self._pending[:size]
        self.size += size

    def payload(self, content: Content) -> None:
        """The payload that comes here in the tar."""
        self.rows += RECIPE_ROW.pack(self._raw, content.size, content.first)
        self._raw = 0

    def finish(self) -> int:
        """Store what is left; the first ref of the residue."""
        if self._raw:
            self.payload(Content(0, 0, 0))
        if self._pending:
            self._flush(len(self._pending))
        first = len(self._writer.refs)
        self._writer.refs += self._refs
        return first


class _Ingest:
    """One run of :func:`ingest`."""

    def __init__(self, file: BinaryIO, chunks: Chunks | None, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._writer = ChunkWriter(file, HEADER_SIZE, chunks)
        self._recipe = _Recipe(self._writer)
        self._draft = Draft(limits)
        self._content_size = 0

    def run(self, stream: Readable) -> Ingested:
        """Read the archive and write the pack."""
        self._file.write(bytes(HEADER_SIZE))
        reader = TarReader(stream, self._recipe.record, self._limits)
        entries = 0
        while (member := reader.next()) is not None:
            entries += 1
            if entries > self._limits.entries:
                raise LayerError(
                    f"the layer has more than the limit of {self._limits.entries} entries"
                )
            self._apply(reader, member)
        diff_id, tar_size = reader.rest()
        return self._finish(diff_id, tar_size, entries)

    def _apply(self, reader: TarReader, member: Member) -> None:
        header = member.header
        names = self._draft.split(header.name)
        if self._draft.mark(names):
            reader.skip(member)
        elif member.is_regular:
            content = self._store(reader, member)
            self._draft.add_file(names, header, member.xattrs, content)
        elif header.type == b"1":
            self._draft.add_hardlink(names, header)
        elif header.type in b"5D":
            self._draft.add_directory(names, header, member.xattrs)
            reader.skip(member)
        else:
            self._draft.add_file(names, header, member.xattrs)

    def _store(self, reader: TarReader, member: Member) -> Content:
        size = member.sparse.size if member.sparse is not None else member.payload
        self._content_size += size
        if self._content_size > self._limits.content:
            raise LayerError(
                f"the contents up to {display(member.header.name)} are larger than the limit of"
                f" {self._limits.content} bytes"
            )
        pieces = reader.payload(member)
        if member.sparse is None:
            if not size:
                return Content(0, 0, 0)
            content = self._writer.content(pieces)
            self._recipe.payload(content)
            return content
        return self._store_sparse(reader, member)

    def _store_sparse(self, reader: TarReader, member: Member) -> Content:
        """The file with its holes; what the tar has of it is kept with the headers."""
        assert member.sparse is not None

        def packed() -> Iterator[bytes]:
            for piece in reader.payload(member):
                self._recipe.record(piece)
                yield piece

        pieces = packed()
        content = self._writer.content(expand(*member.sparse, pieces))
        for _ in pieces:  # lets the reader see the end of the payload
            pass
        return content

    def _finish(self, diff_id: bytes, tar_size: int, entries: int) -> Ingested:
        residue_first = self._recipe.finish()
        tree = DraftTree(self._draft)
        tables = Tables()
        emit(tree, tables)
        writer = self._writer
        sources = [diff_id, *writer.others]
        header = Header(
            role=LAYER,
            flags=0 if tables.whiteouts or tree.unresolved else COMPLETE,
            identity=diff_id,
            tar_size=tar_size,
            entries=entries,
            content_size=tables.content_size,
            residue_size=self._recipe.size,
            residue_first=residue_first,
            unresolved=tree.unresolved,
            sums_crc=0,
            metadata=0,
            sections={},
        )
        sections = tables.sections() | {
            "refs": little_endian(writer.refs),
            "chunks": writer.table,
            "sources": b"".join(map(SOURCE_ROW.pack, sources)),
            "recipe": self._recipe.rows,
        }
        stored = write_index(self._file, writer.offset, header, sections)
        return Ingested(
            diff_id=diff_id,
            tar_size=tar_size,
            entries=entries,
            new_chunks=[(digest, Location(diff_id, *where)) for digest, *where in writer.new],
            sources=tuple(writer.others),
            stored=stored,
            unresolved=bool(tree.unresolved),
        )
