"""The pyfuse3 adapter: each request of the kernel becomes a call of the tree.

Nothing is decided here. Handlers are synchronous inside, so each is atomic for the others; only
fsync leaves the thread.
"""

from __future__ import annotations

from .attributes import AttributeOperations
from .contents import ContentOperations
from .directories import DirectoryOperations
from .names import NameOperations
from .xattrs import XattrOperations


class UnionOperations(
    NameOperations, AttributeOperations, DirectoryOperations, ContentOperations, XattrOperations
):
    """All operations of a union mount."""
