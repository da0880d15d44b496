"""Searches an image for values of secrets: all its layers, names, attributes, configs and manifests.

The files of the image are read once, in the order in which they come, so that an
archive may come from a pipe. Which file is a layer of which image is known at the
end; until then hits are kept by file.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from gusset.errors import UsageError
from gusset.images.blob_scan import Blob, BlobScanner
from gusset.images.compression import DEFAULT_LIMITS, Limits
from gusset.images.hits import Hits
from gusset.images.report import Report
from gusset.images.reporter import Reporter
from gusset.images.search_thread import SearchThread
from gusset.images.sources import ImageSource
from gusset.images.value_search import ValueSearch
from gusset.secrets.masking import Masker
from gusset.secrets.value import SecretValue

_MAX_DOCUMENTS = 64 << 20  # bytes of JSON that are kept until the end


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to search for: the values of each secret, and the secrets that may be in the image."""

    values: Mapping[str, Collection[SecretValue]]
    allowed: Collection[str] = ()

    def check(self) -> None:
        """Raise UsageError if an allowed secret is not among those that are searched for."""
        if unknown := sorted(set(self.allowed) - self.values.keys()):
            raise UsageError(
                f"{', '.join(unknown)} cannot be allowed: it is not among the secrets that are searched for",
                hint="allow a secret by its exact name",
            )


def scan_image(
    source: ImageSource,
    wanted: Wanted,
    *,
    target: str,
    limits: Limits = DEFAULT_LIMITS,
    on_file: Callable[[str, int], object] = lambda name, size: None,
) -> Report:
    """Search everything in `source`, which `target` names in the report.

    `on_file` is called with the name and size of each file before it is searched.

    Raises:
        UsageError: there is no value to search for, or an allowed secret is not known.
        ImageUnreadable: it is no image archive, or the archive is damaged.
        HostError: it cannot be read.
    """
    wanted.check()
    search = ValueSearch(wanted.values)
    if not search.names:
        raise UsageError(
            "there is no value to search for",
            hint="values shorter than 8 bytes are not searched for" if wanted.values else None,
        )
    masker = Masker(value for values in wanted.values.values() for value in values)
    hits = Hits(masker)
    with SearchThread.running() as thread:
        scanner = BlobScanner(search, thread, hits, limits)
        blobs = _scan_files(source, scanner, on_file)
    reporter = Reporter(target, search, blobs, hits, allowed=wanted.allowed)
    return reporter.report(source.links, scanner.notes)


def _scan_files(
    source: ImageSource, scanner: BlobScanner, on_file: Callable[[str, int], object]
) -> dict[str, Blob]:
    blobs: dict[str, Blob] = {}
    kept = 0
    for file in source.files:
        on_file(file.name, file.size)
        blob = scanner.scan(file)
        if blob.document is not None:
            kept += len(blob.document)
            if kept > _MAX_DOCUMENTS:
                blob.document = None
                blob.error = f"the archive has more than {_MAX_DOCUMENTS:,} bytes of JSON"
        blobs[file.name] = blob
    return blobs
