"""The libraries that kinds of sources need, which gusset installs as extras."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from gusset.weights import failures
from gusset.weights.download import Download, SourceKind

_LIBRARIES = {
    SourceKind.HUB: ("huggingface_hub", "hub"),
    SourceKind.S3: ("s3fs", "s3"),
    SourceKind.R2: ("s3fs", "s3"),
    SourceKind.COREWEAVE: ("s3fs", "s3"),
    SourceKind.GCS: ("gcsfs", "gcs"),
    SourceKind.AZURE: ("adlfs", "azure"),
}
"""The module, and the extra of gusset that installs it."""


def extras_of(downloads: Iterable[Download]) -> list[str]:
    """The extras of gusset that these downloads need."""
    return sorted({extra for each in downloads if (extra := _LIBRARIES.get(each.kind, ("", ""))[1])})


def check_library(download: Download) -> None:
    """Raise ConfigInvalid if the library that the download needs is not installed in this Python."""
    library, extra = _LIBRARIES.get(download.kind, (None, ""))
    if library is not None and importlib.util.find_spec(library) is None:
        raise failures.library_missing(download, library, extra)
