"""Downloads one file over HTTP: resumed, checked and cached.

A download that breaks off continues from where it stopped, in this run or the
next, as long as the server still has the same file (`If-Range`).
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

import httpx

from gusset.backoff import Backoff
from gusset.errors import HostError
from gusset.weights import failures
from gusset.weights.cache import CachedFile, WeightsCache, disk_error, hash_of, open_partial
from gusset.weights.download import Download
from gusset.weights.progress import Progress

log = logging.getLogger("gusset")

T = TypeVar("T")

_RETRIES = 5  # without a new byte between them
_FIRST_DELAY = 0.5  # seconds
_TIMEOUT = httpx.Timeout(60.0, connect=20.0)
_MAX_REDIRECTS = 10
_FREE_SPACE = 1 << 30  # bytes that a body of unknown length leaves free
# What servers send without being asked for it. Others, and several at once, expand without any bound.
_READABLE_ENCODINGS = {"identity", "gzip", "x-gzip", "deflate"}
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class _TryAgain(Exception):
    """A request failed for a reason that may be temporary."""


class _GaveUp(Exception):
    """All requests failed; the text is the reason of the last one."""


@dataclass(frozen=True, slots=True)
class _Digest:
    """A hash that the server gave for the file."""

    algorithm: str
    digest: bytes


class WebClient:
    """Downloads files into the cache. Proxies and certificates come from httpx's own variables."""

    def __init__(
        self,
        cache: WeightsCache,
        *,
        first_delay: float = _FIRST_DELAY,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`first_delay`: seconds before the first retry. Each later delay is twice as long."""
        self._cache = cache
        self._first_delay = first_delay
        self._sleep = sleep
        self._http = httpx.Client(timeout=_TIMEOUT, follow_redirects=False)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def size_of(self, download: Download) -> int | None:
        """The size of the file at its source, None if the server does not give it. Raises as `fetch` does."""
        request = _FileRequest(
            self._http, self._cache, download, token=None, progress=Progress(download.label, bar=False)
        )
        try:
            return self._repeat(request, request.read_size)
        except _GaveUp as error:
            raise failures.unreachable(download, str(error)) from None

    def fetch(self, download: Download, token: str | None, progress: Progress) -> CachedFile:
        """The file at the URL; from the cache if the server confirms that it has not changed.

        A server that does not respond is no error if the file is in the cache.

        Raises:
            ConfigInvalid: there is no such file.
            SecretsMissing, Denied: it needs a login, or another one.
            Unreachable: the server does not respond, or sends what it did not announce.
            HostError: the disk is full.
        """
        with self._cache.lock(download.address):
            known = self._cache.find(download.address)
            request = _FileRequest(
                self._http, self._cache, download, token=token, progress=progress, known=known
            )
            try:
                return self._repeat(request, request.run)
            except _GaveUp as error:
                if known is None:
                    raise failures.unreachable(download, str(error)) from None
                log.warning("%s: %s; the file in the cache is used.", download.label, error)
                return known
            except OSError as error:
                raise disk_error(error, self._cache.root) from None

    def _repeat(self, request: _FileRequest, action: Callable[[], T]) -> T:
        """What `action` returns, tried again as long as its errors may be temporary.

        Raises:
            _GaveUp: it failed too often, or the cache has the file.
        """
        backoff, failed = Backoff(self._first_delay), 0
        while True:
            before = request.partial_size()
            try:
                return action()
            except _TryAgain as error:
                reason = str(error)
            except (httpx.TransportError, httpx.DecodingError) as error:
                reason = _reason(error)
            if request.partial_size() > before:
                failed = 0
                backoff.reset()
            failed += 1
            if failed > _RETRIES or request.can_do_without:
                raise _GaveUp(reason)
            delay = backoff.next_delay()
            request.progress.retry(reason, delay)
            self._sleep(delay)


class _FileRequest:
    """One request for a file, and the next one if that fails."""

    def __init__(
        self,
        http: httpx.Client,
        cache: WeightsCache,
        download: Download,
        *,
        token: str | None,
        progress: Progress,
        known: CachedFile | None = None,
    ) -> None:
        self.download = download
        self.known = known
        self.progress = progress
        self._http = http
        self._cache = cache
        self._token = token
        self._partial = cache.partial(download.address)
        self._validator_file = self._partial.with_name(self._partial.name + ".validator")

    @property
    def can_do_without(self) -> bool:
        """Whether the cache has the file as it was, and nothing of a newer one has arrived."""
        return self.known is not None and self.partial_size() == 0

    def partial_size(self) -> int:
        """How many bytes of the file are here."""
        try:
            return self._partial.stat().st_size
        except OSError:
            return 0

    def read_size(self) -> int | None:
        with self._responses({}) as (response, _):
            self._check_status(response)
            return _length(response)

    def run(self) -> CachedFile:
        """Request what is missing of the file, and put it into the cache."""
        size, validator = self.partial_size(), self._partial_validator()
        headers = {}
        if size and validator:
            headers = {"Range": f"bytes={size}-", "If-Range": validator}
        elif self.known is not None and (stored := _sendable(self.known.validator)):
            headers = {"If-None-Match" if '"' in stored else "If-Modified-Since": stored}
        with self._responses(headers) as (response, digest):
            if response.status_code == HTTPStatus.NOT_MODIFIED and self.known is not None:
                return self.known
            if response.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                self._drop_partial()
                raise _TryAgain("the server has less of the file than was downloaded before")
            self._check_status(response)
            return self._receive(response, digest)

    def _receive(self, response: httpx.Response, digest: _Digest | None) -> CachedFile:
        if response.headers.get("Content-Encoding", "identity").strip().lower() not in _READABLE_ENCODINGS:
            raise failures.unreachable(self.download, "the server compresses it, though asked not to")
        start = self._start_of(response)
        length = _length(response)
        total = None if length is None else start + length
        validator = _validator(response)
        known = self.known
        if known is not None and not known.validator and not validator and total == known.size:
            return known  # a change could be noticed by the size only
        self._check_space(length)
        if start == 0:
            self._drop_partial()
            if validator and not validator.startswith("W/"):
                self._validator_file.write_text(validator)
        self.progress.expect(total, present=start)
        self._append(response, start, length)
        return self._finish(total, digest, validator)

    def _start_of(self, response: httpx.Response) -> int:
        """Where in the file the body begins. Raises _TryAgain if that is not what was requested."""
        if response.status_code != HTTPStatus.PARTIAL_CONTENT:
            return 0
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        same = "ETag" not in response.headers or _validator(response) == self._partial_validator()
        if found is None or int(found[1]) != self.partial_size() or not same:
            self._drop_partial()
            raise _TryAgain("the server sent another part of the file than was requested")
        return int(found[1])

    def _append(self, response: httpx.Response, start: int, length: int | None) -> None:
        received = 0
        descriptor = open_partial(self._partial)
        with os.fdopen(descriptor, "r+b") as file:
            file.truncate(start)
            file.seek(start)
            for chunk in response.iter_bytes():
                file.write(chunk)
                received += len(chunk)
                self.progress.advance(len(chunk))
                if length is None and shutil.disk_usage(self._cache.root).free < _FREE_SPACE:
                    file.truncate(0)
                    raise HostError(
                        f"{self.download.location}: {self.download.label} fills the disk: "
                        "the server does not give its length",
                        hint="make room, or name a file of known length",
                    )
        if length is not None and received != length:
            raise _TryAgain(f"the server sent {received} bytes instead of {length}")

    def _finish(self, total: int | None, digest: _Digest | None, validator: str | None) -> CachedFile:
        if total is not None and self.partial_size() != total:
            self._drop_partial()
            raise _TryAgain("the file has another size than the server announced")
        if digest is not None:
            with self._partial.open("rb") as file:
                actual = hashlib.file_digest(file, digest.algorithm).digest()
            if actual != digest.digest:
                self._drop_partial()
                raise failures.unreachable(
                    self.download,
                    f"its content does not have the {digest.algorithm} hash that the server gave",
                )
        self._validator_file.unlink(missing_ok=True)
        return self._cache.add(self.download.address, hash_of(self._partial), validator=validator)

    def _check_status(self, response: httpx.Response) -> None:
        status, download = response.status_code, self.download
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            raise failures.refused(download, had_secret=self._token is not None)
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            raise failures.not_found(download, f"{download.label} does not exist (status {status})")
        if status in _BUSY:
            raise _TryAgain(f"the server responds with status {status}")
        if status not in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
            raise failures.unreachable(download, f"the server responds with status {status}")

    def _check_space(self, length: int | None) -> None:
        free = shutil.disk_usage(self._cache.root).free
        if length is not None and length > free:
            raise HostError(
                f"{self.download.location}: {self._cache.root} has no space for {self.download.label}: "
                f"{length} more bytes are needed, {free} are free",
                hint="make room, or set GUSSET_CACHE to another folder",
            )

    @contextmanager
    def _responses(self, headers: Mapping[str, str]) -> Iterator[tuple[httpx.Response, _Digest | None]]:
        """The response after all redirects, and a hash of the file if one of them gave it.

        The token goes to the URL's own origin only.
        """
        try:
            url, digest = httpx.URL(self.download.address), None
            origin = _origin(url)
        except (httpx.InvalidURL, UnicodeError):
            raise failures.not_found(
                self.download, f"{self.download.label} is not a URL that can be fetched"
            ) from None
        for _ in range(_MAX_REDIRECTS):
            with contextlib.closing(self._send(url, headers, origin)) as response:
                digest = _digest(response) or digest
                if response.next_request is None:
                    yield response, digest
                    return
                target = response.next_request.url
            if url.scheme == "https" and target.scheme != "https":
                raise failures.unreachable(self.download, "it redirects from https to another scheme")
            url = target
        raise failures.unreachable(self.download, "it redirects too often")

    def _send(
        self, url: httpx.URL, headers: Mapping[str, str], origin: tuple[str, str, int | None]
    ) -> httpx.Response:
        sent = {**headers, "Accept-Encoding": "identity"}
        try:
            if self._token is not None and _origin(url) == origin:
                sent["Authorization"] = f"Bearer {self._token}"
            return self._http.send(self._http.build_request("GET", url, headers=sent), stream=True)
        except (httpx.InvalidURL, UnicodeError):  # may also come from a redirect, or a cookie beside it
            raise _TryAgain("its address, or one that it redirects to, cannot be requested") from None

    def _partial_validator(self) -> str | None:
        with contextlib.suppress(OSError):
            return _sendable(self._validator_file.read_text())
        return None

    def _drop_partial(self) -> None:
        self._partial.unlink(missing_ok=True)
        self._validator_file.unlink(missing_ok=True)


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def _length(response: httpx.Response) -> int | None:
    """The length of the body as it will be read; unknown if it is compressed."""
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isdecimal() and "Content-Encoding" not in response.headers else None


def _validator(response: httpx.Response) -> str | None:
    headers = response.headers
    return _sendable(headers.get("ETag")) or _sendable(headers.get("Last-Modified"))


def _sendable(validator: str | None) -> str | None:
    """The validator, if a request can have it in a header."""
    return validator if validator and validator.isascii() else None


def _digest(response: httpx.Response) -> _Digest | None:
    """The hash of the whole file in the headers of a response, in one of the common forms."""
    headers = response.headers
    if found := re.search(r"sha-256=:?([A-Za-z0-9+/]{43}=):?", headers.get("Repr-Digest", "")):
        return _Digest("sha256", base64.b64decode(found[1]))
    if found := re.fullmatch(r'"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", "")):
        return _Digest("sha256", bytes.fromhex(found[1]))
    for form in (r"md5=([A-Za-z0-9+/]{22}==)", r"([A-Za-z0-9+/]{22}==)"):
        name = "X-Goog-Hash" if form.startswith("md5") else "Content-MD5"
        is_whole = response.status_code == HTTPStatus.OK or name == "X-Goog-Hash"
        if is_whole and (found := re.search(form, headers.get(name, ""))):
            return _Digest("md5", base64.b64decode(found[1]))
    return None


def _reason(error: Exception) -> str:
    """Why a request failed, in words that quote nothing of the URL."""
    if isinstance(error, httpx.TimeoutException):
        return "the server does not respond in time"
    if isinstance(error, httpx.ConnectError):
        return "no connection to the server"
    if isinstance(error, httpx.ProtocolError | httpx.ReadError | httpx.WriteError):
        return "the connection broke off"
    return type(error).__name__
