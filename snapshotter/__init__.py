"""Images, layers and containers: the store, commits, and archives.

Knows no command line, no terminal and no environment variable; times and progress come in as
parameters. Import from the modules: nothing is loaded that a caller does not use.
"""
