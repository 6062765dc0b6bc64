"""What an xattr says a file is meant to be: read, written, and put over what the host says."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unionfs import overrides
from unionfs.entry import Attributes
from unionfs.overrides import Override

ID_MAX = 2**32 - 2
IDS = st.integers(0, ID_MAX)
MODES = st.integers(0, 0o7777)
PLAIN = [0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK]
DEVICES = [stat.S_IFBLK, stat.S_IFCHR]
NUMBERS = st.builds(os.makedev, st.integers(0, 0xFFF), st.integers(0, 0xFFFFF))
OVERRIDES = st.one_of(
    st.builds(Override, IDS, IDS, MODES, st.sampled_from(PLAIN), st.just(0)),
    st.builds(
        Override, IDS, IDS, MODES, st.sampled_from(DEVICES), NUMBERS.filter(lambda rdev: rdev != 0)
    ),
)


def attributes(mode: int) -> Attributes:
    """A file of the user 1000 with some content."""
    return Attributes(7, 8, mode, 1, 1000, 1000, 0, 5000, 16, 1, 2, 3)


@given(OVERRIDES)
def test_what_was_written_is_read(override: Override) -> None:
    value = overrides.format(override)
    assert overrides.parse(value) == override
    assert len(value) <= 45 < overrides.VALUE_MAX


@pytest.mark.parametrize(
    ("value", "override"),
    [
        # as containers/storage writes them
        (b"1000:1011:0644:file", Override(1000, 1011, 0o644, stat.S_IFREG)),
        (b"1001:1012:0755:dir", Override(1001, 1012, 0o755, stat.S_IFDIR)),
        (b"1002:1013:0777:symlink", Override(1002, 1013, 0o777, stat.S_IFLNK)),
        (b"1003:1014:0666:pipe", Override(1003, 1014, 0o666, stat.S_IFIFO)),
        (b"1004:1015:0700:socket", Override(1004, 1015, 0o700, stat.S_IFSOCK)),
        (b"0:6:0600:block-8-0", Override(0, 6, 0o600, stat.S_IFBLK, os.makedev(8, 0))),
        (b"0:0:0666:char-1-3", Override(0, 0, 0o666, stat.S_IFCHR, os.makedev(1, 3))),
        (b"1012:1022:4755:file", Override(1012, 1022, 0o4755, stat.S_IFREG)),
        (b"0:0:0000:file", Override(0, 0, 0, stat.S_IFREG)),
    ],
)
def test_values_are_those_of_podman(value: bytes, override: Override) -> None:
    assert overrides.parse(value) == override
    assert overrides.format(override) == value


@pytest.mark.parametrize(
    ("value", "override"),
    [
        (b"0:0:555", Override(0, 0, 0o555)),
        (b"5:6:0", Override(5, 6, 0)),
        (b"0:0:100644", Override(0, 0, 0o644)),
        (b"0:0:40755", Override(0, 0, 0o755)),
        (b"0:0:41777", Override(0, 0, 0o1777)),
        (b"-2:-2147483648:644", Override(ID_MAX, 2**31, 0o644)),
        (b"4294967294:0:644", Override(ID_MAX, 0, 0o644)),
    ],
)
def test_values_of_fuse_overlayfs_are_understood(value: bytes, override: Override) -> None:
    assert overrides.parse(value) == override


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (b"0:0:644:file:later", stat.S_IFREG),
        (b"0:0:644:dir-later", stat.S_IFDIR),
        (b"0:0:644:char-1-3-later", stat.S_IFCHR),
        (b"0:0:644:char-1-3:\xff\n", stat.S_IFCHR),
    ],
)
def test_what_later_versions_add_is_passed_over(value: bytes, kind: int) -> None:
    found = overrides.parse(value)
    assert found is not None
    assert found.kind == kind


@pytest.mark.parametrize(
    "value",
    [
        b"", b":", b"::", b":::", b"0:0", b"0:0:", b"0::644", b":0:644", b"0:0:644:",
        b"0:0:644:bogus", b"0:0:644:filex", b"0:0:644:block", b"0:0:644:block-8",
        b"0:0:644:block8:0", b"0:0:644:char--1-3", b"0:0:644:char-1-", b"0:0:644:char-x-y",
        b"0:0:666:char-0-0", b"0:0:644:char-4096-0", b"0:0:644:char-1-1048576",
        b"0:0:644:char-99999999999-0",
        b"0:0:888", b"0:0:0o644", b"0:0:-644", b"0:0:77777777777777", b"a:0:644", b"0:b:644",
        b"-1:0:644", b"0:-1:644", b"4294967295:0:644", b"0:4294967296:644", b"-2147483649:0:644",
        b"99999999999:0:644", b"1_0:0:644", b"+1:0:644", b" 0:0:644", b"0:0:644\n", b"0:0:644\0",
        b"0:0:644:file" + b":" * 60, b"0" * 70 + b":0:644", "\u0661:0:644".encode(),
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_no_override(value: bytes) -> None:
    assert overrides.parse(value) is None


FIELDS = st.sampled_from(
    [b"0", b"-1", b"-2", b"1000", b"4294967294", b"4294967295", b"644", b"100644", b"", b"8",
     b"file", b"dir", b"symlink", b"pipe", b"socket", b"block-8-0", b"char-1-3", b"char-0-0",
     b"block-5000-1", b"char", b"x"]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=80), st.lists(FIELDS, max_size=6).map(b":".join)))
def test_whatever_the_value_what_is_read_makes_sense(value: bytes) -> None:
    found = overrides.parse(value)
    if found is None:
        return
    assert 0 <= found.uid <= ID_MAX
    assert 0 <= found.gid <= ID_MAX
    assert stat.S_IMODE(found.mode) == found.mode
    assert found.kind in PLAIN + DEVICES
    assert found.kind in DEVICES or found.rdev == 0
    assert overrides.parse(overrides.format(found)) == found


@given(OVERRIDES, st.sampled_from([stat.S_IFREG, stat.S_IFDIR]), MODES)
def test_owner_and_mode_are_as_meant_and_the_rest_as_it_is(
    override: Override, kind: int, mode: int
) -> None:
    before = attributes(kind | mode)
    after = overrides.apply(before, override)
    assert (after.uid, after.gid) == (override.uid, override.gid)
    assert stat.S_IMODE(after.mode) == override.mode
    kept = ("space", "number", "nlink", "atime_ns", "mtime_ns", "ctime_ns")
    assert [getattr(after, name) for name in kept] == [getattr(before, name) for name in kept]
    if after.kind == kind:
        assert (after.size, after.blocks, after.rdev) == (before.size, before.blocks, before.rdev)


@pytest.mark.parametrize("kind", [*DEVICES, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_regular_file_can_stand_for_a_special_one(kind: int) -> None:
    rdev = os.makedev(8, 1) if kind in DEVICES else 0
    found = overrides.apply(attributes(stat.S_IFREG | 0o755), Override(0, 6, 0o660, kind, rdev))
    assert found == Attributes(7, 8, kind | 0o660, 1, 0, 6, rdev, 0, 0, 1, 2, 3)


@pytest.mark.parametrize(
    ("host", "meant"),
    [
        (stat.S_IFREG, stat.S_IFDIR),
        (stat.S_IFREG, stat.S_IFLNK),
        (stat.S_IFDIR, stat.S_IFREG),
        (stat.S_IFDIR, stat.S_IFLNK),
        (stat.S_IFDIR, stat.S_IFIFO),
        (stat.S_IFDIR, stat.S_IFCHR),
    ],
)
def test_a_type_the_file_cannot_stand_for_is_passed_over(host: int, meant: int) -> None:
    rdev = os.makedev(1, 3) if meant == stat.S_IFCHR else 0
    found = overrides.apply(attributes(host | 0o700), Override(1, 2, 0o644, meant, rdev))
    assert found == attributes(host | 0o644)._replace(uid=1, gid=2)


@given(OVERRIDES, st.sampled_from([stat.S_IFLNK, *DEVICES, stat.S_IFIFO, stat.S_IFSOCK]))
def test_only_regular_files_and_directories_are_overridden(override: Override, kind: int) -> None:
    found = attributes(kind | 0o777)
    assert overrides.apply(found, override) == found


@pytest.mark.parametrize("name", [overrides.CONTAINERS, overrides.FUSE_OVERLAYFS])
def test_the_root_of_a_layer_tells_which_xattr_is_used(tmp_path: Path, name: bytes) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert overrides.used_in(fd) is None
        os.setxattr(fd, name, b"0:0:755")
        assert overrides.used_in(fd) == name
        os.setxattr(fd, overrides.CONTAINERS, b"0:0:755")
        assert overrides.used_in(fd) == overrides.CONTAINERS
    finally:
        os.close(fd)


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.EPERM])
def test_a_filesystem_without_xattrs_has_no_overrides(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "getxattr", refuse)
    assert overrides.used_in(0) is None


def test_a_root_that_cannot_be_read_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "getxattr", refuse)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        overrides.used_in(0)


@pytest.mark.root
def test_what_root_wrote_comes_first(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.setxattr(fd, overrides.CONTAINERS, b"0:0:755")
        os.setxattr(fd, overrides.PRIVILEGED, b"0:0:755")
        assert overrides.used_in(fd) == overrides.PRIVILEGED
    finally:
        os.close(fd)
