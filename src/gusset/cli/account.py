"""Uses the key for a manager in a separate process, so that the process that serves never holds it."""

# Imports in functions: only the forked process uses them.

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gusset.cli.app import App
from gusset.cli.forked import ForkedProcess
from gusset.errors import Denied, UsageError
from gusset.secrets.value import SecretValue


@dataclass(frozen=True, slots=True)
class DeploymentToken:
    """A deployment's token. `registered`: created for this process, not given by the user."""

    token: SecretValue
    registered: bool


class Account:
    """The account at the manager at `url`, with the key of `gusset login` or of the token file.

    With an `identity_token_file` the deployment's own token is used instead, which this process exchanges.
    """

    def __init__(self, url: str, process: ForkedProcess, identity_token_file: Path | None) -> None:
        self.url = url
        self.identity_token_file = identity_token_file
        self._process = process
        self._open = True

    @classmethod
    def start(cls, app: App, *, secrets_dir: Path | None, manager: str | None = None) -> Account | None:
        """Fork the process; see `ForkedProcess` for when. None if secrets do not come from a manager.

        Raises:
            UsageError: there is an identity token file without a manager, or together with a token file.
        """
        if secrets_dir is not None:
            return None
        url, identity = manager or app.settings.manager, app.settings.identity_token_file
        if identity is not None and url is None:
            raise UsageError(
                "an identity token needs a manager, but none is set", hint="set GUSSET_MANAGER, or log in"
            )
        if identity is not None and app.settings.token_file is not None:
            raise UsageError(
                "there are two tokens: GUSSET_TOKEN_FILE and GUSSET_IDENTITY_TOKEN_FILE",
                hint="leave one of them out",
            )
        return None if url is None else cls(url, ForkedProcess.start(), identity)

    def deployment_token(self, deployment: str, names: Collection[str]) -> DeploymentToken:
        """The token in the token file; if there is none, register the deployment with the person's key.

        Raises:
            NotSignedIn, Denied: there is no key, or the manager refuses it.
            Unreachable: the manager does not respond.
        """
        self._process.submit(_deployment_token, self.url, deployment, sorted(names))
        token, registered = self._process.result()
        return DeploymentToken(SecretValue(token), registered)

    def secret_names(self) -> list[str]:
        """The names of all secrets that the token or the person may read. Raises as `deployment_token` does.

        A person's are those of the team in which `deployment_token` registers.
        """
        self._process.submit(_secret_names, self.url, self.identity_token_file)
        names: list[str] = self._process.result()
        return names

    def declared_names(self, deployment: str) -> list[str]:
        """The names of the secrets that a deployment declares: those of the token, or as it is registered.

        Raises:
            NotFound: there is no such deployment.
            Denied: the token is of another deployment. Raises also as `deployment_token` does.
        """
        self._process.submit(_declared_names, self.url, deployment, self.identity_token_file)
        names: list[str] = self._process.result()
        return names

    def set_secrets(self, values: Mapping[str, SecretValue]) -> None:
        """Set secrets of the default team. Raises as `deployment_token` does."""
        self._process.submit(_set_secrets, self.url, {name: each.reveal() for name, each in values.items()})
        self._process.result()

    def close(self) -> None:
        """End the process that holds the key."""
        if self._open:
            self._open = False
            self._process.close()


# Called in the forked process. Results are plain bytes, since a `SecretValue` cannot be pickled.


def _deployment_token(url: str, deployment: str, names: list[str]) -> tuple[bytes, bool]:
    from gusset.client.registration import is_token, register

    app = App()
    app.hold_values()
    key = app.settings.key_for(url)
    if is_token(key):
        return key.reveal(), False
    with app.manager(url) as client:
        return register(client, deployment, names).reveal(), True


def _own_deployment(app: App, url: str, file: Path, deployment: str) -> dict[str, Any]:
    """The deployment that an identity token stands for."""
    from gusset.client.exchanged_token import ExchangedToken
    from gusset.client.manager_client import ManagerClient

    key = ExchangedToken(file, deployment)
    with closing(
        ManagerClient(
            url, key, insecure_http=app.settings.insecure_http, ca_certificates=app.settings.manager_ca
        )
    ) as client:
        return client.request("GET", "/v1/deployment")


def _secret_names(url: str, identity_token_file: Path | None) -> list[str]:
    from gusset.client.registration import is_token
    from gusset.client.remote_secrets import RemoteSecrets

    app = App()
    app.hold_values()
    if identity_token_file is not None:
        return list(_own_deployment(app, url, identity_token_file, "")["secrets"])
    with app.manager(url) as client:
        if is_token(app.settings.key_for(url)):
            declared: list[str] = client.request("GET", "/v1/deployment")["secrets"]
            return declared
        return [info.name for info in RemoteSecrets(client).list_first_team() if info.version is not None]


def _declared_names(url: str, deployment: str, identity_token_file: Path | None) -> list[str]:
    from urllib.parse import quote

    from gusset.client.registration import is_token

    app = App()
    app.hold_values()
    if identity_token_file is not None:
        return _names_of(_own_deployment(app, url, identity_token_file, deployment), deployment)
    with app.manager(url) as client:
        if is_token(app.settings.key_for(url)):
            return _names_of(client.request("GET", "/v1/deployment"), deployment)
        found = client.request("GET", f"/v1/deployments/{quote(deployment, safe='')}")
        return list(found["secrets"])


def _names_of(found: dict[str, Any], deployment: str) -> list[str]:
    """The secrets of the deployment that a token is of. Raises Denied if it is another one."""
    if found["name"] != deployment:
        raise Denied(
            f"the token belongs to the deployment {found['name']}, not to {deployment}",
            hint=f"make one: gusset token create --deployment {deployment} --secrets NAME,NAME",
        )
    return list(found["secrets"])


def _set_secrets(url: str, values: dict[str, bytes]) -> None:
    from gusset.client.remote_secrets import RemoteSecrets

    app = App()
    with app.manager(url) as client:
        secrets = RemoteSecrets(client)
        for name, value in values.items():
            secrets.set(name, SecretValue(value), actor=app.actor)
