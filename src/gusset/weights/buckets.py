"""Downloads folders of buckets by fsspec: resumed, checked and cached file by file."""

from __future__ import annotations

import base64
import fnmatch
import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gusset.backoff import Backoff
from gusset.errors import GussetError, SecretsMissing, Unreachable
from gusset.weights import failures
from gusset.weights.cache import (
    CachedFile,
    WeightsCache,
    disk_error,
    hash_of,
    is_safe_name,
    open_partial,
)
from gusset.weights.download import Download
from gusset.weights.progress import Progress
from gusset.weights.stores import malformed, store_of

log = logging.getLogger("gusset")

T = TypeVar("T")

_RETRIES = 5
_FIRST_DELAY = 0.5  # seconds
_PIECE = 16 << 20  # bytes of one request
_CONNECTIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    """A file in a bucket. `validator` changes when its content does; `md5` is None if it is not known."""

    path: str
    size: int
    validator: str
    md5: bytes | None


class BucketClient:
    """Downloads what one entry of the config names."""

    def __init__(
        self,
        cache: WeightsCache,
        download: Download,
        value: bytes | None,
        progress: Progress,
        *,
        first_delay: float = _FIRST_DELAY,
    ) -> None:
        """`value` is the secret that the entry names. `first_delay`: seconds before the first retry."""
        self._cache = cache
        self._download = download
        self._value = value
        self._progress = progress
        self._first_delay = first_delay
        self._store = store_of(download, value)
        self._fs: Any = None
        self._stopped = threading.Event()  # a file has failed: the others are not completed

    def fetch(self) -> Path:
        """A folder with the files, without those that the patterns leave out.

        A store that does not respond is no error if the files are in the cache.

        Raises:
            ConfigInvalid: there is no such bucket or folder, or no file is left.
            SecretsMissing, Denied: it needs a login, or another one.
            Unreachable: the store does not respond, or a file does not have the hash that it gave.
            HostError: the disk is full.
        """
        entry = (
            f"folder {self._download.label} {self._download.allow_patterns} {self._download.ignore_patterns}"
        )
        try:
            objects = self._list()
        except Unreachable as error:
            known = Path(str(self._cache.read_entry(entry).get("folder", "")))
            if not known.name or not known.is_dir():
                raise
            log.warning("%s; the files in the cache are used.", error.message)
            return known
        folder = self._cache.folder(self._fetch_all(objects))
        self._cache.write_entry(entry, {"folder": str(folder)})
        return folder

    def _list(self) -> dict[str, _Object]:
        root = self._store.path.strip("/")
        try:
            found = self._repeat(lambda: self._find(root))
        except SecretsMissing:
            if self._store.anonymous is None:
                raise
            self._store, self._fs = replace(self._store, options=self._store.anonymous, anonymous=None), None
            return self._list()
        objects = {}
        for path, info in found.items():
            path = path.lstrip("/")
            name = path.removeprefix(f"{root}/") if path != root else path.rpartition("/")[2]
            if name and not name.endswith("/") and _is_chosen(name, self._download):
                objects[name] = _object(path, info)
        if not objects:
            what = "has no file that matches the patterns" if found else "does not exist, or is empty"
            raise failures.not_found(self._download, f"{self._download.label} {what}")
        if not all(map(is_safe_name, objects)) or _has_file_as_folder(objects):
            raise failures.unreachable(
                self._download, "the names of its files cannot be file names in a folder"
            )
        return objects

    def _find(self, root: str) -> dict[str, Mapping[str, Any]]:
        """All files below `root`, or the one file that it is, each with its attributes at the store."""
        fs = self._file_system()
        found = fs.find(root, detail=True)
        # adlfs gives a list for one file.
        return {path: fs.info(path) for path in found} if isinstance(found, list) else dict(found)

    def _fetch_all(self, objects: Mapping[str, _Object]) -> dict[str, CachedFile]:
        self._progress.expect(sum(each.size for each in objects.values()))
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            fetched = {name: pool.submit(self._fetch_object, each) for name, each in objects.items()}
            try:
                return {name: future.result() for name, future in fetched.items()}
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _fetch_object(self, each: _Object) -> CachedFile:
        account = self._download.address.removesuffix(self._store.path).rstrip("/.")
        source = f"{self._download.kind}://{account}/{each.path}"
        with self._cache.lock(source):
            known = self._cache.find(source)
            if known is not None and known.validator == each.validator:
                self._progress.skip(known.size)
                return known
            partial = self._cache.partial(source)
            try:
                self._complete(partial, each)
                self._check(partial, each)
                return self._cache.add(source, hash_of(partial), validator=each.validator)
            except OSError as error:
                raise disk_error(error, self._cache.root) from None

    def _complete(self, partial: Path, each: _Object) -> None:
        """Append what is missing of the file to its partial download."""
        validator = partial.with_name(partial.name + ".validator")
        is_same = validator.is_file() and validator.read_text() == each.validator
        with os.fdopen(open_partial(partial), "r+b") as file:
            present = file.seek(0, os.SEEK_END) if is_same else 0
            if present > each.size or not is_same:
                present = file.truncate(file.seek(0))
            validator.write_text(each.validator)
            self._progress.skip(present)
            while present < each.size:
                if self._stopped.is_set():
                    raise failures.unreachable(self._download, "another file failed")
                end = min(present + _PIECE, each.size)
                piece = self._repeat(lambda start=present, end=end: self._read(each, start, end))  # type: ignore[misc]
                file.write(piece)
                present += len(piece)
                self._progress.advance(len(piece))
        validator.unlink(missing_ok=True)

    def _read(self, each: _Object, start: int, end: int) -> bytes:
        piece: bytes = self._file_system().cat_file(each.path, start=start, end=end)
        if len(piece) != end - start:
            raise ConnectionError("a piece is shorter than requested")
        return piece

    def _check(self, partial: Path, each: _Object) -> None:
        """Check the content by the hash or ETag that the store gave. A wrong file is removed."""
        with partial.open("rb") as file:
            has_hash = each.md5 is not None and hashlib.file_digest(file, "md5").digest() == each.md5
        is_right = has_hash or each.md5 is None or self._is_encrypted(each)
        if is_right and not has_hash:  # the pieces may be of two versions
            info = self._repeat(lambda: self._file_system().info(each.path))
            is_right = _object(each.path, info).validator == each.validator
        if not is_right:
            partial.unlink()
            raise failures.unreachable(
                self._download, f"{each.path} does not have the hash that the store gave, or has changed"
            )

    def _is_encrypted(self, each: _Object) -> bool:
        """Whether the store is S3 and encrypts the file: its ETag looks like an MD5, but is none."""
        if self._store.protocol != "s3":
            return False
        bucket, _, key = each.path.partition("/")
        head = self._repeat(lambda: self._file_system().call_s3("head_object", Bucket=bucket, Key=key))
        return "SSECustomerAlgorithm" in head or str(head.get("ServerSideEncryption")).startswith("aws:kms")

    def _file_system(self) -> Any:
        """The file system. It is made once; making it may read the login of the machine."""
        if self._fs is None:
            import fsspec  # an optional extra

            options = {"skip_instance_cache": True, "use_listings_cache": False}
            try:
                self._fs = fsspec.filesystem(self._store.protocol, **options, **self._store.options)
            except (KeyError, TypeError, ValueError) as error:
                if self._value is None:
                    raise
                raise malformed(self._download) from error
            self._fs.retries = 1  # s3fs's own: it knows less than `_repeat` about temporary errors
        return self._fs

    def _repeat(self, action: Callable[[], T]) -> T:
        """What `action` returns, tried again as long as its errors may be temporary. Raises GussetError."""
        backoff, retries = Backoff(self._first_delay), _RETRIES
        while True:
            try:
                return action()
            except Exception as error:
                final = self._final(error)
                if final is not None or not retries:
                    raise final or failures.unreachable(self._download, _reason(error)) from None
                reason = _reason(error)
            retries -= 1
            delay = backoff.next_delay()
            self._progress.retry(reason, delay)
            time.sleep(delay)

    def _final(self, error: Exception) -> GussetError | None:
        """gusset's error for a permanent one, or None. The library's text is not quoted: it may have URLs."""
        if isinstance(error, GussetError):
            return error
        text, name = f"{error} {error.__cause__}", type(error).__name__
        if isinstance(error, FileNotFoundError) or "NoSuchBucket" in text:
            return failures.not_found(self._download, f"{self._download.label} does not exist")
        if (
            isinstance(error, PermissionError)
            or name in _LOGIN_ERRORS
            or _LOGIN_CODES.search(text)
            or _status(error) in (401, 403)
        ):
            return failures.refused(self._download, had_secret=self._value is not None)
        return None


_LOGIN_ERRORS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "AzureSigningError",
    "ClientAuthenticationError",
    "RefreshError",
    "DefaultCredentialsError",
}
_LOGIN_CODES = re.compile(
    r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|InvalidToken|AuthenticationFailed"
    r"|\b40[13]\b|Forbidden|Unauthorized|NoAuthenticationInformation|PublicAccessNotPermitted"
)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status in an error of botocore, or in its cause."""
    if error is None:
        return None
    match getattr(error, "response", None):
        case {"ResponseMetadata": {"HTTPStatusCode": int(status)}}:
            return status
    return _status(error.__cause__)


def _is_chosen(name: str, download: Download) -> bool:
    """Whether the patterns choose the file; `*` also stands for `/`, as at the hub."""
    allow, ignore = download.allow_patterns, download.ignore_patterns
    if allow is not None and not any(_matches(name, pattern) for pattern in allow):
        return False
    return not any(_matches(name, pattern) for pattern in ignore)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name, pattern + "*" if pattern.endswith("/") else pattern)


def _has_file_as_folder(names: Mapping[str, object]) -> bool:
    """Whether the path of one file leads through another, which buckets allow and folders do not."""
    return any(str(parent) in names for name in names for parent in Path(name).parents)


def _object(path: str, info: Mapping[str, Any]) -> _Object:
    """A file from its attributes in a file system of fsspec."""
    etag = str(info.get("ETag") or info.get("etag") or "").strip('"')
    changed = info.get("LastModified") or info.get("last_modified") or info.get("updated") or ""
    size = int(info.get("size") or 0)
    return _Object(path=path, size=size, validator=f"{etag or changed} {size}", md5=_md5(info, etag))


def _md5(info: Mapping[str, Any], etag: str) -> bytes | None:
    settings = info.get("content_settings")
    for given in (
        info.get("md5Hash"),  # GCS
        getattr(settings, "content_md5", None),  # Azure
    ):
        if isinstance(given, bytes | bytearray):
            return bytes(given)
        if isinstance(given, str) and len(given) == 24:
            return base64.b64decode(given)
    # The ETag of S3 is the MD5 of what was uploaded in one piece, unless a key of KMS encrypts it.
    is_s3 = "ETag" in info and re.fullmatch(r"[0-9a-f]{32}", etag) and "StorageClass" in info
    return bytes.fromhex(etag) if is_s3 else None


def _reason(error: Exception) -> str:
    return f"the store does not respond ({type(error).__name__})"
