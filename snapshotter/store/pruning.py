"""Removing what is not used: Docker's ``prune`` commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from .. import digest
from .containers import RUNNING, Container
from .database import Database
from .images import Image


@dataclass(frozen=True)
class Selection:
    """What a prune may remove: what was made before ``until``, and has labels or has not.

    A label is ``KEY`` or ``KEY=VALUE``; all of ``labels`` and none of ``without`` must be there.
    """

    until: datetime | None = None
    labels: tuple[str, ...] = ()
    without: tuple[str, ...] = ()

    def fits(self, created: datetime, labels: dict[str, str]) -> bool:
        """Whether something made then, with these labels, is selected."""
        if self.until is not None and created > self.until:
            return False
        return all(has_label(labels, label) for label in self.labels) and not any(
            has_label(labels, label) for label in self.without
        )


def has_label(labels: Mapping[str, str], wanted: str) -> bool:
    """Whether a label ``KEY`` or ``KEY=VALUE`` is among some."""
    key, equals, value = wanted.partition("=")
    return key in labels and (not equals or labels[key] == value)


def unused_images(
    images: list[Image], database: Database, selection: Selection, *, every: bool
) -> list[Image]:
    """The images that may go now: without containers, and nameless unless ``every``.

    Nameless images that others were made from stay until those go.
    """
    used = {digest.text(image) for (image,) in database.rows("SELECT image FROM container")}
    parents = {image.parent for image in images}
    return [
        image
        for image in images
        if image.id not in used
        and (every or (not image.references and image.id not in parents))
        and selection.fits(image.created, image.config.process.labels or {})
    ]


def stopped_containers(containers: list[Container], selection: Selection) -> list[Container]:
    """The containers that may go: none that runs."""
    return [
        container
        for container in containers
        if container.status != RUNNING
        and selection.fits(container.created, container.config.labels)
    ]
