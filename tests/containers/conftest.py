"""A store with an image to run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command import Lamina


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory, busybox_tar: Path) -> Iterator[Lamina]:
    """A store with the image ``box``, whose command tells that it ran."""
    command = Lamina(tmp_path_factory.mktemp("box") / "store")
    command("import", "-c", 'CMD ["echo", "it runs"]', "-c", "ENV A=1", busybox_tar, "box")
    yield command
    command.close()
