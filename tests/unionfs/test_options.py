"""How the options of fuse-lamina are read: fuse-overlayfs' as it takes them, and mount(8)'s."""

from __future__ import annotations

import pytest

from cli.fuse_lamina import read
from cli.mount_options import UsageError, build_options
from tests.unionfs.known_options import OPTIONS_OF_FUSE_OVERLAYFS, OPTIONS_OF_MOUNT
from unionfs.mounting import MountOptions
from unionfs.options import Durability, Redirects, TreeOptions
from unionfs.owners import Owners


def parsed(options: str) -> MountOptions:
    line = read(["-o", f"lowerdir=/a,{options}", "/mnt"])
    return build_options(line.given, line.places)


# -- parsing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw", TreeOptions()),
        ("redirect_dir=on", TreeOptions(redirects=Redirects.ON)),
        ("redirect_dir=follow", TreeOptions(redirects=Redirects.FOLLOW)),
        ("redirect_dir=nofollow", TreeOptions(redirects=Redirects.NOFOLLOW)),
        ("redirect_dir=off", TreeOptions(redirects=Redirects.FOLLOW)),
        ("metacopy=on", TreeOptions(metacopy=True)),
        ("metacopy=1,metacopy=0", TreeOptions(metacopy=False)),
        ("metacopy=off", TreeOptions(metacopy=False)),
        ("whiteout=overlay", TreeOptions(aufs=False)),
        ("whiteout=aufs", TreeOptions(aufs=True)),
        ("shwh", TreeOptions(show_whiteouts=True)),
        ("static_nlink", TreeOptions(count_subdirectories=False)),
        ("ino32_t", TreeOptions(short_numbers=True)),
        ("fsync=1", TreeOptions(durability=Durability.ORDERED)),
        ("fsync=0", TreeOptions(durability=Durability.VOLATILE)),
        ("sync=0", TreeOptions(durability=Durability.VOLATILE)),
        ("sync=1", TreeOptions(durability=Durability.ORDERED)),
        ("sync", TreeOptions(durability=Durability.SYNCED)),
        ("volatile", TreeOptions(durability=Durability.VOLATILE)),
        ("volatile,sync", TreeOptions(durability=Durability.VOLATILE)),
        ("xattr_permissions=0", TreeOptions(override=b"")),
        ("xattr_permissions=1", TreeOptions(override=b"security.fuseoverlayfs.override_stat")),
        ("xattr_permissions=2", TreeOptions(override=b"user.containers.override_stat")),
        ("squash_to_root", TreeOptions(owners=Owners(squash_uid=0, squash_gid=0))),
        ("squash_to_uid=5", TreeOptions(owners=Owners(squash_uid=5))),
        ("squash_to_root,squash_to_gid=7", TreeOptions(owners=Owners(squash_uid=0, squash_gid=7))),
        (
            "uidmapping=0:100000:65536:65536:5:1,gidmapping=:0:1:2",
            TreeOptions(owners=Owners(uids=((0, 100000, 65536), (65536, 5, 1)), gids=((0, 1, 2),))),
        ),
    ],
)
def test_options_of_the_tree(options: str, expected: TreeOptions) -> None:
    assert parsed(options).tree == expected


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        ("timeout=1.5", "cached_seconds", 1.5),
        ("timeout=1000000000", "cached_seconds", 1e9),
        ("rw", "cached_seconds", 86400.0),
        ("writeback=0", "writeback", False),
        ("writeback=1", "writeback", True),
        ("noacl", "acls", False),
        ("noxattrs=1", "xattrs", False),
        ("noxattrs=0", "xattrs", True),
        ("volatile", "volatile", True),
        ("fsync=0", "volatile", False),
        ("subtype=name", "subtype", "name"),
        ("fsname=name,fsname=other", "fsname", "other"),
        ("allow_root", "allow_root", True),
        ("allow_root,allow_other", "allow_other", False),
        ("upperdir=/u\\:p,workdir=/w", "upper", b"/u:p"),
        ("upperdir=/u:p,workdir=/w", "upper", b"/u:p"),
        ("upperdir=/u\\\\p\\,,workdir=/w", "upper", b"/u\\p,"),
        ("lazytime,relatime", "flags", ("lazytime", "relatime")),
    ],
)
def test_options_of_the_mount(options: str, field: str, value: object) -> None:
    assert getattr(parsed(options), field) == value


@pytest.mark.parametrize("option", OPTIONS_OF_FUSE_OVERLAYFS + OPTIONS_OF_MOUNT)
def test_every_option_of_the_others_is_taken(option: str) -> None:
    assert parsed(option).lowers == (b"/a",)


def test_options_without_meaning_are_noted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    parsed("kernel_cache,max_write=5,noacl,nofail,x-systemd.automount")
    assert [record.message for record in caplog.records] == [
        f"option {name} changes nothing"
        for name in ("kernel_cache", "max_write", "nofail", "x-systemd.automount")
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("redirect_dir=maybe", "option redirect_dir=maybe: say one of on, follow, nofollow, off"),
        ("metacopy=2", "option metacopy=2: say one of on, off, 1, 0"),
        ("metacopy", "option metacopy needs a value: metacopy=..."),
        ("whiteout=unionfs", "option whiteout=unionfs: say one of overlay, aufs"),
        ("xattr_permissions=3", "option xattr_permissions=3: say one of 0, 1, 2"),
        ("timeout=soon", "option timeout=soon: say a number of seconds"),
        ("timeout=-1", "option timeout=-1: say a number of seconds"),
        ("timeout=nan", "option timeout=nan: say a number of seconds"),
        ("timeout=inf", "option timeout=inf: say a number of seconds"),
        ("squash_to_uid=-1", "option squash_to_uid=-1: say the number of an id"),
        ("squash_to_gid=4294967295", "option squash_to_gid=4294967295: say the number of an id"),
        ("squash_to_root=1", "option squash_to_root=1: squash_to_root takes no value"),
        ("ro=1", "option ro=1: ro takes no value"),
        ("uidmapping=0:1", "option uidmapping=0:1: say ID:SHOWN:COUNT"),
        ("uidmapping=0:1:0", "option uidmapping=0:1:0: say ID:SHOWN:COUNT"),
        ("uidmapping=0:1:4294967295", "option uidmapping=0:1:4294967295: say ID:SHOWN:COUNT"),
        ("gidmapping=a:b:c", "option gidmapping=a:b:c: say ID:SHOWN:COUNT"),
        ("remount,ro", "option remount: a mount cannot be changed"),
        (
            "shwh,upperdir=/u,workdir=/w",
            "option shwh: whiteouts are shown by a mount without upper",
        ),
        (
            "lowerdir=/a://plugin/data/b",
            "option lowerdir=//plugin/data/b: there are no layer plugins",
        ),
        ("lowerdir+=/b", "unknown option: lowerdir+"),
        ("y-systemd", "unknown option: y-systemd"),
    ],
)
def test_a_wrong_value_is_named(options: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        parsed(options)
    assert str(raised.value).startswith(said)


def test_contexts_may_hold_commas_in_quotes() -> None:
    line = read(
        ["/mnt", "-o", 'context="u:r:t:s0:c1,c2",ro,rootcontext=u:r:t', "-o", "lowerdir=/a"]
    )
    assert line.given.names() == ["context", "ro", "rootcontext", "lowerdir"]
    assert line.given.text("context") == '"u:r:t:s0:c1,c2"'
