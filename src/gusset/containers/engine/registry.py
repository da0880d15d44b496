"""The login to an image's registry, from a secret.

It is sent to the engine with the request to pull the image, and on to the
registry. It does not reach the container, and the engine does not store it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gusset.errors import HostError, InvalidName, UsageError
from gusset.runtime.declared_secrets import DeclaredSecret, DeclaredSecrets, read_secrets
from gusset.secrets.name import check_name
from gusset.secrets.sources.source import SecretSource
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector

HUB = "docker.io"

_KEY = ("base_image", "docker_auth")
_HUBS = frozenset({"", HUB, "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"})
_SCHEME = re.compile(r"(?i:https?)://")
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*(?::\w[\w.-]{{0,127}})?", re.ASCII)
_JSON_KEY_USER = "_json_key"  # the user name for a service account's key at Google's registries
_ALTERNATIVE = "store the login as a secret, USER:PASSWORD, and write auth_method: REGISTRY_SECRET"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password. `secret` is the name of their secret, and `whole` its value."""

    secret: str
    user: str
    password: SecretValue
    whole: SecretValue

    @property
    def parts(self) -> tuple[SecretValue, ...]:
        """The values to mask."""
        return self.whole, self.password

    def auth_config(self) -> dict[str, str]:
        """As the docker library takes them."""
        return {"username": self.user, "password": self.password.reveal().decode()}


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLogin(DeclaredSecrets):
    """The secret that holds the credentials for a registry."""

    is_json_key: bool  # the value is the JSON key of a Google service account

    @classmethod
    def from_package(cls, package: Package, report: ProblemCollector) -> RegistryLogin | None:
        """From a checked folder's `docker_auth`; None without it. Problems are added to `report`."""
        base = package.config.base_image
        auth = base.docker_auth if base else None
        if base is None or auth is None:
            return None
        host = registry_of(base.image)
        is_json_key = auth.auth_method == "GCP_SERVICE_ACCOUNT_JSON"
        if not is_json_key and auth.auth_method != "REGISTRY_SECRET":
            instead = _ALTERNATIVE
            if auth.auth_method.startswith("AWS"):
                instead += "; for ECR its password is what `aws ecr get-login-password` prints, for user AWS"
            report.add(
                (*_KEY, "auth_method"),
                f"gusset does not log in to a registry with {auth.auth_method}",
                instead,
            )
            return None
        if _registry_host(auth.registry or host) != host:
            report.add(
                (*_KEY, "registry"),
                f"the image comes from {host}, which gets no login for another registry",
                "name the image's registry, or remove the key",
            )
        path = (*_KEY, "secret_name")
        name = auth.secret_name or "DOCKER_REGISTRY_" + host.replace(":", "_")
        location = report.tree.location(path if auth.secret_name else _KEY)
        try:
            check_name(name)
        except InvalidName as error:
            report.add(path, error.message, error.hint)
        return cls(
            name=f"the login to {host}",
            config_file=str(package.config_file),
            secrets=(DeclaredSecret(name, location.line if location else None),),
            is_json_key=is_json_key,
        )

    def read(self, source: SecretSource, allow_missing: Collection[str] = ()) -> Credentials | None:
        """The credentials; None if the secret is missing and is one of `allow_missing`.

        Raises:
            SecretsMissing, Denied, Unreachable: see `read_secrets`.
            HostError: the value is not a login.
        """
        for name, delivered in read_secrets(self, source, allow_missing).items():
            value = delivered.value
            if self.is_json_key:
                return Credentials(name, _JSON_KEY_USER, value, value)
            user, colon, password = _decode(value).partition(b":")
            if not (colon and user and password):
                raise HostError(
                    f"the secret {name} is not a login of the form USER:PASSWORD, plain or in base64",
                    hint=f"set it again: gusset secret set {name}",
                )
            return Credentials(name, user.decode(), SecretValue(password), value)
        return None


def registry_of(image: str) -> str:
    """The host of the registry of an image, with its port if the image's name has one."""
    first = _registry_in(image)
    return _registry_host(first) if first else HUB


def check_image_name(name: str) -> None:
    """Check that an image can get this name.

    Raises:
        UsageError: it cannot.
    """
    registry = _registry_in(name)
    if not _REPOSITORY.fullmatch(name.removeprefix(f"{registry}/") if registry else name):
        raise UsageError(
            f"{name!r} cannot be the name of an image",
            hint="write it in lowercase letters, as in registry.example:5000/team/my-model:1.2",
        )


def _registry_in(image: str) -> str:
    """The registry in the name of an image, as it is written; empty if there is none."""
    first, slash, _ = image.partition("/")
    return first if slash and ("." in first or ":" in first or first == "localhost") else ""


def _registry_host(registry: str) -> str:
    host = _SCHEME.sub("", registry.strip()).partition("/")[0].lower()
    return HUB if host in _HUBS else host


def _decode(value: SecretValue) -> bytes:
    """USER:PASSWORD, if necessary decoded from base64, as people keep it for Truss; empty if no text."""
    text = value.reveal().strip()
    if b":" not in text:
        try:
            text = base64.b64decode(text, validate=True).strip()
        except binascii.Error:
            return b""
    try:
        text.decode()
    except UnicodeDecodeError:
        return b""
    return text
