"""When the keys of an issuer are fetched, and from which addresses: with a clock and a resolver of the test."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from gusset.addresses import is_public, is_usable_privately
from gusset.errors import TokenRefused, Unreachable
from gusset.manager.identity import pinned_http
from gusset.manager.identity.issuer_keys import IssuerKeys
from gusset.manager.identity.json_web_keys import VerificationKey
from gusset.manager.identity.json_web_token import UnverifiedToken
from gusset.manager.identity.pinned_http import FetchFailed, PinnedHttp, is_allowed
from gusset.vault import greenlets
from gusset.vault.services.issuers import IssuerInfo
from tests.manager.issuer import JWKS, Key, certificate, running_issuer

OLD, NEW = Key.make("old", "EdDSA"), Key.make("new", "EdDSA")


@dataclass
class FakeIssuer(PinnedHttp):
    """Publishes `keys`, or fails while there are none."""

    keys: Sequence[Key] = (OLD,)
    fetches: int = 0
    now: float = 1000.0

    async def get(self, url: str, *, allow_private: bool) -> bytes:
        self.fetches += 1
        await asyncio.sleep(0)
        if not self.keys:
            raise FetchFailed("it is down")
        return json.dumps({"keys": [key.public() for key in self.keys]}).encode()


URL = "https://issuer.example"
INFO = IssuerInfo(url=URL, jwks_url=f"{URL}/keys", created_at="", created_by="", right=("issuers", URL, 1))


@dataclass
class Harness:
    issuer: FakeIssuer = field(default_factory=FakeIssuer)

    def __post_init__(self) -> None:
        self.keys = IssuerKeys(self.issuer, lambda: self.issuer.now)

    def find(self, key_id: str | None = "old", *, algorithm: str = "EdDSA") -> str | None:
        token = UnverifiedToken(algorithm=algorithm, key_id=key_id, issuer=INFO.url, text=b"")
        found: VerificationKey = asyncio.run(greenlets.spawn(self.keys.find, INFO, token))
        return found.key_id

    def after(self, seconds: float) -> Harness:
        self.issuer.now += seconds
        return self


@pytest.fixture
def harness() -> Harness:
    return Harness()


def test_keys_are_fetched_once_and_again_after_five_minutes(harness: Harness) -> None:
    assert harness.find() == harness.after(299).find() == "old"
    assert harness.issuer.fetches == 1
    harness.after(2).find()
    assert harness.issuer.fetches == 2


def test_a_key_that_its_issuer_has_replaced_is_found_after_thirty_seconds(harness: Harness) -> None:
    """Until then it is not known whether there is one; the old one is no longer accepted after the fetch."""
    harness.find()
    harness.issuer.keys = (NEW,)
    with pytest.raises(Unreachable) as unknown:
        harness.after(10).find("new")
    assert unknown.value.retry_after == 20.0
    assert harness.after(20).find("new") == "new"
    assert harness.issuer.fetches == 2
    with pytest.raises(Unreachable):
        harness.find("old")
    with pytest.raises(TokenRefused, match="no such key"):
        harness.after(30).find("old")


def test_a_flood_of_unknown_keys_causes_one_fetch_in_thirty_seconds(harness: Harness) -> None:
    for number in range(600):
        with pytest.raises((Unreachable, TokenRefused)):
            harness.after(0.1).find(f"unknown {number}")
        if number % 7 == 0 and number:
            assert harness.find() == "old"
    assert harness.issuer.fetches == 2


def test_keys_are_used_for_an_hour_while_their_issuer_is_down(harness: Harness) -> None:
    harness.find()
    harness.issuer.keys = ()
    assert harness.after(3500).find() == "old"
    assert harness.after(90).find() == "old"
    assert harness.issuer.fetches == 3
    with pytest.raises(Unreachable, match="cannot be fetched"):
        harness.after(30).find()
    harness.issuer.keys = (OLD,)
    with pytest.raises(Unreachable) as unknown:
        harness.after(10).find()
    assert unknown.value.retry_after == 20.0
    assert harness.after(20).find() == "old"


def test_a_key_of_another_algorithm_causes_no_fetch(harness: Harness) -> None:
    harness.find()
    with pytest.raises(TokenRefused, match="algorithm"):
        harness.after(60).find(algorithm="RS256")
    assert harness.issuer.fetches == 1


def test_a_token_without_a_key_id_needs_the_only_key(harness: Harness) -> None:
    assert harness.find(None) == "old"
    harness.issuer.keys = (OLD, NEW)
    with pytest.raises(TokenRefused):
        harness.after(301).find(None)


def test_an_issuer_that_was_added_again_is_fetched_again(harness: Harness) -> None:
    harness.find()
    again = replace(INFO, created_at="later")
    asyncio.run(greenlets.spawn(harness.keys.check, again))
    assert harness.issuer.fetches == 2


# --- addresses

PUBLIC = ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "127.0.0.1", "::1"]
PRIVATE += [
    "fd00::1",
    "fec0::1",
    "fe80::1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "64:ff9b::10.0.0.1",
    "64:ff9b::7f00:1",
]
NEVER = ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "240.0.0.1", "2002:a00:1::", "2001::1"]
NEVER += ["64:ff9b:1::a00:1", "fe80::1%eth0", "::7f00:1", "x", "", "::ffff:0.0.0.0"]


@pytest.mark.parametrize("address", PUBLIC)
def test_a_public_address_is_allowed(address: str) -> None:
    assert is_public(address)
    assert is_allowed("issuer.example", address, allow_private=False)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_private_address_is_allowed_only_by_an_administrator(address: str) -> None:
    assert not is_public(address)
    assert is_usable_privately(address)
    assert not is_allowed("issuer.example", address, allow_private=False)
    assert is_allowed("issuer.example", address, allow_private=True)


@pytest.mark.parametrize("address", NEVER)
def test_what_is_no_address_of_one_host_is_never_allowed(address: str) -> None:
    for allow_private in (False, True):
        assert not is_allowed("issuer.example", address, allow_private=allow_private)


def test_a_loopback_issuer_is_on_this_machine() -> None:
    assert is_allowed("localhost", "::1", allow_private=False)
    for address in ("10.0.0.1", "1.1.1.1"):
        assert not is_allowed("localhost", address, allow_private=True)


def resolver(*found: Sequence[str]) -> Callable[[str, int], Awaitable[Sequence[str]]]:
    """Resolves to the next of `found` each time, as a name that is being rebound does."""
    remaining = list(found)

    async def resolve(*_: Any) -> Sequence[str]:
        return remaining.pop(0)

    return resolve


def test_a_name_that_is_rebound_leads_to_the_address_that_was_checked() -> None:
    """It is resolved once: the second address, which is another server's, gets no request."""
    with running_issuer(OLD) as checked:
        port = checked.url.rpartition(":")[2]
        http = PinnedHttp(resolver(["127.0.0.1"], ["10.0.0.1"]))
        asyncio.run(http.get(f"http://rebound.example:{port}{JWKS}", allow_private=True))
        assert checked.requests == {JWKS: 1}
        with pytest.raises(FetchFailed, match="private"):
            asyncio.run(http.get(f"http://rebound.example:{port}{JWKS}", allow_private=False))
        assert checked.requests == {JWKS: 1}


def test_private_addresses_among_public_ones_are_left_out() -> None:
    """A connection is tried to the public one alone, which is nobody's."""
    with running_issuer(OLD) as private:
        port = private.url.rpartition(":")[2]
        http = PinnedHttp(resolver(["127.0.0.1", "240.0.0.1"]))
        with pytest.raises(FetchFailed, match="private"):
            asyncio.run(http.get(f"http://mixed.example:{port}{JWKS}", allow_private=False))
        assert not private.requests


def test_the_next_address_is_tried_when_one_refuses() -> None:
    with running_issuer(OLD) as issuer:
        port = issuer.url.rpartition(":")[2]
        http = PinnedHttp(resolver(["127.0.0.2", "127.0.0.1"]))
        assert asyncio.run(http.get(f"http://localhost:{port}{JWKS}", allow_private=False))


def test_a_name_without_an_address_is_an_error() -> None:
    async def fail(*_: Any) -> Sequence[str]:
        raise OSError("no such name")

    with pytest.raises(FetchFailed, match="no address"):
        asyncio.run(PinnedHttp(fail).get("https://missing.example", allow_private=False))


def test_a_name_that_no_request_can_contain_is_an_error() -> None:
    """Resolvers read an address with leading zeros, and httpx refuses it."""
    with pytest.raises(FetchFailed, match=r"010\.1\.1\.1"):
        asyncio.run(PinnedHttp(resolver(["127.0.0.1"])).get("http://010.1.1.1/", allow_private=True))


@pytest.mark.parametrize("host", ["issuer.example", "other.example"])
def test_the_certificate_must_be_that_of_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Not of the address that the connection goes to: a trusted one for another name is refused."""
    trusted, tls = certificate(tmp_path, "issuer.example")
    context = ssl.create_default_context(cafile=str(trusted))
    monkeypatch.setattr(pinned_http, "_tls_context", lambda: context)
    with running_issuer(OLD, tls=tls, host=host) as issuer:
        http = PinnedHttp(resolver(["127.0.0.1"]))
        request = http.get(issuer.url + JWKS, allow_private=True)
        if host == "issuer.example":
            assert b"EdDSA" in asyncio.run(request)
            return
        with pytest.raises(FetchFailed, match="certificate is not valid"):
            asyncio.run(request)
        assert not issuer.requests


def test_an_unknown_authority_is_refused(tmp_path: Path) -> None:
    _, tls = certificate(tmp_path, "issuer.example")
    with running_issuer(OLD, tls=tls, host="issuer.example") as issuer:
        with pytest.raises(FetchFailed, match="certificate is not valid"):
            asyncio.run(PinnedHttp(resolver(["127.0.0.1"])).get(issuer.url + JWKS, allow_private=True))
        assert not issuer.requests


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would resolve the name by itself, past the check of the address."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with running_issuer(OLD) as issuer:
        assert asyncio.run(PinnedHttp().get(issuer.url + JWKS, allow_private=False))
