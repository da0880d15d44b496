"""The OpenAPI document against the running manager: both say the same of every operation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gusset.manager.api import schemas
from gusset.manager.api.openapi import _TOKEN_FIELDS
from tests.manager.conftest import Manager
from tests.manager.issuer import Key, running_issuer

REPO = Path(__file__).parents[2]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def test_every_operation_responds_as_documented(manager: Manager) -> None:
    """Generated requests, valid and invalid, with an administrator's key; the audit log verifies afterwards."""
    with manager.client() as client:
        document = client.get("/v1/spec").json()
    document["servers"] = [{"url": manager.address}]
    del document["paths"]["/v1/deployment/changes"]  # it never ends
    schema = schemathesis.openapi.from_dict(document)
    tried = 0
    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.settings(
            max_examples=15, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
        )
        @hypothesis.seed(7)
        @hypothesis.given(case=operation.as_strategy())
        def check(case: schemathesis.Case) -> None:
            response = case.call(
                base_url=manager.address, headers={"authorization": f"Bearer {manager.key}"}, timeout=30
            )
            case.validate_response(response, checks=CHECKS)

        check()
        tried += 1
    assert tried > 40
    manager.gusset("audit", "verify")


class DocumentedClient:
    """Calls operations, and compares the keys of each response with the document."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self.document: dict[str, Any] = httpx.get(f"{manager.address}/v1/spec", trust_env=False).json()
        self.called: set[tuple[str, str]] = set()

    def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        key: str | None = None,
        session: str = "",
        query: Mapping[str, str] | None = None,
        **names: str,
    ) -> Any:
        with self._manager.client(key, **({"gusset-session": session} if session else {})) as client:
            response = client.request(method, path.format(**names), json=json, params=query)
        return self._checked(method, path, response)

    def exchange(self, token: str) -> None:
        """Exchange a workload's token, the one operation with a form."""
        fields = {name: text for name, text in _TOKEN_FIELDS.items() if text.startswith("urn:")}
        with self._manager.client("") as client:
            response = client.post("/v1/token", data=fields | {"subject_token": token})
        self._checked("POST", "/v1/token", response)

    def _checked(self, method: str, path: str, response: httpx.Response) -> Any:
        assert response.status_code == 200, (method, path, response.text)
        self.called.add((method, path))
        content = self.document["paths"][path][method.lower()]["responses"]["200"]["content"]
        self._compare(response.json(), content["application/json"]["schema"], f"{method} {path}")
        return response.json()

    def _compare(self, data: Any, schema: dict[str, Any], where: str) -> None:
        if isinstance(data, dict | list) and "anyOf" in schema:
            [schema] = [each for each in schema["anyOf"] if each != {"type": "null"}]
        if "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        if isinstance(data, dict) and schema.get("additionalProperties"):
            for each in data.values() if isinstance(schema["additionalProperties"], dict) else ():
                self._compare(each, schema["additionalProperties"], where)
        elif isinstance(data, dict):
            assert data.keys() == schema.get("properties", {}).keys(), where
            for name, each in data.items():
                self._compare(each, schema["properties"][name], f"{where} .{name}")
        elif isinstance(data, list):
            for each in data:
                self._compare(each, schema["items"], where)


def _rotate(call: Callable[..., Any], base: str, **names: str) -> None:
    """Call each operation on rotations by a provider's program."""
    one, holder = base + "/secrets/{name}/provider-rotation", {"holder": "abcdefgh"}
    call("POST", one, {**holder, "current_handle": "key-1"}, **names)
    call("POST", one + "/stop", {**holder, "code": "provider_failed"}, **names)
    call("POST", one, holder, **names)
    call("GET", one, **names)
    call("POST", one + "/renew", holder, **names)
    call("POST", one + "/version", {**holder, "value": "v", "handle": "key-2", "overlap": 60}, **names)
    call("POST", one + "/advance", {**holder, "step": "use"}, **names)
    more = {name: text for name, text in names.items() if name != "name"}
    assert call("GET", base + "/rotations", **more)["rotations"]
    call("POST", one + "/advance", {**holder, "step": "revoke"}, **names)
    call("POST", one + "/revoked", {**holder, "handle": "key-1"}, **names)
    call("POST", one + "/finish", holder, **names)
    call("POST", one, holder, **names)
    call("POST", one + "/cancel", holder, **names)


def test_every_response_has_exactly_the_documented_keys(manager: Manager) -> None:
    """Every operation is called with success, and every list in a response has at least one element."""
    client = DocumentedClient(manager)
    call = client.call
    [team] = call("GET", "/v1/teams")["teams"]
    in_team = {"team_id": team["id"]}
    for base, name, more in (("/v1/secrets", "x", {}), ("/v1/teams/{team_id}/secrets", "y", in_team)):
        one, names = base + "/{name}", {"name": name, **more}
        call("POST", base, {"name": name, "value": '"quoted"', "expires_at": "2026-01-01T00:00:00Z"}, **more)
        call("POST", base + ":batch", {"secrets": [{"name": name, "value": "new"}]}, **more)
        call("POST", "/v1/deployments", {"name": "d", "secrets": [name]})
        call("GET", base, **more)
        call("GET", one, **names)
        call("PATCH", one, {"note": "a note"}, **names)
        call("GET", one + "/versions", **names)
        call("GET", one + "/rotation", **names)
        call("POST", one + "/rollback", {"version": 1}, **names)
        call("POST", one + "/destroy", {"versions": [1]}, **names)
        call("DELETE", one, **names)
        call("POST", one + "/restore", **names)
        _rotate(call, base.removesuffix("/secrets"), **names)

    other = call("POST", "/v1/teams", {"name": "other"})["id"]
    call("GET", "/v1/users/me")
    person = call("POST", "/v1/people", {"email": "m@example.com", "team_ids": [team["id"]]})["person"]["id"]
    call("GET", "/v1/people")
    call("PATCH", "/v1/people/{user_id}", {"role": "member"}, user_id=person)
    call("POST", "/v1/people/{user_id}/link", user_id=person)
    membership = "/v1/teams/{team_id}/members/{user_id}"
    call("PUT", membership, team_id=other, user_id=person)
    call("DELETE", membership, team_id=other, user_id=person)

    prefix = call("POST", "/v1/api_keys", {"name": "k"})["prefix"]
    call("GET", "/v1/api_keys")
    call("DELETE", "/v1/api_keys/{prefix}", prefix=prefix)

    made = call("POST", "/v1/deployments", {"name": "d", "secrets": ["x", "missing"]})
    token, prefix = made["token"], made["prefix"]
    call("GET", "/v1/deployment", key=token)
    replica = call("POST", "/v1/deployment/secrets", key=token)
    report, session = {"host": "h", "versions": {"x": 2}}, replica["session_key"]
    path = "/v1/deployment/replicas/{id}"
    call("PUT", path, report, key=token, session=session, id=replica["replica"])
    call("POST", "/v1/secrets", {"name": "x", "value": "newer", "overlap": 60})
    rotation = call("GET", "/v1/secrets/{name}/rotation", name="x")
    assert rotation["replicas"] and rotation["overlap"]
    assert call("POST", "/v1/deployment/secrets", key=token)["secrets"]["x"]["previous"]
    masked = {"hits": [{"secret": "x", "form": "hex", "channel": "log", "times": 1}]}
    call("POST", "/v1/deployment/masked", masked, key=token)
    assert call("GET", "/v1/deployments")["deployments"][0]["replicas"]
    call("GET", "/v1/deployments/{name}", name="d")
    call("PUT", "/v1/deployments/{name}", {"secrets": ["x"]}, name="e")
    assert call("GET", "/v1/deployments/{name}/tokens", name="d")["tokens"]
    call("DELETE", "/v1/tokens/{prefix}", prefix=prefix)
    other_token = call("POST", "/v1/deployments", {"name": "d", "secrets": ["x"]})["token"]
    call("DELETE", "/v1/deployment/token", key=other_token)
    with running_issuer(Key.make("k", "EdDSA")) as issuer:
        call("POST", "/v1/issuers", {"url": issuer.url})
        rule = {"issuer": issuer.url, "subject": "s", "claims": {"/a": "b"}}
        call("POST", "/v1/identities", {"name": "i", "deployment": "d", **rule})
        call("GET", "/v1/issuers")
        call("GET", "/v1/identities")
        client.exchange(issuer.token(a="b"))
        call("DELETE", "/v1/identities/{name}", name="i")
        call("DELETE", "/v1/issuers", query={"url": issuer.url})
    call("DELETE", "/v1/deployments/{name}", name="d")

    call("GET", "/v1/audit")
    call("POST", "/v1/audit/verify")
    call("POST", "/v1/keyring/rotate")

    documented = {
        (method.upper(), path)
        for path, methods in client.document["paths"].items()
        for method, operation in methods.items()
        if "application/json" in operation["responses"]["200"]["content"]
        and operation["tags"] != ["vault"]  # described by Vault
    }
    assert client.called == documented


def test_models_with_a_secret_do_not_show_it_in_their_repr() -> None:
    """A value, key, token or link that ends up in a log or a traceback would leak."""
    team_id, secret = "abcd", "s3cret-value"
    deployment = schemas.Deployment(
        id="i",
        name="n",
        team_id=team_id,
        team_name="t",
        secrets=[],
        created_at="",
        created_by="",
        updated_at="",
        seen_at=None,
        replicas=[],
    )
    models = [
        schemas.DeliveredSecret(
            value=secret,
            version=1,
            previous=schemas.PreviousSecret(value=secret, version=1, ends_in=1.0),
        ),
        schemas.CreatedApiKey(api_key=secret, prefix="p"),
        schemas.SetupLink(link=secret),
        schemas.IssuedToken(access_token=secret, issued_token_type="t", token_type="Bearer", expires_in=1),
        schemas.RegisteredDeployment(deployment=deployment, token=secret, prefix="p"),
        schemas.DeliveredSecrets(secrets={}, missing=[], revision="", replica="r", session_key=secret),
        schemas.SetSecret(name="x", value=secret),
        schemas.SecretBatch(secrets=[schemas.NewSecret(name="x", value=secret)]),
        schemas.SetRotatedVersion(holder="holder-1", value=secret, handle="h", overlap=1),
    ]
    assert not any(secret in repr(model) for model in models)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_an_unsupported_method_is_405_with_the_allowed_ones(manager: Manager, method: str) -> None:
    with manager.client() as client:
        response = client.request(method, "/v1/secrets")
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"] == "GET, POST"


def test_docs_api_md_is_up_to_date(manager: Manager) -> None:
    """docs/api.md is the output of `scripts/api-docs`; GUSSET_WRITE_DOCS=1 writes it."""
    with manager.client("") as client:
        spec = client.get("/v1/spec").content
    made = subprocess.run(
        [sys.executable, str(REPO / "scripts" / "api-docs")], input=spec, capture_output=True, check=True
    ).stdout
    page = REPO / "docs" / "api.md"
    if os.environ.get("GUSSET_WRITE_DOCS") == "1":
        page.write_bytes(made)
    assert page.read_bytes() == made, "update it: GUSSET_WRITE_DOCS=1 pytest tests/manager/test_openapi.py"
