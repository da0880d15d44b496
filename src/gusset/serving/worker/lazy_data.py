"""What a model sees of the downloads that it needs before `load`."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from gusset.weights.download import Download
from gusset.weights.plan import VOLUMES


class DownloadState:
    """How far the downloads of the deployment are. Thread-safe."""

    def __init__(self, downloads: Sequence[Download]) -> None:
        self.folder = VOLUMES if any(each.mount for each in downloads) else ""
        self._external_data = threading.Event()
        self._everything = threading.Event()
        if not downloads:
            self.advance(everything=True)

    def advance(self, *, everything: bool) -> None:
        """External data is there; with `everything`, all else is, too."""
        self._external_data.set()
        if everything:
            self._everything.set()

    @property
    def is_complete(self) -> bool:
        return self._everything.is_set()

    def wait_for_external_data(self) -> None:
        self._external_data.wait()

    def wait(self) -> None:
        """Return when everything is downloaded. If a download fails, the supervisor ends this process."""
        self._everything.wait()


class LazyDataResolver:
    """Truss's interface for models that wait for their weights."""

    def __init__(self, downloads: DownloadState) -> None:
        self._downloads = downloads

    def block_until_download_complete(self, log_stats: bool = True, issue_collect: bool = True) -> str:
        """Return when everything is downloaded. The arguments have no effect.

        `load` is called only then; call this in `__init__`, or in threads that it starts.
        """
        self._downloads.wait()
        return self._downloads.folder

    def raise_if_not_collected(self) -> None:
        """Raise RuntimeError unless everything is downloaded."""
        if not self._downloads.is_complete:
            raise RuntimeError(
                "model_cache: Data was not collected. "
                "Call lazy_data_resolver.block_until_download_complete() before you use it."
            )
