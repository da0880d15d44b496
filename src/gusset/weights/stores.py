"""How to reach each kind of bucket: which file system of fsspec, with which options and login."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gusset.errors import Denied
from gusset.weights import failures
from gusset.weights.download import Download, SourceKind

_TIMEOUTS = {"connect_timeout": 20, "read_timeout": 60, "retries": {"total_max_attempts": 1}}
_TOKEN_URI = "https://oauth2.googleapis.com/token"  # noqa: S105  # an address
_S3_FORM = 'JSON: {"access_key_id": "...", "secret_access_key": "...", "region": "..."}'
_FORMS = {
    SourceKind.S3: _S3_FORM,
    SourceKind.R2: _S3_FORM,
    SourceKind.COREWEAVE: _S3_FORM,
    SourceKind.GCS: "the JSON of a service account's key",
    SourceKind.AZURE: 'JSON: {"account_key": "..."} or {"sas_token": "..."}, or a connection string',
}


@dataclass(frozen=True, slots=True)
class Store:
    """A file system by its protocol and options, and the path of the download in it.

    `anonymous` are the options to try when those are refused.
    """

    protocol: str
    path: str
    options: dict[str, Any] = field(repr=False)
    anonymous: dict[str, Any] | None = None


def store_of(download: Download, value: bytes | None) -> Store:
    """Where the download is, and the login in `value`.

    Without a value the store's library looks for a login of this machine, except for R2 and CoreWeave. If
    there is none, or it is refused, the bucket may still be public.

    Raises:
        Denied: the value is not a login for this kind of store.
    """
    makers: dict[SourceKind, Callable[[Download, bytes | None], Store]] = {
        SourceKind.S3: _s3,
        SourceKind.R2: _r2,
        SourceKind.COREWEAVE: _coreweave,
        SourceKind.GCS: _gcs,
        SourceKind.AZURE: _azure,
    }
    return makers[download.kind](download, value)


def malformed(download: Download) -> Denied:
    """The error for a value that is not a login for the download's kind of store."""
    return failures.malformed_credential(download, _FORMS[download.kind])


def _s3(download: Download, value: bytes | None) -> Store:
    options = {"config_kwargs": _TIMEOUTS}
    if value is None:
        return Store("s3", download.address, options, options | {"anon": True})
    return Store("s3", download.address, options | _s3_login(download, value))


def _r2(download: Download, value: bytes | None) -> Store:
    account, _, path = download.address.partition(".")
    options = _s3_login(download, value) if value is not None else {"anon": True}
    endpoint = f"https://{account}.r2.cloudflarestorage.com"
    client = {"region_name": "auto"}
    return Store(
        "s3",
        path,
        {**options, "endpoint_url": endpoint, "client_kwargs": client, "config_kwargs": _TIMEOUTS},
    )


def _coreweave(download: Download, value: bytes | None) -> Store:
    options = _s3_login(download, value) if value is not None else {"anon": True}
    config = _TIMEOUTS | {"s3": {"addressing_style": "virtual"}}
    return Store(
        "s3", download.address, {**options, "endpoint_url": "https://cwobject.com", "config_kwargs": config}
    )


def _s3_login(download: Download, value: bytes) -> dict[str, Any]:
    given = _json_object(value) or {}
    key = given.get("access_key_id") or given.get("aws_access_key_id")
    secret = given.get("secret_access_key") or given.get("aws_secret_access_key")
    if not key or not secret:
        raise malformed(download)
    login: dict[str, Any] = {"key": key, "secret": secret}
    if token := given.get("session_token") or given.get("aws_session_token"):
        login["token"] = token
    if region := given.get("region") or given.get("aws_region"):
        login["client_kwargs"] = {"region_name": region}
    return login


def _gcs(download: Download, value: bytes | None) -> Store:
    if value is None:
        return Store("gs", download.address, {}, {"token": "anon"})
    key = _json_object(value) or {}
    if not key.get("private_key") or not key.get("client_email"):
        raise malformed(download)
    return Store(
        "gs", download.address, {"token": {"type": "service_account", "token_uri": _TOKEN_URI, **key}}
    )


def _azure(download: Download, value: bytes | None) -> Store:
    account, _, path = download.address.partition("/")
    options: dict[str, Any] = {"account_name": account}
    if value is None:
        return Store("az", path, options, options | {"anon": True})
    text = value.decode("utf-8", "replace").strip()
    if text.startswith(("DefaultEndpointsProtocol=", "AccountName=", "BlobEndpoint=")):
        return Store("az", path, {"connection_string": text})
    given = _json_object(value) or {}
    for name in ("connection_string", "account_key", "sas_token"):
        if given.get(name):
            own = {} if name == "connection_string" else options
            return Store("az", path, {**own, name: given[name]})
    raise malformed(download)


def _json_object(value: bytes) -> dict[str, str] | None:
    """The object whose values are texts; None for anything else."""
    try:
        given = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not isinstance(given, dict):
        return None
    return {name: text for name, text in given.items() if isinstance(text, str)}
