"""The process that downloads: `python -P -m gusset.weights.fetcher`. It runs no code of the model.

It gets what to download, and the values to log in with, over an inherited pipe,
and reports over another one. Its lines are JSON.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import sys
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from gusset.errors import GussetError, HostError
from gusset.runtime.logs import log_to_stderr
from gusset.runtime.process import die_with_pipe, harden
from gusset.weights import failures
from gusset.weights.buckets import BucketClient
from gusset.weights.cache import WeightsCache, disk_error, is_safe_name
from gusset.weights.download import Download, FetchRequest, SourceKind
from gusset.weights.external_data import fetch_external_data
from gusset.weights.hub import fetch_repository
from gusset.weights.libraries import check_library
from gusset.weights.progress import Progress
from gusset.weights.web import WebClient

_QUERY = re.compile(r"\?\S*")


class Fetcher:
    """Carries out one request."""

    def __init__(self, request: FetchRequest, cache: WeightsCache, web: WebClient) -> None:
        self._request = request
        self._cache = cache
        self._web = web

    def fetch_external_data(self) -> None:
        """Download the files that must be there before the model's code is imported. Raises GussetError."""
        for download in self._request.downloads:
            check_library(download)
        for download in self._request.downloads:
            if download.data_file is not None:
                progress = Progress(download.label, bar=self._request.readable)
                data_dir = self._request.data_dir
                fetch_external_data(download, data_dir, self._cache, self._web, progress)
                progress.finish()

    def fetch_folders(self) -> dict[str, Path]:
        """Download everything else: the folder for each mount. Raises GussetError."""
        folders = {}
        for download in self._request.downloads:
            if download.data_file is None:
                progress = Progress(download.label, bar=self._request.readable)
                folder = self._fetch(download, progress)
                progress.finish()
                if download.mount is not None:
                    folders[download.mount] = folder
        return folders

    def _fetch(self, download: Download, progress: Progress) -> Path:
        if download.kind is SourceKind.HUB:
            snapshot = fetch_repository(download, self._token(download), progress)
            return self._cache.plain_folder(snapshot) if self._request.plain_folders else snapshot
        if download.kind is SourceKind.WEB:
            file = self._web.fetch(download, self._token(download), progress)
            return self._cache.folder({_file_name(download): file})
        return BucketClient(self._cache, download, self._value(download), progress).fetch()

    def _value(self, download: Download) -> bytes | None:
        return self._request.values.get(download.credential.secret) if download.credential else None

    def _token(self, download: Download) -> str | None:
        value = self._value(download)
        if value is None:
            return None
        token = value.strip().decode("ascii", "replace")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise failures.malformed_credential(download, "a token, on one line")
        return token


def _file_name(download: Download) -> str:
    name = unquote(PurePosixPath(urlsplit(download.address).path).name)
    if not is_safe_name(name) or "/" in name:
        raise failures.not_found(download, f"{download.label} does not end with the name of a file")
    return name


def _report(pipe: int, event: Mapping[str, object]) -> None:
    line = json.dumps(event).encode() + b"\n"
    while line:
        line = line[os.write(pipe, line) :]


def _report_failure(pipe: int, error: GussetError) -> None:
    name = type(error).__name__
    _report(pipe, {"event": "failed", "error": name, "message": error.message, "hint": error.hint})


def main(arguments: list[str]) -> int:
    """Carry out a request.

    `arguments` are the file descriptors of the pipes for the request, the
    reports and the supervisor's life, then 1 if debuggers may attach, else 0.
    """
    requests, reports, lifeline, debuggable = map(int, arguments)
    die_with_pipe(lifeline)
    if not debuggable:
        harden()
    with os.fdopen(requests, "rb") as file:
        request: FetchRequest = pickle.load(file)  # noqa: S301  # from the parent process
    # The libraries' logs are dropped: failures are reported, and temporary ones are tried again.
    log_to_stderr("", readable=request.readable, level=logging.CRITICAL)
    log_to_stderr(readable=request.readable)
    try:
        cache = WeightsCache.open(request.cache)
        fetcher = Fetcher(request, cache, WebClient(cache))
        fetcher.fetch_external_data()
        _report(reports, {"event": "external_data"})
        folders = fetcher.fetch_folders()
    except GussetError as error:
        _report_failure(reports, error)
        return 1
    except OSError as error:
        _report_failure(reports, disk_error(error, request.cache))
        return 1
    except Exception as error:
        # The text may be that of a library, and contain a URL with a signature.
        text = _QUERY.sub("?...", f"{type(error).__name__}: {error}")
        _report_failure(reports, HostError(text))
        return 1
    _report(reports, {"event": "done", "folders": {mount: str(path) for mount, path in folders.items()}})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
