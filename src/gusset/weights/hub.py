"""Downloads repositories of a Hugging Face hub into the hub's own cache, where `from_pretrained` finds them.

The library `huggingface_hub` resumes, checks and shares downloads itself. Its
own variables apply, such as HF_ENDPOINT, HF_HOME and HF_TOKEN.
"""

# Imports in functions: huggingface_hub is an optional extra.

from __future__ import annotations

from pathlib import Path
from typing import Any

from gusset.errors import GussetError
from gusset.weights import failures
from gusset.weights.cache import disk_error
from gusset.weights.confinement import OutsideError, writing_only_for
from gusset.weights.download import Download
from gusset.weights.progress import Progress


def fetch_repository(download: Download, token: str | None, progress: Progress) -> Path:
    """The folder of the repository's snapshot in the hub's cache.

    Without `token` the library uses the person's own login, if there is one. A
    hub that does not respond is no error if the snapshot is in the cache.

    Raises:
        ConfigInvalid: there is no such repository or revision, or the library is not installed.
        SecretsMissing, Denied: it needs a login, or another one.
        Unreachable: the hub does not respond.
        HostError: the disk is full.
    """
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "huggingface_hub":
            raise
        raise failures.library_missing(download, "huggingface_hub", "hub") from None
    try:
        with writing_only_for(download.address, *_cache_folders()):
            folder = huggingface_hub.snapshot_download(
                download.address,
                revision=download.revision,
                allow_patterns=_list(download.allow_patterns),
                ignore_patterns=_list(download.ignore_patterns or None),
                token=token,
                tqdm_class=_progress_class(progress),
            )
    except Exception as error:
        raise _translate(error, download, had_secret=token is not None) from None
    return Path(folder)


def _cache_folders() -> tuple[Path, Path]:
    """The hub's cache, and the one of its library for faster transfers."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    return cache, Path(getattr(constants, "HF_XET_CACHE", cache / "xet"))


def _list(patterns: tuple[str, ...] | None) -> list[str] | None:
    return None if patterns is None else list(patterns)


def _translate(error: BaseException, download: Download, *, had_secret: bool) -> GussetError:
    """gusset's error for one of the library's. The library's text is not quoted: it may contain URLs."""
    from huggingface_hub import errors

    repository = download.address
    if isinstance(error, OutsideError) or isinstance(error.__cause__ or error.__context__, OutsideError):
        return failures.unreachable(download, "the hub names files outside of the repository's folder")
    if isinstance(error, errors.RevisionNotFoundError):
        return failures.not_found(download, f"{repository} has no revision {download.revision or 'main'}")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return failures.refused(download, had_secret=had_secret)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 404:
        return failures.not_found(
            download, f"there is no repository {repository} at the hub, or it is private"
        )
    if isinstance(error, errors.HFValidationError):
        return failures.not_found(download, f"{repository} is not the name of a repository")
    if isinstance(error, OSError) and error.errno:
        return disk_error(error, Path(error.filename or "the hub's cache").parent)
    cause = error.__cause__
    if isinstance(error, errors.LocalEntryNotFoundError) and cause is not None:
        inner = _translate(cause, download, had_secret=had_secret)
        if not isinstance(cause, OSError) or not cause.errno:
            return inner
        return failures.unreachable(download, "the hub does not respond")
    if isinstance(error, ValueError):
        return failures.unreachable(download, "the hub names a file outside of the repository's folder")
    reason = (
        f"the hub responds with status {status}"
        if status
        else f"the hub does not respond ({type(error).__name__})"
    )
    return failures.unreachable(download, reason)


class _Nowhere:
    """A file that drops what the bars print."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _progress_class(progress: Progress) -> type[Any]:
    """A progress bar class for the library that shows nothing itself and reports to `progress`."""
    from tqdm.auto import tqdm

    class Forwarded(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            options["file"] = _Nowhere()
            options["disable"] = False
            super().__init__(*arguments, **options)
            # One of the library's bars counts what arrives, another what is written to disk.
            self._counts = self.unit == "B" and "Downloading bytes" not in (self.desc or "")
            self._reported = 0

        def update(self, n: float | None = 1) -> bool | None:
            was_displayed: bool | None = super().update(n)
            if self._counts:
                progress.expect(int(self.total) if self.total else None, present=self._reported)
                progress.advance(int(n or 0))
                self._reported += int(n or 0)
            return was_displayed

    return Forwarded
