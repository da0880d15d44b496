"""Protects processes that `multiprocessing` starts anew, by `spawn` or as its fork server.

A fork inherits that its process is non-dumpable, but exec resets that. So every
such process makes itself non-dumpable first, before it gets anything over its
pipe, and so do those that it starts in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# The model may have chosen another interpreter for its processes, too old to read gusset's code.
_FIRST = f"""\
import ctypes, resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)  # PR_SET_DUMPABLE
try:
    import runpy
    runpy.run_path({str(Path(__file__).with_name("bootstrap.py"))!r})
    from gusset.serving.worker.spawned_children import protect_children
except (ImportError, SyntaxError, OSError):
    pass
else:
    protect_children()
"""


def protect_children() -> None:
    """Protect the processes that `multiprocessing` starts from this one."""
    import multiprocessing.util  # only in those processes

    _protect(multiprocessing.util)


def _protect(util: Any) -> None:
    """Have the module `multiprocessing.util` start all processes with `_FIRST`."""
    start: Callable[[Any, Sequence[Any], Any], int] = util.spawnv_passfds

    def start_protected(path: Any, arguments: Sequence[Any], descriptors: Any) -> int:
        changed = list(arguments)
        if "-c" in changed[:-1]:
            code = changed.index("-c") + 1
            changed[code] = _FIRST + changed[code]
        return start(path, changed, descriptors)

    util.spawnv_passfds = start_protected


ON_IMPORT: dict[str, Callable[[Any], None]] = {
    "multiprocessing.util": _protect,
    "multiprocess.util": _protect,  # the variant that pickles more
}
