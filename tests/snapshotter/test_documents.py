"""Digests, times, platforms and made-up names."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime

import pytest

from snapshotter import digest, models, names, platforms
from snapshotter.errors import ArchiveError, InvalidPlatform


def test_only_strict_sha256_digests_become_names() -> None:
    assert digest.hexadecimal("sha256:" + "a" * 64) == "a" * 64
    for text in (
        "a" * 64,
        "sha256:" + "A" * 64,
        "sha512:" + "a" * 128,
        "sha256:../x",
        "",
        "sha256:",
    ):
        with pytest.raises(ArchiveError, match="invalid or unsupported digest"):
            digest.hexadecimal(text)


def test_chain_ids_follow_the_specification() -> None:
    first, second = ("sha256:" + letter * 64 for letter in "ab")
    expected = hashlib.sha256(f"{first} {second}".encode()).hexdigest()
    assert list(digest.chain([first, second])) == [first, f"sha256:{expected}"]


def test_times_of_any_tool_are_read() -> None:
    moment = datetime(2024, 1, 2, 3, 4, 5, 123456, tzinfo=UTC)
    assert models.parse_time("2024-01-02T03:04:05.123456789Z") == moment
    assert models.parse_time("2024-01-02T05:04:05.123456+02:00") == moment
    assert models.parse_time(models.format_time(moment)) == moment
    assert models.parse_time("0001-01-01T00:00:00Z").year == 1
    assert models.parse_time("yesterday") == models.parse_time(None)


def test_documents_are_limited_in_size() -> None:
    with pytest.raises(ArchiveError, match="x: larger than"):
        models.decode(b" " * (models.JSON_MAX + 1), dict, "x")
    with pytest.raises(ArchiveError, match="x: "):
        models.decode(b"[" * 100_000, list, "x")


def test_platforms_are_read_as_docker_does() -> None:
    assert platforms.parse("linux/arm64/v8") == {
        "os": "linux",
        "architecture": "arm64",
        "variant": "v8",
    }
    assert platforms.parse("x86_64") == {"os": "linux", "architecture": "amd64"}
    assert platforms.parse("linux")["os"] == "linux"
    for text in ("", "a/b/c/d", "linux//x"):
        with pytest.raises(InvalidPlatform):
            platforms.parse(text)


def test_suggested_names_are_names_and_end_in_a_number_when_many_are_taken() -> None:
    for _ in range(200):
        assert names.suggest().replace("_", "").isalpha()
    assert names.suggest(5)[-1].isdigit()
