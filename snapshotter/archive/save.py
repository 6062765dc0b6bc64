"""Writing images into an archive.

The same images and names always give the same bytes: times are 0, owners root, blobs in a fixed
order. What describes the images comes first, so that a reader knows a layer when it comes by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import digest
from ..errors import InvalidReference, StoreError
from ..progress import Progress
from ..reference import Reference
from ..store import Image, Session, Store
from .described import BLOBS, Content, DockerContent, OciContent, Source
from .output import DirectoryOutput, Output, TarOutput, Writable, atomic_directory


def save(
    store: Store, names: Sequence[str], out: Writable, progress: Progress | None = None
) -> None:
    """Write the images with these names, each with all its layers, as one archive.

    It is Docker's and an OCI layout at once, with plain layers. A repository without a tag stands
    for all its tags; an image named by its ID is saved without a name. Layers that several images
    share are written once. Raises ``NoSuchImage`` and its kin before anything is written,
    :class:`OSError`, and :class:`unionfs.errors.PackError` or ``StoreError`` for a damaged store.
    """
    with store.reading():
        content = DockerContent()
        for image, references in _select(store, names):
            content.add(image, references, store.layers)
        _write(content, TarOutput(out), progress)


def save_oci(
    store: Store, names: Sequence[str], out: Writable | Path, progress: Progress | None = None
) -> None:
    """Write an OCI layout: an archive, or a directory that must not exist yet or be empty.

    Images that came with a manifest go with it, and their layers are the bytes they came as; other
    layers are compressed. Names and errors are as in :func:`save`.
    """
    with store.session() as session:
        content = _oci_content(store, session, names, progress)
        if isinstance(out, Path):
            with atomic_directory(out) as directory:
                _write(content, DirectoryOutput(directory), progress)
        else:
            _write(content, TarOutput(out), progress)


def _oci_content(
    store: Store, session: Session, names: Sequence[str], progress: Progress | None
) -> OciContent:
    content = OciContent(store, session.directory, progress)
    for image, references in _select(store, names):
        content.add(image, references)
    return content


def selected(store: Store, names: Sequence[str]) -> list[Image]:
    """The images that :func:`save` would write for these names."""
    return [image for image, _ in _select(store, names)]


def _select(store: Store, names: Sequence[str]) -> list[tuple[Image, list[Reference]]]:
    """The images that the names stand for, each once, with the names to save them under."""
    selection: dict[str, tuple[Image, list[Reference]]] = {}
    for name in names:
        for image, references in _named(store, name):
            known = selection.setdefault(image.id, (image, []))[1]
            known.extend(reference for reference in references if reference not in known)
    return list(selection.values())


def _named(store: Store, name: str) -> list[tuple[Image, list[Reference]]]:
    """The images that one name stands for."""
    try:
        reference = Reference.parse(name)
    except InvalidReference:
        return [(store.image(name), [])]
    if reference.tag is None and reference.digest is None:
        found = [
            (image, [known for known in image.references if known.repository == str(reference)])
            for image in store.images()
        ]
        tagged = [(image, references) for image, references in found if references]
        if tagged:
            return tagged
    image = store.image(name)
    return [(image, [known for known in image.references if known == reference])]


def _write(content: Content, out: Output, progress: Progress | None) -> None:
    out.directory("blobs/")
    out.directory(BLOBS)
    for name, data in content.documents().items():
        out.file(name, len(data), [data])
    for source in content.sources.values():
        _write_source(source, out, progress)
    out.finish()


def _write_source(source: Source, out: Output, progress: Progress | None) -> None:
    """Write exactly the bytes of a digest, or raise."""
    label = digest.short(source.digest)
    done = 0
    with out.open(BLOBS + digest.hexadecimal(source.digest), source.size) as stream:
        for piece in source.pieces():
            stream.write(piece)
            done += len(piece)
            if progress is not None:
                progress(label, "Saving layer", done, source.size)
    if done != source.size:
        raise StoreError(f"layer {source.digest} is damaged: it has another size than it should")
