"""From `weights`, `model_cache` and `external_data` of a config to downloads. Fetches nothing."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gusset.addresses import is_host
from gusset.errors import ConfigInvalid, Problem
from gusset.secrets.name import fold_name
from gusset.weights.download import Credential, Download, SourceKind
from gusset.weights.libraries import check_library

if TYPE_CHECKING:
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector
    from gusset.package.storage import ModelRepo, Weights

VOLUMES = "/app/model_cache"
"""Where models expect the volumes of `model_cache`."""

_BUCKETS = {"gcs": SourceKind.GCS, "s3": SourceKind.S3, "azure": SourceKind.AZURE}
_BUCKET_SCHEMES = re.compile(r"(gs|s3|azure|az)://")
_AZURE_SOURCE = re.compile(r"[0-9a-z]+/[^/]+(/.*)?")
_R2_SOURCE = re.compile(r"[0-9A-Za-z]+\.[^/]+(/.*)?")

Path = tuple[str | int, ...]


def plan_downloads(package: Package) -> tuple[Download, ...]:
    """The downloads of a folder in which `find_problems` finds nothing; external data comes first."""
    return tuple(_Planner(package.problem_collector(), package).plan())


def find_problems(package: Package) -> list[Problem]:
    """What keeps these keys of a valid config from being fetched here."""
    problems = package.problem_collector()
    planner = _Planner(problems, package)
    planner.report()
    return problems.sorted()


def find_missing(package: Package, available: Collection[str] | None) -> list[Problem]:
    """Warnings of what the downloads of a folder lack on this machine: libraries, and secrets.

    `available` are the names of the secrets that exist; None skips them.
    """
    problems = package.problem_collector()
    planner = _Planner(problems, package)
    known = None if available is None else {fold_name(name) for name in available}
    for download, path in planner.located():
        try:
            check_library(download)
        except ConfigInvalid as error:
            message = error.message.removeprefix(f"{download.location}: ")
            problems.add(path, message, error.hint, code="library_missing", warning=True)
        credential = download.credential
        if credential is None or known is None or not planner.names_secret(path):
            continue
        if fold_name(credential.secret) not in known:
            problems.add(
                path,
                f"the secret {credential.secret} does not exist: only a public source can be downloaded",
                f"add it with `gusset secret set {credential.secret}`",
                code="secret_missing",
                warning=True,
            )
    return problems.sorted()


class _Planner:
    def __init__(self, problems: ProblemCollector, package: Package) -> None:
        self._problems = problems
        self._config = package.config

    def plan(self) -> Iterable[Download]:
        for position, data in enumerate(self._config.external_data or ()):
            path: Path = ("external_data", position)
            yield Download(
                kind=SourceKind.WEB,
                address=data.url,
                location=self._location((*path, "url")),
                data_file=data.local_data_path,
            )
        for position, entry in enumerate(self._config.weights):
            yield self._weights(entry, ("weights", position))
        for position, repo in enumerate(self._config.model_cache):
            yield self._cached_repo(repo, (self._cache_key, position))

    def located(self) -> Iterator[tuple[Download, Path]]:
        """The downloads, each with the path of its source in the config."""
        sources = {"external_data": "url", "weights": "source", self._cache_key: "repo_id"}
        counts = (
            len(self._config.external_data or ()),
            len(self._config.weights),
            len(self._config.model_cache),
        )
        paths = [
            (section, position, key)
            for (section, key), count in zip(sources.items(), counts, strict=True)
            for position in range(count)
        ]
        yield from zip(self.plan(), paths, strict=True)

    def names_secret(self, path: Path) -> bool:
        """Whether the file itself names the secret of the entry with this source."""
        return path[0] == "weights" or self._is_written((*path[:2], "runtime_secret_name"))

    @property
    def _cache_key(self) -> str:
        written = self._problems.tree.data or {}
        return "hf_cache" if "hf_cache" in written and "model_cache" not in written else "model_cache"

    def _weights(self, entry: Weights, path: Path) -> Download:
        scheme, _, address = entry.source.partition("://")
        kind, revision = SourceKind(scheme), None
        if kind is SourceKind.WEB:
            address = entry.source
        elif kind is SourceKind.HUB:
            address, _, revision = address.partition("@")
        named = entry.auth_secret_name or (entry.auth.auth_secret_name if entry.auth else None)
        key = "auth_secret_name" if entry.auth_secret_name else "auth.auth_secret_name"
        return Download(
            kind=kind,
            address=address,
            location=self._location((*path, "source")),
            revision=revision or None,
            allow_patterns=_patterns(entry.allow_patterns),
            ignore_patterns=tuple(entry.ignore_patterns or ()),
            credential=self._credential(named, (*path, *key.split("."))),
            mount=_normalized(entry.mount_location),
        )

    def _cached_repo(self, repo: ModelRepo, path: Path) -> Download:
        is_hub = repo.kind == "hf"
        address = repo.repo_id if is_hub else _BUCKET_SCHEMES.sub("", repo.repo_id)
        mount = None
        if repo.use_volume:
            mount = f"{VOLUMES}/{repo.volume_folder}"
        elif not is_hub:
            mount = f"{VOLUMES}/{address.split('/')[0]}"
        # The default is the name of a hub's token, which no bucket accepts.
        named = repo.runtime_secret_name if is_hub or self._is_written((*path, "runtime_secret_name")) else ""
        return Download(
            kind=SourceKind.HUB if is_hub else _BUCKETS[repo.kind],
            address=address,
            location=self._location((*path, "repo_id")),
            revision=repo.revision or None,
            allow_patterns=_patterns(repo.allow_patterns),
            ignore_patterns=tuple(repo.ignore_patterns or ()),
            credential=self._credential(named, (*path, "runtime_secret_name")),
            mount=_normalized(mount) if mount else None,
        )

    def _credential(self, name: str | None, path: Path) -> Credential | None:
        return Credential(name, self._location(path)) if name else None

    def _location(self, path: Path) -> str:
        from gusset.package.problems import format_path  # workers, too, import this module

        location = self._problems.tree.location(path)
        line = f":{location.line}" if location else ""
        return f"{self._problems.file}{line}: {format_path(path)}"

    def _is_written(self, path: Path) -> bool:
        return path in self._problems.tree.values

    def report(self) -> None:
        """Add what keeps the downloads from being fetched to the collector."""
        located = list(self.located())
        downloads = [download for download, _ in located]
        for position, (download, path) in enumerate(located):
            section = path[:2]
            if self._config.docker_server is not None:
                self._check_for_image(download, path)
            if download.data_file is not None:
                self._check_data_file(download, section, downloads[:position])
                self._check_url(download, path, ("https", "http"))
                continue
            self._check_source(download, path)
            if download.mount is not None:
                keys = ("mount_location", "volume_folder")
                written = ((*section, key) for key in keys if self._is_written((*section, key)))
                self._check_mount(download, next(written, path), downloads)

    def _check_for_image(self, download: Download, path: Path) -> None:
        if download.mount is None and download.data_file is None:
            hint = "write use_volume: true and a volume_folder"
            self._add(path, "goes into the hub's cache, which a container does not share", hint)
        elif download.mount is not None and _overlap(download.mount, "/secrets"):
            self._add(path, "is mounted at /secrets, where the secrets are", "name another folder")

    def _check_data_file(self, download: Download, path: Path, earlier: Sequence[Download]) -> None:
        file = download.data_file or ""
        path = (*path, "local_data_path")
        if file.startswith("/") or not _is_inside(file):
            self._add(path, "leaves the data folder", "write a path in the data folder, without `..`")
        elif any(_overlap(file, each.data_file or "") for each in earlier):
            self._add(path, "is in the way of an earlier entry", "give each entry its own path")

    def _check_mount(self, download: Download, path: Path, downloads: Sequence[Download]) -> None:
        mount = download.mount or ""
        is_volume = path[-1] != "mount_location"
        if ".." in mount.split("/") or "\0" in mount:
            self._add(path, "contains `..`", "write the path without it")
        elif mount == "/" or (is_volume and not mount.startswith(f"{VOLUMES}/")):
            self._add(path, "is not a folder just for these files", "name a folder for these files")
        for other in downloads:
            if other is not download and other.mount is not None and _overlap(mount, other.mount):
                self._add(path, "overlaps with another entry", "give each entry its own folder")
                return

    def _check_source(self, download: Download, path: Path) -> None:
        if download.kind is SourceKind.WEB:
            self._check_url(download, path, ("https",))
        elif download.kind is SourceKind.R2 and not _R2_SOURCE.fullmatch(download.address):
            self._add(path, "does not name account and bucket", "write r2://ACCOUNT_ID.BUCKET/PATH")
        elif download.kind is SourceKind.AZURE and not _AZURE_SOURCE.fullmatch(download.address):
            self._add(path, "does not name account and container", "write azure://ACCOUNT/CONTAINER/PATH")

    def _check_url(self, download: Download, path: Path, schemes: Sequence[str]) -> None:
        try:
            url = urlsplit(download.address)
            valid = url.scheme in schemes and is_host(url.hostname or "") and url.port != 0
        except ValueError:
            url, valid = urlsplit(""), False
        if not valid:
            self._add(path, "is not a URL that can be fetched", f"start it with {schemes[0]}:// and a host")
        elif "@" in url.netloc:
            hint = "take them out, and name a secret with auth_secret_name"
            self._add(path, "contains a user name or password", hint)
        elif download.mount is not None and not PurePosixPath(url.path).name:
            self._add(path, "does not end with the name of a file", "write the URL of one file")

    def _add(self, path: Path, message: str, hint: str) -> None:
        self._problems.add(path, message, hint, code="download")


def _patterns(patterns: Sequence[str] | None) -> tuple[str, ...] | None:
    return tuple(patterns) if patterns is not None else None


def _normalized(path: str) -> str:
    """The path without `//`, `/./` and a `/` at its end; `..` stays, and is refused."""
    return "/" + "/".join(part for part in path.split("/") if part not in ("", "."))


def _is_inside(path: str) -> bool:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return bool(parts) and ".." not in parts and "\0" not in path


def _overlap(first: str, second: str) -> bool:
    """Whether the paths are equal, or one is in the other."""
    a, b = PurePosixPath(first).parts, PurePosixPath(second).parts
    shorter = min(len(a), len(b))
    return a[:shorter] == b[:shorter]
