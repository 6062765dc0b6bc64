"""The command line as a user runs it: in a process of its own, with a store of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .machine import REPOSITORY, SEARCH_PATH
from .mounts import mountpoints_below, tracebacks_in, unmount

_TIMEOUT = 100
_TO_FORGET = ("SOURCE_DATE_EPOCH", "XDG_DATA_HOME")


def environment(**more: str) -> dict[str, str]:
    """The environment for this project's programs: the sources on the path, a plain locale."""
    kept = {name: value for name, value in os.environ.items() if name not in _TO_FORGET}
    plain = {"PYTHONPATH": str(REPOSITORY), "PATH": SEARCH_PATH, "LC_ALL": "C.UTF-8"}
    return kept | plain | more


class Lamina:
    """Runs ``lamina --root ROOT ...``."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def argv(self, *arguments: str | Path) -> list[str]:
        """The argument list of a call, for tests that start the process themselves."""
        program = [sys.executable, "-m", "cli.main", "--root", str(self.root)]
        return program + [str(argument) for argument in arguments]

    def run(
        self,
        *arguments: str | Path,
        stdin: bytes = b"",
        check: bool = True,
        environ: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run to the end. With ``check`` any exit code but 0 fails the test with the output."""
        result = subprocess.run(
            self.argv(*arguments),
            input=stdin,
            env=environment(**(environ or {})),
            capture_output=True,
            timeout=_TIMEOUT,
            check=False,
        )
        assert not check or result.returncode == 0, (
            f"lamina {' '.join(map(str, arguments))}: exit code {result.returncode}\n"
            f"{result.stdout[-2000:].decode(errors='replace')}"
            f"{result.stderr[-4000:].decode(errors='replace')}"
        )
        return result

    def __call__(
        self,
        *arguments: str | Path,
        stdin: str = "",
        check: bool = True,
        environ: dict[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """The same with text: what is printed is decoded as UTF-8."""
        raw = self.run(*arguments, stdin=stdin.encode(), check=check, environ=environ)
        return subprocess.CompletedProcess(
            raw.args, raw.returncode, raw.stdout.decode(), raw.stderr.decode()
        )

    def close(self) -> None:
        """Remove containers and mounts; fail when a mount was left or a daemon logged a traceback.

        Containers are removed by the program: an ordinary user cannot remove files whose owners
        are subordinate ids.
        """
        left = sorted(mountpoints_below(self.root), reverse=True)
        running = self.root.exists() and self("ps", "-aq", check=False).stdout.split()
        if running:
            self("rm", "-f", *running, check=False)
        for mountpoint in mountpoints_below(self.root):
            unmount(mountpoint, lazy=True)
        assert not tracebacks_in(self.root), "\n".join(tracebacks_in(self.root))
        assert running or not left, f"the test left mounts behind: {left}"
