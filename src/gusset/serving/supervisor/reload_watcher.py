"""Tells when a model folder has changed, for `--reload`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path, PurePath
from typing import Any

from watchfiles import Change, awatch

from gusset.errors import HostError

_QUIET = 200  # milliseconds without a change: a save of several files is one change
_LOOK = 500  # milliseconds in which the watch notices that it is no longer wanted


async def changes(folder: Path) -> AsyncIterator[None]:
    """Yield after each change of what a person writes, when the folder has come to rest.

    What changes between two steps of the iteration is one change.

    Raises:
        HostError: it cannot be watched.
    """

    def matters(_: Change, path: str) -> bool:
        return is_source(PurePath(path).relative_to(folder))

    options: dict[str, Any] = {"step": _QUIET, "rust_timeout": _LOOK, "ignore_permission_denied": True}
    watch = awatch(folder, watch_filter=matters, **options)
    while True:
        try:
            await anext(watch)
        except StopAsyncIteration:
            return
        except (OSError, RuntimeError) as error:  # RuntimeError: a fault of the library's native part
            raise HostError(
                f"{folder} cannot be watched for changes: {error}", hint="start without --reload"
            ) from None
        yield


def is_source(path: PurePath) -> bool:
    """Whether a path within the folder is more than what Python or an editor leaves there."""
    if any(part.startswith(".") or part in ("__pycache__", "node_modules") for part in path.parts):
        return False
    name = path.name
    # Emacs: name~ and #name#; vim: name~, and 4913 to see whether it may write; byte code.
    return not (name.endswith(("~", ".pyc", ".pyo", ".bak")) or name.startswith("#") or name == "4913")
