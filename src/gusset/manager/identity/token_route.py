"""`POST /v1/token`: the exchange as RFC 8693 has it, form-encoded, without a key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import parse_qsl

import orjson

from gusset.errors import GussetError, TokenRefused, UsageError
from gusset.manager.api import schemas
from gusset.manager.api.json_responses import json_response
from gusset.manager.api.router import error_response, http_error
from gusset.manager.identity.exchange import IdentityExchange
from gusset.runtime.exchange import Exchange
from gusset.runtime.responses import Response
from gusset.secrets.value import SecretValue

TOKEN = "/v1/token"  # noqa: S105  # a path
MAX_TOKEN_BODY = 65_536  # bytes: anybody may send one
_MAX_FIELDS = 20

_FORM = b"application/x-www-form-urlencoded"
_GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT = "urn:ietf:params:oauth:token-type:jwt"
_ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105
_UNSUPPORTED = ("actor_token", "actor_token_type", "resource")


class TokenRoute:
    """Handles requests for tokens. For the event loop's thread, in a greenlet."""

    def __init__(self, identities: IdentityExchange) -> None:
        self._identities = identities

    def handle(self, exchange: Exchange, address: str | None) -> Response:
        """The response to a request. Refusals have the error's name as RFC 6749 has it, too."""
        if exchange.method != b"POST":
            return http_error(405, "that route does not take this method", (b"allow", b"POST"))
        try:
            fields = _fields(exchange)
            issued = self._identities.exchange(
                _subject_token(fields), route=f"POST {TOKEN}", address=address, target=fields.get("audience")
            )
        except GussetError as error:
            return _refusal(error)
        body = schemas.IssuedToken(
            access_token=issued.token.reveal().decode(),
            issued_token_type=_ACCESS_TOKEN,
            token_type="Bearer",  # noqa: S106
            expires_in=issued.lifetime,
        )
        return json_response(200, body)


def _fields(exchange: Exchange) -> Mapping[str, str]:
    """The parameters of a request; those without a value count as absent. Raises UsageError."""
    kind = (exchange.header(b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != _FORM:
        raise UsageError(f"the body must be of the type {_FORM.decode()}")
    try:
        pairs = parse_qsl(
            exchange.body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MAX_FIELDS
        )
    except ValueError:
        raise UsageError("the body is not form-encoded") from None
    fields = {name: value for name, value in pairs if value}
    if len({name for name, _ in pairs}) != len(pairs):
        raise UsageError("a parameter occurs twice in the body")
    return fields


def _subject_token(fields: Mapping[str, str]) -> SecretValue:
    """The token to exchange. Raises UsageError for a request of another kind."""
    for name, expected in (("grant_type", _GRANT), ("subject_token_type", _JWT)):
        if fields.get(name) != expected:
            raise UsageError(f"{name} must be {expected}")
    if fields.get("requested_token_type", _ACCESS_TOKEN) != _ACCESS_TOKEN:
        raise UsageError(f"requested_token_type must be {_ACCESS_TOKEN}, or absent")
    if found := [name for name in _UNSUPPORTED if name in fields]:
        raise UsageError(f"{found[0]} is not supported")
    if "subject_token" not in fields:
        raise UsageError("subject_token is missing")
    return SecretValue(fields["subject_token"].encode("utf-8", "replace"))


def _refusal(error: GussetError) -> Response:
    response = error_response(error)
    if isinstance(error, TokenRefused) and error.wrong_target:
        name = "invalid_target"
    elif response.status < 429:
        name = "invalid_request"
    else:
        name = "temporarily_unavailable" if response.status in (429, 503) else "server_error"
    return replace(response, body=orjson.dumps({"error": name, **orjson.loads(response.body)}))
