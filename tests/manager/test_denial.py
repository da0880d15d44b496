"""Strangers, or one token, cannot lock people out, fill the log and the tables, or make the manager fail."""

from __future__ import annotations

import itertools
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from gusset.addresses import network_of
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import open_vault
from gusset.vault.services.leases import MAX_REPLICAS
from tests.conftest import Cli
from tests.manager.conftest import ADMIN, PASSWORD, Manager, lease
from tests.manager.test_integrity import sql
from tests.manager.test_pages import Visitor
from tests.serving.conftest import eventually

# --- limits


def test_a_bucket_lets_through_its_burst_and_then_says_how_long_to_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("gusset.manager.auth.rate_limiter.time.monotonic", lambda: now[0])
    limiter = RateLimiter(10, 60.0)
    assert [limiter.take("a") for _ in range(10)] == [0.0] * 10
    assert limiter.take("a") == pytest.approx(6.0)
    assert limiter.take("b") == 0.0
    now[0] += 6.0
    assert limiter.take("a") == 0.0 and limiter.take("a") > 0


def test_an_ipv6_client_is_its_network() -> None:
    """A machine has as many addresses as it likes in its /64."""
    assert network_of("2001:db8::1") == network_of("2001:db8::2:3") != network_of("2001:db8:1::1")
    assert network_of("::ffff:192.0.2.1") == network_of("192.0.2.1")
    assert network_of(None) == "?"


def test_refused_calls_of_one_token_are_limited_and_recorded_in_sums(
    manager: Manager, admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """403, then 429 with Retry-After; one record at once, the others as a count when the manager stops."""
    with deployment("d", "x") as client:
        responses = [client.get("/v1/secrets") for _ in range(300)]
        assert client.get("/v1/deployment").status_code == 200
    statuses = [response.status_code for response in responses]
    assert statuses[0] == 403 and set(statuses) == {403, 429}  # two more are allowed each second
    limited = responses[statuses.index(429)]
    assert int(limited.headers["retry-after"]) >= 1
    refused = admin.get("/v1/audit", params={"action": "request.refuse"}).json()["records"]
    assert len(refused) == 1
    assert manager.stop() == 0
    manager.start()
    with manager.client() as client:
        refused = client.get("/v1/audit", params={"action": "request.refuse"}).json()["records"]
    assert [record["details"].get("repeated") for record in refused] == [299, None]
    manager.gusset("audit", "verify")


def test_a_key_with_too_many_requests_gets_429_and_others_go_on(manager: Manager) -> None:
    """`--key-rate` is for one second in the long run, and five times as many at once."""
    other = manager.member()
    assert manager.stop() == 0
    manager.start("--key-rate", "2")
    with manager.client() as client, manager.client(other) as member:
        responses = [client.get("/v1/users/me") for _ in range(40)]
        refused = [response for response in responses if response.status_code == 429]
        assert responses[0].status_code == 200 and refused
        assert refused[0].headers["retry-after"] == "1" and refused[0].json()["code"] == "too_many_attempts"
        assert member.get("/v1/users/me").status_code == 200


def test_failed_writes_of_one_key_are_recorded_in_sums(admin: httpx.Client) -> None:
    for _ in range(200):
        assert admin.delete("/v1/secrets/no-such-secret").status_code == 404
    refused = admin.get("/v1/audit", params={"action": "secret.delete"}).json()["records"]
    assert len(refused) == 1


def test_a_deployment_has_a_bounded_number_of_replicas(
    manager: Manager, admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """One more is a conflict that says so; one that has stopped makes room.

    So do clients that have only fetched: whoever fetches in a loop locks no replica out.
    """
    with deployment("d", "x") as client:
        replicas = [lease(client) for _ in range(MAX_REPLICAS)]
        replicas += [lease(client) for _ in range(5)]
        assert replicas[0].renew({"host": "h"}).status_code == 404
        running = [replica for replica in replicas if replica.renew({"host": "h"}).status_code == 200]
        running += [lease(client) for _ in range(MAX_REPLICAS - len(running))]

        def all_run() -> bool:
            """Renew all; a slow machine may have lost some meanwhile, which then begin again."""
            lost = [each for each in running if each.renew({"host": "h"}).status_code != 200]
            for each in lost:
                running[running.index(each)] = lease(client)
            # Written: pages and API show them before, and another fetch would change them.
            written = sql(manager, "SELECT count(*) FROM replicas WHERE host = 'h'")
            return not lost and written >= MAX_REPLICAS

        eventually(all_run, "all run at once", 60)
        refused = client.post("/v1/deployment/secrets")
        assert refused.status_code == 409 and f"{MAX_REPLICAS} running replicas" in refused.json()["message"]
        assert running[0].renew({"stopped": True}).status_code == 200
        eventually(lambda: client.post("/v1/deployment/secrets").status_code == 200)
    assert len(admin.get("/v1/deployments/d").json()["replicas"]) == MAX_REPLICAS


# --- lock-out


@pytest.fixture
def behind_proxy(manager: Manager) -> Iterator[Callable[[str], Visitor]]:
    """Makes visitors from any address."""
    assert manager.stop() == 0
    manager.start("--trusted-proxy", "127.0.0.1")
    visitors = []

    def visitor(address: str) -> Visitor:
        visitors.append(Visitor(manager))
        visitors[-1].http.headers["x-forwarded-for"] = address
        return visitors[-1]

    yield visitor
    for each in visitors:
        each.http.close()


def test_failures_at_one_address_lock_nobody_out_elsewhere(behind_proxy: Callable[[str], Visitor]) -> None:
    """Ten wrong passwords for the administrator's account; the administrator signs in at another address."""
    attacker = behind_proxy("192.0.2.66")
    assert {attacker.sign_in(password=b"wrong").status_code for _ in range(10)} == {401}
    assert attacker.sign_in().status_code == 429
    assert behind_proxy("198.51.100.1").sign_in().status_code == 303


def test_a_known_browser_signs_in_while_many_addresses_guess(behind_proxy: Callable[[str], Visitor]) -> None:
    """An account has a limit for unknown browsers at all addresses together, which a known one does not share."""
    own = behind_proxy("198.51.100.1")
    assert own.sign_in().status_code == 303
    own.http.cookies.delete("gusset_session")
    assert "gusset_device" in own.http.cookies
    forged = own.http.cookies["gusset_device"][:-2] + "xx"
    for number in range(30):
        attacker = behind_proxy(f"192.0.2.{number}")
        form = {"email": ADMIN, "password": "wrong", "csrf": attacker.csrf("/signin")}
        assert {attacker.http.post("/signin", data=form).status_code for _ in range(10)} <= {401, 429}
        stranger = behind_proxy(f"203.0.113.{number}")
        stranger.http.cookies.set("gusset_device", forged)
        if (refused := stranger.sign_in().status_code) != 303:
            break
    assert refused == 429
    assert own.sign_in().status_code == 303
    del own.http.cookies["gusset_session"]
    assert {own.sign_in(password=b"wrong").status_code for _ in range(10)} == {401}
    assert own.sign_in().status_code == 429  # the cookie gives no more guesses than an address has


def test_a_session_ends_a_week_after_signing_in_however_busy(gusset: Cli) -> None:
    """Twelve hours without a request end it as well."""
    now = [datetime(2026, 11, 28, tzinfo=UTC)]
    with open_vault(Settings.load(gusset.environ), clock=lambda: now[0]) as vault:
        vault.people.set_up(ADMIN, SecretValue(PASSWORD), actor="test")
        _, session = vault.sessions.sign_in(ADMIN, SecretValue(PASSWORD))
        token = session.reveal().decode()
        for _ in range(16):
            now[0] += timedelta(hours=10)
            assert vault.sessions.authenticate(token) is not None
        now[0] += timedelta(hours=8)
        assert vault.sessions.authenticate(token) is None
        _, session = vault.sessions.sign_in(ADMIN, SecretValue(PASSWORD))
        now[0] += timedelta(hours=12)
        assert vault.sessions.authenticate(session.reveal().decode()) is None


# --- what comes from outside

HOSTILE = "gpu\x1b]0;owned\x07\x9b31m\u202e7"


def test_a_replicas_host_name_reaches_no_terminal_and_no_page_with_control_characters(
    manager: Manager, deployment: Callable[..., httpx.Client]
) -> None:
    """A host, a team's name, an action filter: shown with escapes."""
    with deployment("d", "x") as client:
        assert lease(client).renew({"host": HOSTILE}).status_code == 200
    settings = manager.gusset.home.parent / "login.toml"
    cli = Cli(manager.gusset.home, manager.gusset.environ | {"GUSSET_SETTINGS": str(settings)})
    cli("login", manager.address, input=manager.key.encode())
    shown = [cli("deployment", "show", "d").stdout, cli("deployment", "show", "d", "--output", "json").stdout]
    shown.append(on_a_terminal(cli, "deployment", "show", "d"))
    visitor = Visitor(manager)
    assert visitor.sign_in().status_code == 303
    [info] = re.findall(r'"(/settings/deployments/[^/"]+)"', visitor.http.get("/settings/deployments").text)
    shown.append(visitor.http.get(info).content)
    visitor.http.close()
    for output in shown:
        assert b"owned" in output
        text = output.decode().replace("\r\n", "\n")
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e]", text), text


def on_a_terminal(cli: Cli, *args: str) -> bytes:
    """What a command writes to a terminal."""
    own_end, terminal = pty.openpty()
    command = [sys.executable, "-m", "gusset", *args]
    with subprocess.Popen(command, env=cli.environ, stdout=terminal, stderr=terminal) as process:
        os.close(terminal)
        output = b""
        try:
            while chunk := os.read(own_end, 65536):
                output += chunk
        except OSError:  # the terminal's other end was closed
            pass
        assert process.wait() == 0, output
    os.close(own_end)
    return output


def test_a_host_name_that_cannot_be_stored_is_refused(
    admin: httpx.Client, deployment: Callable[..., httpx.Client]
) -> None:
    """Its replica is shown without one; others of the deployment go on."""
    admin.post("/v1/secrets", json={"name": "x", "value": "v"})
    with deployment("d", "x") as client:
        refused, other = lease(client), lease(client)
        for host in (b'"\\u0000"', b'"\\ud800"'):
            path, headers = f"/v1/deployment/replicas/{refused.id}", {"gusset-session": refused.key}
            response = client.put(path, content=b'{"host":%s}' % host, headers=headers)
            assert (response.status_code, response.json()["code"]) == (400, "usage")
        assert other.renew({"host": "h"}).status_code == 200
        hosts = [each["host"] for each in admin.get("/v1/deployments/d").json()["replicas"]]
    assert sorted(hosts) == ["", "h"]


NUMBERS: list[Any] = [10**20, -(10**20), 2**63, 2**31, -1, 0, 1e308, "1" * 400, True, [], "\u0663"]
DATES = [
    "9999-12-31T23:59:59-23:59",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59Z",
    "99999-01-01T00:00:00Z",
]
DATES += [str(10**20), "-1", "2031-02-30T00:00:00Z"]
TEXTS = ["\0", "x" * 10_000, "\u202e", "", "..", "%00", "\U0010ffff"]
EXTREMES: list[Any] = [*NUMBERS, *DATES, *TEXTS, None]


def test_extreme_values_never_make_the_manager_fail(manager: Manager) -> None:
    """Each parameter and field of the document gets numbers, dates and texts beyond all limits: 4xx, no 500."""
    with manager.client() as client:
        document = client.get("/v1/spec").json()
        token = client.post("/v1/deployments", json={"name": "d", "secrets": ["x"]}).json()["token"]
        client.post("/v1/secrets", json={"name": "x", "value": "v"})
        tried = 0
        for path, methods in document["paths"].items():
            if path in ("/v1/deployment/changes", "/v1/keyring/rotate"):
                continue
            for method, operation in methods.items():
                own_token = operation.get("x-scope") == "a deployment's token"
                headers = {"authorization": f"Bearer {token}"} if own_token else {}
                for url, params, body in extreme_requests(document, path, operation):
                    if method == "delete" and path == "/v1/deployment/token":
                        continue
                    response = client.request(method, url, params=params, json=body, headers=headers)
                    assert response.status_code < 500, (method, url, params, body, response.text)
                    tried += 1
        assert tried > 500


def extreme_requests(
    document: dict[str, Any], path: str, operation: dict[str, Any]
) -> Iterator[tuple[str, dict[str, str], Any]]:
    """For an operation: each parameter, and each field of the body, with each extreme value."""
    names = re.findall(r"\{(\w+)\}", path)
    good = dict.fromkeys(names, "x")
    schema = body_schema(document, operation)
    fields = schema.get("properties", {})
    body = {
        name: {"secrets": ["x"], "name": "x", "value": "v"}.get(name, "x")
        for name in schema.get("required", [])
    }
    for name, value in itertools.product(names, EXTREMES):
        text = quote(str(value), safe="") or "-"
        yield path.format(**{**good, name: text}), {}, body
    for parameter, value in itertools.product(operation.get("parameters", []), EXTREMES):
        if parameter["in"] == "query":
            yield path.format(**good), {parameter["name"]: str(value)}, body
    for name, value in itertools.product(fields, EXTREMES):
        yield path.format(**good), {}, {**body, name: value}
        yield path.format(**good), {}, {**body, name: [value]}
        yield path.format(**good), {}, {**body, name: {"x": value}}


def body_schema(document: dict[str, Any], operation: dict[str, Any]) -> dict[str, Any]:
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    reference = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    found: dict[str, Any] = document["components"]["schemas"].get(reference, {})
    return found


def test_extreme_values_never_make_a_page_fail(manager: Manager) -> None:
    """In queries, paths and forms."""
    visitor = Visitor(manager)
    assert visitor.sign_in().status_code == 303
    assert visitor.add("x", b"value").status_code == 303
    listed = visitor.http.get("/settings/secrets").text
    one = re.findall(r'"(/settings/secrets/[a-z0-9]+)"', listed)[0]
    csrf = visitor.csrf()
    for value in ["1" * 20, "1" * 400, "-1", "0", "\u0663", "1e9", "\0"]:
        for path, name in [("/settings/audit", "before"), ("/settings/secrets", "page"), ("/signin", "next")]:
            assert visitor.http.get(path, params={name: value}).status_code < 500, (path, value)
        quoted = quote(value, safe="")
        for action in ("rollback", "destroy"):
            response = visitor.http.post(f"{one}/versions/{quoted}/{action}", data={"csrf": csrf})
            assert response.status_code < 500, (value, action, response.text)
        response = visitor.http.post(f"{one}/value", data={"csrf": csrf, "value": "v", "version": value})
        assert response.status_code < 500, value
    for day in ["9999-12-31", "0001-01-01", "99999-01-01", "0000-00-00", "\u0663"]:
        response = visitor.http.post(f"{one}/note", data={"csrf": csrf, "note": "n", "expires": day})
        assert response.status_code < 500, day
        assert visitor.http.get(one).status_code == 200, day
        form = {"csrf": csrf, "name": "k", "scope": "secrets:read", "expires": day}
        assert visitor.http.post("/settings/api-keys", data=form).status_code < 500, day
    visitor.http.close()


@pytest.mark.parametrize("everybody", ["*", "0.0.0.0/0", "::/0", "10.0.0.1,*", "0.0.0.0/0.0.0.0"])
def test_a_trusted_proxy_that_is_everybody_is_refused_at_start(gusset: Cli, everybody: str) -> None:
    """With what to write instead: every client could choose the address that limits know it by."""
    done = gusset("manager", "--port", "0", "--trusted-proxy", everybody, status=2)
    assert b"10.0.0.0/24" in done.stderr
    assert not gusset.home.exists() or not any(gusset.home.iterdir())
