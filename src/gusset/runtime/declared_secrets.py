"""The secrets that a deployment declares, and reading their values."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from gusset.errors import SecretsMissing

if TYPE_CHECKING:  # not at run time: workers import this module, and read no source
    from gusset.secrets.sources.source import Delivered, SecretSource

Values: TypeAlias = "Mapping[str, Delivered]"


@dataclass(frozen=True, slots=True)
class DeclaredSecret:
    """The name of a secret in the config; `line` counts from 1, None if it is not written there."""

    name: str
    line: int | None = None
    optional: bool = False


class DeclaringDeployment(Protocol):
    """A deployment that declares secrets: of a model or of an image."""

    @property
    def name(self) -> str: ...
    @property
    def config_file(self) -> str: ...
    @property
    def secrets(self) -> Sequence[DeclaredSecret]: ...
    @property
    def declared(self) -> tuple[str, ...]:
        """The names of `secrets`."""

    @property
    def callers(self) -> Sequence[DeclaredSecret]:
        """The secrets that are the keys of its callers. What is deployed does not get them."""

    @property
    def download_secrets(self) -> tuple[str, ...]:
        """The names of secrets that its downloads log in with. They may be missing; it does not get them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeclaredSecrets:
    """Secrets that are read for one purpose, without callers and downloads. A `DeclaringDeployment`."""

    name: str = ""
    config_file: str = ""
    secrets: tuple[DeclaredSecret, ...] = ()

    @property
    def declared(self) -> tuple[str, ...]:
        return tuple(secret.name for secret in self.secrets)

    @property
    def callers(self) -> tuple[DeclaredSecret, ...]:
        return ()

    @property
    def download_secrets(self) -> tuple[str, ...]:
        return ()


def names_to_read(deployment: DeclaringDeployment) -> tuple[str, ...]:
    """The names of all secrets that the deployment reads: its own, its callers', its downloads'."""
    callers = (caller.name for caller in deployment.callers)
    return tuple(dict.fromkeys((*deployment.declared, *callers, *deployment.download_secrets)))


def read_secrets(
    deployment: DeclaringDeployment, source: SecretSource, allow_missing: Collection[str] = ()
) -> Values:
    """The values of those secrets that `source` has: declared ones, callers' keys, logins of downloads.

    `allow_missing` names secrets that may be missing, besides the optional
    ones and those of downloads; "all" stands for every secret.

    Raises:
        SecretsMissing: it names all others that are missing, where each is declared and how to add it.
        Denied, Unreachable: as raised by the source; neither counts as missing.
    """
    names = names_to_read(deployment)
    if not names:
        return {}
    wanted = (*deployment.secrets, *deployment.callers)
    held = source.read(names)
    missing = [
        secret
        for secret in wanted
        if secret.name not in held and not secret.optional and secret.name not in allow_missing
    ]
    if missing and "all" not in allow_missing:
        raise _missing(deployment, missing)
    return held


def _missing(deployment: DeclaringDeployment, missing: list[DeclaredSecret]) -> SecretsMissing:
    lines = []
    for secret in missing:
        file = "--callers" if secret in deployment.callers else deployment.config_file
        location = file if secret.line is None else f"{deployment.config_file}:{secret.line}"
        lines.append(f"  {secret.name} ({location}): gusset secret set {secret.name}")
    what = "a secret that has" if len(missing) == 1 else f"{len(missing)} secrets that have"
    return SecretsMissing(
        f"{deployment.name} declares {what} no value:\n" + "\n".join(lines),
        names=[secret.name for secret in missing],
        hint="add them, or start without them: --allow-missing NAME",
    )
