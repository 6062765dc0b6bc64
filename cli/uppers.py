"""Getting at what a container has changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .environment import search_path
from .errors import say
from .session import Session

if TYPE_CHECKING:
    from snapshotter.store import Container, Store


@contextmanager
def container_to_read(
    session: Session, name: str, *, pause: bool | None = False
) -> Iterator[tuple[Store, Container]]:
    """The store and one of its containers, whose files can be read as they are now.

    ``pause``: its processes stand still until the end of the block; None for "if that is possible".
    """
    from snapshotter.containers.pausing import CannotPause, paused, write_back  # noqa: PLC0415
    from snapshotter.containers.userns import become_owner  # noqa: PLC0415

    with session.store() as store:
        container = store.container(name)
    with ExitStack() as stack:
        if pause is not False:
            try:
                stack.enter_context(paused(container))
            except CannotPause as why:
                if pause:
                    raise
                say(f"{why}; it goes on while it is read")
        write_back(container, search_path())
        # What the container's users own can be read, and has the right owner, only as their root.
        become_owner(search_path())
        store = stack.enter_context(session.store())
        yield store, store.container(container.id)
