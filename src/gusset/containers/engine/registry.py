"""The login to the registry of an image, from secrets.

What is read here goes to the engine, with the request to pull that image, and
to its registry; not into the container, nor into a login that the engine keeps.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gusset.errors import HostError, InvalidName
from gusset.runtime.declared_secrets import DeclaredSecret, read_secrets
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
_USER_OF_JSON = "_json_key"  # by which Google's registries know a service account's key
_ANOTHER = "make the login a secret, USER:PASSWORD, and say auth_method: REGISTRY_SECRET"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A name and a password. `secret` is the secret that they come from, for messages."""

    secret: str
    user: str
    password: SecretValue
    whole: SecretValue

    @property
    def parts(self) -> tuple[SecretValue, ...]:
        """What is to be masked."""
        return self.whole, self.password

    def auth_config(self) -> dict[str, str]:
        """As the library for the engine's API wants them."""
        return {"username": self.user, "password": self.password.reveal().decode()}


@dataclass(frozen=True, slots=True)
class RegistryLogin:
    """Where the credentials for a registry come from: one secret. See `rotation.Declaring`."""

    name: str
    config_file: str
    secrets: tuple[DeclaredSecret, ...]
    is_json_key: bool  # the value is a service account's key of Google's

    @property
    def declared(self) -> tuple[str, ...]:
        return tuple(secret.name for secret in self.secrets)

    @classmethod
    def of_package(cls, package: Package, report: ProblemCollector) -> RegistryLogin | None:
        """What a checked folder's `docker_auth` says; what cannot be done goes to `report`."""
        base = package.config.base_image
        auth = base.docker_auth if base else None
        if base is None or auth is None:
            return None
        host = registry_of(base.image)
        is_json_key = auth.auth_method == "GCP_SERVICE_ACCOUNT_JSON"
        if not is_json_key and auth.auth_method != "REGISTRY_SECRET":
            instead = _ANOTHER
            if auth.auth_method.startswith("AWS"):
                instead += "; for ECR its password is what `aws ecr get-login-password` prints, for user AWS"
            report.add(
                (*_KEY, "auth_method"), f"gusset does not log in to a registry by {auth.auth_method}", instead
            )
            return None
        if _registry_host(auth.registry or host) != host:
            report.add(
                (*_KEY, "registry"),
                f"the image comes from {host}, which gets no login that is for another registry",
                "name the image's registry, or leave the key out",
            )
        path = (*_KEY, "secret_name")
        name = auth.secret_name or "DOCKER_REGISTRY_" + host.replace(":", "_")
        place = report.tree.location(path if auth.secret_name else _KEY)
        try:
            check_name(name)
        except InvalidName as error:
            report.add(path, error.message, error.hint)
        return cls(
            f"the login to {host}",
            str(package.config_file),
            (DeclaredSecret(name, place.line if place else None),),
            is_json_key,
        )

    def read(self, source: SecretSource, allow_missing: Collection[str] = ()) -> Credentials | None:
        """The credentials; None when they may lack, and do.

        Raises:
            SecretsMissing, Denied, Unreachable: see `read_secrets`.
            HostError: the secret has another form.
        """
        held = read_secrets(self, source, allow_missing)
        for name, delivered in held.items():
            value = delivered.value
            if self.is_json_key:
                return Credentials(name, _USER_OF_JSON, value, value)
            user, colon, password = _trimmed(value).partition(b":")
            if not (colon and user and password):
                raise HostError(
                    f"the secret {name} is no login: neither USER:PASSWORD nor that in base64",
                    hint=f"set it anew: gusset secret set {name}",
                )
            return Credentials(name, user.decode(), SecretValue(password), value)
        return None


def registry_of(image: str) -> str:
    """The host of the registry that an image's name leads to, with its port if it has one."""
    first, slash, _ = image.partition("/")
    return _registry_host(first) if slash and ("." in first or ":" in first or first == "localhost") else HUB


def _registry_host(registry: str) -> str:
    host = _SCHEME.sub("", registry.strip()).partition("/")[0].lower()
    return HUB if host in _HUBS else host


def _trimmed(value: SecretValue) -> bytes:
    """USER:PASSWORD, which may be in base64, as people keep it for Truss; or whatever it is."""
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
