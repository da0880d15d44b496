"""Who may do what: keys good and bad, other teams, deployments' tokens on every route, odd input."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.conftest import leaks_in
from tests.manager.conftest import Manager

VALUE = "hf_" + "aB3dE6gH" * 5


def records(admin: httpx.Client, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = admin.get("/v1/audit", params=query).json()["records"]
    return found


def operations(admin: httpx.Client) -> list[tuple[str, str, dict[str, Any]]]:
    """Every (method, path, operation) of the document."""
    paths = admin.get("/v1/spec").json()["paths"]
    return [(m.upper(), path, op) for path, methods in paths.items() for m, op in methods.items()]


def concrete(path: str) -> str:
    for name in ("name", "team_id", "user_id", "prefix", "id"):
        path = path.replace("{" + name + "}", "abcdefgh")
    return path


@pytest.mark.parametrize(
    "key",
    [
        "",
        "nonsense",
        "gusset_key_aaaaaaaa_" + "A" * 43,
        "gusset_tok_aaaaaaaa_" + "A" * 43,
        "gusset_lnk_aaaaaaaa_" + "A" * 43,
        "x" * 5000,
        "k\u00e9y",
    ],
    ids=["none", "nonsense", "unknown key", "unknown token", "link", "long", "not ascii"],
)
def test_a_bad_key_opens_nothing(manager: Manager, admin: httpx.Client, key: str) -> None:
    """401 on every route, always with the same shape; the key is not repeated; the refusal is recorded."""
    with manager.client("") as client:
        headers = {"authorization": f"Bearer {key}".encode()} if key else {}
        for method, path, _ in operations(admin)[:15]:
            answer = client.request(method, concrete(path), headers=headers)
            assert answer.status_code == 401, (method, path, answer.text)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["code"] == "not_signed_in"
            assert not key or key not in answer.text
    refused = records(admin, action="request.refuse")
    assert len(refused) == 15 and {r["outcome"] for r in refused} == {"not_signed_in"}
    assert {r["details"]["from"] for r in refused} == {"127.0.0.1"}


def test_a_flood_of_bad_keys_is_answered_429_and_fills_no_log(manager: Manager, admin: httpx.Client) -> None:
    """Good keys from the same address still work."""
    with manager.client("gusset_key_aaaaaaaa_" + "A" * 43) as client:
        answers = [client.get("/v1/secrets") for _ in range(40)]
    assert [a.status_code for a in answers] == [401] * 20 + [429] * 20
    assert answers[-1].headers["retry-after"] == "60"
    assert len(records(admin, action="request.refuse")) == 20
    assert admin.get("/v1/secrets").status_code == 200


def test_an_expired_key_opens_nothing(manager: Manager, admin: httpx.Client) -> None:
    past = admin.post("/v1/api_keys", json={"name": "x", "expires_at": "2001-01-01T00:00:00Z"})
    assert (past.status_code, past.json()["code"]) == (400, "usage")


def test_a_key_opens_nothing_once_it_has_expired(manager: Manager, admin: httpx.Client) -> None:
    """Also one that was just in use, and is remembered."""
    soon = datetime.now(UTC) + timedelta(seconds=2)
    made = admin.post("/v1/api_keys", json={"name": "x", "expires_at": soon.isoformat()}).json()
    with manager.client(made["api_key"]) as client:
        assert client.get("/v1/secrets").status_code == 200
        while datetime.now(UTC) <= soon:
            time.sleep(0.1)
        answer = client.get("/v1/secrets")
    assert answer.status_code == 401 and "expired" in answer.json()["message"]


def test_a_key_is_not_confined_to_a_team_in_silence(admin: httpx.Client) -> None:
    """What other systems offer and this one does not is refused: the key would open more than was asked for."""
    assert admin.post("/v1/api_keys", json={"name": "x", "team_id": "t"}).status_code == 400


def test_a_deployments_token_opens_its_own_routes_and_no_other(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Tried on every route for people: 403 and a record. So it cannot widen itself either."""
    admin.post("/v1/secrets", json={"name": "mine", "value": VALUE})
    admin.post("/v1/secrets", json={"name": "other", "value": VALUE + "2"})
    tried = 0
    with deployment("d", "mine") as client:
        for method, path, operation in operations(admin):
            if operation["x-scope"] == "a deployment's token":
                continue
            body = {"name": "d", "secrets": ["mine", "other"], "value": "v", "version": 1, "email": "x@y.z"}
            answer = client.request(method, concrete(path), json=body)
            assert (answer.status_code, answer.json()["code"]) == (403, "denied"), (method, path)
            tried += 1
        assert client.get("/v1/deployment").json()["secrets"] == ["mine"]
        got = client.post("/v1/deployment/secrets").json()
        assert list(got["secrets"]) == ["mine"]
        denied = client.post("/v1/deployment/secrets", json={"names": ["mine", "other"]})
        assert denied.status_code == 403 and "other" in denied.json()["message"]
        assert not leaks_in(denied.content, VALUE.encode())
    assert tried > 40
    refused = records(admin, action="request.refuse", limit="1000")
    assert len(refused) == tried + 1 and {r["actor"] for r in refused} == {"deployment d"}


def test_a_persons_key_fetches_no_values(admin: httpx.Client) -> None:
    assert admin.post("/v1/deployment/secrets").status_code == 403
    assert admin.get("/v1/deployment/changes").status_code == 403


def test_a_revoked_token_and_a_removed_deployment(manager: Manager, admin: httpx.Client) -> None:
    """Both end at once what the token could do."""
    for undo in ("token", "deployment"):
        made = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()
        with manager.client(made["token"]) as client:
            assert client.get("/v1/deployment").status_code == 200
            path = f"/v1/tokens/{made['prefix']}" if undo == "token" else "/v1/deployments/d"
            assert admin.delete(path).status_code == 200
            assert client.post("/v1/deployment/secrets").status_code == 401


def test_a_member_of_another_team_cannot_tell_what_there_is(manager: Manager, admin: httpx.Client) -> None:
    """Guessed ids of a team, a secret, a deployment, a key: 404, as for what does not exist."""
    other = admin.post("/v1/teams", json={"name": "other"}).json()["id"]
    made = admin.post(f"/v1/teams/{other}/secrets", json={"name": "x", "value": VALUE}).json()
    token = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"], "team_id": other}).json()
    admin.delete(f"/v1/teams/{other}/secrets/x")
    with manager.client(manager.member()) as member:
        assert [team["name"] for team in member.get("/v1/teams").json()["teams"]] == ["default"]
        assert member.get("/v1/secrets").json() == {"secrets": []}
        attempts = [
            ("GET", f"/v1/teams/{other}/secrets", None),
            ("POST", f"/v1/teams/{other}/secrets", {"name": "x", "value": "v"}),
            ("DELETE", f"/v1/teams/{other}/secrets/x", None),
            ("POST", f"/v1/teams/{other}/secrets/{made['id']}/restore", None),
            ("POST", f"/v1/secrets/{made['id']}/restore", None),
            ("GET", "/v1/deployments/d", None),
            ("GET", f"/v1/deployments/d?team_id={other}", None),
            ("DELETE", "/v1/deployments/d", None),
            ("POST", "/v1/deployments", {"name": "d", "secrets": ["x"], "team_id": other}),
            ("DELETE", f"/v1/tokens/{token['prefix']}", None),
            ("DELETE", f"/v1/api_keys/{token['prefix']}", None),
            ("DELETE", f"/v1/api_keys/{manager.key.split('_')[2]}", None),
        ]
        for method, path, body in attempts:
            answer = member.request(method, path, json=body)
            nothing = member.request(method, path.replace(other, "aaaabbbbccccdddd"), json=body)
            assert answer.status_code == 404, (method, path, answer.text)
            assert answer.json() == nothing.json()
        for method, path in [("GET", "/v1/audit"), ("GET", "/v1/people"), ("POST", "/v1/keyring/rotate")]:
            assert member.request(method, path).status_code == 403


def test_a_person_who_is_disabled_can_do_nothing_more(manager: Manager, admin: httpx.Client) -> None:
    key = manager.member()
    person = next(p for p in admin.get("/v1/people").json()["people"] if p["email"] == "mem@example.com")
    with manager.client(key) as member:
        assert member.get("/v1/secrets").status_code == 200
        admin.patch(f"/v1/people/{person['id']}", json={"disabled": True})
        assert member.get("/v1/secrets").status_code == 401


def test_somebody_must_be_left_to_administer(admin: httpx.Client) -> None:
    me = admin.get("/v1/users/me").json()["user_id"]
    for change in ({"role": "member"}, {"disabled": True}):
        answer = admin.patch(f"/v1/people/{me}", json=change)
        assert (answer.status_code, answer.json()["code"]) == (409, "conflict")


def test_a_key_makes_no_stronger_key(manager: Manager, admin: httpx.Client) -> None:
    weak = admin.post("/v1/api_keys", json={"name": "w", "scopes": ["secrets:read", "secrets:write"]}).json()
    with manager.client(weak["api_key"]) as client:
        stronger = client.post("/v1/api_keys", json={"name": "s", "scopes": ["admin"]})
        assert stronger.status_code == 403
        same = client.post("/v1/api_keys", json={"name": "s"}).json()["prefix"]
    scopes = {key["prefix"]: key["scopes"] for key in admin.get("/v1/api_keys").json()["api_keys"]}
    assert scopes[same] == ["secrets:read", "secrets:write"]


ODD_NAMES = {
    "empty": "",
    "space": "a b",
    "newline": "name\n",
    "nul": "a\0b",
    "slash": "a/b",
    "dots": "..",
    "up": "../../etc/passwd",
    "right to left": "a\u202eb",
    "html": "<script>alert(1)</script>",
    "sql": "'; DROP TABLE secrets; --",
    "long": "a" * 254,
    "umlaut": "gr\u00fcn",
}


@pytest.mark.parametrize("name", ODD_NAMES.values(), ids=ODD_NAMES.keys())
def test_what_is_no_name_is_refused_everywhere(admin: httpx.Client, name: str) -> None:
    """In a body and in a path; nothing is stored, and nothing breaks."""
    answer = admin.post("/v1/secrets", json={"name": name, "value": VALUE})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_name")
    assert not leaks_in(answer.content, VALUE.encode())
    if name:
        from urllib.parse import quote

        gone = admin.delete(f"/v1/secrets/{quote(name, safe='')}")
        assert gone.status_code in (400, 404), gone.text
    assert admin.get("/v1/secrets?deleted=true").json() == {"secrets": []}


BODIES: dict[str, tuple[bytes, int]] = {
    "nothing": (b"", 400),
    "not JSON": (b"{", 400),
    "a list": (b"[]", 400),
    "no value": (b'{"name": "x"}', 400),
    "null value": (b'{"name": "x", "value": null}', 400),
    "number": (b'{"name": "x", "value": 5}', 400),
    "lone surrogate": (b'{"name": "x", "value": "\\ud800"}', 400),
    "not UTF-8": (b'{"name": "x", "value": "\xff"}', 400),
    "not base64": (b'{"name": "x", "value": "!!!", "encoding": "base64"}', 400),
    "other encoding": (b'{"name": "x", "value": "v", "encoding": "rot13"}', 400),
    "too long": (json.dumps({"name": "x", "value": "v" * 65_537}).encode(), 400),
    "huge": (b'{"name": "x", "value": "' + b"v" * 1_100_000 + b'"}', 413),
    "deep": (b'{"a":' * 5000 + b"1" + b"}" * 5000, 400),
    "naive time": (b'{"name": "x", "value": "v", "expires_at": "2030-01-01T00:00:00"}', 400),
    "NUL in a note": (b'{"name": "x", "value": "v", "note": "a\\u0000b"}', 400),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES.keys())
def test_a_wrong_body_is_refused_without_being_repeated(
    admin: httpx.Client, body: bytes, status: int
) -> None:
    answer = admin.post("/v1/secrets", content=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"message", "code", "hint"}
    assert len(answer.content) < 500
    assert admin.get("/v1/secrets").json() == {"secrets": []}


@pytest.mark.parametrize("value", ["", "\0", "\u202evalue", "x" * 65_536, "line\nline\n"])
def test_odd_values_are_kept_as_they_are(
    admin: httpx.Client, deployment: Callable[..., httpx.Client], value: str
) -> None:
    import base64

    assert admin.post("/v1/secrets", json={"name": "x", "value": value}).status_code == 200
    with deployment("d", "x") as client:
        got = client.post("/v1/deployment/secrets").json()["secrets"]["x"]["value"]
    assert base64.b64decode(got).decode() == value
