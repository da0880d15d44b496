"""What a replica is started with: plain data that Ray stores and sends to its nodes. Contains no value."""

from __future__ import annotations

from dataclasses import dataclass

from gusset import __version__


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretAccess:
    """Where each replica reads its secrets: addresses, and paths on its own node. Never a value.

    `manager` is an address, or several with commas between them. The deployment's token is in
    `token_file`, or is issued for the JSON Web Token in `identity_token_file`. `secrets_dir` is read
    in place of a manager. What is None is taken from the environment of the replica's node:
    GUSSET_MANAGER, GUSSET_TOKEN_FILE, GUSSET_IDENTITY_TOKEN_FILE, GUSSET_MANAGER_CA. `manager_ca` is a
    file with certificates of authorities that are trusted for the manager.
    """

    manager: str | None = None
    token_file: str | None = None
    identity_token_file: str | None = None
    secrets_dir: str | None = None
    manager_ca: str | None = None
    insecure_http: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderOnNodes:
    """A model folder that every node has at this path."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFolder:
    """A model folder in Ray's Global Control Store; `digest` is the SHA-256 of its archive."""

    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaPlan:
    """What a replica serves.

    `name` is the deployment's, by which the manager knows it. For `allow_missing` see `read_secrets`.
    `masks_responses` masks results as errors always are. `version` is gusset's where the plan was made.
    """

    name: str
    folder: FolderOnNodes | StoredFolder
    access: SecretAccess
    allow_missing: tuple[str, ...] = ()
    masks_responses: bool = False
    version: str = __version__
