"""Workload identity through HTTP: tokens of a real issuer on this machine, good ones and bad ones."""

from __future__ import annotations

import base64
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import seconds_since
from tests.manager.conftest import Manager
from tests.manager.issuer import DISCOVERY, JWKS, Issuer, Key, b64, hmac_with, running_issuer, send, token
from tests.vault.conftest import run_sql

GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
JWT = "urn:ietf:params:oauth:token-type:jwt"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"
ALGORITHMS = ["RS256", "RS512", "PS256", "ES256", "ES384", "ES512", "EdDSA"]
VALUE = "the-value-of-mine"

ATTACKER = Key.make("RS256", "RS256")


@pytest.fixture(scope="module")
def keys() -> list[Key]:
    """A key of each algorithm, whose id is the algorithm's name. RSA keys take long to make."""
    return [Key.make(algorithm, algorithm) for algorithm in ALGORITHMS]


@pytest.fixture
def issuer(keys: list[Key]) -> Iterator[Issuer]:
    with running_issuer(*keys) as running:
        yield running


Add = Callable[..., dict[str, Any]]


@pytest.fixture
def add(admin: httpx.Client, issuer: Issuer) -> Add:
    """Adds an identity for the issuer's good tokens; the deployment `d` declares the secret `mine`."""

    def add(name: str = "i", *, deployment: str = "d", status: int = 200, **changes: Any) -> dict[str, Any]:
        made = admin.post("/v1/deployments", json={"name": deployment, "secrets": ["mine"]})
        assert made.status_code == 200, made.text
        body = {"name": name, "deployment": deployment, "issuer": issuer.url, "subject": "s"} | changes
        response = admin.post("/v1/identities", json=body)
        assert response.status_code == status, response.text
        data: dict[str, Any] = response.json()
        return data

    return add


@pytest.fixture
def identity(admin: httpx.Client, add: Add) -> dict[str, Any]:
    assert admin.post("/v1/secrets", json={"name": "mine", "value": VALUE}).status_code == 200
    return add()


_addresses = itertools.count(1)


def exchange(manager: Manager, jwt: str, *, address: str | None = None, **changes: Any) -> httpx.Response:
    """Exchange a token, from an address of this machine that no other exchange has used unless it is given."""
    count = next(_addresses)
    transport = httpx.HTTPTransport(local_address=address or f"127.1.{count // 250}.{count % 250 + 1}")
    fields = {"grant_type": GRANT, "subject_token_type": JWT, "subject_token": jwt} | changes
    form = {name: value for name, value in fields.items() if value is not None}
    with httpx.Client(transport=transport, base_url=manager.address, timeout=20) as client:
        return client.post("/v1/token", data=form)


def given(response: httpx.Response) -> str:
    """The token that a response has."""
    assert response.status_code == 200, response.text
    return str(response.json()["access_token"])


def assert_refused(response: httpx.Response, error: str = "invalid_request") -> None:
    assert response.status_code == 400, response.text
    data = response.json()
    assert data.keys() == {"error", "message", "code", "hint"}
    assert data["error"] == error
    assert response.headers["cache-control"] == "no-store"


# --- good tokens


@pytest.mark.parametrize("number", range(len(ALGORITHMS)), ids=ALGORITHMS)
def test_a_good_token_of_each_algorithm_gives_one_that_reads_the_secrets(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], number: int
) -> None:
    response = exchange(manager, issuer.token(issuer.keys[number]))
    access = given(response)
    assert response.json() == {
        "access_token": access,
        "issued_token_type": ACCESS_TOKEN,
        "token_type": "Bearer",
        "expires_in": 600,
    }
    assert response.headers["cache-control"] == "no-store"
    with manager.client(access) as client:
        read = client.post("/v1/deployment/secrets").json()
        assert base64.b64decode(read["secrets"]["mine"]["value"]).decode() == VALUE
        assert client.get("/v1/deployment").json()["name"] == "d"


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": ["other", "gusset"]},
        {"header": {"typ": None}},
        {"header": {"typ": "at+jwt"}},
        {"header": {"x5t": "thumbprint"}},
    ],
)
def test_what_issuers_may_do_is_accepted(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], changes: dict[str, Any]
) -> None:
    given(exchange(manager, issuer.token(**changes)))


@pytest.mark.parametrize(("claim", "seconds"), [("iat", 30), ("nbf", -5), ("exp", 1000.5)])
def test_times_near_the_present_and_fractions_are_accepted(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], claim: str, seconds: float
) -> None:
    now = int(time.time())  # when the test runs: tests are collected minutes earlier
    given(exchange(manager, issuer.token(**{claim: now + seconds})))


def test_a_token_lives_no_longer_than_the_one_it_was_given_for(
    manager: Manager, issuer: Issuer, identity: dict[str, Any]
) -> None:
    lifetime = exchange(manager, issuer.token(exp=int(time.time()) + 120)).json()["expires_in"]
    assert 100 < lifetime <= 120


def test_the_only_key_of_an_algorithm_needs_no_id(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], keys: list[Key]
) -> None:
    given(exchange(manager, issuer.token(keys[-1], header={"kid": None})))


# --- bad tokens

_now = time.time


def bad_tokens(issuer: Issuer) -> dict[str, str]:
    """Tokens, each wrong in one way."""
    rsa, rs512, pss, p256, *_, ed = issuer.keys
    good, claims = issuer.token(), issuer.claims()
    head, body, signature = good.split(".")
    forger = ATTACKER.sign
    jwk = ATTACKER.public()

    def of(changes: dict[str, Any] | None = None, **header: Any) -> str:
        return issuer.token(header=header, **(changes or {}))

    def forged(**header: Any) -> str:
        """A token that the attacker has signed."""
        return token({"alg": "RS256", "kid": "RS256", **header}, claims, forger)

    return {
        "none": token({"alg": "none", "kid": "RS256"}, claims, lambda _: b""),
        "none with a signature": token({"alg": "none", "kid": "RS256"}, claims, rsa.sign),
        "None": token({"alg": "None"}, claims, rsa.sign),
        "no algorithm": token({"kid": "RS256"}, claims, rsa.sign),
        "algorithm is a list": token({"alg": ["RS256"], "kid": "RS256"}, claims, rsa.sign),
        "HMAC with the public key as PEM": token({"alg": "HS256", "kid": "RS256"}, claims, hmac_with(rsa.pem())),
        "HMAC with the JWK": token(
            {"alg": "HS256", "kid": "RS256"}, claims, hmac_with(json.dumps(rsa.public()).encode())
        ),
        "HMAC with nothing": token({"alg": "HS256"}, claims, hmac_with(b"")),
        "EC key for an RSA signature": token({"alg": "RS256", "kid": "ES256"}, claims, rsa.sign),
        "RSA key for an EC signature": token({"alg": "ES256", "kid": "RS256"}, claims, p256.sign),
        "PSS by a key for PKCS 1": token(
            {"alg": "PS256", "kid": "RS256"}, claims, Key("", "PS256", rsa.private).sign
        ),
        "PKCS 1 by a key for PSS": token(
            {"alg": "RS256", "kid": "PS256"}, claims, Key("", "RS256", pss.private).sign
        ),
        "another hash than the key's": token(
            {"alg": "RS256", "kid": "RS512"}, claims, Key("", "RS256", rs512.private).sign
        ),
        "another key of the issuer": token({"alg": "EdDSA", "kid": "EdDSA"}, claims, Key.make("", "EdDSA").sign),
        "forged": forged(),
        "its own key": forged(jwk=jwk),
        "its own key alone": token({"alg": "RS256", "jwk": jwk}, claims, forger),
        "address of keys": forged(jku=issuer.url + "/evil"),
        "certificate": forged(x5c=["MIIB"]),
        "address of a certificate": forged(x5u=issuer.url + "/evil"),
        "good, with a key": of(jwk=rsa.public()),
        "good, with an address": of(jku=issuer.url + JWKS),
        "critical extension": of(crit=["exp"]),
        "critical and known elsewhere": of(crit=["b64"], b64=True),
        "b64": of(b64=True),
        "id is a number": of(kid=1),
        "id is long": of(kid="k" * 2000),
        "type of a logout": of(typ="logout+jwt"),
        "type is a number": of(typ=1),
        "wrong audience": of({"aud": "api"}),
        "audience in another case": of({"aud": "Gusset"}),
        "no audience": of({"aud": None}),
        "empty audience": of({"aud": []}),
        "audience is an object": of({"aud": {"gusset": True}}),
        "wrong issuer": of({"iss": issuer.url + "/"}),
        "no issuer": of({"iss": None}),
        "issuer is a list": of({"iss": [issuer.url]}),
        "wrong subject": of({"sub": "t"}),
        "no subject": of({"sub": None}),
        "subject with NUL": of({"sub": "s\x00"}),
        "subject is half a character": of({"sub": "\ud800"}),
        "subject is a number": of({"sub": 1}),
        "expired": of({"exp": int(_now()) - 61, "iat": int(_now()) - 600}),
        "no expiry": of({"exp": None}),
        "expiry is a text": of({"exp": "9999999999"}),
        "expiry is true": of({"exp": True}),
        "expiry is infinite": token({"alg": "RS256", "kid": "RS256"}, json.dumps(claims | {"exp": 1e999}).encode(), rsa.sign),
        "expiry is not a number": token({"alg": "RS256", "kid": "RS256"}, json.dumps(claims | {"exp": float("nan")}).encode(), rsa.sign),
        "expiry fits no float": of({"exp": 10**400}),
        "issued before all times": of({"iat": -(10**400)}),
        "expiry overflows": token({"alg": "RS256", "kid": "RS256"}, json.dumps(claims).encode().replace(b'"exp": ', b'"exp": 1e999, "x": '), rsa.sign),
        "no time of issue": of({"iat": None}),
        "issued in the future": of({"iat": int(_now()) + 300}),
        "not valid yet": of({"nbf": int(_now()) + 300}),
        "valid for too long": of({"exp": int(_now()) + 86_400 + 10}),
        "ends before it begins": of({"exp": int(_now()) + 5, "iat": int(_now()) + 10}),
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "encrypted": ".".join([head, body, signature, body, body]),
        "changed claims": f"{head}.{b64(json.dumps(claims | {'sub': 'other'}).encode())}.{signature}",
        "cut signature": good[:-4],
        "padded": good + "==",
        "with a space": good + " ",
        "not base64": f"{head}.{body}.{signature[:-1]}*",
        "a key twice": token(
            {"alg": "RS256", "kid": "RS256"}, json.dumps(claims).encode()[:-1] + b', "sub": "s"}', rsa.sign
        ),
        "claims are a list": token({"alg": "RS256", "kid": "RS256"}, b'["iss"]', rsa.sign),
        "claims are not UTF-8": token({"alg": "RS256", "kid": "RS256"}, b'{"iss": "\xff"}', rsa.sign),
        "claims are deep": token({"alg": "RS256", "kid": "RS256"}, b'{"a":' * 5000 + b"1" + b"}" * 5000, rsa.sign),
        "header is not JSON": token(b"{", claims, rsa.sign),
        "large": of({"more": "x" * 20_000}),
        "empty parts": "..",
        "nonsense": "nonsense",
        "Ed25519 of another length": token({"alg": "EdDSA", "kid": "EdDSA"}, claims, lambda data: ed.sign(data)[:-1]),
    }  # fmt: skip


def test_every_bad_token_is_refused_and_repeated_nowhere(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client
) -> None:
    """Each is 400; neither the responses nor the manager's log nor the audit log has a part of it."""
    given(exchange(manager, issuer.token()))
    before, seen = issuer.requests.copy(), list[str]()
    for what, jwt in bad_tokens(issuer).items():
        response = exchange(manager, jwt)
        assert response.status_code == 400, (what, response.text)
        assert_refused(response)
        seen += [part for part in jwt.split(".") if len(part) > 40]
        assert not any(part in response.text for part in seen[-3:]), what
    given(exchange(manager, issuer.token()))
    assert issuer.requests == before, "no bad token causes a request"
    records = admin.get("/v1/audit", params={"limit": "1000"}).text
    log = manager.log.read_text()
    assert not any(part in records or part in log for part in seen)
    assert any(r["action"] == "request.refuse" for r in json.loads(records)["records"])
    manager.gusset("audit", "verify")


def test_a_key_of_gusset_cannot_be_exchanged(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client
) -> None:
    """Neither the token that an exchange gave, nor any other of gusset's."""
    stored = admin.post("/v1/deployments", json={"name": "d", "secrets": ["mine"]}).json()["token"]
    for key in (given(exchange(manager, issuer.token())), stored, manager.key):
        assert_refused(exchange(manager, key))


@pytest.mark.parametrize(
    "changes",
    [
        {"grant_type": None},
        {"grant_type": "client_credentials"},
        {"subject_token_type": None},
        {"subject_token_type": "urn:ietf:params:oauth:token-type:saml2"},
        {"subject_token": None},
        {"subject_token": ""},
        {"requested_token_type": "urn:ietf:params:oauth:token-type:refresh_token"},
        {"actor_token": "x"},
        {"resource": "https://example.com"},
        {"grant_type": [GRANT, GRANT]},
        {"audience": ["a/b", "c/d"]},
        {f"more{n}": "x" for n in range(30)},
    ],
)
def test_a_request_that_rfc_8693_does_not_have_is_refused(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert_refused(exchange(manager, issuer.token(), **changes))


def test_only_a_form_is_accepted(manager: Manager, issuer: Issuer, identity: dict[str, Any]) -> None:
    fields = {"grant_type": GRANT, "subject_token_type": JWT, "subject_token": issuer.token()}
    with manager.client("") as client:
        assert_refused(client.post("/v1/token", json=fields))
        assert_refused(client.post("/v1/token", params=fields))
        assert_refused(client.post("/v1/token", files=fields))
        assert_refused(client.post("/v1/token", content=b"\xff=1", headers={"content-type": "application/x-www-form-urlencoded"}))  # fmt: skip
        wrong = client.get("/v1/token", params=fields)
        assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
        assert client.post("/v1/token", data={"x": "y" * 70_000}).status_code == 413
        assert client.post("/v1/token", data=fields | {"scope": ""}).status_code == 200


def test_repeated_failures_are_limited_and_good_tokens_never(
    manager: Manager, issuer: Issuer, identity: dict[str, Any]
) -> None:
    """Those of one address: others, and a good token of the same one, go on."""
    address, bad = "127.9.9.9", issuer.token(sub="other")
    refused = 0
    while (limited := exchange(manager, bad, address=address)).status_code == 400:
        refused += 1
    assert refused >= 20  # and one more every three seconds
    assert limited.status_code == 429
    assert 1 <= int(limited.headers["retry-after"]) <= 60
    assert limited.json()["code"] == "too_many_attempts"
    for _ in range(3):
        given(exchange(manager, issuer.token(), address=address))
    assert exchange(manager, bad).status_code == 400


def test_a_flood_of_unknown_keys_causes_no_request(
    manager: Manager, issuer: Issuer, identity: dict[str, Any]
) -> None:
    """The keys were fetched a moment ago: whether there are new ones is not known, and said so."""
    given(exchange(manager, issuer.token()))
    assert issuer.requests == {DISCOVERY: 1, JWKS: 1}
    for number in range(40):
        response = exchange(manager, issuer.token(header={"kid": f"unknown-{number}"}))
        assert response.status_code == 503
        assert response.json()["error"] == "temporarily_unavailable"
        assert 1 <= int(response.headers["retry-after"]) <= 30
        assert "unknown-" not in response.text
    given(exchange(manager, issuer.token()))
    assert issuer.requests == {DISCOVERY: 1, JWKS: 1}


def test_the_first_token_with_an_unknown_key_is_refused(
    manager: Manager, issuer: Issuer, identity: dict[str, Any]
) -> None:
    """Its keys were fetched for just this token, which names none of them."""
    assert_refused(exchange(manager, issuer.token(header={"kid": "unknown"})))


def test_concurrent_exchanges_share_one_fetch(
    manager: Manager, issuer: Issuer, identity: dict[str, Any]
) -> None:
    issuer.responses[DISCOVERY] = lambda request: (
        time.sleep(0.5),
        send(request, {"issuer": issuer.url, "jwks_uri": issuer.url + JWKS}),
    )[1]
    statuses: list[int] = []
    threads = [
        threading.Thread(target=lambda: statuses.append(exchange(manager, issuer.token()).status_code))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses == [200] * 8
    assert issuer.requests == {DISCOVERY: 1, JWKS: 1}


# --- issuers that fail


def slow(request: BaseHTTPRequestHandler) -> None:
    """A response that never ends, a byte at a time: each one comes in time."""
    request.send_response(200)
    request.send_header("content-length", "1000")
    request.end_headers()
    for _ in range(40):
        request.wfile.write(b" ")
        request.wfile.flush()
        time.sleep(0.25)


def redirect(request: BaseHTTPRequestHandler) -> None:
    send(request, {"keys": []}, 302, location="/elsewhere")


def huge(request: BaseHTTPRequestHandler) -> None:
    send(request, b" " * 262_145)


def compressed(request: BaseHTTPRequestHandler) -> None:
    send(request, b"\x1f\x8b" + b"\0" * 100, **{"content-encoding": "gzip"})


FAILURES: dict[str, tuple[str, Callable[[BaseHTTPRequestHandler], None], str]] = {
    "redirect of the document": (DISCOVERY, redirect, "redirects"),
    "redirect of the keys": (JWKS, redirect, "redirects"),
    "huge": (JWKS, huge, "more than 262144 bytes"),
    "compressed": (JWKS, compressed, "not a JSON Web Key Set"),
    "not JSON": (JWKS, lambda request: send(request, b"<html>"), "not a JSON Web Key Set"),
    "an error": (JWKS, lambda request: send(request, {}, 500), "HTTP 500"),
    "slow": (JWKS, slow, "within 5 s"),
    "another issuer": (
        DISCOVERY,
        lambda request: send(
            request, {"issuer": "https://other.example", "jwks_uri": "https://other.example"}
        ),
        "another issuer",
    ),
    "no keys": (DISCOVERY, lambda request: send(request, []), "not a JSON object"),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_keys_that_cannot_be_fetched_are_503_and_administrators_see_why(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client, failure: str
) -> None:
    """Meanwhile the manager responds to others; what was followed nowhere is a redirect."""
    path, respond, problem = FAILURES[failure]
    issuer.responses[path] = respond
    longest = 0.0
    responses: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: responses.append(exchange(manager, issuer.token())))
    thread.start()
    began = time.monotonic()
    while thread.is_alive():
        asked = time.monotonic()
        assert admin.get("/v1/teams").status_code == 200
        longest = max(longest, seconds_since(asked))
        time.sleep(0.05)
    assert longest < 3.0
    assert seconds_since(began) < 9.0
    [response] = responses
    assert response.status_code == 503, response.text
    data = response.json()
    assert (data["error"], data["code"]) == ("temporarily_unavailable", "unreachable")
    assert 1 <= int(response.headers["retry-after"]) <= 30
    [listed] = admin.get("/v1/issuers").json()["issuers"]
    assert problem in listed["problem"]
    assert issuer.requests["/elsewhere"] == 0
    assert exchange(manager, issuer.token()).status_code == 503
    assert issuer.requests[path] == 1


def test_an_issuer_that_is_down_is_503(manager: Manager, add: Add, keys: list[Key]) -> None:
    with running_issuer(*keys) as gone:
        jwt = gone.token()
    add(issuer=gone.url)
    assert exchange(manager, jwt).status_code == 503


def test_keys_that_are_known_are_used_while_the_issuer_is_down(
    manager: Manager, issuer: Issuer, identity: dict[str, Any]
) -> None:
    given(exchange(manager, issuer.token()))
    issuer.responses[DISCOVERY] = issuer.responses[JWKS] = lambda request: send(request, {}, 500)
    given(exchange(manager, issuer.token()))


@pytest.mark.parametrize(
    "uri",
    [
        "http://issuer.example/keys",
        "ftp://issuer.example",
        "file:///etc/passwd",
        "https://u:p@issuer.example",
        1,
    ],
)
def test_a_document_cannot_name_keys_anywhere(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], uri: Any
) -> None:
    issuer.document = {"jwks_uri": uri}
    assert exchange(manager, issuer.token()).status_code == 503


def test_an_issuer_at_a_private_address_must_be_allowed(admin: httpx.Client) -> None:
    """Allowed, the request is made: the address does not respond."""
    url = "https://10.255.255.1"
    refused = admin.post("/v1/issuers", json={"url": url}).json()
    assert "private addresses" in refused["problem"]
    assert admin.delete("/v1/issuers", params={"url": url}).json() == {"url": url}
    allowed = admin.post("/v1/issuers", json={"url": url, "allow_private": True}).json()
    assert "private addresses" not in allowed["problem"]


def test_keys_may_be_sent_or_be_at_an_address(
    manager: Manager, issuer: Issuer, add: Add, keys: list[Key], admin: httpx.Client
) -> None:
    """Then the issuer has no discovery document, and perhaps cannot be reached at all."""
    unreachable = "https://kubernetes.default.svc.cluster.local"
    sent = admin.post("/v1/issuers", json={"url": unreachable, "jwks": json.dumps(issuer.jwks())}).json()
    assert (sent["keys"], sent["keys_from"], sent["problem"]) == (len(keys), "content", None)
    add("sent", issuer=unreachable)
    given(exchange(manager, issuer.token(iss=unreachable)))
    assert_refused(exchange(manager, issuer.token(iss=unreachable, header={"kid": "unknown"})))
    add("address", jwks=issuer.url + JWKS)
    given(exchange(manager, issuer.token()))
    assert issuer.requests == {JWKS: 1}
    add("object", issuer="https://other.example", jwks=issuer.jwks())
    given(exchange(manager, issuer.token(iss="https://other.example")))


def test_keys_that_were_sent_are_replaced_at_once(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client
) -> None:
    """A cluster has new keys: tokens of the old ones are refused from the next exchange on."""
    given(exchange(manager, issuer.token()))
    new = Key.make("new", "EdDSA")
    body = {"url": issuer.url, "jwks": {"keys": [new.public()]}}
    assert admin.post("/v1/issuers", json=body).status_code == 409
    assert admin.post("/v1/issuers", json=body | {"replace": True}).json()["keys"] == 1
    given(exchange(manager, issuer.token(new)))
    assert_refused(exchange(manager, issuer.token()))


def test_weak_and_private_keys_of_an_issuer_are_not_used(
    manager: Manager, add: Add, admin: httpx.Client, keys: list[Key]
) -> None:
    """An RSA key of 1024 bits, one for encryption, a symmetric one, and one whose private part is published."""
    weak, ed = Key.make("weak", "RS256", bits=1024), keys[-1]
    with running_issuer(weak) as issuer:
        jwks = issuer.jwks()["keys"]
        jwks += [ed.public() | {"kid": "enc", "use": "enc"}, ed.public() | {"kid": "d", "d": "AAAA"}]
        jwks += [ed.public() | {"kid": "ops", "key_ops": ["sign"]}, {"kty": "oct", "kid": "oct", "k": "AAAA"}]
        jwks += [
            ed.public() | {"kid": "other", "alg": "HS256"},
            {"kty": "EC", "kid": "half", "crv": "P-256"},
            1,
        ]
        issuer.responses[JWKS] = lambda request: send(request, {"keys": jwks})
        add(issuer=issuer.url)
        assert_refused(exchange(manager, issuer.token(weak)))
        [listed] = admin.get("/v1/issuers").json()["issuers"]
        assert (listed["keys"], listed["problem"]) == (0, None)


# --- what a token allows


def test_a_token_is_for_no_route_of_people(
    manager: Manager, issuer: Issuer, identity: dict[str, Any]
) -> None:
    with manager.client(given(exchange(manager, issuer.token()))) as client:
        for path in (
            "/v1/secrets",
            "/v1/teams",
            "/v1/identities",
            "/v1/issuers",
            "/v1/audit",
            "/v1/users/me",
        ):
            assert client.get(path).status_code == 403, path
        assert client.post("/v1/deployment/secrets", json={"names": ["other"]}).status_code == 403
        assert client.delete("/v1/deployment/token").status_code == 404


@pytest.mark.parametrize("path", ["/v1/identities/i", "/v1/deployments/d"])
def test_a_token_ends_with_its_identity_and_its_deployment(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client, path: str
) -> None:
    """On the next request, though it was used before; and a further exchange is refused."""
    jwt = issuer.token()
    with manager.client(given(exchange(manager, jwt))) as client:
        assert client.get("/v1/deployment").status_code == 200
        assert admin.delete(path).status_code == 200
        ended = client.get("/v1/deployment")
        assert (ended.status_code, ended.json()["code"]) == (401, "not_signed_in")
    assert_refused(exchange(manager, jwt))


def test_a_token_reads_what_its_deployment_declares_now(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client
) -> None:
    """From the next request on, though the token was used before. A key gives only what it may."""
    with manager.client(given(exchange(manager, issuer.token()))) as client:
        assert client.get("/v1/deployment").json()["secrets"] == ["mine"]
        assert admin.put("/v1/deployments/d", json={"secrets": ["other"]}).status_code == 200
        assert client.get("/v1/deployment").json()["secrets"] == ["other"]
        assert client.post("/v1/deployment/secrets", json={"names": ["mine"]}).status_code == 403
    made = admin.post("/v1/api_keys", json={"scopes": ["deployments"], "gives": ["other"]}).json()
    with manager.client(made["api_key"]) as limited:
        assert limited.put("/v1/deployments/d", json={"secrets": ["mine"]}).status_code == 403
        assert limited.put("/v1/deployments/d", json={"secrets": ["other"]}).status_code == 200
        body = {"name": "j", "deployment": "d", "issuer": issuer.url, "subject": "j", "secrets": ["mine"]}
        assert limited.post("/v1/identities", json=body).status_code == 403
        assert limited.post("/v1/identities", json=body | {"secrets": ["other"]}).status_code == 200


def test_an_altered_token_is_refused(manager: Manager, issuer: Issuer, identity: dict[str, Any]) -> None:
    access = given(exchange(manager, issuer.token()))
    expiry = access.split("_")[3]
    for altered in (access.replace(expiry, str(int(expiry) + 3600)), access[:-2], access + "A"):
        with manager.client(altered) as client:
            assert client.get("/v1/deployment").status_code == 401


def test_a_stream_ends_with_its_token(manager: Manager, issuer: Issuer, identity: dict[str, Any]) -> None:
    """By elapsed time, within ten seconds; the client exchanges again, and goes on where it was."""
    response, began = exchange(manager, issuer.token(exp=int(time.time()) + 5)), time.monotonic()
    access, lifetime = given(response), response.json()["expires_in"]
    with manager.client(access) as client:
        with client.stream("GET", "/v1/deployment/changes") as stream:
            events = [json.loads(line)["event"] for line in stream.iter_lines()]
        assert events[0] == "hello"
        assert time.monotonic() - began > lifetime - 2.0
        assert seconds_since(began) < lifetime + 12.0
        assert client.get("/v1/deployment/changes").status_code == 401


def test_the_deployment_must_be_named_where_there_are_several(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], add: Add
) -> None:
    add("second", deployment="e")
    assert_refused(ambiguous := exchange(manager, issuer.token()))
    assert "default/d, default/e" in ambiguous.json()["message"]
    for target in ("default/e", f"{identity['team_id']}/e"):
        with manager.client(given(exchange(manager, issuer.token(), audience=target))) as client:
            assert client.get("/v1/deployment").json()["name"] == "e"
    for target in ("default/f", "other/e", "default/e/", "gusset"):
        assert_refused(exchange(manager, issuer.token(), audience=target), "invalid_target")


def test_claims_must_match_exactly(manager: Manager, issuer: Issuer, add: Add) -> None:
    add(claims={"/kubernetes.io/namespace": "prod", "/n": 1})
    given(exchange(manager, issuer.token(**{"kubernetes.io": {"namespace": "prod"}, "n": 1})))
    for claims in ({"kubernetes.io": {"namespace": "pro"}, "n": 1}, {"kubernetes.io": {"namespace": "prod"}, "n": True}, {}):  # fmt: skip
        assert_refused(exchange(manager, issuer.token(**claims)))


# --- rights, and what is recorded


def test_only_administrators_trust_issuers(manager: Manager, issuer: Issuer, admin: httpx.Client) -> None:
    """A member adds identities of issuers that are trusted, for deployments of their own teams."""
    body = {"name": "i", "deployment": "d", "issuer": issuer.url, "subject": "s"}
    with manager.client(manager.member()) as member:
        assert member.post("/v1/deployments", json={"name": "d", "secrets": ["mine"]}).status_code == 200
        assert member.get("/v1/issuers").status_code == 403
        assert member.post("/v1/issuers", json={"url": issuer.url}).status_code == 403
        refused = member.post("/v1/identities", json=body)
        assert (refused.status_code, refused.json()["code"]) == (403, "denied")
        assert admin.post("/v1/issuers", json={"url": issuer.url}).status_code == 200
        assert member.post("/v1/identities", json=body).status_code == 200
        assert member.post("/v1/identities", json=body).status_code == 409
        assert [each["name"] for each in member.get("/v1/identities").json()["identities"]] == ["i"]
        other = admin.post("/v1/teams", json={"name": "other"}).json()["id"]
        assert member.post("/v1/identities", json=body | {"team_id": other}).status_code == 404
        admin.post("/v1/deployments", json={"name": "d", "secrets": ["mine"], "team_id": other})
        taken = admin.post("/v1/identities", json=body | {"team_id": other, "name": "mine-too"})
        assert taken.status_code == 409
        assert admin.delete("/v1/issuers", params={"url": issuer.url}).status_code == 409
        assert member.delete("/v1/identities/i").status_code == 200
    assert admin.delete("/v1/issuers", params={"url": issuer.url}).status_code == 200
    manager.gusset("audit", "verify")


def test_a_key_that_may_not_give_a_secret_adds_no_identity_for_it(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client
) -> None:
    made = admin.post("/v1/api_keys", json={"scopes": ["deployments"], "gives": ["other"]}).json()
    body = {"name": "j", "deployment": "d", "issuer": issuer.url, "subject": "t"}
    with manager.client(made["api_key"]) as client:
        refused = client.post("/v1/identities", json=body)
    assert refused.status_code == 403
    assert "may not give mine" in refused.json()["message"]


def test_an_exchange_is_recorded_without_the_token(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], admin: httpx.Client, leaking_files: Callable[..., list[Path]]
) -> None:  # fmt: skip
    """Neither token is in the log, the audit log or a file of the vault; nor does either stand in an address."""
    jwt = issuer.token()
    access = given(exchange(manager, jwt))
    with manager.client(access) as client:
        client.post("/v1/deployment/secrets")
    records = admin.get("/v1/audit", params={"limit": "10"}).json()["records"]
    [record] = [each for each in records if each["action"] == "identity.exchange"]
    assert (record["actor"], record["target"], record["outcome"]) == ("deployment d", "i", "ok")
    assert record["details"]["subject"] == "s"
    assert admin.get("/v1/identities").json()["identities"][0]["last_used_at"]
    for secret in (jwt.split(".")[2], access.split("_", 4)[4]):
        assert secret not in manager.log.read_text()
        assert secret not in json.dumps(records)
        assert leaking_files([manager.gusset.home], secret.encode()) == []


@pytest.mark.parametrize("table", ["deployments", "teams"])
def test_an_altered_name_is_not_taken_for_a_wrong_target(
    manager: Manager, issuer: Issuer, identity: dict[str, Any], table: str
) -> None:
    """The workload would be refused for good, and counted as one that guesses."""
    team_id, deployment = identity["team_id"], identity["deployment"]
    run_sql(manager.database, f"UPDATE {table} SET mac = ?", bytes(32))
    response = exchange(manager, issuer.token(), audience=f"{team_id}/{deployment}")
    assert (response.status_code, response.json()["code"]) == (500, "integrity")
