"""Layers in, one mounted tree out.

The ground floor of lamina. It knows directories and packs as layers, joins them into one tree
(:mod:`unionfs.tree`) and mounts it. It knows nothing of images, tags or registries, reads neither
arguments nor environment, and never prints. Names and paths are :class:`bytes` throughout.
"""
