"""The OpenAPI document, made from the table of operations and their models."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import JsonSchemaMode

from gusset import __version__
from gusset.manager.api import schemas
from gusset.manager.api.operations import Operation

_ERRORS = {
    "400": "The request is invalid.",
    "401": "The key is missing or invalid.",
    "403": "The key does not allow this.",
    "404": "Not found, or not visible to the caller.",
    "409": "The request conflicts with the current state, such as a name that is taken.",
    "412": "The current version is not the one that `If-Match` or `If-None-Match` requires.",
    "413": "The body is too large.",
    "422": "Another request had this `Idempotency-Key`.",
    "429": "Too many requests, or too many that were refused; `Retry-After` says for how long.",
}


def openapi(operations: Sequence[Operation], more_paths: Mapping[str, Any]) -> dict[str, Any]:
    """The document, as OpenAPI 3.1. `more_paths` are described by who handles them."""
    paths: dict[str, Any] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    paths["/v1/deployment/changes"] = {"get": _CHANGES}
    paths["/v1/token"] = {"post": _TOKEN}
    paths["/v1/audit/export"] = {"get": _EXPORT}
    paths |= more_paths
    return {
        "openapi": "3.1.0",
        "info": {"title": "gusset manager", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": _schemas(operations), "securitySchemes": _KEYS},
        "security": [{"bearer": []}, {"apiKey": []}],
    }


def _schemas(operations: Sequence[Operation]) -> dict[str, Any]:
    """The JSON schemas of all bodies and response models, by name."""
    bodies = {each.body for each in operations if each.body}
    responses = {each.response for each in operations}
    responses |= {schemas.Error, schemas.IssuedToken, schemas.TokenError}
    models: list[tuple[type, JsonSchemaMode, TypeAdapter[Any]]] = [
        *((model, "validation", TypeAdapter(model)) for model in sorted(bodies, key=_name)),
        *((model, "serialization", TypeAdapter(model)) for model in sorted(responses, key=_name)),
    ]
    _, document = TypeAdapter.json_schemas(models, ref_template="#/components/schemas/{model}")
    definitions: dict[str, Any] = document["$defs"]
    return definitions


def _name(model: type) -> str:
    return model.__name__


def _operation(each: Operation) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", each.path)
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
    ]
    parameters += [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in each.query.items()
    ]
    if each.body is schemas.SetSecret:
        parameters += _CONDITIONS
    if each.method != "GET" and each.scope is not None:
        parameters.append(_IDEMPOTENCY_KEY)
    data: dict[str, Any] = {
        "operationId": _identifier(each),
        "summary": each.summary,
        "tags": [each.path.split("/")[2].split(":")[0]],
        "parameters": parameters,
        "responses": {"200": json_content("Success.", each.response.__name__)} | errors(),
        "x-scope": each.scope or "a deployment's token",
    }
    if each.body:
        required = any(field.is_required() for field in each.body.model_fields.values())
        data["requestBody"] = {"required": required, **_content(each.body.__name__)}
    return data


def _identifier(each: Operation) -> str:
    words = re.sub(r"[^a-z]+", "_", each.path.removeprefix("/v1/").lower()).strip("_")
    return f"{each.method.lower()}_{words}"


def errors() -> dict[str, Any]:
    """The errors of an operation, by status."""
    return {status: json_content(text, "Error") for status, text in _ERRORS.items()}


def json_content(description: str, model: str) -> dict[str, Any]:
    """A response in JSON. `model` is the name of its schema in the document."""
    return {"description": description, **_content(model)}


def _content(model: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{model}"}}}}


_ABOUT = "Secrets for models. Only operations for deployments return the values of secrets."
_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "apiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "`Authorization: Api-Key KEY`",
    },
}
_CONDITIONS = [
    {
        "name": "If-Match",
        "in": "header",
        "description": "Set the secret only if this is its current version.",
        "schema": {"type": "string", "pattern": '^"[0-9]{1,9}"$'},
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "description": "Set the secret only if it does not exist.",
        "schema": {"type": "string", "enum": ["*"]},
    },
]
_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A key of your choice; the same request with this key is executed only once within a day.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,200}$"},
}
_LINES = {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
_CHANGES = {
    "operationId": "get_deployment_changes",
    "summary": "Stream changes as JSON Lines: `hello` first, `changed` on changes, `beat` to keep alive",
    "tags": ["deployment"],
    "parameters": [
        {
            "name": "since",
            "in": "query",
            "description": "The revision of the last read.",
            "schema": {"type": "string"},
        }
    ],
    "responses": {"200": {"description": "Events.", **_LINES}} | errors(),
    "x-scope": "a deployment's token",
}
_TOKEN_FIELDS = {
    "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange",
    "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
    "subject_token": "The workload's JSON Web Token.",
    "audience": "TEAM/DEPLOYMENT, if the token stands for more than one deployment.",
}
_TOKEN = {
    "operationId": "post_token",
    "summary": "Exchange a workload's JSON Web Token for a short-lived token of its deployment (RFC 8693)",
    "tags": ["token"],
    "parameters": [],
    "requestBody": {
        "required": True,
        "content": {
            "application/x-www-form-urlencoded": {
                "schema": {
                    "type": "object",
                    "required": ["grant_type", "subject_token_type", "subject_token"],
                    "properties": {
                        name: {"type": "string", "description": text} for name, text in _TOKEN_FIELDS.items()
                    },
                }
            }
        },
    },
    "responses": {
        "200": json_content("The token.", "IssuedToken"),
        "400": json_content(
            "The request or the token is invalid, or stands for no deployment.", "TokenError"
        ),
        "413": json_content(_ERRORS["413"], "Error"),
        "429": json_content("Too many tokens from this address were refused.", "TokenError"),
        "503": json_content("The keys of the token's issuer are not known at the moment.", "TokenError"),
    },
    "security": [],
    "x-scope": "the token itself",
}
_EXPORT = {
    "operationId": "get_audit_export",
    "summary": "Export the whole audit log as JSON Lines, oldest record first",
    "tags": ["audit"],
    "parameters": [],
    "responses": {"200": {"description": "Records.", **_LINES}} | errors(),
    "x-scope": "admin",
}
