"""``lamina system df`` and the prune commands as a user meets them."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import tarfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cli.errors import Failure
from cli.filters import moment, selection
from tests.support.command import Lamina

pytestmark = pytest.mark.timeout(100)

NOW = datetime(2026, 5, 6, 7, 8, 9, tzinfo=UTC)


@pytest.fixture
def box(lamina: Lamina, busybox_tar: Path, tmp_path: Path) -> Lamina:
    """A store with a named image that came compressed, and one without a name."""
    archive = tmp_path / "box.oci.tar"
    source = Lamina(tmp_path / "source")
    source("import", busybox_tar, "box:1")
    source("save", "--format", "oci-dir", "-o", tmp_path / "oci", "box:1")
    _recompress(tmp_path / "oci", archive)
    lamina("load", "-i", archive)
    lamina("import", "-c", "LABEL a=b", busybox_tar)
    return lamina


def _recompress(layout: Path, archive: Path) -> None:
    """The archive of a layout whose layer was compressed by somebody else."""
    index = json.loads((layout / "index.json").read_bytes())
    blobs = layout / "blobs" / "sha256"
    manifest = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    (layer,) = manifest["layers"]
    data = gzip.compress(gzip.decompress((blobs / layer["digest"][7:]).read_bytes()), 9)
    _put(blobs, data, layer)
    _put(blobs, json.dumps(manifest).encode(), index["manifests"][0])
    (layout / "index.json").write_text(json.dumps(index))
    with tarfile.open(archive, "w") as out:
        out.add(layout, "")


def _put(blobs: Path, data: bytes, descriptor: dict[str, Any]) -> None:
    name = hashlib.sha256(data).hexdigest()
    descriptor.update(digest=f"sha256:{name}", size=len(data))
    (blobs / name).write_bytes(data)


def total(text: str) -> str:
    found = re.search(r"^Total reclaimed space: (.*)$", text, re.MULTILINE)
    assert found is not None
    return found[1]


def test_df_counts_kept_layers_and_shows_each_in_detail(box: Lamina) -> None:
    lines = box("system", "df").stdout.splitlines()
    assert [re.split(r"\s{2,}", line)[0] for line in lines] == [
        "TYPE",
        "Images",
        "Containers",
        "Local Volumes",
        "Build Cache",
        "Compressed Layers",
    ]
    assert re.fullmatch(r"Compressed Layers +1 +1 +[\d.]+MB +[\d.]+MB \(100%\)", lines[-1])
    rows = [
        json.loads(line) for line in box("system", "df", "--format", "json").stdout.splitlines()
    ]
    assert [row["TotalCount"] for row in rows] == ["2", "0", "0", "0", "1"]
    details = box("system", "df", "-v").stdout
    assert re.search(
        r"Compressed layers space usage:\n\nLAYER ID .*\n[0-9a-f]{12} .* box:1\n", details
    )
    document = json.loads(box("system", "df", "-v", "--format", "json").stdout)
    assert [row["Repository"] for row in document["Images"]].count("box") == 1
    assert document["Volumes"] == document["BuildCache"] == []
    (layer,) = document["CompressedLayers"]
    assert layer["Images"] == "box:1"
    shown = box("system", "df", "-v", "--format", "{{len .Images}}").stdout
    assert shown == "2\n"
    assert box("system", "df", "-v", "--format", "{{.Nope}}", check=False).returncode != 0


def test_kept_layers_are_given_up_only_after_saying_what_is_lost(box: Lamina) -> None:
    question = box("image", "prune", "--compressed", stdin="")
    assert question.stdout == (
        "WARNING! This will remove all dangling images and all compressed layers that are kept.\n"
        "Saved as OCI archives, these images get other digests: box:1\n"
        "Are you sure you want to continue? [y/N] "
    )
    assert question.returncode == 0
    kept = [path.name for path in (box.root / "blobs").iterdir()]
    box("system", "prune", "-a", "-f", "--filter", "label=none")
    assert [path.name for path in (box.root / "blobs").iterdir()] == kept
    done = box("system", "prune", "--compressed", stdin="y\n").stdout
    assert "    Saved as OCI archives, these images get other digests: box:1\n" in done
    assert f"\nGiven Up Compressed Layers:\nsha256:{kept[0]}\n\nTotal reclaimed space: " in done
    assert total(done).endswith("MB")
    assert list((box.root / "blobs").iterdir()) == []
    assert box("verify", "-q").stdout == ""


def test_prunes_remove_what_filters_select(box: Lamina) -> None:
    nothing = "Total reclaimed space: 0B\n"
    for words in (
        ["--filter", "label=c"],
        ["--filter", "label=a=c"],
        ["--filter", "label!=a"],
        ["--filter", "until=24h"],
        ["--filter", "until=2001-02-03"],
    ):
        assert box("image", "prune", "-f", *words).stdout == nothing
    done = box("image", "prune", "-f", "--filter", "label=a=b", "--filter", "until=0s").stdout
    assert done.startswith("Deleted Images:\ndeleted: sha256:")
    assert box("images", "-q").stdout.count("\n") == 1
    for words in (["bad=x"], ["until=xx"], ["until=1h", "--filter", "until=2h"], ["until"]):
        wrong = box("image", "prune", "-f", "--filter", *words, check=False)
        assert (wrong.returncode, wrong.stdout) == (1, "")
    assert box("container", "prune", "-f").stdout == nothing


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("24h", NOW - timedelta(hours=24)),
        ("1h30m10s", NOW - timedelta(hours=1, minutes=30, seconds=10)),
        ("1.5h", NOW - timedelta(minutes=90)),
        ("250ms", NOW - timedelta(milliseconds=250)),
        ("24", datetime(1970, 1, 1, 0, 0, 24, tzinfo=UTC)),
        ("1136073600", datetime(2006, 1, 1, tzinfo=UTC)),
        ("1136073600.5", datetime(2006, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)),
        ("2006-01-02T15:04:05Z", datetime(2006, 1, 2, 15, 4, 5, tzinfo=UTC)),
        ("2006-01-02T15:04:05+02:00", datetime(2006, 1, 2, 13, 4, 5, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_docker_reads_them(text: str, expected: datetime) -> None:
    assert moment(text, NOW) == expected
    assert selection([f"until={text}"], NOW).until == expected


@pytest.mark.parametrize("text", ["", "h", "1h2", "yesterday", "1" * 40, "-1h", "1e400h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(Failure, match="failed to parse value as time or duration"):
        moment(text, NOW)
