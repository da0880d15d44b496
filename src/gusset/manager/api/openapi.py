"""The OpenAPI document, made from the table of operations and the shapes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema

from gusset import __version__
from gusset.manager.api import schemas
from gusset.manager.api.operations import Operation

_ERRORS = {
    "400": "The request is wrong.",
    "401": "No key, or not a good one.",
    "403": "The key does not allow this.",
    "404": "There is no such thing, for this caller.",
    "409": "Somebody else was first, or the name is taken.",
    "412": "The version has moved on.",
    "413": "The body is too large.",
    "429": "Too many bad keys.",
}


def openapi(operations: Sequence[Operation]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    shapes = {shape for each in operations for shape in (each.answer, each.body) if shape} | {schemas.Error}
    modes = [(shape, "validation") for shape in sorted(shapes, key=lambda shape: shape.__name__)]
    _, definitions = models_json_schema(modes, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for each in operations:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each)
    paths["/v1/deployment/changes"] = {"get": _CHANGES}
    paths["/v1/audit/export"] = {"get": _EXPORT}
    return {
        "openapi": "3.1.0",
        "info": {"title": "gusset manager", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {"schemas": definitions["$defs"], "securitySchemes": _KEYS},
        "security": [{"bearer": []}, {"apiKey": []}],
    }


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
    data: dict[str, Any] = {
        "operationId": _identifier(each),
        "summary": each.summary,
        "tags": [each.path.split("/")[2].split(":")[0]],
        "parameters": parameters,
        "responses": {"200": _json("The answer.", each.answer.__name__)} | _errors(),
        "x-scope": each.scope or "a deployment's token",
    }
    if each.body:
        required = any(field.is_required() for field in each.body.model_fields.values())
        data["requestBody"] = {"required": required, **_content(each.body.__name__)}
    return data


def _identifier(each: Operation) -> str:
    words = re.sub(r"[^a-z]+", "_", each.path.removeprefix("/v1/").lower()).strip("_")
    return f"{each.method.lower()}_{words}"


def _errors() -> dict[str, Any]:
    return {status: _json(text, "Error") for status, text in _ERRORS.items()}


def _json(description: str, shape: str) -> dict[str, Any]:
    return {"description": description, **_content(shape)}


def _content(shape: str) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{shape}"}}}}


_ABOUT = "Secrets for models. No operation for people ever returns a secret's value."
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
        "description": "Only when this version is the current one.",
        "schema": {"type": "string", "pattern": '^"[0-9]{1,9}"$'},
    },
    {
        "name": "If-None-Match",
        "in": "header",
        "description": "Only when there is no such secret yet.",
        "schema": {"type": "string", "enum": ["*"]},
    },
]
_LINES = {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}
_CHANGES = {
    "operationId": "get_deployment_changes",
    "summary": "One long-lived answer of JSON lines: `hello`, `changed`, and `beat` in silence.",
    "tags": ["deployment"],
    "parameters": [
        {"name": name, "in": "query", "description": text, "schema": {"type": "string"}}
        for name, text in (("since", "The revision of the last read."), ("replica", "The replica's id."))
    ],
    "responses": {"200": {"description": "Events.", **_LINES}} | _errors(),
    "x-scope": "a deployment's token",
}
_EXPORT = {
    "operationId": "get_audit_export",
    "summary": "Every record of the audit log as JSON Lines, oldest first.",
    "tags": ["audit"],
    "parameters": [],
    "responses": {"200": {"description": "Records.", **_LINES}} | _errors(),
    "x-scope": "admin",
}
