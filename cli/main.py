"""Where the ``lamina`` program begins: it imports nothing before an interrupt is harmless."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command line and exit. No exception leaves this function but SystemExit."""
    # An interrupt during the imports ends the program as it would any other, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .app import run  # noqa: PLC0415

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
