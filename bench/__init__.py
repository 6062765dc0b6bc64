"""How fast lamina is beside its peers on this machine. Not part of what is installed."""
