"""The contract of the REST API, rule by rule, against a running manager."""

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
from tests.manager.conftest import ADMIN, Manager

VALUE = "hf_" + "aB3dE6gH" * 5
RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def set_(
    client: httpx.Client, name: str = "hf_access_token", value: str = VALUE, **more: object
) -> dict[str, Any]:
    answer = client.post("/v1/secrets", json={"name": name, "value": value, **more})
    assert answer.status_code == 200, answer.text
    data: dict[str, Any] = answer.json()
    return data


def error(answer: httpx.Response) -> tuple[int, str]:
    """Status and code of an error, which has the shape that every error has."""
    data = answer.json()
    assert set(data) == {"message", "code", "hint"} and data["message"]
    return answer.status_code, data["code"]


# --- as other clients of this API know it


def test_a_secret_has_the_shape_that_clients_know(admin: httpx.Client) -> None:
    """`id` (short, opaque), `created_at` (RFC 3339), `name` as typed, `team_name`; and JSON with exactly 200."""
    answer = admin.post("/v1/secrets", json={"name": "hf_access_token", "value": VALUE})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    made = answer.json()
    assert re.fullmatch(r"[a-z0-9]{8,20}", made["id"])
    assert RFC3339.fullmatch(made["created_at"])
    assert (made["name"], made["team_name"], made["version"]) == ("hf_access_token", "default", 1)
    listed = admin.get("/v1/secrets").json()
    assert [(s["id"], s["created_at"], s["name"]) for s in listed["secrets"]] == [
        (made["id"], made["created_at"], "hf_access_token")
    ]


def test_posting_again_makes_a_new_version_of_the_same_secret(admin: httpx.Client) -> None:
    """`id` and `created_at` never change on a new version."""
    first, second = set_(admin), set_(admin, value="another value")
    assert (second["id"], second["created_at"]) == (first["id"], first["created_at"])
    assert second["version"] == 2


def test_delete_answers_with_the_name_and_ignores_a_body(admin: httpx.Client) -> None:
    set_(admin)
    answer = admin.request("DELETE", "/v1/secrets/hf_access_token", content=b'{"junk": ')
    assert (answer.status_code, answer.json()) == (200, {"name": "hf_access_token"})
    assert admin.get("/v1/secrets").json() == {"secrets": []}


def test_an_unknown_name_on_delete_is_404(admin: httpx.Client) -> None:
    assert error(admin.delete("/v1/secrets/nope")) == (404, "secret_not_found")


def test_names_are_percent_decoded(admin: httpx.Client) -> None:
    set_(admin, "a.b-c_d")
    assert admin.delete("/v1/secrets/a%2Eb%2Dc%5Fd").json() == {"name": "a.b-c_d"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_body_is_json_whatever_its_content_type(admin: httpx.Client, content_type: str) -> None:
    body = json.dumps({"name": "x", "value": VALUE}).encode()
    answer = admin.post("/v1/secrets", content=body, headers={"content-type": content_type})
    assert answer.status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "Api-Key", "bearer", "api-key"])
def test_a_key_comes_as_bearer_or_as_api_key(manager: Manager, scheme: str) -> None:
    with manager.client("", authorization=f"{scheme} {manager.key}") as client:
        assert client.get("/v1/secrets").status_code == 200


def test_base64_gives_exact_bytes(admin: httpx.Client, deployment: Callable[..., httpx.Client]) -> None:
    """Any bytes go in, and come out for a deployment as they were."""
    value = bytes(range(256)) + b"\n"
    set_(admin, "binary", base64.b64encode(value).decode(), encoding="base64")
    with deployment("d", "binary") as client:
        got = client.post("/v1/deployment/secrets").json()["secrets"]["binary"]
    assert base64.b64decode(got["value"]) == value


def test_teams_and_the_caller(admin: httpx.Client) -> None:
    [team] = admin.get("/v1/teams").json()["teams"]
    assert set(team) == {"id", "name", "default", "created_at"} and team["default"] is True
    me = admin.get("/v1/users/me").json()
    assert set(me) == {"user_id", "email", "name", "workspace_name"} and me["email"] == ADMIN


def test_the_same_routes_under_a_team(admin: httpx.Client) -> None:
    """A team's secrets are its own; the list without a team shows those of all."""
    other = admin.post("/v1/teams", json={"name": "research"}).json()
    base = f"/v1/teams/{other['id']}/secrets"
    made = admin.post(base, json={"name": "x", "value": VALUE}).json()
    assert made["team_name"] == "research"
    set_(admin, "x")
    assert [s["team_name"] for s in admin.get("/v1/secrets").json()["secrets"]] == ["default", "research"]
    assert [s["id"] for s in admin.get(base).json()["secrets"]] == [made["id"]]
    assert admin.delete(f"{base}/x").json() == {"name": "x"}
    assert [s["team_name"] for s in admin.get("/v1/secrets").json()["secrets"]] == ["default"]


def test_api_keys_come_and_go(manager: Manager, admin: httpx.Client) -> None:
    """Shown once, listed by prefix, revoked by prefix; other systems' fields are passed over."""
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


def test_no_answer_for_people_holds_a_value(admin: httpx.Client) -> None:
    """Every route for people, after everything was done to a secret: the value is in none of them."""
    answers = [admin.post("/v1/secrets", json={"name": "x", "value": VALUE, "note": "a note"})]
    answers += [admin.post("/v1/secrets", json={"name": "X-", "value": VALUE})]
    answers += [admin.post("/v1/secrets:batch", json={"secrets": [{"name": "y", "value": VALUE}]})]
    answers += [admin.patch("/v1/secrets/x", json={"note": "another"})]
    answers += [admin.post("/v1/secrets/x/rollback", json={"version": 1})]
    answers += [admin.post("/v1/secrets/x/destroy", json={"versions": [1]})]
    answers += [admin.delete("/v1/secrets/x"), admin.post("/v1/secrets/x/restore")]
    routes = (
        "secrets",
        "secrets?deleted=true",
        "secrets/x",
        "secrets/x/versions",
        "audit",
        "audit/export",
        "spec",
    )
    answers += [
        admin.get(f"/v1/{route}") for route in (*routes, "deployments", "people", "teams", "api_keys")
    ]
    answers += [admin.get("/metrics"), admin.get("/readyz"), admin.get("/healthz")]
    for answer in answers:
        assert answer.status_code == 200, (answer.request.url, answer.text)
        assert not leaks_in(answer.content, VALUE.encode()), answer.request.url


# --- beyond it


def test_versions_roll_back_and_destroy(admin: httpx.Client) -> None:
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


def test_compare_and_set(admin: httpx.Client) -> None:
    """`If-Match` names the version that one has seen, `If-None-Match: *` that there is none."""
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


def test_note_and_expiry(admin: httpx.Client) -> None:
    set_(admin, note="for the demo", expires_at="2031-05-06T07:08:09Z")
    kept = set_(admin, value="another")
    assert (kept["note"], kept["expires_at"]) == ("for the demo", "2031-05-06T07:08:09.000Z")
    cleared = admin.patch("/v1/secrets/hf_access_token", json={"note": None, "expires_at": None}).json()
    assert (cleared["note"], cleared["expires_at"], cleared["version"]) == (None, None, 2)


def test_a_secret_that_expires_soon_is_warned_of(admin: httpx.Client) -> None:
    """In the answer and in lists; it goes on being given out."""
    soon = (datetime.now(UTC) + timedelta(days=3)).isoformat()
    [warning] = set_(admin, value="a value without faults", expires_at=soon)["warnings"]
    assert "expires on" in warning["message"]
    [listed] = admin.get("/v1/secrets").json()["secrets"]
    assert listed["warnings"] == [warning]


def test_another_spelling_is_a_conflict_that_names_the_one_there(admin: httpx.Client) -> None:
    set_(admin)
    answer = admin.post("/v1/secrets", json={"name": "hf-access-token", "value": VALUE})
    assert error(answer) == (409, "conflict") and "hf_access_token" in answer.json()["message"]


def test_a_batch_is_all_or_nothing(admin: httpx.Client) -> None:
    both = {"secrets": [{"name": "a", "value": "1"}, {"name": "not a name", "value": VALUE}]}
    answer = admin.post("/v1/secrets:batch", json=both)
    assert error(answer) == (400, "invalid_name") and VALUE not in answer.text
    assert admin.get("/v1/secrets").json() == {"secrets": []}


def test_the_value_doctor_warns(admin: httpx.Client) -> None:
    warnings = set_(admin, value='"quoted"\n')["warnings"]
    assert isinstance(warnings, list) and len(warnings) >= 2
    assert not leaks_in(json.dumps(warnings).encode(), b'quoted"')


def test_the_document_names_every_operation(admin: httpx.Client) -> None:
    """It is served without a key, and says of every operation what it answers."""
    document = httpx.get(f"{admin.base_url}/v1/spec", trust_env=False).json()
    operations = [op for path in document["paths"].values() for op in path.values()]
    assert document["openapi"].startswith("3.1") and len(operations) > 40
    assert len({op["operationId"] for op in operations}) == len(operations)
    assert all(op["summary"] and "200" in op["responses"] for op in operations)
