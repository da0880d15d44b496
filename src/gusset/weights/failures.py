"""The errors of downloads: what failed, the key of the config with its line, and what to do."""

from __future__ import annotations

from gusset.errors import ConfigInvalid, Denied, GussetError, SecretsMissing, Unreachable
from gusset.weights.download import Download, SourceKind


def not_found(download: Download, what: str) -> ConfigInvalid:
    """The source does not have what the config names."""
    return ConfigInvalid(f"{download.location}: {what}", hint="correct the key")


def unreachable(download: Download, reason: str) -> Unreachable:
    """The source does not respond, or not as it should."""
    return Unreachable(
        f"{download.location}: {download.label} cannot be downloaded: {reason}",
        hint="check the network, and start again: the download resumes where it stopped",
    )


def refused(download: Download, *, had_secret: bool) -> GussetError:
    """The source demands a login, or another one than it got."""
    credential, label = download.credential, download.label
    licence = (
        f"; if {download.address} is gated, also accept its licence on its page at the hub"
        if download.kind is SourceKind.HUB
        else ""
    )
    if credential is None:
        return SecretsMissing(
            f"{download.location}: {label} demands a login, and the entry names no secret",
            names=(),
            hint=f"name one: {_key_of(download)}: NAME, and add it with `gusset secret set NAME`{licence}",
        )
    if not had_secret:
        return SecretsMissing(
            f"{download.location}: {label} demands a login, and the secret {credential.secret} "
            f"({credential.location}) has no value",
            names=(credential.secret,),
            hint=f"add it with `gusset secret set {credential.secret}`{licence}",
        )
    return Denied(
        f"{download.location}: {label} refuses the value of the secret {credential.secret} "
        f"({credential.location})",
        hint=f"set a value that may read it: `gusset secret set {credential.secret}`{licence}",
    )


def malformed_credential(download: Download, expected: str) -> Denied:
    """The secret's value is not a login for this kind of source. It is not quoted."""
    credential = download.credential
    assert credential is not None  # noqa: S101  # it has a value
    return Denied(
        f"{credential.location}: the secret {credential.secret} is not a login for {download.label}",
        hint=f"its value must be {expected}",
    )


def library_missing(download: Download, library: str, extra: str) -> ConfigInvalid:
    """A library that gusset needs for this kind of source is not installed."""
    return ConfigInvalid(
        f"{download.location}: {download.label} needs the library {library}, which is not installed",
        hint=f"pip install 'gusset[{extra}]'",
    )


def _key_of(download: Download) -> str:
    return "auth_secret_name" if "weights[" in download.location else "runtime_secret_name"
