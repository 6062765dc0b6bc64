"""The ``-o`` options of ``fuse-lamina``: those of fuse-overlayfs, kernel overlayfs and mount(8)."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from unionfs.mounting import MountOptions
    from unionfs.options import Durability, TreeOptions
    from unionfs.owners import IdMap, Owners

log = logging.getLogger(__name__)

T = TypeVar("T")

_WITHOUT_MEANING = {
    # fuse-overlayfs and libfuse
    "auto_unmount", "big_writes", "blksize", "clone_fd", "default_permissions", "fast_ino",
    "fast_ino_check", "kernel_cache", "max_idle_threads", "max_read", "max_threads", "max_write",
    "no_splice_move", "no_splice_read", "no_splice_write", "nonempty", "plugins", "splice_move",
    "splice_read", "splice_write", "threaded",
    # kernel overlayfs: what lamina does by itself
    "index", "userxattr", "uuid", "xino",
    # podman, for what it mounts itself
    "bind", "private", "rbind", "rprivate", "rshared", "rslave", "shared", "slave", "unbindable",
    # fstab(5): for mount(8) and systemd, which pass them on; or gone from the kernel
    "_netdev", "auto", "comment", "defaults", "group", "helper", "iversion", "mand", "noauto",
    "nofail", "nogroup", "noiversion", "nomand", "noowner", "nouser", "nousers", "owner", "user",
    "users",
}  # fmt: skip
"""Options that are accepted, with any value, and change nothing."""

_CONTEXTS = ("context", "fscontext", "defcontext", "rootcontext")

_ID_MAX = 2**32 - 2
"""The id above it means "leave as it is" to chown(2)."""

_SWITCH = {"on": True, "off": False, "1": True, "0": False}


class UsageError(Exception):
    """The command line makes no sense; the message says what is wrong with it."""


class Given:
    """The options of a command line by name, to be taken out one by one.

    The last of a name decides. A value is None for an option without ``=``.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._values: dict[str, str | None] = {}
        for word in words:
            for item in _split_options(word):
                name, equals, value = item.partition("=")
                self._values.pop(name, None)
                self._values[name] = value if equals else None

    def names(self) -> list[str]:
        """What has not been taken out, in its order."""
        return list(self._values)

    def default(self, name: str, value: str) -> None:
        """Have an option with a value where it is not there."""
        self._values.setdefault(name, value)

    def has_value(self, name: str) -> bool:
        """Whether an option is there with a value."""
        return self._values.get(name) is not None

    def flag(self, name: str) -> bool:
        """Whether an option that takes no value is there."""
        if self.has_value(name):
            raise UsageError(f"option {name}={self._values[name]}: {name} takes no value")
        return self._values.pop(name, "") is None

    def text(self, name: str) -> str | None:
        """The value of an option, None where it is not there."""
        if name not in self._values:
            return None
        value = self._values.pop(name)
        if value is None:
            raise UsageError(f"option {name} needs a value: {name}=...")
        return value

    def choice(self, name: str, meanings: dict[str, T], default: T) -> T:
        """What the word means that is the value of an option."""
        value = self.text(name)
        if value is None:
            return default
        if value not in meanings:
            raise UsageError(f"option {name}={value}: say one of {', '.join(meanings)}")
        return meanings[value]

    def seconds(self, name: str) -> float | None:
        """A time, None where it is not there."""
        value = self.text(name)
        try:
            found = None if value is None else float(value)
        except ValueError:
            found = math.nan
        if found is not None and not 0 <= found < math.inf:
            raise UsageError(f"option {name}={value}: say a number of seconds")
        return found

    def user_id(self, name: str) -> int | None:
        """The number of a user or group, None where it is not there."""
        value = self.text(name)
        if value is not None and not (_is_number(value) and int(value) <= _ID_MAX):
            raise UsageError(f"option {name}={value}: say the number of an id")
        return None if value is None else int(value)

    def id_map(self, name: str) -> IdMap:
        """Ranges ``ID:HOSTID:COUNT[:...]``: ids on disk, ids shown, how many."""
        value = self.text(name) or ""
        words = [word for word in value.split(":") if word]
        numbers = [int(word) for word in words if _is_number(word)]
        ranges = tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=False))
        valid = len(words) == len(numbers) == 3 * len(ranges)
        if not valid or any(max(a, b) + count - 1 > _ID_MAX or not count for a, b, count in ranges):
            raise UsageError(f"option {name}={value}: say ID:SHOWN:COUNT[:ID:SHOWN:COUNT...]")
        return ranges


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdigit() and len(word) <= 10


def _split_options(word: str) -> list[str]:
    """Split at commas, which may be escaped; other escapes stay for lowerdir.

    Security contexts hold commas and are quoted, as mount(8) wants it.
    """
    items = [""]
    quoted = False
    characters = iter(word)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            items[-1] += following if following == "," else character + following
        elif character == "," and not quoted:
            items.append("")
        else:
            if character == '"' and items[-1].partition("=")[0] in _CONTEXTS:
                quoted = not quoted
            items[-1] += character
    return [item for item in items if item]


def split_escaped(text: str, separator: str) -> list[str]:
    """Split at a separator that no backslash precedes, and take the backslashes away."""
    words = [""]
    characters = iter(text)
    for character in characters:
        if character == "\\":
            following = next(characters, "")
            words[-1] += following if following in (separator, "\\") else character + following
        elif character == separator:
            words.append("")
        else:
            words[-1] += character
    return words


# -- what the options mean ---------------------------------------------------------------------


def build_options(given: Given, places: list[str]) -> MountOptions:
    """The mount that the options ask for; ``places`` are ``[SOURCE] MOUNTPOINT``.

    An option nobody knows is an error, one without meaning here is noted in the log.
    """
    from unionfs.mounting import MountOptions  # noqa: PLC0415

    if given.flag("remount"):
        raise UsageError("option remount: a mount cannot be changed; unmount it, then mount anew")
    upper, work = given.text("upperdir"), given.text("workdir")
    volatile = given.flag("volatile")
    tree = _tree_options(given, volatile)
    if tree.show_whiteouts and upper is not None:
        raise UsageError("option shwh: whiteouts are shown by a mount without upperdir only")
    source = places[0] if len(places) == 2 else ""
    fsname, subtype = given.text("fsname"), given.text("subtype")
    timeout = given.seconds("timeout")
    allow_root = given.flag("allow_root")
    contexts = _contexts(given)
    allow_other = (given.flag("allow_other") or os.geteuid() == 0) and not allow_root
    acls = not given.flag("noacl")
    xattrs = not given.choice("noxattrs", _SWITCH, default=False)
    writeback = given.choice("writeback", _SWITCH, default=True)
    lowers = _lowers(given.text("lowerdir") or "")
    flags = _rest(given)
    return MountOptions(
        lowers=lowers,
        upper=_absolute(_unescape(upper)) if upper else None,
        work=_absolute(_unescape(work)) if work else None,
        mountpoint=_absolute(places[-1]),
        fsname=fsname or source or "lamina",
        subtype=subtype or "lamina",
        allow_other=allow_other,
        allow_root=allow_root,
        tree=tree,
        volatile=volatile,
        acls=acls,
        xattrs=xattrs,
        writeback=writeback,
        contexts=contexts,
        cached_seconds=MountOptions.cached_seconds if timeout is None else timeout,
        read_only=[name for name in flags if name in ("ro", "rw")][-1:] == ["ro"],
        flags=tuple(name for name in flags if name not in ("ro", "rw")),
    )


def _tree_options(given: Given, volatile: bool) -> TreeOptions:
    from unionfs.options import Redirects, TreeOptions  # noqa: PLC0415
    from unionfs.overrides import CONTAINERS, PRIVILEGED  # noqa: PLC0415

    redirects = {
        "on": Redirects.ON,
        "follow": Redirects.FOLLOW,
        "nofollow": Redirects.NOFOLLOW,
        "off": Redirects.FOLLOW,  # as kernel overlayfs: made no more, but followed
    }
    dialects: dict[str, bool | None] = {"overlay": False, "aufs": True}
    overrides: dict[str, bytes | None] = {"0": b"", "1": PRIVILEGED, "2": CONTAINERS}
    default = TreeOptions()
    return TreeOptions(
        redirects=given.choice("redirect_dir", redirects, default.redirects),
        metacopy=given.choice("metacopy", _SWITCH, default.metacopy),
        aufs=given.choice("whiteout", dialects, default.aufs),
        show_whiteouts=given.flag("shwh"),
        count_subdirectories=not given.flag("static_nlink"),
        short_numbers=given.flag("ino32_t"),
        durability=_durability(given, volatile),
        owners=_owners(given),
        override=given.choice("xattr_permissions", overrides, default.override),
    )


def _durability(given: Given, volatile: bool) -> Durability:
    """With a value ``sync`` is fuse-overlayfs' other name of ``fsync``, without one a flag."""
    from unionfs.options import Durability  # noqa: PLC0415

    syncs = given.choice("fsync", _SWITCH, default=True)
    if given.has_value("sync"):
        syncs = given.choice("sync", _SWITCH, default=True)
    if volatile or not syncs:
        return Durability.VOLATILE
    return Durability.SYNCED if "sync" in given.names() else Durability.ORDERED


def _owners(given: Given) -> Owners:
    from unionfs.owners import Owners  # noqa: PLC0415

    root = 0 if given.flag("squash_to_root") else None
    uid, gid = given.user_id("squash_to_uid"), given.user_id("squash_to_gid")
    return Owners(
        uids=given.id_map("uidmapping"),
        gids=given.id_map("gidmapping"),
        squash_uid=root if uid is None else uid,
        squash_gid=root if gid is None else gid,
    )


def _contexts(given: Given) -> tuple[tuple[str, str], ...]:
    """The SELinux contexts, without quotes. mount(8) leaves them out where there is no SELinux."""
    found = [(name, given.text(name) or "") for name in _CONTEXTS if name in given.names()]
    if found and "selinuxfs" not in Path("/proc/filesystems").read_text(encoding="ascii"):
        log.info("no SELinux here: %s left out", ", ".join(name for name, _ in found))
        return ()
    return tuple((name, context.strip('"')) for name, context in found)


def _rest(given: Given) -> tuple[str, ...]:
    """The mount flags, once all other options that mean something have been taken out."""
    from unionfs.attach import FLAGS  # noqa: PLC0415

    flags = []
    for name in given.names():
        if name in FLAGS:
            given.flag(name)
            flags.append(name)
        elif name in _WITHOUT_MEANING or name.lower().startswith("x-"):
            log.info("option %s changes nothing", name)
        else:
            raise UsageError(f"unknown option: {name}")
    return tuple(flags)


def _lowers(text: str) -> tuple[bytes, ...]:
    paths = [path for path in split_escaped(text, ":") if path]
    for path in paths:
        if path.startswith("//") and not path.startswith("///"):
            raise UsageError(f"option lowerdir={path}: there are no layer plugins here")
    return tuple(map(_absolute, paths))


def _unescape(path: str) -> str:
    return ":".join(split_escaped(path, ":"))


def _absolute(path: str) -> bytes:
    return os.path.abspath(os.fsencode(path))
