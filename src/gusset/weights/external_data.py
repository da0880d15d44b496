"""Puts external data into the data folder of a model."""

from __future__ import annotations

import os
from pathlib import Path

from gusset.errors import ConfigInvalid, Conflict, HostError, Unreachable
from gusset.portable import real_path, sync_folder
from gusset.weights.cache import CachedFile, WeightsCache, disk_error, link_or_copy
from gusset.weights.download import Download
from gusset.weights.progress import Progress
from gusset.weights.web import WebClient, log


def fetch_external_data(
    download: Download, data_dir: Path, cache: WeightsCache, web: WebClient, progress: Progress
) -> None:
    """Download a file into the data folder.

    A file that is there already, and that gusset did not put there, is kept
    if it has the size of the file at the source. One that was changed since
    gusset put it there is kept as it is.

    Raises:
        ConfigInvalid: there is no such file at the source, or the path leads out of the data folder.
        Conflict: another file is there.
        SecretsMissing, Unreachable, HostError: see `WebClient.fetch`.
    """
    assert download.data_file is not None  # noqa: S101  # else it is no external data
    target = _target(download, data_dir, download.data_file)
    record = f"data file {target}"
    with cache.lock(record):
        known = cache.read_entry(record)
        if target.exists() and not _is_ours(target, known):
            if known.get("source") == download.address:
                log.warning("%s was changed after its download; it is used as it is.", target)
            else:
                _check_foreign(download, target, web)
            return
        file = web.fetch(download, None, progress)
        if not target.exists() or known.get("sha256") != file.sha256:
            _put(file, target)
            status = target.stat()
            entry = {"sha256": file.sha256, "size": status.st_size, "modified": status.st_mtime_ns}
            cache.write_entry(record, entry | {"source": download.address})


def _target(download: Download, data_dir: Path, name: str) -> Path:
    """Where the file goes. Its folders are created; a symbolic link among them may lead elsewhere."""
    target = data_dir / name
    folder = real_path(target.parent)
    if not folder.is_relative_to(real_path(data_dir)):
        raise ConfigInvalid(
            f"{download.location}: {target} leads out of the data folder through a symbolic link",
            hint="name another path",
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"{download.location}: cannot create the folder {folder}: {error.strerror}") from None
    return folder / target.name


def _is_ours(target: Path, entry: dict[str, object]) -> bool:
    """Whether the file is as gusset put it there."""
    status = target.stat()
    return (entry.get("size"), entry.get("modified")) == (status.st_size, status.st_mtime_ns)


def _check_foreign(download: Download, target: Path, web: WebClient) -> None:
    try:
        expected = web.size_of(download)
    except Unreachable:
        log.warning("%s does not respond; %s is used as it is.", download.label, target)
        return
    if not target.is_file() or expected != target.stat().st_size:
        raise Conflict(
            f"{download.location}: {target} already exists, and is a different file from {download.label}",
            hint="move it away, or write another local_data_path",
        )


def _put(file: CachedFile, target: Path) -> None:
    new = target.with_name(f".{target.name[:200]}.{os.getpid()}.new")
    try:
        new.unlink(missing_ok=True)
        link_or_copy(file.path, new)
        new.replace(target)
        sync_folder(target.parent)  # before the record, to which an older file would be a changed one
    except OSError as error:
        new.unlink(missing_ok=True)
        raise disk_error(error, target.parent) from None
