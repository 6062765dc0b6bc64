"""OCI image layouts of any content, right or wrong."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.snapshotter.helpers import Entry, config_of, sha256, tar

LAYER = "application/vnd.oci.image.layer.v1.tar"
CONFIG = "application/vnd.oci.image.config.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

Descriptor = dict[str, Any]


class Layout:
    """A layout in the making: blobs, and what the index tells of them."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}

    def blob(self, data: bytes, kind: str, **fields: Any) -> Descriptor:
        """Add a blob; its descriptor, with other ``fields`` than the right ones."""
        self.entries[f"blobs/sha256/{sha256(data)}"] = data
        right = {"mediaType": kind, "digest": f"sha256:{sha256(data)}", "size": len(data)}
        return {**right, **fields}

    def document(self, content: object, kind: str, **fields: Any) -> Descriptor:
        """Add a blob of JSON."""
        return self.blob(json.dumps(content).encode(), kind, **fields)

    def image(
        self, layers: Sequence[Descriptor], plain: Sequence[bytes], /, **fields: Any
    ) -> Descriptor:
        """Add an image of layers, whose uncompressed archives are ``plain``."""
        config = self.blob(config_of(plain), CONFIG)
        manifest = {"schemaVersion": 2, "config": config, "layers": list(layers), **fields}
        return self.document(manifest, MANIFEST)

    def index(self, manifests: Sequence[Descriptor], /, **fields: Any) -> Descriptor:
        """Add an index."""
        content = {"schemaVersion": 2, "manifests": list(manifests), **fields}
        return self.document(content, INDEX)

    def archive(self, *tops: Descriptor, **fields: Any) -> bytes:
        """The archive whose index.json names these."""
        index = {"schemaVersion": 2, "manifests": list(tops), **fields}
        return tar({**self.entries, "index.json": json.dumps(index).encode()})
