"""The command line: reads arguments, environment and terminal, prints, sets exit codes.

Nothing here is meant to be imported by others. ``lamina --help`` and ``lamina --version`` load
nothing but click: every command lives in a module of its own that is imported when it is called.
"""

__version__ = "0.1.0"
