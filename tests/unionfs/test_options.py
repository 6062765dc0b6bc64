"""What the options of fuse-lamina mean, and that fuse-overlayfs' are taken as it takes them."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from pyfuse3 import FileHandleT, FUSEError

import unionfs.attach
from cli.fuse_lamina import read
from cli.mount_options import UsageError, build_options
from tests.support.machine import REPOSITORY
from tests.support.mounts import mounted, mountpoints_below, unmount
from tests.unionfs.trees import open_tree
from unionfs import handshake, mounting
from unionfs.errors import MountError
from unionfs.mounting import MountOptions
from unionfs.operations import UnionOperations
from unionfs.options import Durability, Redirects, TreeOptions
from unionfs.owners import Owners

SOMEBODY = 1234


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
        ("xattr_permissions=0", TreeOptions(override=None)),
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


OPTIONS_OF_FUSE_OVERLAYFS = [
    "redirect_dir=off", "uidmapping=0:0:100000", "gidmapping=0:0:100000", "squash_to_root",
    "squash_to_uid=3", "squash_to_gid=3", "xattr_permissions=0", "xattr_permissions=1",
    "xattr_permissions=2", "timeout=0", "timeout=0.5", "writeback=0", "writeback=1", "fsync=0",
    "fsync=1", "sync=1", "volatile", "threaded=0", "threaded=1", "fast_ino=1", "fast_ino_check=0",
    "ino32_t", "static_nlink", "noacl", "noxattrs=1", "plugins=", "allow_root", "allow_other",
    "default_permissions", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime",
    "diratime", "nodiratime", "splice_write", "splice_read", "splice_move", "kernel_cache",
    "max_write=65536", "ro", "rw", "fsname=name", "clone_fd", "max_idle_threads=5",
    "auto_unmount",
]  # fmt: skip

OPTIONS_OF_MOUNT = [
    "defaults", "auto", "noauto", "nofail", "_netdev", "user", "user=somebody", "users", "nouser",
    "owner", "group", "x-systemd.automount", "x-systemd.requires=/srv", "X-mount.mkdir",
    "comment=a b", "relatime", "norelatime", "strictatime", "nostrictatime", "lazytime",
    "nolazytime", "nosymfollow", "symfollow", "silent", "loud", "mand", "nomand", "iversion",
    "sync", "async", "dirsync", "context=a:b:c", "fscontext=a:b:c", "defcontext=a:b:c",
    "rootcontext=a:b:c", "xino=auto", "index=on", "userxattr",
]  # fmt: skip


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


# -- mounting ----------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    """A lower directory with a file, and empty directories; what is mounted is taken away."""
    for name in ("low", "upper", "work", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "low/f").write_bytes(b"lower")
    yield tmp_path
    for mountpoint in reversed(mountpoints_below(tmp_path)):
        unmount(mountpoint, lazy=True)


def places(base: Path) -> str:
    return f"lowerdir={base}/low,upperdir={base}/upper,workdir={base}/work"


def mount(base: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """``fuse-lamina -o ...``; what is not an option is added by the caller."""
    return subprocess.run(
        [sys.executable, "-m", "cli.fuse_lamina", "-o", places(base), *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )


def shown(mountpoint: Path) -> tuple[str, str, set[str]]:
    """Source, type and flags of a mount, as the kernel says."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, kind, flags, *_ = line.split()
        if place == str(mountpoint):
            return source, kind, set(flags.split(","))
    raise AssertionError(f"nothing is mounted at {mountpoint}")


FUSE_WORDS = {"user_id=0", "group_id=0", "default_permissions", "allow_other"}


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("rw", {"rw", "noatime"}),
        ("ro", {"ro", "noatime"}),
        ("ro,rw,suid,dev,exec,async", {"rw", "noatime"}),
        ("nosuid,nodev,noexec", {"rw", "nosuid", "nodev", "noexec", "noatime"}),
        ("atime", {"rw", "relatime"}),
        ("noatime,relatime", {"rw", "relatime"}),
        ("strictatime,nodiratime", {"rw", "nodiratime"}),
        ("strictatime,noatime", {"rw", "noatime"}),
        ("sync,dirsync", {"rw", "sync", "dirsync", "noatime"}),
        ("lazytime", {"rw", "lazytime", "noatime"}),
        ("nosymfollow", {"rw", "nosymfollow", "noatime"}),
        ("defaults,noauto,user,nofail,mand,silent", {"rw", "noatime"}),
    ],
)
def test_flags_are_those_of_the_mount_table(base: Path, options: str, expected: set[str]) -> None:
    done = mount(base, "source", base / "mnt", "-o", options)
    assert (done.returncode, done.stderr) == (0, "")
    assert shown(base / "mnt") == ("source", "fuse.lamina", expected | FUSE_WORDS)


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), {"rw", "noatime"}),
        (
            ("nosuid", "nodev", "noexec", "sync", "dirsync"),
            {"rw", "noexec", "noatime", "sync", "dirsync"},
        ),
        (("atime", "nodiratime", "lazytime"), {"rw", "relatime"}),
    ],
)
def test_fusermount3_is_told_the_flags_that_it_knows(
    base: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], expected: set[str]
) -> None:
    """As an ordinary user mounts: the same handshake, and the mount ends with its daemon."""
    monkeypatch.setattr("unionfs.syscalls.has_capability", lambda number: number != 21)
    options = MountOptions(
        lowers=(os.fsencode(base / "low"),),
        upper=os.fsencode(base / "upper"),
        work=os.fsencode(base / "work"),
        mountpoint=os.fsencode(base / "mnt"),
        fsname="a, b\\c",
        subtype="some,type",
        allow_other=True,
        flags=flags,
    )
    daemon = mounting.start(options)
    source, kind, words = shown(base / "mnt")
    assert (source, kind) == ("a,\\040b\\134c", "fuse.some,type")
    assert words == expected | {"nosuid", "nodev"} | FUSE_WORDS
    os.kill(daemon, 9)
    os.waitpid(daemon, 0)
    deadline = time.monotonic() + 20
    while mountpoints_below(base) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert mountpoints_below(base) == []


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize(
    "option",
    [
        option
        for option in OPTIONS_OF_FUSE_OVERLAYFS
        if not option.startswith(("splice", "kernel_cache", "diratime", "nodiratime"))
    ],
)
@pytest.mark.peer("fuse-overlayfs")
def test_what_mounts_with_fuse_overlayfs_mounts_here(base: Path, option: str) -> None:
    """The same option string to both: files of the lower can be read, new ones be made.

    A few of the options make fuse-overlayfs 1.10 fail, which its version 2 takes.
    """
    for program in (
        ["fuse-overlayfs"],
        [sys.executable, "-m", "cli.fuse_lamina"],
    ):
        subprocess.run(
            [*program, "-o", f"{places(base)},{option}", base / "mnt"],
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            check=True,
            capture_output=True,
        )
        assert (base / "mnt/f").read_bytes() == b"lower"
        if option != "ro":
            (base / "mnt" / f"by-{program[0].rpartition('/')[2]}").touch()
        unmount(base / "mnt")
        _forget_volatile(base)


def _forget_volatile(base: Path) -> None:
    shutil.rmtree(base / "work/work/incompat/volatile", ignore_errors=True)


@pytest.mark.fuse
@pytest.mark.root
def test_the_same_as_with_debug_is_said_to_whoever_asks(base: Path) -> None:
    with subprocess.Popen(
        [
            sys.executable,
            "-m",
            "cli.fuse_lamina",
            base / "mnt",
            "-o",
            places(base) + ",kernel_cache,debug",
        ],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    ) as daemon:
        deadline = time.monotonic() + 20
        while not os.path.ismount(base / "mnt"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        unmount(base / "mnt")
        assert daemon.stderr is not None
        assert "INFO option kernel_cache changes nothing" in daemon.stderr.read()
    assert daemon.returncode == 0


@pytest.mark.fuse
@pytest.mark.root
def test_a_volatile_mount_marks_its_directories_as_kernel_overlayfs_does(base: Path) -> None:
    mark = base / "work/work/incompat/volatile"
    assert mount(base, base / "mnt", "-o", "volatile").returncode == 0
    assert [path.name for path in mark.iterdir()] == ["dirty"]
    with (base / "mnt/f").open("r+b") as file:
        os.fsync(file.fileno())
    unmount(base / "mnt")
    for options in ("rw", "volatile", "ro"):
        done = mount(base, base / "mnt", "-o", options)
        assert done.returncode == 1
        assert f"workdir {base}/work was used by a volatile mount" in done.stderr
        assert f"remove the directory {mark} if" in done.stderr
    assert mountpoints_below(base) == []
    kernel = ["mount", "-t", "overlay", "overlay", "-o", places(base), str(base / "mnt")]
    assert subprocess.run(kernel, capture_output=True, check=False).returncode != 0
    _forget_volatile(base)
    assert mount(base, base / "mnt").returncode == 0
    assert not mark.exists()


@pytest.mark.fuse
@pytest.mark.root
def test_a_volatile_mount_of_kernel_overlayfs_is_refused_too(base: Path) -> None:
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", places(base) + ",volatile", base / "mnt"],
        check=True,
    )
    unmount(base / "mnt")
    assert [path.name for path in (base / "work/work/incompat/volatile").iterdir()] == ["dirty"]
    assert "was used by a volatile mount" in mount(base, base / "mnt").stderr
    _forget_volatile(base)
    assert mount(base, base / "mnt").returncode == 0


@pytest.mark.fuse
@pytest.mark.root
def test_a_mount_that_fails_is_not_marked_as_volatile(base: Path) -> None:
    done = mount(base, base / "none", "-o", "volatile")
    assert done.returncode == 1
    assert list((base / "work").rglob("volatile")) == []


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.parametrize("options", ["fsync=1", "fsync=0", "volatile", "sync"])
def test_fsync_succeeds_whether_it_reaches_the_disk_or_not(base: Path, options: str) -> None:
    with mounted(
        base / "mnt", [base / "low"], base / "upper", base / "work", [options, "debug"]
    ) as union:
        (union / "new").write_bytes(b"1")
        for path in (union, union / "f", union / "new") * 2:
            fd = os.open(path, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
        with (union / "new").open("r+b") as file:
            file.write(b"2")
            os.fdatasync(file.fileno())
            os.sync()
    assert (base / "upper/new").read_bytes() == b"2"


@pytest.mark.parametrize("syncs", [True, False])
def test_a_daemon_that_does_not_wait_for_the_disk_says_so_once_and_for_all(
    base: Path, no_umask: None, syncs: bool
) -> None:
    """ENOSYS is what the kernel remembers, and shows as success."""
    tree = open_tree([base / "low"], base / "upper", base / "work")
    operations = UnionOperations(tree, cached_seconds=1, fsync=syncs)
    root = FileHandleT(tree.root.number)
    file = FileHandleT(tree.lookup(tree.root, b"f").number)
    for handler, handle in ((operations.fsync, file), (operations.fsyncdir, root)):
        if syncs:
            trio.run(handler, handle, False)
            continue
        with pytest.raises(FUSEError) as raised:
            trio.run(handler, handle, False)
        assert raised.value.errno == errno.ENOSYS
    tree.close()


def run_as(uid: int, directory: Path, code: str) -> str:
    """What a program prints that an ordinary user runs in a directory."""
    preamble = (
        "import os, sys\nos.chdir(sys.argv[1])\nos.setgroups([])\n"
        f"os.setgid({uid})\nos.setuid({uid})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", preamble + code, str(directory)],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr.rpartition("Error: ")[2]


@pytest.mark.fuse
@pytest.mark.root
def test_allow_root_turns_everybody_else_away(base: Path) -> None:
    os.chmod(base, 0o755)
    os.chmod(base / "low/f", 0o666)
    code = "print(open('mnt/f').read()); open('mnt/f', 'a').close()"
    with mounted(
        base / "mnt", [base / "low"], base / "upper", base / "work", ["allow_root"]
    ) as union:
        assert "Permission denied" in run_as(SOMEBODY, base, code)
        assert "Permission denied" in run_as(SOMEBODY, base, "print(os.listdir('mnt'))")
        assert (union / "f").read_bytes() == b"lower"
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work") as union:
        assert run_as(SOMEBODY, base, code) == "lower\n"


@pytest.mark.fuse
@pytest.mark.root
def test_without_xattrs_there_are_none(base: Path) -> None:
    os.setxattr(base / "low/f", "user.x", b"1")
    attempts: list[Callable[[Path], object]] = [
        os.listxattr,
        lambda path: os.getxattr(path, "user.x"),
        lambda path: os.setxattr(path, "user.x", b"2"),
        lambda path: os.removexattr(path, "user.x"),
    ]
    options = ["noxattrs=1"]
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work", options) as union:
        for attempt in attempts * 2:
            with pytest.raises(OSError, match=os.strerror(errno.ENOTSUP)):
                attempt(union / "f")
        (union / "f").write_bytes(b"new")
    assert os.getxattr(base / "upper/f", "user.x") == b"1"


@pytest.mark.fuse
@pytest.mark.root
def test_a_timeout_lets_changes_behind_the_mount_be_seen(base: Path) -> None:
    options = ["timeout=0"]
    with mounted(base / "mnt", [base / "low"], base / "upper", base / "work", options) as union:
        (union / "new").write_bytes(b"1")
        assert os.stat(union / "new").st_mode & 0o777 == 0o644
        os.chmod(base / "upper/new", 0o600)
        assert os.stat(union / "new").st_mode & 0o777 == 0o600


@pytest.mark.fuse
@pytest.mark.root
def test_a_dead_mount_is_known_though_the_kernel_remembers_it(base: Path) -> None:
    line = read(["-o", places(base), str(base / "mnt")])
    options = build_options(line.given, line.places)
    daemon = mounting.start(options)
    os.stat(base / "mnt")
    os.kill(daemon, 9)
    os.waitpid(daemon, 0)
    assert os.stat(base / "mnt").st_mode & 0o777 == 0o755, "the kernel asks nobody"
    with pytest.raises(MountError, match=r"mountpoint .* holds a mount whose daemon died"):
        mounting.start(options)
    mounting.unmount(os.fsencode(base / "mnt"))


# -- the handshake -------------------------------------------------------------------------------


def _messages(offered: int, asked: int, error: int = 0) -> tuple[bytes, bytes]:
    """INIT of protocol 7.45 and its reply, laid out by hand."""
    words = (7, 45, 1 << 17, offered)
    request = b"".join(
        number.to_bytes(size, sys.byteorder)
        for number, size in [(104, 4), (26, 4), (2, 8), (0, 8), (0, 4), (0, 4), (1, 4), (0, 4)]
        + [(word, 4) for word in words]
    ) + bytes(48)
    reply = (80).to_bytes(4, sys.byteorder) + error.to_bytes(4, sys.byteorder, signed=True)
    reply += (2).to_bytes(8, sys.byteorder)
    reply += b"".join(word.to_bytes(4, sys.byteorder) for word in (7, 36, 1 << 17, asked)) + bytes(
        48
    )
    return request, reply


@pytest.mark.parametrize(
    ("offered", "asked", "expected"),
    [
        (0xFFFFFFFF, 0x1, 0x41),
        (0xFFFFFFFF & ~0x40, 0x1, 0x1),
        (0x40, 0x41, 0x41),
    ],
)
def test_only_flags_that_the_kernel_offers_are_asked_for(
    offered: int, asked: int, expected: int
) -> None:
    request, reply = _messages(offered, asked)
    assert handshake.change_reply(request, reply) == _messages(offered, expected)[1]


def test_a_reply_that_is_an_error_is_told() -> None:
    request, reply = _messages(0, 0, -errno.EPROTO)
    with pytest.raises(MountError, match=os.strerror(errno.EPROTO)):
        handshake.change_reply(request, reply)


@pytest.mark.fuse
@pytest.mark.root
def test_a_mount_that_is_gone_before_it_began_is_an_error(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone unmounts between the system call and the first request."""

    def attach(options: MountOptions) -> tuple[int, None]:
        fd, _ = original(options)
        subprocess.run(["umount", "-l", options.mountpoint], check=True)
        return fd, None

    original = unionfs.attach.attach
    monkeypatch.setattr(mounting, "attach", attach)
    line = read(["-o", places(base), str(base / "mnt")])
    with pytest.raises(MountError, match="the mount ended as it began"):
        mounting.start(build_options(line.given, line.places))
    assert mountpoints_below(base) == []
