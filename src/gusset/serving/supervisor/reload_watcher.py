"""Notices changes of a model folder, for `--reload`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path, PurePath
from typing import Any

from watchfiles import Change, awatch

from gusset.errors import HostError

_DEBOUNCE = 200  # milliseconds without a change: saving several files counts as one change
_CANCEL_POLL = 500  # milliseconds until the watch notices that it was cancelled


async def changes(folder: Path, is_ignored: Callable[[Path], bool]) -> AsyncIterator[str]:
    """Yield the path of a changed source file within the folder, once no more changes follow.

    All changes between two steps of the iteration count as one, and one of their files is named.
    Paths for which `is_ignored` is true do not count.

    Raises:
        HostError: the folder cannot be watched.
    """

    def is_relevant(_: Change, path: str) -> bool:
        return is_source(PurePath(path).relative_to(folder)) and not is_ignored(Path(path))

    options: dict[str, Any] = {
        "step": _DEBOUNCE,
        "rust_timeout": _CANCEL_POLL,
        "ignore_permission_denied": True,
    }
    watch = awatch(folder, watch_filter=is_relevant, **options)
    while True:
        try:
            changed = await anext(watch)
        except StopAsyncIteration:
            return
        except (OSError, RuntimeError) as error:  # RuntimeError: an error of the library's native part
            raise HostError(
                f"{folder} cannot be watched for changes: {error}", hint="start without --reload"
            ) from None
        yield str(PurePath(min(path for _, path in changed)).relative_to(folder))


def is_source(path: PurePath) -> bool:
    """Whether a path within the folder is a file that people write, not left by Python or an editor."""
    if any(part.startswith(".") or part in ("__pycache__", "node_modules") for part in path.parts):
        return False
    name = path.name
    # Emacs: name~ and #name#. vim: name~, and 4913 to test whether it can write. Python: byte code.
    return not (name.endswith(("~", ".pyc", ".pyo", ".bak")) or name.startswith("#") or name == "4913")
