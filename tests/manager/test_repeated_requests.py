"""Writes with an `Idempotency-Key`: executed once, however often and by whichever manager they are handled."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.manager.conftest import Manager
from tests.manager.test_access import records
from tests.manager.test_durable import started_by
from tests.serving.conftest import eventually
from tests.vault.conftest import run_sql

VALUE = "hf_abcdefghijklmnopqrstuvwxyz012345"
KEY = {"Idempotency-Key": "5b0e7d3c"}

# Starts a manager whose process ends right after the commit of a write that an `Idempotency-Key` came with.
KILLED_AFTER_COMMIT = """
import os, signal, sys
from gusset.vault.services.idempotency import OnceWriter
run = OnceWriter.run
def killed(*arguments):
    run(*arguments)
    os.kill(os.getpid(), signal.SIGKILL)
OnceWriter.run = killed
"""
# One whose clients never learn that a write was committed, and that goes on.
SILENT_AFTER_COMMIT = """
import sys
from gusset.errors import OutcomeUnknown
from gusset.vault.services.idempotency import OnceWriter
run = OnceWriter.run
def silent(*arguments):
    run(*arguments)
    raise OutcomeUnknown("lost")
OnceWriter.run = silent
"""
START = "from gusset.cli.main import main; main(['manager', '--port', sys.argv[1]])"


def test_a_write_that_is_sent_again_is_not_executed_again(admin: httpx.Client) -> None:
    """It gets the response of the first, marked as such; the audit log has one record."""
    body = {"name": "x", "value": VALUE}
    first = admin.post("/v1/secrets", json=body, headers=KEY)
    again = admin.post("/v1/secrets", json=body, headers=KEY)
    assert (first.status_code, again.status_code) == (200, 200)
    assert again.json() == first.json()
    assert again.headers["etag"] == first.headers["etag"] == '"1"'
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


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_another_condition_with_the_same_key_is_refused(admin: httpx.Client, header: str) -> None:
    """It is another request: one that must not overwrite is not one that may."""
    body, condition = {"name": "x", "value": VALUE}, {header: "*" if header == "If-None-Match" else '"1"'}
    assert admin.post("/v1/secrets", json=body, headers=KEY).status_code == 200
    refused = admin.post("/v1/secrets", json=body, headers=KEY | condition)
    assert (refused.status_code, refused.json()["code"]) == (422, "idempotency_mismatch")


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


@pytest.fixture
def stored(manager: Manager, admin: httpx.Client) -> Callable[..., list[Any]]:
    """Runs SQL in the database of a manager that has executed two requests."""
    admin.post("/v1/secrets", json={"name": "y", "value": VALUE}, headers={"Idempotency-Key": "another"})
    admin.post("/v1/secrets", json={"name": "x", "value": VALUE}, headers=KEY)
    return partial(run_sql, manager.database)


def send_again(admin: httpx.Client) -> tuple[int, Any]:
    response = admin.post("/v1/secrets", json={"name": "x", "value": VALUE}, headers=KEY)
    return response.status_code, response.json()


@pytest.mark.parametrize(
    "change",
    [
        "replace(response, '\"version\": 1', '\"version\": 7')",
        "(SELECT response FROM idempotency WHERE key = 'another')",
        "replace(response, 'body', 'shown_once')",
        'replace(response, \'"mac": "\', \'"mac": "x\')',
        "'{'",
    ],
)
def test_an_altered_response_is_not_repeated(
    admin: httpx.Client, stored: Callable[..., list[Any]], change: str
) -> None:
    """Whoever writes the database could have a client store a key of theirs as its own."""
    stored(f"UPDATE idempotency SET response = {change} WHERE key = ?", KEY["Idempotency-Key"])
    status, body = send_again(admin)
    assert (status, body["code"]) == (500, "integrity")
    assert "the response of an earlier request (POST /v1/secrets) was altered" in body["message"]


def test_a_response_without_an_hmac_is_not_repeated(
    admin: httpx.Client, stored: Callable[..., list[Any]]
) -> None:
    """Such as those that an older version of gusset has stored: the request is known, and not executed again."""
    [(text,)] = stored("SELECT response FROM idempotency WHERE key = ?", KEY["Idempotency-Key"])
    response = json.loads(text)
    del response["mac"]
    stored("UPDATE idempotency SET response = ? WHERE key = ?", json.dumps(response), KEY["Idempotency-Key"])
    assert send_again(admin)[0] == 409


def test_a_request_whose_row_was_altered_or_removed(
    admin: httpx.Client, stored: Callable[..., list[Any]]
) -> None:
    """Altered, it is taken for another one; removed, it was never there: it is executed again."""
    stored("UPDATE idempotency SET mac = (SELECT mac FROM idempotency WHERE key = 'another')")
    assert send_again(admin)[0] == 422
    stored("DELETE FROM idempotency")
    status, body = send_again(admin)
    assert (status, body["version"]) == (200, 2)


def test_a_request_with_a_row_that_somebody_inserted_is_refused(
    admin: httpx.Client, stored: Callable[..., list[Any]]
) -> None:
    """A copy of an earlier one's, under a key that is used later: the client is not told that it succeeded."""
    columns = "caller, route, mac, response, created_at"
    stored(
        f"INSERT INTO idempotency (key, {columns}) SELECT 'later', {columns} FROM idempotency WHERE key = ?",
        KEY["Idempotency-Key"],
    )
    body = {"name": "x", "value": VALUE}
    assert admin.post("/v1/secrets", json=body, headers={"Idempotency-Key": "later"}).status_code == 500
    stored("UPDATE idempotency SET response = NULL")
    assert admin.post("/v1/secrets", json=body, headers={"Idempotency-Key": "later"}).status_code == 409
    assert admin.get("/v1/secrets/x").json()["version"] == 1


def test_concurrent_requests_with_one_key_are_executed_once(admin: httpx.Client) -> None:
    """The others wait for the transaction of the first, and get its response."""
    body = {"name": "x", "value": VALUE}

    def send(_: int) -> httpx.Response:
        return admin.post("/v1/secrets", json=body, headers=KEY)

    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(send, range(32)))
    assert {response.status_code for response in responses} == {200}
    assert len({json.dumps(response.json()) for response in responses}) == 1
    assert sum("idempotency-replayed" not in response.headers for response in responses) == 1
    assert admin.get("/v1/secrets").json()["secrets"][0]["version"] == 1


def test_a_request_of_several_writes_is_in_flight_until_its_response_is_stored(
    manager: Manager, tmp_path: Path
) -> None:
    """Such as a rotation of the keyring: 409 meanwhile, and then its response."""
    assert manager.stop() == 0
    code = (
        "import os, sys, time\n"
        "from gusset.vault.services.idempotency import Idempotency\n"
        "keep = Idempotency.keep_response\n"
        "def slow(*arguments):\n"
        f"    open({str(tmp_path / 'reached')!r}, 'w').close()\n"
        f"    while not os.path.exists({str(tmp_path / 'go')!r}):\n"
        "        time.sleep(0.02)\n"
        "    keep(*arguments)\n"
        "Idempotency.keep_response = slow\n" + START
    )
    with started_by(code, manager), manager.client() as admin, ThreadPoolExecutor(1) as pool:
        first = pool.submit(admin.post, "/v1/keyring/rotate", headers=KEY)
        eventually((tmp_path / "reached").exists)
        in_flight = admin.post("/v1/keyring/rotate", headers=KEY)
        (tmp_path / "go").touch()
        assert (in_flight.status_code, in_flight.json()["code"]) == (409, "response_lost")
        assert "in flight" in in_flight.json()["message"]
        made = first.result()
        again = admin.post("/v1/keyring/rotate", headers=KEY)
        assert (made.status_code, again.status_code, again.json()) == (200, 200, made.json())
        assert len(records(admin, action="key.rotate")) == 1


def test_a_restarted_manager_still_knows_the_request(manager: Manager, admin: httpx.Client) -> None:
    """The key is in the database, in the transaction of the write."""
    body = {"name": "x", "value": VALUE}
    first = admin.post("/v1/secrets", json=body, headers=KEY).json()
    manager.kill()
    manager.start()
    with manager.client() as client:
        assert client.post("/v1/secrets", json=body, headers=KEY).json() == first


def test_a_write_of_a_manager_that_was_killed_before_it_could_respond_is_known(manager: Manager) -> None:
    """The manager that is asked next gives the response, and there is one version."""
    assert manager.stop() == 0
    body = {"name": "x", "value": VALUE}
    killed = started_by(KILLED_AFTER_COMMIT + START, manager)
    with killed, manager.client() as client, pytest.raises(httpx.TransportError):
        client.post("/v1/secrets", json=body, headers=KEY)
    manager.start()
    with manager.client() as client:
        again = client.post("/v1/secrets", json=body, headers=KEY)
        assert (again.status_code, again.json()["version"], again.headers["etag"]) == (200, 1, '"1"')
        assert again.headers["idempotency-replayed"] == "true"
        assert len(client.get("/v1/secrets/x/versions").json()["versions"]) == 1
        assert len(records(client, action="secret.create")) == 1


def single_writes(admin: httpx.Client) -> list[tuple[str, str, object, dict[str, object]]]:
    """Requests that make one write each, in an order in which all succeed; with a part of the response."""

    def made(path: str, **body: object) -> Any:
        return admin.post(path, json=body).json()

    for value in "ab":
        made("/v1/secrets", name="x", value=value)
    token = made("/v1/deployments", name="d", secrets=["x"])["prefix"]
    key = made("/v1/api_keys", name="old")["prefix"]
    person = made("/v1/people", email="new@example.com")["person"]["id"]
    member = f"/v1/teams/{made('/v1/teams', name='ops')['id']}/members/{person}"
    rotation, holder = "/v1/secrets/x/provider-rotation", {"holder": "a" * 8}
    issuer = "https://issuer.example.com"
    rule = {"name": "i", "deployment": "d", "issuer": issuer, "subject": "s"}
    return [
        ("PATCH", "/v1/secrets/x", {"note": "n"}, {"note": "n"}),
        ("POST", "/v1/secrets:batch", {"secrets": [{"name": "y", "value": "v"}]}, {}),
        ("POST", "/v1/secrets/x/rollback", {"version": 1}, {"version": 3}),
        ("POST", "/v1/secrets/x/destroy", {"versions": [1]}, {"version": 3}),
        ("POST", rotation, holder, {"step": "create"}),
        ("POST", f"{rotation}/renew", holder, {"step": "create"}),
        ("POST", f"{rotation}/stop", {**holder, "code": "c"}, {"step": "create"}),
        ("POST", f"{rotation}/cancel", holder, {"step": "create"}),
        ("DELETE", "/v1/secrets/x", None, {"name": "x"}),
        ("POST", "/v1/secrets/x/restore", None, {"name": "x"}),
        ("POST", "/v1/teams", {"name": "data"}, {"name": "data"}),
        ("PUT", member, None, {"id": person}),
        ("DELETE", member, None, {"id": person, "teams": []}),
        ("PATCH", f"/v1/people/{person}", {"role": "admin"}, {"role": "admin"}),
        ("PATCH", f"/v1/people/{person}", {"disabled": True}, {"role": "admin"}),
        ("PATCH", f"/v1/people/{person}", {"role": "member", "disabled": False}, {"disabled_at": None}),
        ("POST", "/v1/identities", rule, {"name": "i"}),
        ("DELETE", "/v1/identities/i", None, {"name": "i"}),
        ("DELETE", f"/v1/issuers?url={issuer}", None, {"url": issuer}),
        ("PUT", "/v1/deployments/d", {"secrets": ["y"]}, {"secrets": ["y"]}),
        ("DELETE", f"/v1/tokens/{token}", None, {"prefix": token}),
        ("DELETE", "/v1/deployments/d", None, {"name": "d"}),
        ("DELETE", f"/v1/api_keys/{key}", None, {"prefix": key}),
    ]


def test_the_response_to_any_single_write_survives_the_loss_of_its_response(manager: Manager) -> None:
    """It is stored in the write's transaction: on secrets, rotations, people, teams, keys and deployments."""
    with manager.client() as admin:
        writes = single_writes(admin)
    assert manager.stop() == 0
    with started_by(SILENT_AFTER_COMMIT + START, manager), manager.client() as client:
        for number, (method, path, body, expected) in enumerate(writes):
            headers = {"Idempotency-Key": str(number)}
            lost = client.request(method, path, json=body, headers=headers)
            assert (lost.status_code, lost.json()["code"]) == (503, "outcome_unknown"), (path, lost.text)
            again = client.request(method, path, json=body, headers=headers)
            assert again.status_code == 200, (path, again.text)
            assert again.json() == again.json() | expected, path


def test_what_was_to_be_shown_once_is_named_when_its_response_was_lost(manager: Manager) -> None:
    """Nobody has it; the repeated request makes no second key, token or link."""
    with manager.client() as admin:
        person = admin.get("/v1/users/me").json()["user_id"]
    assert manager.stop() == 0
    with started_by(SILENT_AFTER_COMMIT + START, manager), manager.client() as client:

        def lost(path: str, **body: object) -> str:
            assert client.post(path, json=body, headers=KEY).status_code == 503
            again = client.post(path, json=body, headers=KEY)
            assert (again.status_code, again.json()["code"]) == (409, "response_lost")
            return str(again.json()["message"])

        message = lost("/v1/api_keys", name="ci")
        [key] = [each for each in client.get("/v1/api_keys").json()["api_keys"] if each["name"] == "ci"]
        assert f"the API key {key['prefix']}, which is shown only once" in message
        message = lost("/v1/deployments", name="d", secrets=["x"])
        [token] = client.get("/v1/deployments/d/tokens").json()["tokens"]
        assert f"the token {token['prefix']}, which is shown only once" in message
        for path, body in [("/v1/people", {"email": "new@example.com"}), (f"/v1/people/{person}/link", {})]:
            assert "a link, which is shown only once" in lost(path, **body)


def test_a_request_of_several_writes_is_not_executed_again_when_its_response_was_lost(
    manager: Manager,
) -> None:
    """Killed before the response was stored: 409 instead of it, and what it has changed stays."""
    assert manager.stop() == 0
    code = (
        "import os, signal, sys\n"
        "from gusset.vault.services.idempotency import Idempotency\n"
        "Idempotency.keep_response = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n" + START
    )
    with started_by(code, manager), manager.client() as client, pytest.raises(httpx.TransportError):
        client.post("/v1/keyring/rotate", headers=KEY)
    manager.start()
    with manager.client() as client:
        again = client.post("/v1/keyring/rotate", headers=KEY)
        assert (again.status_code, again.json()["code"]) == (409, "response_lost")
        assert len(records(client, action="key.rotate")) == 1


def test_a_deployments_report_that_is_sent_again_is_not_counted_again(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Its key is the deployment's own: another one's report with it is counted."""
    admin.post("/v1/secrets", json={"name": "x", "value": VALUE})
    report = {"hits": [{"secret": "x", "form": "hex", "channel": "stdout", "times": 3}]}
    with deployment("d", "x") as client, deployment("e", "x") as other:
        for _ in range(2):
            assert client.post("/v1/deployment/masked", json=report, headers=KEY).json() == {}
        assert len(records(admin, action="secret.masked")) == 1
        assert other.post("/v1/deployment/masked", json=report, headers=KEY).json() == {}
    assert len(records(admin, action="secret.masked")) == 2


def test_a_delivery_is_never_kept_for_a_repeated_request(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """A fetch heeds no key: it gives the newest value each time, and a response with values is not stored."""
    admin.post("/v1/secrets", json={"name": "x", "value": VALUE})
    with deployment("d", "x") as client:
        first = client.post("/v1/deployment/secrets", headers=KEY).json()
        admin.post("/v1/secrets", json={"name": "x", "value": VALUE + "2"})
        second = client.post("/v1/deployment/secrets", headers=KEY)
    assert (first["secrets"]["x"]["version"], second.json()["secrets"]["x"]["version"]) == (1, 2)
    assert "idempotency-replayed" not in second.headers


@pytest.mark.parametrize("key", ["", "a" * 201, "a\tb", "ü".encode("latin-1")])
def test_a_key_that_cannot_be_stored_is_refused(admin: httpx.Client, key: str | bytes) -> None:
    """Before anything is executed."""
    sent = [(b"Idempotency-Key", key if isinstance(key, bytes) else key.encode())]
    refused = admin.post("/v1/secrets", json={"name": "x", "value": VALUE}, headers=sent)
    assert (refused.status_code, refused.json()["code"]) == (400, "usage")
    assert admin.get("/v1/secrets").json() == {"secrets": []}
