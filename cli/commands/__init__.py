"""The commands: one module for each, or for a close family. Imported only when called."""
