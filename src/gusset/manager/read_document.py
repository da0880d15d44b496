"""The part of the OpenAPI document about the read routes."""

from __future__ import annotations

import re
from typing import Any

from gusset.manager.api.openapi import errors, json_content
from gusset.manager.read_routes import DATA, EXACT, LOGINS, LOOKUP, MOUNTS

_NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_IF_NONE_MATCH = {
    "name": "If-None-Match",
    "in": "header",
    "description": "The ETag of an earlier response: 304 if the value is still that one.",
    "schema": {"type": "string"},
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_EXACT = {
    "operationId": "get_deployment_secret",
    "summary": "Read the exact bytes of one secret; the version is the `ETag`, and `HEAD` gives just that",
    "tags": ["deployment"],
    "parameters": [_NAME, _IF_NONE_MATCH],
    "responses": {
        "200": {"description": "The value.", "content": _BYTES},
        "304": {"description": "The value is that of `If-None-Match`; it is not delivered."},
        **errors(),
    },
    "x-scope": "a deployment's token",
}

# Vault's own documents describe the fields.
_VAULT_RESPONSE = {"type": "object", "additionalProperties": True}
_VAULT_ERROR = {
    "type": "object",
    "required": ["errors"],
    "properties": {"errors": {"type": "array", "items": {"type": "string"}}},
}
_LOGIN = {
    "type": "object",
    "required": ["jwt"],
    "properties": {
        "jwt": {"type": "string", "description": "The workload's JSON Web Token."},
        "role": {"type": "string", "description": "The deployment, if the token stands for several."},
    },
}


def _vault(path: str, summary: str, *, query: tuple[str, ...] = ()) -> dict[str, Any]:
    parameters = [_NAME | {"name": name} for name in re.findall(r"{(\w+)}", path)]
    parameters += [{"name": name, "in": "query", "schema": {"type": "string"}} for name in query]
    words = re.findall("[a-z]+", path.removeprefix("/v1/"))
    return {
        "operationId": "vault_" + "_".join(words),
        "summary": summary,
        "tags": ["vault"],
        "parameters": parameters,
        "responses": {
            "200": {
                "description": "As from Vault.",
                "content": {"application/json": {"schema": _VAULT_RESPONSE}},
            },
            "413": json_content("The body is too large.", "Error"),
            **{
                status: {"description": text, "content": {"application/json": {"schema": _VAULT_ERROR}}}
                for status, text in _VAULT_ERRORS.items()
            },
        },
        "x-scope": "a deployment's token",
    }


def _login(path: str) -> dict[str, Any]:
    return _vault(path, "Exchange a workload's JSON Web Token, as clients of Vault do; also `PUT`") | {
        "requestBody": {"required": True, "content": {"application/json": {"schema": _LOGIN}}},
        "security": [],
        "x-scope": "the token itself",
    }


_VAULT_ERRORS = {
    "400": "The request is invalid, or a login was refused.",
    "403": "The token is missing or invalid, or does not allow this.",
    "404": "The secret does not exist, or gusset does not have this part of Vault's API.",
    "429": "Too many requests, or too many that were refused.",
    "503": "Not known at the moment.",
}
READ_PATHS = {
    EXACT: {"get": _EXACT},
    DATA: {"get": _vault(DATA, "Read one secret as of KV version 2, under `value`", query=("version",))},
    LOOKUP: {"get": _vault(LOOKUP, "Get the deployment and the expiry of the token")},
    MOUNTS: {"get": _vault(MOUNTS, "Get the kind of the store at `secret/`: KV version 2")},
    **{path: {"post": _login(path)} for path in LOGINS},
}
