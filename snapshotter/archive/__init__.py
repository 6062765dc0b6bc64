"""Image archives, written and read: what ``docker save`` and the OCI image layout make.

Written is one form that both kinds of readers take, the blobs of an OCI layout (image-spec,
image-layout.md) with Docker's ``manifest.json`` and ``repositories`` beside them; or an OCI layout
whose manifests and layers are, to the byte, those that images came with.
"""

from __future__ import annotations

from .load import Loaded, load
from .output import Writable, atomic_output
from .save import save, save_oci, selected

__all__ = ["Loaded", "Writable", "atomic_output", "load", "save", "save_oci", "selected"]
