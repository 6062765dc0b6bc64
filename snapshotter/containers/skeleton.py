"""Files and directories that a container has although its image and its upper do not.

Mount points have to exist. They are made in a layer below the image, so the image's own files
win, and a commit never finds any of them.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from .bundle import ETC_FILES

_DIRECTORIES = ("dev", "dev/pts", "dev/shm", "dev/mqueue", "proc", "sys", "etc")
_HOSTS = """127.0.0.1\tlocalhost
::1\tlocalhost ip6-localhost ip6-loopback
fe00::0\tip6-localnet
ff00::0\tip6-mcastprefix
ff02::1\tip6-allnodes
ff02::2\tip6-allrouters
"""


def make_skeleton(directory: Path) -> None:
    """Make the layer of mount points in ``directory``, which is empty."""
    directory.chmod(0o755)
    for name in _DIRECTORIES:
        path = directory / name
        path.mkdir()
        path.chmod(0o755)
    # Where the runtime binds a device for the terminal of a container.
    for name in ("dev/console", *(f"etc/{name}" for name in ETC_FILES)):
        path = directory / name
        path.touch()
        path.chmod(0o644)
    os.symlink("/proc/mounts", directory / "etc" / "mtab")


def make_files(directory: Path, *, hostname: str, network: str) -> None:
    """Write the container's own hosts, hostname and resolv.conf into the new ``directory``."""
    directory.mkdir(mode=0o755)
    resolver = Path("/etc/resolv.conf")
    has_names = network == "host" and resolver.is_file()
    contents = {
        "hosts": _HOSTS if network != "host" else _HOSTS + f"127.0.1.1\t{hostname}\n",
        "hostname": f"{hostname}\n",
        "resolv.conf": resolver.read_text("utf-8", "replace") if has_names else "",
    }
    for name, text in contents.items():
        path = directory / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o644)


def host_name(container_id: str, *, asked: str, network: str) -> str:
    """The hostname of a container: what was asked for, the host's, or the short ID."""
    if asked:
        return asked
    return socket.gethostname() if network == "host" else container_id[:12]
