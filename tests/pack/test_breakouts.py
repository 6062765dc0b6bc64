"""Layers that try to break out show what they say inside themselves, or are refused by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.pack.applied import Sights, applied, layer, seen_on_disk
from tests.pack.breakouts import BREAKOUTS, CONTAINERD, SECRET
from tests.pack.test_applying import described
from tests.support.mounts import mounted
from unionfs.errors import LayerError

_MOUNTED = [
    "SymlinkAbsolute", "DirectoryOverrideSymlinkAndHardlink", "SymlinkOverridePath",
    "HardlinkSymlinkChmod", "CVE-2025-4138, a target longer than a path",
    "CVE-2020-27833, symlinks one after the other",
]  # fmt: skip


@pytest.fixture
def jail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory to work in, deep in one with files that are nobody's business."""
    (tmp_path / SECRET).write_text("secret")
    (tmp_path / "a" / SECRET).parent.mkdir()
    (tmp_path / "a" / SECRET).write_text("secret")
    (tmp_path / "a" / "jail").mkdir()
    monkeypatch.chdir(tmp_path / "a")
    return tmp_path / "a" / "jail"


def outside(jail: Path) -> Sights:
    """Everything beside the jail, and the names in /tmp that the layers are after."""
    root = jail.parents[1]
    inside = os.fsencode(jail.relative_to(root))
    seen = {
        path: sight for path, sight in seen_on_disk(root).items() if not path.startswith(inside)
    }
    assert not os.path.lexists(f"/tmp/{SECRET}")
    assert not os.path.lexists("/tmp/f")
    return seen


def test_all_of_containerds_cases_are_there() -> None:
    assert len(CONTAINERD) == 34


@pytest.mark.parametrize("name", BREAKOUTS)
def test_a_layer_stays_inside(jail: Path, name: str) -> None:
    layers, expected = BREAKOUTS[name]
    before = outside(jail)
    archives = [layer(*each) for each in layers]
    if isinstance(expected, str):
        with pytest.raises(LayerError, match=expected):
            applied(jail, *archives)
    else:
        assert described(applied(jail, *archives)) == expected
    assert outside(jail) == before


@pytest.mark.fuse
@pytest.mark.parametrize("name", _MOUNTED)
def test_a_mounted_layer_stays_inside(jail: Path, name: str) -> None:
    layers, expected = BREAKOUTS[name]
    before = outside(jail)
    applied(jail / "packs", *(layer(*each) for each in layers))
    with mounted(jail / "mnt", [jail / "packs" / "merged"], jail / "upper", jail / "work") as at:
        assert described(seen_on_disk(at)) == expected
        for path in seen_on_disk(at):
            place = os.path.join(os.fsencode(at), path)
            os.utime(place, (5, 5), follow_symlinks=False)
            os.chown(place, 0, 0, follow_symlinks=False)
    assert outside(jail) == before
