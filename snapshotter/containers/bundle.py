"""The OCI runtime configuration of a container (runtime-spec, config.md), Docker's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .settings import merge_env
from .users import User

if TYPE_CHECKING:
    from ..store import ContainerConfig

Document = dict[str, Any]

SPEC_VERSION = "1.0.2"
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# What Docker leaves to a container's root; the numbers are those of capabilities(7).
_CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}

_MASKED = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
]
_READ_ONLY = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

TTY_GROUP = 5


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What the configuration depends on besides the container itself.

    ``bounding`` is the capability bounding set of this process as a bit mask; more than that
    cannot be given. ``has_tty_group``: gid 5 exists in the user namespace.
    """

    in_user_namespace: bool
    has_tty_group: bool
    unified_cgroups: bool
    bounding: int


def runtime_config(
    *,
    rootfs: Path,
    args: list[str],
    env: list[str],
    working_dir: str,
    user: User,
    tty: bool,
    hostname: str,
    network: str,
    read_only: bool,
    files: Path | None,
    surroundings: Surroundings,
    cgroup: str | None,
) -> Document:
    """The ``config.json`` that makes a runtime run ``args`` in ``rootfs``.

    ``files`` is a directory with the container's own hosts, hostname and resolv.conf. There are
    no resource limits: setting one needs privileges that not every root has.
    """
    mounts = _mounts(surroundings, network)
    if files is not None:
        mounts += [_bind(files / name, f"/etc/{name}") for name in ETC_FILES]
    linux: Document = {
        "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        "namespaces": [{"type": kind} for kind in _namespaces(surroundings, network)],
        "maskedPaths": _MASKED,
        "readonlyPaths": _READ_ONLY,
    }
    if cgroup is not None:
        linux["cgroupsPath"] = cgroup
    return {
        "ociVersion": SPEC_VERSION,
        "process": {
            "terminal": tty,
            "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
            "args": args,
            "env": env,
            "cwd": working_dir or "/",
            "capabilities": capabilities(user.uid, surroundings.bounding),
            "noNewPrivileges": False,
        },
        "root": {"path": str(rootfs), "readonly": read_only},
        "hostname": hostname,
        "mounts": mounts,
        "linux": linux,
    }


ETC_FILES = ("hosts", "hostname", "resolv.conf")
"""The files under /etc that belong to the container and not to the image."""


def environment(config: ContainerConfig, user: User, hostname: str) -> list[str]:
    """The environment of the process: the usual, under what the image and the user set."""
    usual = [f"PATH={DEFAULT_PATH}", f"HOSTNAME={hostname}"]
    if config.tty:
        usual.append("TERM=xterm")
    return merge_env([*usual, f"HOME={user.home}"], config.env)


def capabilities(uid: int, bounding: int) -> dict[str, list[str]]:
    """The capability sets: Docker's default, without what this process cannot give."""
    names = [name for name, number in _CAPABILITIES.items() if bounding >> number & 1]
    # Anybody but root starts without any, and may get them only from a file.
    held = names if uid == 0 else []
    return {"bounding": names, "effective": held, "permitted": held}


def _namespaces(surroundings: Surroundings, network: str) -> list[str]:
    kinds = ["pid", "ipc", "uts", "mount"]
    if network != "host":
        kinds.append("network")
    if surroundings.unified_cgroups:
        kinds.append("cgroup")
    return kinds


def _mounts(surroundings: Surroundings, network: str) -> list[Document]:
    safe = ["nosuid", "noexec", "nodev"]
    pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if surroundings.has_tty_group:
        pts.append(f"gid={TTY_GROUP}")
    mounts = [
        _mount("/proc", "proc", "proc", safe),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount("/dev/pts", "devpts", "devpts", pts),
        _mount("/dev/shm", "tmpfs", "shm", [*safe, "mode=1777", "size=65536k"]),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", safe),
        _mount("/sys", "sysfs", "sysfs", [*safe, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", "cgroup", [*safe, "relatime", "ro"]),
    ]
    if network == "host" and surroundings.in_user_namespace:
        # A sysfs shows a network, so only who owns the network's namespace may mount a new one.
        mounts[5:] = [_mount("/sys", "none", "/sys", [*safe, "rbind", "ro"])]
    return mounts


def _mount(destination: str, kind: str, source: str, options: list[str]) -> Document:
    return {"destination": destination, "type": kind, "source": source, "options": options}


def _bind(source: Path, destination: str) -> Document:
    return _mount(destination, "bind", str(source), ["rbind", "rprivate"])
