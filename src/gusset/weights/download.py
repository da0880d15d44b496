"""The downloads of a model folder, as plain data. Reads and fetches nothing."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit


class SourceKind(enum.StrEnum):
    """What kind of store a download comes from."""

    HUB = "hf"
    WEB = "https"
    S3 = "s3"
    R2 = "r2"
    COREWEAVE = "cw"
    GCS = "gs"
    AZURE = "azure"


@dataclass(frozen=True, slots=True)
class Credential:
    """The secret that a download logs in with, and the key of the config that names it."""

    secret: str
    location: str  # as in "config.yaml:7: weights[0].auth_secret_name"


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """One repository, folder of a bucket or file that a model needs before `load`.

    `address` is the id of a repository, a URL, or a bucket and the path in it.
    `location` names the key of the config, as in "config.yaml:6: weights[0].source".
    `mount` is the absolute path at which the model finds the files: None for a
    repository that only goes into the hub's own cache, and for external data.
    `data_file` is where external data goes, relative to the data folder.
    """

    kind: SourceKind
    address: str
    location: str
    revision: str | None = None
    allow_patterns: tuple[str, ...] | None = None
    ignore_patterns: tuple[str, ...] = ()
    credential: Credential | None = None
    mount: str | None = None
    data_file: str | None = None

    @property
    def label(self) -> str:
        """The source for messages, without what may be confidential in it: user name, password, query."""
        if self.kind is SourceKind.WEB:
            parts = urlsplit(self.address)
            return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.kind}://{self.address}{revision}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchRequest:
    """What the process that fetches is to do.

    `values` are the secrets by name, those that exist. External data goes into
    `data_dir`. `readable`: its output goes to a terminal. With
    `plain_folders` no folder contains symbolic links, so that each can be mounted.
    """

    downloads: tuple[Download, ...]
    values: Mapping[str, bytes] = field(repr=False)
    cache: Path
    data_dir: Path
    readable: bool
    plain_folders: bool = False


def credential_names(downloads: Sequence[Download]) -> tuple[str, ...]:
    """The names of the secrets that the downloads log in with, each once."""
    return tuple(dict.fromkeys(each.credential.secret for each in downloads if each.credential))
