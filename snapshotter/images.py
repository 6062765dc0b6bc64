"""Making images: from a root filesystem (``import``) and from a container (``commit``)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from unionfs.reading import ReadableTree

from . import compression, digest, dockerfile, models, platforms
from .diff import Difference, root_has_changed
from .export import flattened
from .progress import Counted, Progress, Readable
from .reference import Reference
from .store import Container, ContainerConfig, Image, NewImage, Store
from .views import View, container_view

_INHERITED = ("architecture", "os", "variant", "os.version", "os.features")
"""What a committed image has from its base besides layers, history and configuration."""


def import_rootfs(
    store: Store,
    stream: Readable,
    *,
    reference: str | None = None,
    changes: Sequence[str] = (),
    message: str = "",
    platform: str | None = None,
    source: str = "-",
    created: datetime | None = None,
    progress: Progress | None = None,
) -> Image:
    """Make an image with one layer, read from ``stream``: a tar, plain or compressed.

    ``changes`` are instructions as in a Dockerfile, ``message`` is the comment in the history
    ("Imported from ``source``" by default), ``platform`` is ``os/architecture[/variant]`` (this
    machine's by default), ``created`` the time the image is given (now by default). Raises
    ``InvalidReference``, ``InvalidChange``, :class:`unionfs.errors.LayerError`, :class:`OSError`.
    """
    references = _references(reference)
    config = dockerfile.apply(changes, {})
    if progress is not None:
        stream = Counted(stream, progress, source, "Importing", None)
    moment = models.format_time(created if created is not None else datetime.now(UTC))
    with store.session() as session:
        layer = session.add_layer(compression.plain(stream))
        document = {
            **platforms.parse(platform or "/".join(platforms.native())),
            "created": moment,
            "config": config,
            "rootfs": models.RootFS(diff_ids=[layer.diff_id]),
            "history": [
                models.History(created=moment, comment=message or f"Imported from {source}")
            ],
        }
        return session.add_images([NewImage(models.encode(document), references)])[0]


def commit(
    store: Store,
    container: Container,
    *,
    reference: str | None = None,
    author: str = "",
    message: str = "",
    changes: Sequence[str] = (),
    created: datetime | None = None,
    clamp: int | None = None,
    squash: bool = False,
) -> Image:
    """Make an image of a container: its image and one layer with what it changed.

    Only the container's upper is read, and what it refers to, whatever the size of the image;
    without changes the new image has no new layer. With ``squash`` it has a single layer that holds
    everything the container shows, no parent, and a history that says so. ``clamp`` is the latest
    time a file may have, in seconds since the epoch. Raises as :func:`import_rootfs` does, and
    ``NoSuchImage``.
    """
    references = _references(reference)
    base = store.image(container.image)
    document = msgspec.json.decode(base.config_bytes, type=dict[str, Any])
    config = dockerfile.apply(changes, _container_config(document, container.config))
    with store.session() as session:
        with container_view(store, container) as view:
            layer = session.add_layer(
                _whole(view, container, clamp) if squash else _difference(view, container, clamp)
            )
        below = [] if squash else [known.diff_id for known in base.layers]
        empty = layer.diff_id == digest.EMPTY_TAR
        moment = models.format_time(created if created is not None else datetime.now(UTC))
        history = models.History(
            created=moment,
            created_by=" ".join([*container.config.entrypoint, *container.config.cmd]),
            author=author or None,
            comment=message or None,
            empty_layer=empty,
        )
        new = {
            **{key: document[key] for key in _INHERITED if key in document},
            "created": moment,
            "config": config,
            "rootfs": models.RootFS(diff_ids=below if empty else [*below, layer.diff_id]),
            "history": [*_history(document, squash=squash), history],
        }
        if author:
            new["author"] = author
        parent = None if squash else base.id
        return session.add_images([NewImage(models.encode(new), references, parent)])[0]


def _difference(view: View, container: Container, clamp: int | None) -> Readable:
    """The layer of what a container has changed."""
    changed = root_has_changed(view.tree, container.pristine)
    return Difference(view.tree, clamp=clamp, with_root=changed)


def _whole(view: View, container: Container, clamp: int | None) -> Readable:
    """The layer of everything that a container shows."""
    if root_has_changed(view.tree, container.pristine):
        return flattened(view, clamp=clamp, root=view.tree.root)
    # The upper's root is as old as the container, and without privileges its owner is another.
    root = ReadableTree(view.tree.lowers[1:]).root
    known = view.shows(root) and view.has_attributes(root)
    return flattened(view, clamp=clamp, root=root if known else None)


def _history(document: dict[str, Any], *, squash: bool) -> list[dict[str, Any]]:
    """What made the image below; of a squashed image none of it is a layer any more."""
    entries: list[dict[str, Any]] = document.get("history") or []
    return [{**entry, "empty_layer": True} for entry in entries] if squash else entries


def _references(text: str | None) -> tuple[Reference, ...]:
    """The names a new image gets."""
    return (Reference.parse_tagged(text),) if text is not None else ()


def _container_config(document: dict[str, Any], container: ContainerConfig) -> dict[str, Any]:
    """The configuration of a container's image with what the container has otherwise.

    As in Docker, triggers for builds are not inherited.
    """
    config: dict[str, Any] = dict(document.get("config") or {})
    config.pop("OnBuild", None)
    for key, value in (
        ("Cmd", container.cmd),
        ("Entrypoint", container.entrypoint),
        ("Env", container.env),
        ("Labels", container.labels),
        ("StopSignal", container.stop_signal),
        ("User", container.user),
        ("WorkingDir", container.working_dir),
    ):
        config.pop(key, None)
        if value:
            config[key] = value
    return config
