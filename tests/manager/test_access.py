"""Authentication, authorization and input validation of the API, against a running manager."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gusset.vault.audit.refusals import MAX_TARGETS
from tests.conftest import leaks_in
from tests.manager.conftest import ADMIN, Manager
from tests.serving.conftest import eventually

VALUE = "hf_" + "aB3dE6gH" * 5
CREDENTIAL = "ghp_" + "a1B2c3D4e5" * 3 + "a1B2c3"


def records(admin: httpx.Client, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = admin.get("/v1/audit", params=query).json()["records"]
    return found


def operations(admin: httpx.Client) -> list[tuple[str, str, dict[str, Any]]]:
    """Every (method, path, operation) in the document."""
    paths = admin.get("/v1/spec").json()["paths"]
    return [(m.upper(), path, op) for path, methods in paths.items() for m, op in methods.items()]


def concrete(path: str, text: str = "abcdefgh") -> str:
    for name in ("name", "team_id", "user_id", "prefix", "id"):
        path = path.replace("{" + name + "}", text)
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
def test_an_invalid_key_is_refused_on_every_route(manager: Manager, admin: httpx.Client, key: str) -> None:
    """401 with the same body everywhere, which does not repeat the key; the refusal is recorded."""
    with manager.client("") as client:
        headers = {"authorization": f"Bearer {key}".encode()} if key else {}
        for method, path, _ in operations(admin)[:15]:
            response = client.request(method, concrete(path), headers=headers)
            assert response.status_code == 401, (method, path, response.text)
            assert response.headers["www-authenticate"] == "Bearer"
            assert response.json()["code"] == "not_signed_in"
            assert not key or key not in response.text
    refused = records(admin, action="request.refuse")
    assert len(refused) == 15 and {r["outcome"] for r in refused} == {"not_signed_in"}
    assert {r["details"]["from"] for r in refused} == {"127.0.0.1"}


def test_many_invalid_keys_get_429_and_do_not_fill_the_audit_log(
    manager: Manager, admin: httpx.Client
) -> None:
    """Valid keys from the same address still work. The log has the first refusal, and a sum of the others."""
    with manager.client("gusset_key_aaaaaaaa_" + "A" * 43) as client:
        responses = [client.get("/v1/secrets") for _ in range(40)]
    statuses = [a.status_code for a in responses]
    assert statuses[:20] == [401] * 20 and statuses.count(429) >= 15  # the limit lets one through in 3 s
    assert 1 <= int(next(a for a in responses if a.status_code == 429).headers["retry-after"]) <= 3
    assert len(records(admin, action="request.refuse")) == 1
    assert admin.get("/v1/secrets").status_code == 200
    assert manager.stop() == 0
    manager.start()
    with manager.client() as client:
        assert [r["details"].get("repeated") for r in records(client, action="request.refuse")] == [39, None]


def test_a_rate_limit_never_hides_that_a_key_was_revoked(manager: Manager, admin: httpx.Client) -> None:
    """Many replicas behind one address: each gets 401, none takes its revocation for an overload."""
    made = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()
    with (
        manager.client(made["token"]) as client,
        manager.client("gusset_key_aaaaaaaa_" + "A" * 43) as stranger,
    ):
        assert client.get("/v1/deployment").status_code == 200
        assert 429 in [stranger.get("/v1/secrets").status_code for _ in range(25)]
        assert client.get("/v1/deployment").status_code == 200
        admin.delete(f"/v1/tokens/{made['prefix']}")
        assert {client.get("/v1/deployment").status_code for _ in range(50)} == {401}
        # Still limited: one more is allowed every three seconds.
        assert 429 in [stranger.get("/v1/secrets").status_code for _ in range(5)]
    assert len(records(admin, action="request.refuse")) == 2


def test_a_key_cannot_be_created_expired(manager: Manager, admin: httpx.Client) -> None:
    past = admin.post("/v1/api_keys", json={"name": "x", "expires_at": "2001-01-01T00:00:00Z"})
    assert (past.status_code, past.json()["code"]) == (400, "usage")


def test_a_key_is_refused_once_it_has_expired(manager: Manager, admin: httpx.Client) -> None:
    """Even if it is cached from an earlier request."""
    soon = datetime.now(UTC) + timedelta(seconds=5)
    made = admin.post("/v1/api_keys", json={"name": "x", "expires_at": soon.isoformat()}).json()
    with manager.client(made["api_key"]) as client:
        assert client.get("/v1/secrets").status_code == 200
        eventually(lambda: client.get("/v1/secrets").status_code == 401)
        response = client.get("/v1/secrets")
    assert response.status_code == 401 and "expired" in response.json()["message"]


def test_a_key_for_one_team_is_refused_rather_than_created_wider(admin: httpx.Client) -> None:
    """Other systems have such keys; here the key would allow more than was requested."""
    assert admin.post("/v1/api_keys", json={"name": "x", "team_id": "t"}).status_code == 400


def test_a_token_works_only_on_the_routes_for_deployments(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Every route for people gives 403 and is recorded, so a token cannot extend itself either."""
    admin.post("/v1/secrets", json={"name": "mine", "value": VALUE})
    admin.post("/v1/secrets", json={"name": "other", "value": VALUE + "2"})
    tried = 0
    with deployment("d", "mine") as client:
        for method, path, operation in operations(admin):
            if operation["x-scope"] in ("a deployment's token", "the token itself"):
                continue
            body = {"name": "d", "secrets": ["mine", "other"], "value": "v", "version": 1, "email": "x@y.z"}
            response = client.request(method, concrete(path), json=body)
            assert (response.status_code, response.json()["code"]) == (403, "denied"), (method, path)
            tried += 1
        assert client.get("/v1/deployment").json()["secrets"] == ["mine"]
        got = client.post("/v1/deployment/secrets").json()
        assert list(got["secrets"]) == ["mine"]
        denied = client.post("/v1/deployment/secrets", json={"names": ["mine", "other"]})
        assert denied.status_code == 403 and "other" in denied.json()["message"]
        assert not leaks_in(denied.content, VALUE.encode())
    assert tried > 40
    refused = records(admin, action="request.refuse", limit="1000")
    # Beyond MAX_TARGETS, refusals of one caller share a record.
    assert len(refused) == min(tried, MAX_TARGETS) + 1 and {r["actor"] for r in refused} == {"deployment d"}


def test_no_text_of_a_path_or_body_that_is_refused_is_recorded_as_it_is(admin: httpx.Client) -> None:
    """It may be a credential in the wrong place, or what no database can store."""
    body: dict[str, Any] = {
        "holder": "aaaaaaaa",
        "value": "v",
        "secrets": [],
        "overlap": 60,
        "handle": "h",
        "step": "use",
    }
    body |= {"email": "x@y.z", "code": "conflict", "role": "admin", "deployment": "d", "subject": "s"}
    body |= {"issuer": "https://i.example"}
    for text in (CREDENTIAL, "a\0b"):
        for method, path, _ in operations(admin):
            if path == "/v1/deployment/changes":
                continue  # it never ends
            target = concrete(path, quote(text, safe="")) if "{" in path else path
            for sent in (body | {"name": text}, {"version": 1}):
                response = admin.request(method, target, json=sent)
                assert response.status_code < 500, (method, path, response.text)
    refused = [each for each in records(admin, limit="1000") if each["outcome"] != "ok"]
    recorded = [each["target"] for each in refused]
    assert "a team" in recorded and "a person" in recorded
    assert [text for text in recorded if CREDENTIAL in text or not text.isprintable()] == []


def test_names_that_people_choose_have_no_control_characters(admin: httpx.Client) -> None:
    nul, printable = "cannot have the character NUL", "printable characters"
    for name, reason in (("a\0b", nul), ("\x1b[2J", printable), ("\u202etxt", printable)):
        for path, body in (("/v1/api_keys", {}), ("/v1/people", {"email": "new@example.com"})):
            refused = admin.post(path, json={"name": name, **body})
            assert (refused.status_code, refused.json()["code"]) == (400, "usage"), (path, refused.text)
            assert reason in refused.json()["message"]


def test_a_persons_key_cannot_read_values(admin: httpx.Client) -> None:
    assert admin.post("/v1/deployment/secrets").status_code == 403
    assert admin.get("/v1/deployment/changes").status_code == 403


def test_a_token_is_refused_once_it_is_revoked_or_its_deployment_removed(
    manager: Manager, admin: httpx.Client
) -> None:
    """On the next request."""
    for undo in ("token", "deployment"):
        made = admin.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()
        with manager.client(made["token"]) as client:
            assert client.get("/v1/deployment").status_code == 200
            path = f"/v1/tokens/{made['prefix']}" if undo == "token" else "/v1/deployments/d"
            assert admin.delete(path).status_code == 200
            assert client.post("/v1/deployment/secrets").status_code == 401


def test_what_a_key_made_expires_and_is_revoked_with_it(manager: Manager, admin: httpx.Client) -> None:
    """Tokens, keys, and what these made in turn; what another key made stays. All of it is recorded."""
    expiry = datetime.now(UTC) + timedelta(days=3)
    made = admin.post(
        "/v1/api_keys", json={"name": "first", "gives": ["x"], "expires_at": expiry.isoformat()}
    ).json()
    declared = {"name": "d", "secrets": ["x"]}
    kept = admin.post("/v1/deployments", json=declared).json()
    with manager.client(made["api_key"]) as first:
        child = first.post("/v1/api_keys", json={"name": "child", "gives": ["x"]}).json()
        later = {"expires_at": (expiry + timedelta(days=9)).isoformat()}
        tokens = [first.post("/v1/deployments", json=declared | later).json()]
    with manager.client(child["api_key"]) as second:
        tokens.append(second.post("/v1/deployments", json=declared).json())
    expiries = {key["prefix"]: key["expires_at"] for key in admin.get("/v1/api_keys").json()["api_keys"]}
    expiries |= {t["prefix"]: t["expires_at"] for t in admin.get("/v1/deployments/d/tokens").json()["tokens"]}
    prefixes = [child["prefix"], *(token["prefix"] for token in tokens)]
    assert {expiries[prefix] for prefix in prefixes} == {expiries[made["prefix"]]} != {None}

    def statuses() -> list[int]:
        found = []
        for key, path in (
            (child["api_key"], "/v1/secrets"),
            *((each["token"], "/v1/deployment") for each in (*tokens, kept)),
        ):
            with manager.client(key) as client:
                found.append(client.get(path).status_code)
        return found

    assert statuses() == [200, 200, 200, 200]
    assert admin.delete(f"/v1/api_keys/{made['prefix']}").status_code == 200
    assert statuses() == [401, 401, 401, 200]
    [record] = records(admin, action="api_key.revoke")
    assert sorted(record["details"]["made by it"]) == sorted(prefixes)


def test_other_teams_things_look_like_unknown_ones(manager: Manager, admin: httpx.Client) -> None:
    """Guessed ids of a team, secret, deployment or key give the same 404 as unknown ids."""
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
            response = member.request(method, path, json=body)
            nothing = member.request(method, path.replace(other, "aaaabbbbccccdddd"), json=body)
            assert response.status_code == 404, (method, path, response.text)
            assert response.json() == nothing.json()
        for method, path in [("GET", "/v1/audit"), ("GET", "/v1/people"), ("POST", "/v1/keyring/rotate")]:
            assert member.request(method, path).status_code == 403


@pytest.mark.parametrize("choice", ["revoke", "pass"])
def test_disabling_a_person_takes_a_choice_about_their_tokens(
    manager: Manager, admin: httpx.Client, choice: str
) -> None:
    """Their key is refused. Their tokens are listed first, then revoked or the administrator's; all is audited."""
    key = manager.member()
    person = next(p for p in admin.get("/v1/people").json()["people"] if p["email"] == "mem@example.com")
    path = f"/v1/people/{person['id']}"
    with manager.client(key) as member:
        assert member.get("/v1/secrets").status_code == 200
        made = member.post("/v1/deployments", json={"name": "theirs", "secrets": ["x"]}).json()
        undecided = admin.patch(path, json={"disabled": True})
        assert (undecided.status_code, undecided.json()["code"]) == (409, "tokens_left")
        assert undecided.json()["tokens"] == [{"prefix": made["prefix"], "deployment": "theirs"}]
        assert member.get("/v1/secrets").status_code == 200
        assert admin.patch(path, json={"disabled": True, "tokens": choice}).status_code == 200
        assert member.get("/v1/secrets").status_code == 401
    with manager.client(made["token"]) as deployment:
        assert deployment.get("/v1/deployment").status_code == (401 if choice == "revoke" else 200)
    found = {record["outcome"]: record for record in records(admin, action="person.disable")}
    assert found.keys() == {"tokens_left", "ok"}
    record = found["ok"]
    assert made["prefix"] in record["details"]["keys" if choice == "revoke" else "passed"]
    assert admin.post("/v1/audit/verify").json()["problems"] == []


def test_a_change_of_role_and_account_happens_as_a_whole_or_not_at_all(
    manager: Manager, admin: httpx.Client
) -> None:
    """A refusal of one part leaves the other as it was, and records no change."""
    key = manager.member()

    def person() -> dict[str, Any]:
        return next(p for p in admin.get("/v1/people").json()["people"] if p["email"] == "mem@example.com")

    before = person()
    path = f"/v1/people/{before['id']}"
    with manager.client(key) as member:
        assert member.post("/v1/deployments", json={"name": "theirs", "secrets": ["x"]}).status_code == 200
        refused = admin.patch(path, json={"role": "admin", "disabled": True})
        assert (refused.status_code, refused.json()["code"]) == (409, "tokens_left")
        assert person() == before
        assert records(admin, action="person.role") == []
        assert member.get("/v1/people").status_code == 403
        done = admin.patch(path, json={"role": "admin", "disabled": True, "tokens": "revoke"})
        assert (done.status_code, done.json()["role"]) == (200, "admin")
        assert member.get("/v1/secrets").status_code == 401
    back = admin.patch(path, json={"role": "member", "disabled": False}).json()
    assert (back["role"], back["disabled_at"]) == ("member", None)
    assert person() == back
    assert len(records(admin, action="person.role")) == 2
    assert [each["outcome"] for each in records(admin, action="person.disable")] == ["ok", "tokens_left"]


@pytest.mark.parametrize("choice", ["revoke", "pass"])
def test_disabling_a_person_takes_a_choice_about_their_identities(
    manager: Manager, admin: httpx.Client, choice: str
) -> None:
    """A workload would go on exchanging its tokens: identities are listed first, then removed or passed on."""
    jwks = {"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "1", "x": "A" * 43}]}
    issuer = "https://issuer.example"
    assert admin.post("/v1/issuers", json={"url": issuer, "jwks": jwks}).status_code == 200
    key = manager.member()
    person = next(p for p in admin.get("/v1/people").json()["people"] if p["email"] == "mem@example.com")
    path = f"/v1/people/{person['id']}"
    with manager.client(key) as member:
        declared = {"secrets": ["x"]}
        assert member.put("/v1/deployments/theirs", json=declared).status_code == 200
        body = {"name": "pods", "deployment": "theirs", "issuer": issuer, "subject": "s"}
        made = member.post("/v1/identities", json=body)
        assert made.status_code == 200, made.text
        undecided = admin.patch(path, json={"disabled": True})
        assert (undecided.status_code, undecided.json()["code"]) == (409, "tokens_left")
        assert undecided.json()["tokens"] == []
        left = {"name": "pods", "team_name": made.json()["team_name"], "deployment": "theirs"}
        assert undecided.json()["identities"] == [left]
        assert admin.patch(path, json={"disabled": True, "tokens": choice}).status_code == 200
    found = admin.get("/v1/identities").json()["identities"]
    assert [each["created_by"] for each in found] == ([] if choice == "revoke" else [ADMIN])
    assert len(records(admin, action="identity.remove")) == (choice == "revoke")
    [done] = [each for each in records(admin, action="person.disable") if each["outcome"] == "ok"]
    assert done["details"].get("passed_identities") == (None if choice == "revoke" else ["pods"])
    assert admin.post("/v1/audit/verify").json()["problems"] == []


def test_a_key_gives_only_the_secrets_that_it_names(manager: Manager, admin: httpx.Client) -> None:
    """To deployments, and to keys that it makes; a new key that names none gives none."""
    for name in ("open_data", "payroll"):
        admin.post("/v1/secrets", json={"name": name, "value": VALUE})
    new = {"name": "ci", "scopes": ["deployments", "secrets:write"]}
    nothing = admin.post("/v1/api_keys", json=new).json()
    some = admin.post("/v1/api_keys", json=new | {"gives": ["open-data"]}).json()
    with manager.client(nothing["api_key"]) as client:
        refused = client.post("/v1/deployments", json={"name": "d", "secrets": ["open_data"]})
        assert (refused.status_code, refused.json()["code"]) == (403, "denied")
        assert client.post("/v1/deployments", json={"name": "d", "secrets": []}).status_code == 200
    with manager.client(some["api_key"]) as client:
        assert client.post("/v1/deployments", json={"name": "d", "secrets": ["open_data"]}).status_code == 200
        refused = client.post("/v1/deployments", json={"name": "d", "secrets": ["open_data", "payroll"]})
        assert refused.status_code == 403
        assert "may not give payroll" in refused.json()["message"]
        for gives in (["*"], ["payroll"]):
            assert client.post("/v1/api_keys", json={"name": "k", "gives": gives}).status_code == 403
        assert client.post("/v1/api_keys", json={"name": "k", "gives": ["open_data"]}).status_code == 200
    listed = {key["prefix"]: key["gives"] for key in admin.get("/v1/api_keys").json()["api_keys"]}
    assert (listed[nothing["prefix"]], listed[some["prefix"]]) == ([], ["open-data"])
    assert ["*"] in listed.values()  # the first administrator's


def test_the_last_administrator_cannot_be_demoted_or_disabled(admin: httpx.Client) -> None:
    me = admin.get("/v1/users/me").json()["user_id"]
    for change in ({"role": "member"}, {"disabled": True}):
        response = admin.patch(f"/v1/people/{me}", json=change)
        assert (response.status_code, response.json()["code"]) == (409, "conflict")


def test_a_key_cannot_create_a_key_with_more_scopes(manager: Manager, admin: httpx.Client) -> None:
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
def test_an_invalid_name_is_refused_everywhere(admin: httpx.Client, name: str) -> None:
    """In a body and in a path; nothing is stored."""
    response = admin.post("/v1/secrets", json={"name": name, "value": VALUE})
    assert (response.status_code, response.json()["code"]) == (400, "invalid_name")
    assert not leaks_in(response.content, VALUE.encode())
    if name:
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
def test_an_invalid_body_is_refused_and_not_repeated(admin: httpx.Client, body: bytes, status: int) -> None:
    response = admin.post("/v1/secrets", content=body)
    assert response.status_code == status, response.text
    assert set(response.json()) == {"message", "code", "hint"}
    assert len(response.content) < 500
    assert admin.get("/v1/secrets").json() == {"secrets": []}


@pytest.mark.parametrize("value", ["", "\0", "\u202evalue", "x" * 65_536, "line\nline\n"])
def test_unusual_values_are_delivered_unchanged(
    admin: httpx.Client, deployment: Callable[..., httpx.Client], value: str
) -> None:
    assert admin.post("/v1/secrets", json={"name": "x", "value": value}).status_code == 200
    with deployment("d", "x") as client:
        got = client.post("/v1/deployment/secrets").json()["secrets"]["x"]["value"]
    assert base64.b64decode(got).decode() == value
