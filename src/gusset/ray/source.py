"""The source of a replica's secrets, opened on its own node."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator
from pathlib import Path

from gusset.client.exchanged_token import ExchangedToken
from gusset.client.manager_client import ManagerClient
from gusset.client.manager_source import ManagerSource
from gusset.client.registration import is_token
from gusset.errors import UsageError
from gusset.ray.plan import SecretAccess
from gusset.secrets.sources.chain import ChainSource
from gusset.secrets.sources.folder import FolderSource
from gusset.secrets.sources.source import SecretSource
from gusset.secrets.value import SecretValue
from gusset.settings import Settings, read_key

_MOUNTED = Path("/secrets")


@contextlib.contextmanager
def open_source(
    access: SecretAccess, settings: Settings, *, deployment: str, names: Collection[str]
) -> Iterator[SecretSource]:
    """The folder or manager that `access` names, else the manager of this node's `settings`; `/secrets` last.

    Variables such as TRUSS_SECRET_x are not read: in a cluster they would come from Ray's own store.

    Raises:
        UsageError: nothing is named, a token file cannot be read, or it has a person's key.
    """
    mounted = FolderSource(_MOUNTED, must_exist=False)
    if not names:
        yield ChainSource([])
    elif access.secrets_dir is not None:
        yield ChainSource([FolderSource(Path(access.secrets_dir)), mounted])
    elif (url := access.manager or settings.manager) is not None:
        insecure = access.insecure_http or settings.insecure_http
        ca_certificates = Path(access.manager_ca) if access.manager_ca else settings.manager_ca
        key = _key(access, settings, deployment)
        client = ManagerClient(url, key, insecure_http=insecure, ca_certificates=ca_certificates)
        source = ManagerSource(client)
        try:
            yield ChainSource([source, mounted])
        finally:
            source.close()
    elif _MOUNTED.is_dir():
        yield ChainSource([mounted])
    else:
        raise UsageError(
            f"{deployment} declares secrets, but its replica has no manager to read them from",
            hint="name a manager and a file with a token on the nodes: --manager URL --token-file PATH, "
            "or set GUSSET_MANAGER and GUSSET_TOKEN_FILE on the nodes",
        )


def _key(access: SecretAccess, settings: Settings, deployment: str) -> SecretValue | ExchangedToken:
    """The deployment's token: that of a token file, or one for the platform's token."""
    files = [access.identity_token_file, access.token_file]
    if files == [None, None]:
        files = [_text(settings.identity_token_file), _text(settings.token_file)]
    identity, token = files
    if identity is not None and token is not None:
        raise UsageError(
            "there are two tokens: a token file and an identity token file", hint="leave one of them out"
        )
    if identity is not None:
        return ExchangedToken(Path(identity), deployment)
    if token is None:
        raise UsageError(
            "the replica has no token for the manager",
            hint="name a file on the nodes: --token-file PATH or --identity-token-file PATH",
        )
    key = read_key(Path(token))
    if not is_token(key):
        raise UsageError(
            f"{token} has a person's API key, and replicas need the token of a deployment",
            hint=f"make one: gusset token create --deployment {deployment} --secrets NAME,NAME",
        )
    return key


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
