"""Who a container runs as: names and numbers looked up in the image's files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.containers.errors import ContainerError
from snapshotter.containers.users import ID_MAX, User, resolve

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment
www:x:33:34:web:/var/www:/bin/false
7:x:1007:1007::/seven:
broken
homeless:x:40:40:::
"""
GROUP = b"""root:x:0:
wheel:x:10:root,www
www:x:34:
audio:x:29:www,other
9:x:1009:
"""


@pytest.mark.parametrize(
    ("text", "user"),
    [
        ("", User(0, 0, (10,), "/root")),
        ("root", User(0, 0, (10,), "/root")),
        ("0", User(0, 0, (10,), "/root")),
        ("www", User(33, 34, (10, 29), "/var/www")),
        ("33", User(33, 34, (10, 29), "/var/www")),
        ("www:audio", User(33, 29, (), "/var/www")),
        ("www:29", User(33, 29, (), "/var/www")),
        ("33:12345", User(33, 12345, (), "/var/www")),
        ("www:", User(33, 34, (10, 29), "/var/www")),
        (":audio", User(0, 29, (), "/root")),
        ("12345", User(12345, 0, (), "/")),
        ("12345:audio", User(12345, 29, (), "/")),
        ("7", User(1007, 1007, (), "/seven")),
        ("0:9", User(0, 1009, (), "/root")),
        ("homeless", User(40, 40, (), "/")),
        (str(ID_MAX), User(ID_MAX, 0, (), "/")),
    ],
)
def test_a_user_is_found_by_name_first_and_number_second(text: str, user: User) -> None:
    assert resolve(text, PASSWD, GROUP) == user


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nope", "unable to find user nope: no matching entries in passwd file"),
        ("root:nope", "unable to find group nope: no matching entries in group file"),
        (str(ID_MAX + 1), "out of range"),
        ("9" * 5000, "out of range"),
        ("root:" + "9" * 5000, "out of range"),
        ("-1", "unable to find user -1"),
    ],
)
def test_a_user_that_does_not_exist_is_refused(text: str, message: str) -> None:
    with pytest.raises(ContainerError, match=message) as caught:
        resolve(text, PASSWD, GROUP)
    assert caught.value.code == 125


def test_numbers_need_no_files() -> None:
    assert resolve("", b"", b"") == User(0, 0, (), "/")
    assert resolve("5:6", b"", b"") == User(5, 6, (), "/")


@given(st.text(max_size=20), st.binary(max_size=200), st.binary(max_size=200))
def test_hostile_files_give_a_user_or_an_error(text: str, passwd: bytes, group: bytes) -> None:
    try:
        user = resolve(text, passwd, group)
    except ContainerError:
        return
    assert 0 <= user.uid <= ID_MAX
    assert 0 <= user.gid <= ID_MAX
