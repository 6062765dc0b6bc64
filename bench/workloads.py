"""What is timed: commands a person would run inside the tree, in this order on a fresh mount."""

from __future__ import annotations

import io
import subprocess
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

SMALL_FILES = 5000
SMALL_FILE_SIZE = 4096
FILES_IN_A_DIRECTORY = 50
BIG_FILE_MEBIBYTES = 512
SMALL_WRITES = 50_000


@dataclass(frozen=True)
class Workload:
    """A shell command, run in the root of the tree with $ARCHIVE naming the archive to unpack."""

    name: str
    command: str


WORKLOADS = [
    Workload("find -ls", "find . -xdev -ls > /dev/null"),
    Workload("find -ls, again", "find . -xdev -ls > /dev/null"),
    Workload("cat all files", "find . -xdev -type f -print0 | xargs -0 cat > /dev/null"),
    Workload("cat all files, again", "find . -xdev -type f -print0 | xargs -0 cat > /dev/null"),
    Workload("tar the tree", "tar -cf - . | cat > /dev/null"),
    Workload(
        f"unpack {SMALL_FILES} files of 4 KiB", 'mkdir bench-new && tar -xf "$ARCHIVE" -C bench-new'
    ),
    Workload("remove them", "rm -rf bench-new"),
    Workload(
        f"write {BIG_FILE_MEBIBYTES} MiB",
        f"dd if=/dev/zero of=bench-big bs=1M count={BIG_FILE_MEBIBYTES} status=none",
    ),
    Workload(
        f"write {SMALL_WRITES} times 4 KiB",
        f"dd if=/dev/zero of=bench-many bs=4k count={SMALL_WRITES} status=none",
    ),
    Workload("chmod -R g+w", "chmod -R g+w ."),
]


def make_archive(path: Path) -> None:
    """The archive that is unpacked: small files in directories of fifty."""
    content = bytes(range(256)) * (SMALL_FILE_SIZE // 256)
    with tarfile.open(path, "w") as tar:
        for number in range(SMALL_FILES):
            directory, index = divmod(number, FILES_IN_A_DIRECTORY)
            if index == 0:
                parent = tarfile.TarInfo(f"d{directory}")
                parent.type = tarfile.DIRTYPE
                parent.mode = 0o755
                tar.addfile(parent)
            entry = tarfile.TarInfo(f"d{directory}/f{index}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


def run(workload: Workload, directory: Path, archive: Path) -> float:
    """Seconds of wall time. Raises :class:`subprocess.CalledProcessError` when it fails."""
    started = time.perf_counter()
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", workload.command],
        cwd=directory,
        env={"PATH": "/usr/bin:/bin:/usr/sbin", "LC_ALL": "C", "ARCHIVE": str(archive)},
        check=True,
    )
    return time.perf_counter() - started


def fingerprint(directory: Path) -> str:
    """Names, types, sizes and targets of the whole tree as one digest, to see that peers agree."""
    listing = r"find . -xdev -printf '%P %y %m %l ' \( -type f -printf '%s\n' -o -printf '\n' \)"
    command = f"{listing} | LC_ALL=C sort | sha256sum"
    result = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=directory,
        check=True,
        capture_output=True,
        text=True,
    )
    return result.stdout.split()[0]
