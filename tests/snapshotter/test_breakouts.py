"""Layers that try to break out, loaded, unpacked into a directory of the host and exported."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from snapshotter.archive import load
from snapshotter.store import Store
from snapshotter.unpack import unpack
from tests.pack.applied import Sights, layer, seen_on_disk
from tests.pack.breakouts import BREAKOUTS, SECRET
from tests.pack.test_applying import described
from tests.snapshotter.helpers import config_of, docker_archive
from unionfs.errors import LayerError


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to unpack to, with a file beside it and one in the working directory."""
    place = tmp_path / "place"
    place.mkdir()
    (place / SECRET).write_text("secret")
    monkeypatch.chdir(place)
    return place / "target"


def beside(target: Path) -> Sights:
    """Everything beside the target, but for the time of the directory it comes into."""
    seen = seen_on_disk(target.parent)
    del seen[b""]
    assert not os.path.lexists(f"/tmp/{SECRET}")
    assert not os.path.lexists("/tmp/f")
    return {path: sight for path, sight in seen.items() if not path.startswith(b"target")}


@pytest.mark.root
@pytest.mark.parametrize("name", BREAKOUTS)
def test_an_image_is_unpacked_inside_its_directory_alone(
    store: Store, target: Path, name: str
) -> None:
    layers, expected = BREAKOUTS[name]
    archives = [layer(*each) for each in layers]
    archive = io.BytesIO(docker_archive(config_of(archives), archives))
    before = beside(target)
    if isinstance(expected, str):
        with pytest.raises(LayerError, match=expected):
            load(store, archive)
        assert store.images() == []
    else:
        (loaded,) = load(store, archive)
        unpack(store, loaded.image, target)
        assert described(seen_on_disk(target)) == expected
    assert beside(target) == before
