"""Routes by which other tools read secrets, with a deployment's token. They change no secret.

`GET /v1/deployment/secrets/{name}` is the value of one secret, as its exact bytes. All
others are what clients of Vault and OpenBao need to read from a store of the kind KV
version 2: their paths, their fields, the header `X-Vault-Token`, and their errors.

A value leaves only by an audited delivery. What can be decided without the value (a
`HEAD`, a value that the client has already) is not a delivery: it is not audited, and
writes nothing.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

import orjson

from gusset.errors import Denied, NotFound, SecretNotFound, UsageError
from gusset.manager.api.json_responses import json_response
from gusset.manager.api.operations import number
from gusset.manager.api.router import http_error
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.callers import DeploymentCaller
from gusset.manager.identity.exchange import IdentityExchange
from gusset.manager.live.delivery import Delivery
from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response
from gusset.secrets.name import fold_name
from gusset.secrets.value import SecretValue
from gusset.vault.audit.epochs import FIRST
from gusset.vault.storage.connection import Transaction
from gusset.vault.wiring import TeamSecrets, Vault

EXACT = "/v1/deployment/secrets/{name}"
DATA = "/v1/secret/data/{name}"
MOUNTS = "/v1/sys/internal/ui/mounts/{path}"
LOOKUP = "/v1/auth/token/lookup-self"
LOGINS = ("/v1/auth/kubernetes/login", "/v1/auth/jwt/login")

_OF_VAULT = ("/v1/secret/", "/v1/auth/", "/v1/sys/")
_MOUNT = "secret/"
_OCTETS = b"application/octet-stream"
_NO_STORE = (b"cache-control", b"no-store")
_MAX_REMEMBERED = 10_000  # ids of secrets


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadRoute:
    """`path` is the route with its parameter's name, as audit records and metrics show it."""

    path: str
    parameter: str = ""

    @property
    def is_vault_compatible(self) -> bool:
        return self.path != EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    """A request for a read route."""

    exchange: Exchange
    route: ReadRoute
    address: str | None

    @property
    def method(self) -> str:
        return self.exchange.method.decode("ascii")

    @property
    def authorization(self) -> str:
        """The deployment's token, as in `Authorization`. On Vault's routes, `X-Vault-Token` has priority."""
        if self.route.is_vault_compatible and (token := self.exchange.header(b"x-vault-token")):
            return f"Bearer {token.decode('latin-1')}"
        return (self.exchange.header(b"authorization") or b"").decode("latin-1")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Current:
    """A delivered value."""

    secret_id: str
    version: int
    value: SecretValue


@dataclass(frozen=True, slots=True, kw_only=True)
class _Login:
    """A login. `role` is the deployment, empty where the token says it alone."""

    role: str
    jwt: SecretValue


def find_read_route(path: str) -> ReadRoute | None:
    """The read route of a path: `other` for one of Vault that gusset does not serve, None for the rest."""
    for route in (EXACT, DATA):
        prefix = route.removesuffix("{name}")
        if path.startswith(prefix) and (name := path.removeprefix(prefix)) and "/" not in name:
            return ReadRoute(path=route, parameter=name)
    if path.startswith(prefix := MOUNTS.removesuffix("{path}")):
        return ReadRoute(path=MOUNTS, parameter=path.removeprefix(prefix))
    if path == LOOKUP or path in LOGINS:
        return ReadRoute(path=path)
    return ReadRoute(path="other") if path.startswith(_OF_VAULT) else None


class ReadRoutes:
    """Handles requests for the read routes. For the event loop's thread, in a greenlet."""

    def __init__(
        self, vault: Vault, authenticator: Authenticator, delivery: Delivery, identities: IdentityExchange
    ) -> None:
        self._vault = vault
        self._authenticator = authenticator
        self._delivery = delivery
        self._identities = identities
        self._reuses_name: dict[str, bool] = {}  # by id of the secret; never changes
        self._handlers: Mapping[str, Callable[[_Read], Response]] = {
            EXACT: self._read_exact,
            DATA: self._read_data,
            MOUNTS: self._describe_mount,
            LOOKUP: self._look_up_token,
            **dict.fromkeys(LOGINS, self._log_in),
        }

    def handle(self, exchange: Exchange, route: ReadRoute, address: str | None) -> Response:
        """The response to a request.

        Raises:
            GussetError: see `render_error`.
        """
        read = _Read(exchange=exchange, route=route, address=address)
        handler = self._handlers.get(route.path)
        if handler is None:
            raise NotFound(
                "gusset has only the part of this API that reads secrets",
                hint=f"the values are under {DATA.removesuffix('{name}')}",
            )
        allowed = _methods(route.path)
        if read.method not in allowed:
            response = http_error(
                405,
                "that route does not take this method: secrets are only read here",
                (b"allow", ", ".join(allowed).encode()),
            )
            return render_error(route, response)
        if route.is_vault_compatible and exchange.header(b"x-vault-wrap-ttl") is not None:
            raise UsageError("gusset does not wrap responses", hint="remove the X-Vault-Wrap-TTL header")
        return handler(read)

    def _authenticate(self, read: _Read) -> DeploymentCaller:
        request = AuthRequest(
            method=read.method,
            route=read.route.path,
            address=read.address,
            authorization=read.authorization,
        )
        return self._authenticator.authenticate_deployment(request)

    def _read_exact(self, read: _Read) -> Response:
        """The exact bytes of a value. Its version is the ETag."""
        caller = self._authenticate(read)
        [name] = self._delivery.allowed_names(caller, [read.route.parameter])
        given = (read.exchange.header(b"if-none-match") or b"").decode("latin-1")
        if given or read.method == "HEAD":
            secrets = self._secrets_of(caller)
            if (info := secrets.reader.find_many([name]).get(name)) and info.version is not None:
                tag = self._tag(secrets, info.id, info.version)
                if _matches(given, tag):
                    return Response(304, b"", _OCTETS, (_NO_STORE, _tag_header(tag)))
                if read.method == "HEAD":
                    return Response(200, b"", _OCTETS, (_NO_STORE, _tag_header(tag)))
        current = self._deliver(caller, name)
        tag = self._tag(self._secrets_of(caller), current.secret_id, current.version)
        return Response(200, current.value.reveal(), _OCTETS, (_NO_STORE, _tag_header(tag)))

    def _secrets_of(self, caller: DeploymentCaller) -> TeamSecrets:
        return self._vault.secrets_of(caller.grant.team_id, caller.grant.team)

    def _deliver(self, caller: DeploymentCaller, name: str, *, version: int | None = None) -> _Current:
        """Deliver one value; the audit record is on disk before this returns.

        Raises:
            SecretNotFound: there is no such secret.
            Denied: another version than `version` is the current one.
        """

        def require_version(_: Transaction, found: Mapping[str, int]) -> None:
            if version is not None and found[name] not in (0, version):
                raise Denied(
                    f"a deployment reads only the current version of {name}", hint="leave the version out"
                )

        delivered = self._secrets_of(caller).delivery.deliver(
            [name],
            actor=caller.actor,
            deployment=caller.grant.deployment,
            on_read=require_version,
            with_previous=False,
        )
        if name not in delivered.values:
            # No hint with a similar name: the token says which names this caller may know.
            raise SecretNotFound(f"there is no secret {name}", hint=f"add it with `gusset secret set {name}`")
        return _Current(
            secret_id=delivered.revisions[fold_name(name)].id,
            value=delivered.values[name].value,
            version=delivered.values[name].version or 0,  # the vault numbers every version
        )

    def _tag(self, secrets: TeamSecrets, secret_id: str, version: int) -> str:
        """The ETag: the version.

        A secret that took the name of a deleted one, or of one that the database has lost, begins with
        version 1 again, so its tags have its id, too.
        """
        if len(self._reuses_name) >= _MAX_REMEMBERED:
            self._reuses_name.clear()
        if secret_id not in self._reuses_name:
            self._reuses_name[secret_id] = secrets.reader.reuses_name(secret_id)
        repeats = self._reuses_name[secret_id] or self._vault.epoch > FIRST
        return f'"{version}-{secret_id}"' if repeats else f'"{version}"'

    def _read_data(self, read: _Read) -> Response:
        """The value as the field `value` of a secret of KV version 2."""
        caller = self._authenticate(read)
        [name] = self._delivery.allowed_names(caller, [read.route.parameter])
        current = self._deliver(caller, name, version=_version_parameter(read.exchange))
        stored_at = self._secrets_of(caller).reader.stored_at(current.secret_id, current.version)
        return _vault_response(data=_kv_data(current.value, current.version, stored_at))

    def _look_up_token(self, read: _Read) -> Response:
        """Describe the token. It cannot be renewed: it is valid until it expires."""
        caller = self._authenticate(read)
        grant, ttl = caller.grant, 0  # of a token that does not expire, as in Vault
        if caller.expires_at is not None:
            left = datetime.fromisoformat(caller.expires_at) - datetime.fromisoformat(self._vault.now())
            ttl = max(1, int(left.total_seconds()))
        data: Mapping[str, Any] = {
            "accessor": caller.prefix,
            "display_name": grant.deployment,
            "entity_id": "",
            "expire_time": caller.expires_at,
            "explicit_max_ttl": 0,
            "id": read.authorization.partition(" ")[
                2
            ].strip(),  # clients take the token that they go on with from here
            "meta": {"deployment": grant.deployment, "team": grant.team},
            "num_uses": 0,
            "orphan": True,
            "path": "auth/token/create",
            "policies": [],
            "renewable": False,
            "ttl": ttl,
            "type": "service",
        }
        return _vault_response(data=data)

    def _log_in(self, read: _Read) -> Response:
        """Exchange a workload's JSON Web Token for a short-lived token of the deployment `role`."""
        login = _read_login(read.exchange.body)
        issued = self._identities.exchange(
            login.jwt,
            route=f"{read.method} {read.route.path}",
            address=read.address,
            target=login.role or None,
        )
        token = issued.token.reveal().decode()
        auth = {
            "accessor": "",
            "client_token": token,
            "entity_id": "",
            "lease_duration": issued.lifetime,
            "metadata": {"role": login.role},
            "num_uses": 0,
            "orphan": True,
            "policies": [],
            "renewable": False,
            "token_policies": [],
            "token_type": "service",
        }
        return _vault_response(auth=auth)

    def _describe_mount(self, read: _Read) -> Response:
        """Say that `secret/` is KV version 2. From this, clients know which paths to use."""
        caller = self._authenticate(read)
        if not f"{read.route.parameter}/".startswith(_MOUNT):
            error = Denied("gusset has one store, which is mounted at secret/")
            self._authenticator.record_denied(caller, f"GET {MOUNTS}", error)
            raise error
        data = {
            "accessor": "gusset",
            "config": {},
            "description": "the secrets that the deployment declares",
            "local": False,
            "options": {"version": "2"},
            "path": _MOUNT,
            "type": "kv",
        }
        return _vault_response(data=data)


def _methods(path: str) -> Sequence[str]:
    if path in LOGINS:
        return "POST", "PUT"
    return ("GET", "HEAD") if path == EXACT else ("GET",)


def render_error(route: ReadRoute, response: Response) -> Response:
    """An error in the form of the route's clients: gusset's usual one, or Vault's."""
    if not route.is_vault_compatible:
        return response
    error = orjson.loads(response.body)
    status, message = response.status, error["message"]
    if status == 401:  # Vault sends 403, which tells its clients to log in again
        status, message = 403, f"invalid token: {message}"
    texts = [f"{message} ({error['hint']})" if error["hint"] else message]
    if error["code"] == SecretNotFound.code:
        texts = []  # a secret that does not exist is not an error to Vault's clients
    headers = [header for header in response.headers if header[0] != b"www-authenticate"]
    return replace(response, status=status, body=orjson.dumps({"errors": texts}), headers=headers)


def skips_body(route: ReadRoute) -> bool:
    """Whether the body of a request has no meaning: only a login has one."""
    return route.path not in LOGINS


def without_body(exchange: Exchange, response: Response) -> bool:
    """Whether a response is sent without the body that a GET would get, whose length is then not known."""
    return response.status == 304 or (exchange.method == b"HEAD" and response.status == 200)


def _tag_header(tag: str) -> tuple[bytes, bytes]:
    return b"etag", tag.encode("ascii")


def _matches(if_none_match: str, tag: str) -> bool:
    return if_none_match.strip() == "*" or tag in re.findall(r'"[^"]*"', if_none_match)


def _read_login(body: bytes) -> _Login:
    """The body of a login. Raises UsageError."""
    try:
        given = orjson.loads(body)
    except orjson.JSONDecodeError:
        given = None
    if not isinstance(given, dict):
        raise UsageError("the body is not a JSON object")
    role, jwt = given.get("role", ""), given.get("jwt")
    if not isinstance(role, str) or not isinstance(jwt, str):
        raise UsageError("a login needs the strings role (the deployment) and jwt (the workload's token)")
    return _Login(role=role, jwt=SecretValue(jwt.encode("utf-8", "replace")))


def _version_parameter(exchange: Exchange) -> int | None:
    """The version in the query; None for the current one, which Vault calls 0 or leaves out."""
    given = parse_qs(exchange.query.decode("latin-1")).get("version", [""])[-1]
    return (number(given, "version") or None) if given else None


def _kv_data(value: SecretValue, version: int, stored_at: str) -> Mapping[str, Any]:
    """The value with its metadata, as KV version 2 has them. Bytes that are no text are in base64."""
    metadata: dict[str, Any] = {
        "created_time": stored_at,
        "custom_metadata": None,
        "deletion_time": "",
        "destroyed": False,
        "version": version,
    }
    try:
        text = value.reveal().decode()
    except UnicodeDecodeError:
        text = base64.b64encode(value.reveal()).decode()
        # Typed clients show only the custom metadata.
        metadata |= {"encoding": "base64", "custom_metadata": {"encoding": "base64"}}
    return {"data": {"value": text}, "metadata": metadata}


def _vault_response(
    *, data: Mapping[str, Any] | None = None, auth: Mapping[str, Any] | None = None
) -> Response:
    """A response with all the fields that Vault's responses have."""
    body = {
        "request_id": str(uuid.uuid4()),
        "lease_id": "",
        "renewable": False,
        "lease_duration": 0,
        "data": data,
        "wrap_info": None,
        "warnings": None,
        "auth": auth,
    }
    return json_response(200, body)
