"""Image names: the grammar and its normal form."""

from __future__ import annotations

import pytest

from snapshotter.errors import InvalidReference
from snapshotter.reference import Reference


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("busybox", "docker.io/library/busybox", "busybox"),
        ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
        ("team/app", "docker.io/team/app", "team/app"),
        ("docker.io/busybox", "docker.io/library/busybox", "busybox"),
        ("index.docker.io/library/x", "docker.io/library/x", "x"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("docker.io/example.org/a", "docker.io/example.org/a", "docker.io/example.org/a"),
        ("docker.io/localhost/a", "docker.io/localhost/a", "docker.io/localhost/a"),
        ("localhost/app", "localhost/app", "localhost/app"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("127.0.0.1:5000/team/app", "127.0.0.1:5000/team/app", "127.0.0.1:5000/team/app"),
        ("[::1]:5000/app", "[::1]:5000/app", "[::1]:5000/app"),
        ("UPPER/app", "UPPER/app", "UPPER/app"),
        ("a__b.c-d---e_f", "docker.io/library/a__b.c-d---e_f", "a__b.c-d---e_f"),
        (
            "app:1@sha256:" + "a" * 64,
            "docker.io/library/app:1@sha256:" + "a" * 64,
            "app:1@sha256:" + "a" * 64,
        ),
    ],
)
def test_names_have_one_full_and_one_familiar_form(text: str, full: str, familiar: str) -> None:
    reference = Reference.parse(text)
    assert reference.full == full
    assert str(reference) == familiar
    assert Reference.parse(full) == reference
    assert Reference.parse(familiar) == reference


@pytest.mark.parametrize(
    "text",
    ["", "-a", "a..b", "a/", "/a", "a:", "a:" + "t" * 129, "a@sha256:12", "a___b", "a b", "a:b:c"],
)
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(InvalidReference, match=r"^invalid reference format$"):
        Reference.parse(text)


def test_refusals_say_what_is_wrong() -> None:
    with pytest.raises(InvalidReference, match=r"repository name \(Case\) must be lowercase"):
        Reference.parse("Case")
    with pytest.raises(InvalidReference, match="must not be more than 255 characters"):
        Reference.parse("a" * 256)
    with pytest.raises(InvalidReference, match="64-byte hexadecimal"):
        Reference.parse("0" * 64)
    with pytest.raises(InvalidReference, match="digest"):
        Reference.parse_tagged("a@sha256:" + "0" * 64)


def test_latest_is_the_default_tag() -> None:
    assert str(Reference.parse_tagged("a")) == "a:latest"
    assert Reference.parse("a@sha256:" + "0" * 64).tagged().tag is None
