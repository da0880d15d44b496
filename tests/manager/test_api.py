"""The contract of the REST API, against a running manager."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.conftest import leaks_in
from tests.manager.conftest import ADMIN, Manager, lease

VALUE = "hf_" + "aB3dE6gH" * 5
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def set_(
    client: httpx.Client, name: str = "hf_access_token", value: str = VALUE, **more: object
) -> dict[str, Any]:
    response = client.post("/v1/secrets", json={"name": name, "value": value, **more})
    assert response.status_code == 200, response.text
    data: dict[str, Any] = response.json()
    return data


def error(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error response, whose keys are those of every error."""
    data = response.json()
    assert set(data) == {"message", "code", "hint"} and data["message"]
    return response.status_code, data["code"]


# --- what other clients of this API rely on


def test_a_secret_has_the_fields_that_clients_rely_on(admin: httpx.Client) -> None:
    """A short opaque `id`, `created_at` in RFC 3339, `name` as given, `team_name`; JSON with status 200."""
    response = admin.post("/v1/secrets", json={"name": "hf_access_token", "value": VALUE})
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    made = response.json()
    assert re.fullmatch(r"[a-z0-9]{8,20}", made["id"])
    assert RFC3339.fullmatch(made["created_at"])
    assert (made["name"], made["team_name"], made["version"]) == ("hf_access_token", "default", 1)
    listed = admin.get("/v1/secrets").json()
    assert [(s["id"], s["created_at"], s["name"]) for s in listed["secrets"]] == [
        (made["id"], made["created_at"], "hf_access_token")
    ]


def test_posting_again_adds_a_version_to_the_same_secret(admin: httpx.Client) -> None:
    """`id` and `created_at` never change on a new version."""
    first, second = set_(admin), set_(admin, value="another value")
    assert (second["id"], second["created_at"]) == (first["id"], first["created_at"])
    assert second["version"] == 2


def test_delete_returns_the_name_and_ignores_a_body(admin: httpx.Client) -> None:
    set_(admin)
    response = admin.request("DELETE", "/v1/secrets/hf_access_token", content=b'{"junk": ')
    assert (response.status_code, response.json()) == (200, {"name": "hf_access_token"})
    assert admin.get("/v1/secrets").json() == {"secrets": []}


def test_deleting_an_unknown_name_is_404(admin: httpx.Client) -> None:
    assert error(admin.delete("/v1/secrets/nope")) == (404, "secret_not_found")


def test_names_in_paths_are_percent_decoded(admin: httpx.Client) -> None:
    set_(admin, "a.b-c_d")
    assert admin.delete("/v1/secrets/a%2Eb%2Dc%5Fd").json() == {"name": "a.b-c_d"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_is_json_whatever_its_content_type(admin: httpx.Client, content_type: str) -> None:
    body = json.dumps({"name": "x", "value": VALUE}).encode()
    response = admin.post("/v1/secrets", content=body, headers={"content-type": content_type})
    assert response.status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "Api-Key", "bearer", "api-key"])
def test_a_key_is_accepted_as_bearer_and_as_api_key(manager: Manager, scheme: str) -> None:
    with manager.client("", authorization=f"{scheme} {manager.key}") as client:
        assert client.get("/v1/secrets").status_code == 200


def test_base64_values_are_delivered_byte_for_byte(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """A deployment receives the same bytes that were set."""
    value = bytes(range(256)) + b"\n"
    set_(admin, "binary", base64.b64encode(value).decode(), encoding="base64")
    with deployment("d", "binary") as client:
        got = client.post("/v1/deployment/secrets").json()["secrets"]["binary"]
    assert base64.b64decode(got["value"]) == value


def test_a_caller_sees_their_teams_and_identity(admin: httpx.Client) -> None:
    [team] = admin.get("/v1/teams").json()["teams"]
    assert set(team) == {"id", "name", "default", "created_at"} and team["default"] is True
    me = admin.get("/v1/users/me").json()
    assert set(me) == {"user_id", "email", "name", "workspace_name"} and me["email"] == ADMIN


def test_the_routes_of_a_team_reach_only_its_secrets(admin: httpx.Client) -> None:
    """The list without a team has the secrets of all teams."""
    other = admin.post("/v1/teams", json={"name": "research"}).json()
    base = f"/v1/teams/{other['id']}/secrets"
    made = admin.post(base, json={"name": "x", "value": VALUE}).json()
    assert made["team_name"] == "research"
    set_(admin, "x")
    assert [s["team_name"] for s in admin.get("/v1/secrets").json()["secrets"]] == ["default", "research"]
    assert [s["id"] for s in admin.get(base).json()["secrets"]] == [made["id"]]
    assert admin.delete(f"{base}/x").json() == {"name": "x"}
    assert [s["team_name"] for s in admin.get("/v1/secrets").json()["secrets"]] == ["default"]


def test_an_api_key_works_from_creation_to_revocation(manager: Manager, admin: httpx.Client) -> None:
    """It is returned once, listed and revoked by its prefix; unknown fields of other clients are ignored."""
    made = admin.post(
        "/v1/api_keys", json={"name": "ci", "type": "PERSONAL", "scopes": ["secrets:read"]}
    ).json()
    assert made["api_key"].startswith(f"gusset_key_{made['prefix']}_")
    listed = admin.get("/v1/api_keys")
    assert made["api_key"] not in listed.text
    assert [key["name"] for key in listed.json()["api_keys"]] == ["ci", "first key"]
    with manager.client(made["api_key"]) as client:
        assert client.get("/v1/secrets").status_code == 200
        assert error(client.post("/v1/secrets", json={"name": "x", "value": "v"})) == (403, "denied")
        assert admin.delete(f"/v1/api_keys/{made['prefix']}").json() == {"prefix": made["prefix"]}
        assert error(client.get("/v1/secrets")) == (401, "not_signed_in")


def test_no_response_for_people_contains_a_value(admin: httpx.Client) -> None:
    """Every route for people, after every operation on a secret."""
    responses = [admin.post("/v1/secrets", json={"name": "x", "value": VALUE, "note": "a note"})]
    responses += [admin.post("/v1/secrets", json={"name": "X-", "value": VALUE})]
    responses += [admin.post("/v1/secrets:batch", json={"secrets": [{"name": "y", "value": VALUE}]})]
    responses += [admin.patch("/v1/secrets/x", json={"note": "another"})]
    responses += [admin.post("/v1/secrets/x/rollback", json={"version": 1})]
    responses += [admin.post("/v1/secrets/x/destroy", json={"versions": [1]})]
    responses += [admin.delete("/v1/secrets/x"), admin.post("/v1/secrets/x/restore")]
    routes = (
        "secrets",
        "secrets?deleted=true",
        "secrets/x",
        "secrets/x/versions",
        "audit",
        "audit/export",
        "spec",
    )
    responses += [
        admin.get(f"/v1/{route}") for route in (*routes, "deployments", "people", "teams", "api_keys")
    ]
    responses += [admin.get("/metrics"), admin.get("/readyz"), admin.get("/healthz")]
    for response in responses:
        assert response.status_code == 200, (response.request.url, response.text)
        assert not leaks_in(response.content, VALUE.encode()), response.request.url


# --- what only this API has


def test_a_version_can_be_rolled_back_to_and_destroyed(admin: httpx.Client) -> None:
    set_(admin, value="first value")
    set_(admin, value="second value")
    assert admin.post("/v1/secrets/hf_access_token/rollback", json={"version": 1}).json()["version"] == 3
    gone = admin.post("/v1/secrets/hf_access_token/destroy", json={"versions": [3]}).json()
    assert gone["version"] == 2
    versions = admin.get("/v1/secrets/hf_access_token/versions").json()["versions"]
    assert [(v["version"], v["state"]) for v in versions] == [(1, "older"), (2, "current"), (3, "destroyed")]
    assert ADMIN in versions[0]["created_by"]


def test_a_deleted_secret_can_be_restored_unless_its_name_is_taken(admin: httpx.Client) -> None:
    first = set_(admin)
    admin.delete("/v1/secrets/hf_access_token")
    second = set_(admin)
    assert second["id"] != first["id"] and second["version"] == 1
    assert error(admin.post(f"/v1/secrets/{first['id']}/restore")) == (409, "conflict")
    admin.delete("/v1/secrets/hf_access_token")
    assert admin.post(f"/v1/secrets/{first['id']}/restore").json()["id"] == first["id"]


def test_a_conditional_write_needs_the_expected_version(admin: httpx.Client) -> None:
    """`If-Match` gives the expected version, `If-None-Match: *` expects that there is none."""
    new = {"name": "x", "value": "v1"}
    made = admin.post("/v1/secrets", json=new, headers={"if-none-match": "*"})
    assert made.headers["etag"] == '"1"'
    assert error(admin.post("/v1/secrets", json=new, headers={"if-none-match": "*"})) == (
        412,
        "version_conflict",
    )
    assert admin.post("/v1/secrets", json=new, headers={"if-match": '"1"'}).headers["etag"] == '"2"'
    assert error(admin.post("/v1/secrets", json=new, headers={"if-match": '"1"'})) == (
        412,
        "version_conflict",
    )
    assert error(admin.post("/v1/secrets", json=new, headers={"if-match": "W/2"})) == (400, "usage")


def test_a_note_and_an_expiry_date_are_kept_and_can_be_cleared(admin: httpx.Client) -> None:
    set_(admin, note="for the demo", expires_at="2031-05-06T07:08:09Z")
    kept = set_(admin, value="another")
    assert (kept["note"], kept["expires_at"]) == ("for the demo", "2031-05-06T07:08:09.000Z")
    cleared = admin.patch("/v1/secrets/hf_access_token", json={"note": None, "expires_at": None}).json()
    assert (cleared["note"], cleared["expires_at"], cleared["version"]) == (None, None, 2)


def test_a_secret_that_expires_soon_has_a_warning(admin: httpx.Client) -> None:
    """In the response and in lists."""
    soon = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    [warning] = set_(admin, value="a value without faults", expires_at=soon)["warnings"]
    assert "expires on" in warning["message"]
    [listed] = admin.get("/v1/secrets").json()["secrets"]
    assert listed["warnings"] == [warning]


def test_another_spelling_is_a_conflict_that_names_the_existing_one(admin: httpx.Client) -> None:
    set_(admin)
    response = admin.post("/v1/secrets", json={"name": "hf-access-token", "value": VALUE})
    assert error(response) == (409, "conflict") and "hf_access_token" in response.json()["message"]


def test_a_batch_is_all_or_nothing(admin: httpx.Client) -> None:
    both = {"secrets": [{"name": "a", "value": "1"}, {"name": "not a name", "value": VALUE}]}
    response = admin.post("/v1/secrets:batch", json=both)
    assert error(response) == (400, "invalid_name") and VALUE not in response.text
    assert admin.get("/v1/secrets").json() == {"secrets": []}


def test_setting_a_suspicious_value_returns_warnings(admin: httpx.Client) -> None:
    warnings = set_(admin, value='"quoted"\n')["warnings"]
    assert isinstance(warnings, list) and len(warnings) >= 2
    assert not leaks_in(json.dumps(warnings).encode(), b'quoted"')


def test_the_document_describes_every_operation(admin: httpx.Client) -> None:
    """It is served without a key, and has a summary and a response for each operation."""
    document = httpx.get(f"{admin.base_url}/v1/spec", trust_env=False).json()
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert document["openapi"].startswith("3.1") and len(operations) > 40
    assert len({op["operationId"] for op in operations}) == len(operations)
    assert all(op["summary"] and "200" in op["responses"] for op in operations)


@pytest.mark.parametrize("number", [True, "1", 1.0, 1.5, [1]])
def test_a_number_in_a_body_is_an_integer_and_nothing_that_could_be_taken_for_one(
    admin: httpx.Client, deployment: Callable[..., httpx.Client], number: object
) -> None:
    """`"overlap": true` would be an overlap of one second, and `true` a report of version 1."""
    value = {"name": "x", "value": "a value of it"}
    assert admin.post("/v1/secrets", json=value).status_code == 200
    holder = {"holder": "holder-1"}
    rotated = {**holder, "value": "v", "handle": "h", "overlap": number}
    bodies = [
        ("POST", "/v1/secrets", value | {"overlap": number}),
        ("PATCH", "/v1/secrets/x", {"rotate_every": number}),
        ("POST", "/v1/secrets/x/rollback", {"version": number}),
        ("POST", "/v1/secrets/x/destroy", {"versions": [number]}),
        ("POST", "/v1/secrets/x/provider-rotation/version", rotated),
    ]
    assert admin.post("/v1/secrets/x/provider-rotation", json=holder).status_code == 200
    for method, path, body in bodies:
        assert admin.request(method, path, json=body).status_code == 400, path
    with deployment("d", "x") as client:
        replica = lease(client)
        for field in ("versions", "used"):
            assert replica.renew({field: {"x": number}}).status_code == 400
        hit = {"secret": "x", "form": "base64", "channel": "stdout", "times": number}
        assert client.post("/v1/deployment/masked", json={"hits": [hit]}).status_code == 400
    assert admin.get("/v1/secrets/x").json()["version"] == 1
