"""``lamina save``: the forms an archive can have."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from backports import zstd

from tests.support.command import Lamina

pytestmark = pytest.mark.timeout(100)

PLAIN, GZIP, ZSTD = bytes, gzip.decompress, zstd.decompress


@pytest.fixture
def box(lamina: Lamina, busybox_tar: Path) -> Lamina:
    """A store with the image ``box:1``."""
    lamina("import", "--platform", "linux/arm64/v8", busybox_tar, "box:1")
    return lamina


def test_an_archive_is_compressed_as_its_suffix_says_unless_told_otherwise(
    box: Lamina, tmp_path: Path
) -> None:
    plain = box.run("save", "box:1").stdout
    for name, options, read in (
        ("a.tar", [], PLAIN),
        ("a.gz", [], GZIP),
        ("a.tar.gz", [], GZIP),
        ("a.tgz", [], GZIP),
        ("a.tar.zst", [], ZSTD),
        ("a.zst", [], ZSTD),
        ("b.tar.gz", ["--compress", "none"], PLAIN),
        ("b.tar", ["--compress", "gzip"], GZIP),
        ("b.gz", ["--compress", "zstd"], ZSTD),
    ):
        box("save", "-o", tmp_path / name, *options, "box:1")
        assert read((tmp_path / name).read_bytes()) == plain, name
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    assert zstd.decompress(box.run("save", "--compress", "zstd", "box:1").stdout) == plain


def test_compressed_archives_are_loaded_again(box: Lamina, tmp_path: Path, lamina: Lamina) -> None:
    for form in ("docker-archive", "oci-archive"):
        path = tmp_path / f"{form}.tar.gz"
        box("save", "--format", form, "-o", path, "box:1")
        assert lamina("load", "-i", path).stdout == "Loaded image: box:1\n"


def test_an_oci_layout_has_nothing_of_docker(box: Lamina, tmp_path: Path) -> None:
    done = box.run("save", "--format", "oci-archive", "box:1")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        names = set(archive.getnames())
    box("save", "--format", "oci-dir", "-o", tmp_path / "layout", "box:1")
    found = {str(path.relative_to(tmp_path / "layout")) for path in tmp_path.rglob("layout/**/*")}
    assert found == names
    assert {"index.json", "oci-layout"} <= names
    assert not {"manifest.json", "repositories"} & names
    index = json.loads((tmp_path / "layout" / "index.json").read_bytes())
    manifest = tmp_path / "layout" / "blobs" / index["manifests"][0]["digest"].replace(":", "/")
    (layer,) = json.loads(manifest.read_bytes())["layers"]
    assert layer["mediaType"] == "application/vnd.oci.image.layer.v1.tar+gzip"


def test_a_directory_is_written_only_where_there_is_nothing(box: Lamina, tmp_path: Path) -> None:
    command = ("save", "--format", "oci-dir", "box:1")
    assert "use the -o flag" in box(*command, check=False).stderr
    (tmp_path / "taken").write_text("mine")
    for place in (tmp_path / "taken", tmp_path, tmp_path / "no" / "where"):
        assert box(*command, "-o", place, check=False).returncode == 1
    wrong = box(*command, "-o", tmp_path / "x", "--compress", "gzip", check=False)
    assert "cannot be compressed" in wrong.stderr
    assert (tmp_path / "taken").read_text() == "mine"
    assert not (tmp_path / "x").exists()
    (tmp_path / "empty").mkdir()
    box(*command, "-o", tmp_path / "empty")
    assert (tmp_path / "empty" / "oci-layout").exists()


def test_a_layout_is_loaded_from_its_directory(box: Lamina, tmp_path: Path) -> None:
    box("save", "--format", "oci-dir", "-o", tmp_path / "layout", "box:1")
    box("rmi", "box:1")
    assert "Loaded image: box:1" in box("load", "-i", tmp_path / "layout").stdout
    assert "box" in box("images").stdout


@pytest.mark.parametrize("platform", ["linux/arm64", "linux/arm64/v8"])
def test_the_platform_an_image_has_may_be_named(box: Lamina, platform: str) -> None:
    assert box.run("save", "--platform", platform, "box:1").stdout == box.run("save", "box").stdout


def test_another_platform_is_refused_and_nothing_is_written(box: Lamina, tmp_path: Path) -> None:
    for platform in ("linux/amd64", "linux/arm64/v7"):
        done = box("save", "-o", tmp_path / "x", "--platform", platform, "box:1", check=False)
        assert done.returncode == 1
        assert done.stderr == (
            "lamina: image with reference box:1 was found but its platform (linux/arm64/v8) does "
            f"not match the specified platform ({platform})\n"
        )
    assert not (tmp_path / "x").exists()
    assert box("save", "--platform", "a/b/c/d", "box:1", check=False).returncode == 1
