"""The one place where what goes wrong in a handler becomes an errno.

An exception other than FUSEError that leaves a pyfuse3 handler ends the main loop and with it the
mount. So each handler passes here: an :class:`OSError` is its errno, damaged data is EIO and named
in the log, and anything unforeseen is EIO and logged with its traceback.
"""

from __future__ import annotations

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

from pyfuse3 import FUSEError

from ..errors import UnionError

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


def answer(handler: Callable[P, Coroutine[Any, Any, R]]) -> Callable[P, Coroutine[Any, Any, R]]:
    """Let nothing but FUSEError out of a request handler."""

    @functools.wraps(handler)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return await handler(*args, **kwargs)
        except FUSEError:
            raise
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except UnionError as error:
            log.error("%s: %s", handler.__name__, error)
            raise FUSEError(errno.EIO) from None
        except Exception:
            log.exception("unforeseen error in %s", handler.__name__)
            raise FUSEError(errno.EIO) from None

    return guarded
