"""What images an archive describes: Docker's ``manifest.json``, or the index of an OCI layout."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from .. import models
from ..errors import ArchiveError, InvalidReference
from ..platforms import native
from ..reference import Reference
from ..store import Manifest, NewImage
from .contents import Contents

IMAGES_MAX = 4096
"""The most images, and indexes of images, that one archive may describe."""
LAYERS_MAX = 1000
"""The most layers of one image."""

_DEPTH_MAX = 4
_INDEXES = (models.OCI_INDEX, models.DOCKER_INDEX)
_MANIFESTS = (models.OCI_MANIFEST, models.DOCKER_MANIFEST)
_CONFIGS = (models.OCI_CONFIG, models.DOCKER_CONFIG)
_ATTESTATION = "vnd.docker.reference.type"

_Known = dict[tuple[str, str, int], list[NewImage]]
"""What descriptors (digest, media type, size) stand for."""


def described(contents: Contents) -> list[NewImage]:
    """The images of an archive, everything about them checked.

    Raises :class:`ArchiveError` for contradictions, missing members and wrong digests,
    :class:`unionfs.errors.LayerError` for a layer that could not be read.
    """
    if contents.has_document("manifest.json"):
        entries = models.decode(
            contents.document("manifest.json"), list[models.ArchiveImage], "manifest.json"
        )
        if len(entries) > IMAGES_MAX:
            raise _too_many_images()
        images = [_docker_image(contents, entry) for entry in entries]
        return _with_manifests(contents, images)
    if contents.has_document("index.json"):
        images = _layout_images(contents)
        if not images:
            raise ArchiveError(f"the archive has no image for {'/'.join(native())}")
        return images
    raise ArchiveError(
        "not an image archive: it has neither manifest.json nor index.json (a root filesystem is "
        "read by import)"
    )


def _docker_image(contents: Contents, entry: models.ArchiveImage) -> NewImage:
    config = contents.document(contents.checked(entry.config))
    _limit_layers(len(entry.layers or []), entry.config)
    layers = [contents.layer(contents.checked(name)) for name in entry.layers or []]
    _check(config, layers, entry.config)
    try:
        references = tuple(Reference.parse_tagged(tag) for tag in entry.repo_tags or [])
    except InvalidReference as error:
        raise ArchiveError(f"manifest.json: {entry.repo_tags}: {error}") from error
    return NewImage(config, references)


def _limit_layers(count: int, what: str) -> None:
    if count > LAYERS_MAX:
        raise ArchiveError(f"{what}: an image of {count} layers, {LAYERS_MAX} are allowed")


def _too_many_images() -> ArchiveError:
    return ArchiveError(f"the archive describes more than {IMAGES_MAX} images")


def _check(config: bytes, layers: list[str], what: str) -> None:
    """Raise unless the layers are those the configuration lists (image-spec, config.md)."""
    expected = models.parse_config(config, what).rootfs.diff_ids or []
    if len(expected) != len(layers):
        raise ArchiveError(
            f"{what} lists {len(expected)} layers, but the manifest has {len(layers)}"
        )
    for wanted, found in zip(expected, layers, strict=True):
        if wanted != found:
            raise ArchiveError(f"invalid diffID: {what} expects layer {wanted}, but got {found}")


def _with_manifests(contents: Contents, images: list[NewImage]) -> list[NewImage]:
    """Images of a Docker archive that is a layout as well, with their manifests.

    Without compressed layers there is nothing in these that is not in the configuration.
    """
    if not contents.has_document("index.json") or not contents.has_compressed():
        return images
    found = {image.config: image for image in _layout_images(contents)}
    return [
        replace(image, manifest=known.manifest, blobs=known.blobs)
        if (known := found.get(image.config)) is not None
        else image
        for image in images
    ]


def _layout_images(contents: Contents) -> list[NewImage]:
    layout = models.decode(contents.document("oci-layout"), dict[str, Any], "oci-layout")
    version = layout.get("imageLayoutVersion")
    if version != "1.0.0":
        raise ArchiveError(f"oci-layout: version {version!r} is not supported, 1.0.0 is")
    index = _index(contents.document("index.json"), "index.json")
    images: dict[bytes, NewImage] = {}
    read: _Known = {}
    for descriptor in index.manifests:
        references = tuple(_references(descriptor))
        for image in _images(contents, descriptor, 0, read):
            known = images.get(image.config, image)
            names = tuple(dict.fromkeys((*known.references, *references)))
            images[image.config] = replace(known, references=names)
    return list(images.values())


def _references(descriptor: models.Descriptor) -> list[Reference]:
    """The name the annotations of an index entry give, if it is a whole name and not just a tag."""
    annotations = descriptor.annotations or {}
    name = annotations.get(models.IMAGE_NAME) or annotations.get(models.REF_NAME) or ""
    if "/" not in name and ":" not in name:
        return []
    try:
        return [Reference.parse_tagged(name)]
    except InvalidReference as error:
        raise ArchiveError(f"index.json: {name}: {error}") from error


def _images(
    contents: Contents, descriptor: models.Descriptor, depth: int, known: _Known
) -> list[NewImage]:
    """The image a descriptor stands for, without a name; none for what is not an image.

    What is referred to many times is read once, or a few small indexes would keep us for days.
    """
    key = (descriptor.digest, descriptor.media_type, descriptor.size)
    if key not in known:
        if depth > _DEPTH_MAX:
            raise ArchiveError(f"index {descriptor.digest} is nested too deeply")
        if len(known) >= IMAGES_MAX:
            raise _too_many_images()
        known[key] = list(_read(contents, descriptor, depth, known))
    return known[key]


def _read(
    contents: Contents, descriptor: models.Descriptor, depth: int, known: _Known
) -> Iterator[NewImage]:
    if descriptor.media_type in _MANIFESTS:
        image = _manifest_image(contents, descriptor)
        if image is not None:
            yield image
    elif descriptor.media_type in _INDEXES:
        data = contents.document(contents.blob(descriptor))
        for nested in _index(data, descriptor.digest).manifests:
            found = _images(contents, nested, depth + 1, known) if _suits(nested) else []
            if found:
                yield found[0]
                return


def _suits(descriptor: models.Descriptor) -> bool:
    """Whether an entry of an index is an image for this machine."""
    if _ATTESTATION in (descriptor.annotations or {}):
        return False
    wanted = descriptor.platform
    return wanted is None or (wanted.os, wanted.architecture) == native()


def _manifest_image(contents: Contents, descriptor: models.Descriptor) -> NewImage | None:
    """The image of a manifest, layers checked; None if it is not an image's."""
    data = contents.document(contents.blob(descriptor))
    what = f"manifest {descriptor.digest}"
    _refuse_confusion(data, descriptor.media_type, what)
    manifest = models.decode(data, models.Manifest, what)
    if manifest.config.media_type not in _CONFIGS:
        return None
    config = contents.document(contents.blob(manifest.config))
    _limit_layers(len(manifest.layers), what)
    layers = [contents.layer(contents.blob(layer)) for layer in manifest.layers]
    _check(config, layers, f"config {manifest.config.digest}")
    blobs = tuple(filter(None, (contents.kept(layer) for layer in manifest.layers)))
    return NewImage(config, manifest=Manifest(descriptor.media_type, data), blobs=blobs)


def _index(data: bytes, what: str) -> models.Index:
    _refuse_confusion(data, None, what)
    return models.decode(data, models.Index, what)


def _refuse_confusion(data: bytes, media_type: str | None, what: str) -> None:
    """Raise if a document could be read as a manifest and as an index (CVE-2021-41190)."""
    fields = models.decode(data, dict[str, Any], what)
    if "manifests" in fields and ("layers" in fields or "config" in fields):
        raise ArchiveError(f"{what} is a manifest and an index at once")
    own = fields.get("mediaType")
    if media_type is not None and own is not None and own != media_type:
        raise ArchiveError(f"{what} says it is {own!r}, but is referred to as {media_type!r}")
