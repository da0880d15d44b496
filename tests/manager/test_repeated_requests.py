"""Writes with an `Idempotency-Key`: executed once, however often and by whichever manager they are handled."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.manager.conftest import Manager
from tests.manager.test_access import records

VALUE = "hf_abcdefghijklmnopqrstuvwxyz012345"
KEY = {"Idempotency-Key": "5b0e7d3c"}


def test_a_write_that_is_sent_again_is_not_executed_again(admin: httpx.Client) -> None:
    """It gets the response of the first, marked as such; the audit log has one record."""
    body = {"name": "x", "value": VALUE}
    first = admin.post("/v1/secrets", json=body, headers=KEY)
    again = admin.post("/v1/secrets", json=body, headers=KEY)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert "idempotency-replayed" not in first.headers
    assert again.headers["idempotency-replayed"] == "true"
    assert admin.get("/v1/secrets/x/versions").json()["versions"][-1]["version"] == 1
    assert len(records(admin, action="secret.create")) == 1
    assert admin.post("/v1/secrets", json=body, headers={"Idempotency-Key": "other"}).json()["version"] == 2


def test_a_deletion_that_is_sent_again_succeeds_again(admin: httpx.Client) -> None:
    """Without the key, it finds nothing to delete."""
    admin.post("/v1/secrets", json={"name": "x", "value": VALUE})
    assert admin.delete("/v1/secrets/x", headers=KEY).json() == {"name": "x"}
    assert admin.delete("/v1/secrets/x", headers=KEY).json() == {"name": "x"}
    assert admin.delete("/v1/secrets/x").status_code == 404


@pytest.mark.parametrize(
    "other", [{"name": "x", "value": VALUE + "1"}, {"name": "y", "value": VALUE}, {"name": "x"}]
)
def test_another_request_with_the_same_key_is_refused(admin: httpx.Client, other: dict[str, str]) -> None:
    """So is one with another value: what is compared reveals nothing of it."""
    admin.post("/v1/secrets", json={"name": "x", "value": VALUE}, headers=KEY)
    refused = admin.post("/v1/secrets", json=other, headers=KEY)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_mismatch")
    assert VALUE not in refused.text


def test_a_refused_request_can_be_sent_again(admin: httpx.Client) -> None:
    """Only what was executed is remembered."""
    wrong = {"name": "x", "value": VALUE}
    refused = admin.post("/v1/secrets", json=wrong, headers=KEY | {"If-Match": '"7"'})
    assert refused.status_code == 412
    assert admin.post("/v1/secrets", json=wrong, headers=KEY).status_code == 200


def test_keys_of_different_callers_and_routes_are_different(manager: Manager, admin: httpx.Client) -> None:
    """One person's key says nothing about another's request, nor about another route."""
    body = {"name": "x", "value": VALUE}
    admin.post("/v1/secrets", json=body, headers=KEY)
    with manager.client(manager.member()) as member:
        assert member.post("/v1/secrets", json=body, headers=KEY).json()["version"] == 2
    made = admin.post("/v1/api_keys", json={"name": "x"}, headers=KEY)
    assert made.status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "shown"),
    [
        ("/v1/api_keys", {"name": "ci"}, "api_key"),
        ("/v1/deployments", {"name": "d", "secrets": ["x"]}, "token"),
        ("/v1/people", {"email": "new@example.com"}, "link"),
    ],
)
def test_what_is_shown_once_is_not_shown_by_a_repeated_request(
    manager: Manager, admin: httpx.Client, path: str, body: dict[str, object], shown: str
) -> None:
    """The refusal names what was made, by its prefix. The database does not have it either."""
    made = admin.post(path, json=body, headers=KEY).json()
    again = admin.post(path, json=body, headers=KEY)
    assert (again.status_code, again.json()["code"]) == (409, "response_lost")
    assert made[shown] not in again.text
    assert made.get("prefix", "a link") in again.json()["message"]
    assert manager.stop() == 0
    for file in manager.gusset.home.iterdir():
        assert made[shown].rpartition("/")[2].encode() not in file.read_bytes(), file


def test_concurrent_requests_with_one_key_are_executed_once(admin: httpx.Client) -> None:
    """The others get the same response, or are told that the first is in flight."""
    body = {"name": "x", "value": VALUE}

    def send(_: int) -> httpx.Response:
        return admin.post("/v1/secrets", json=body, headers=KEY)

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(send, range(32)))
    assert {response.status_code for response in responses} <= {200, 409}
    bodies = {json.dumps(response.json()) for response in responses if response.status_code == 200}
    assert len(bodies) == 1
    assert admin.get("/v1/secrets").json()["secrets"][0]["version"] == 1


def test_a_restarted_manager_still_knows_the_request(manager: Manager, admin: httpx.Client) -> None:
    """The key is in the database, in the transaction of the write."""
    body = {"name": "x", "value": VALUE}
    first = admin.post("/v1/secrets", json=body, headers=KEY).json()
    manager.kill()
    manager.start()
    with manager.client() as client:
        assert client.post("/v1/secrets", json=body, headers=KEY).json() == first


@pytest.mark.parametrize("key", ["", "a" * 201, "a\tb", "ü".encode("latin-1")])
def test_a_key_that_cannot_be_stored_is_refused(admin: httpx.Client, key: str | bytes) -> None:
    """Before anything is executed."""
    sent = [(b"Idempotency-Key", key if isinstance(key, bytes) else key.encode())]
    refused = admin.post("/v1/secrets", json={"name": "x", "value": VALUE}, headers=sent)
    assert (refused.status_code, refused.json()["code"]) == (400, "usage")
    assert admin.get("/v1/secrets").json() == {"secrets": []}
