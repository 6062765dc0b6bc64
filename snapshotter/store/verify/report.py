"""What a verification finds, whom it concerns, and what became of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from unionfs.errors import UnionError

from ... import digest
from ...errors import SnapshotterError
from ...progress import Progress
from ...reference import Reference
from ..blobs import Blobs
from ..database import Database
from ..layers import Layers

_log = logging.getLogger(__name__)


class State(Enum):
    """What became of a finding."""

    FOUND = "found"
    """Nothing was tried: the verification was only to look."""
    REPAIRED = "repaired"
    LOST = "lost"
    """It cannot be repaired from what the store has."""


class Finding(NamedTuple):
    """One thing that is wrong: where, what, and which images and so on it concerns, by name."""

    place: str
    problem: str
    state: State
    images: tuple[str, ...] = ()
    containers: tuple[str, ...] = ()
    snapshots: tuple[str, ...] = ()


@dataclass
class Report:
    """All that was found, and how much was looked at."""

    findings: list[Finding] = field(default_factory=list)
    images: int = 0
    containers: int = 0
    layers: int = 0
    blobs: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong, or nothing any more."""
        return all(finding.state is State.REPAIRED for finding in self.findings)


Repair = Callable[[], State]
"""Mends something, or as much of it as can be; says what became of it."""

_NEEDS = """
WITH RECURSIVE needs (number) AS (
    VALUES (?) UNION SELECT layer FROM layer_source JOIN needs ON source = number
)
"""
"""A layer and those that take chunks from it."""

_IMAGES_OF_LAYER = f"{_NEEDS} SELECT DISTINCT image FROM image_layer JOIN needs ON layer = number"  # noqa: S608
_SNAPSHOTS_OF_LAYER = (
    f"{_NEEDS} SELECT name FROM snapshot JOIN needs ON layer = needs.number ORDER BY name"  # noqa: S608
)

_IMAGES_OF_CHAIN = """
SELECT image FROM image_layer AS top WHERE chain = ? AND NOT EXISTS (
    SELECT 1 FROM image_layer WHERE image = top.image AND position > top.position
)
"""


@dataclass
class Work:
    """One verification: what it works with, and its report.

    ``workspace`` is where repairs make files; None if there are to be none. ``spare`` are layers of
    another store to take from. ``bad_layers`` are the numbers of layers that are not whole.
    """

    database: Database
    root: Path
    layers: Layers
    blobs: Blobs
    workspace: Path | None
    progress: Progress | None
    spare: Layers | None = None
    report: Report = field(default_factory=Report)
    bad_layers: set[int] = field(default_factory=set)

    def found(
        self,
        place: str,
        problem: str,
        repair: Repair | None = None,
        *,
        images: list[bytes] | None = None,
        containers: tuple[str, ...] = (),
        layer: int | None = None,
    ) -> State:
        """Note something that is wrong, and repair it if that is wanted and possible.

        It concerns ``images`` and their containers, ``containers``, and what needs ``layer``.
        """
        snapshots: tuple[str, ...] = ()
        if layer is not None:
            images = [image for (image,) in self.database.rows(_IMAGES_OF_LAYER, layer)]
            rows = self.database.rows(_SNAPSHOTS_OF_LAYER, layer)
            snapshots = tuple(name for (name,) in rows)
        state = State.FOUND
        if self.workspace is not None:
            state = State.LOST
            try:
                if repair is not None:
                    state = repair()
            except (OSError, UnionError, SnapshotterError) as error:
                _log.info("%s: not repaired: %s", place, error)
        self.report.findings.append(
            Finding(place, problem, state, *self._concerned(images or [], containers), snapshots)
        )
        return state

    def images_of_chain(self, chain: bytes) -> list[bytes]:
        """The images whose layers, all together, are a chain."""
        return [image for (image,) in self.database.rows(_IMAGES_OF_CHAIN, chain)]

    def _concerned(
        self, images: list[bytes], containers: tuple[str, ...]
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        names: list[str] = []
        users: list[str] = list(containers)
        for image in images:
            tags = self.database.rows(
                "SELECT name FROM reference WHERE image = ? ORDER BY name", image
            )
            names.extend(_familiar(tag) for (tag,) in tags)
            if not tags:
                names.append(digest.text(image))
            users.extend(
                name
                for (name,) in self.database.rows(
                    "SELECT name FROM container WHERE image = ? ORDER BY name", image
                )
            )
        return tuple(names), tuple(dict.fromkeys(users))


def _familiar(name: str) -> str:
    """A name as users type it; as it is if it is none."""
    try:
        return str(Reference.parse(name))
    except SnapshotterError:
        return name
