"""A client that exchanges tokens: at another manager when one fails, and again when a token is refused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from gusset.client.exchanged_token import ExchangedToken
from gusset.client.manager_client import ManagerClient
from gusset.errors import NotSignedIn, TokenRefused, Unreachable
from tests.client.test_several_managers import NOBODY, FakeManager, Response

REFUSED: Response = (401, {"code": "not_signed_in", "message": "no", "hint": None}, {})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jwt"
    path.write_text("header.claims.signature-of-it")
    return path


class Managed:
    """A manager that accepts its newest token alone."""

    def __init__(self) -> None:
        self.given = 0
        self.valid = True
        self.exchange: Response | None = None
        self.server = FakeManager(self.respond)

    def respond(self, _: str, path: str) -> Response:
        if path == "/v1/token":
            if self.exchange is not None:
                return self.exchange
            self.given += 1
            return 200, {"access_token": f"token-{self.given}", "expires_in": 600}, {}
        sent = self.server.requests[-1][2]["authorization"]
        if self.valid and sent == f"Bearer token-{self.given}":
            return 200, {"name": "d"}, {}
        return REFUSED


def test_a_token_that_is_refused_is_exchanged_once_more(file: Path) -> None:
    """The file's token never leaves the body of the exchange: no header and no address has it."""
    manager = Managed()
    with closing(ManagerClient(manager.server.url, ExchangedToken(file, "d"))) as client:
        assert client.request("GET", "/v1/deployment") == {"name": "d"}
        manager.given += 1  # the vault's key was replaced
        assert client.request("GET", "/v1/deployment") == {"name": "d"}
        assert manager.server.count("POST", "/v1/token") == 2
        manager.valid = False
        with pytest.raises(NotSignedIn):
            client.request("GET", "/v1/deployment")
        assert manager.server.count("POST", "/v1/token") == 3
    for _, path, headers in manager.server.requests:
        assert "signature-of-it" not in path + repr(headers)
        if path == "/v1/token":
            assert "authorization" not in headers


def test_another_manager_exchanges_when_one_cannot(file: Path) -> None:
    first, second = Managed(), Managed()
    first.exchange = (503, {"code": "unreachable", "message": "no keys", "hint": None}, {"retry-after": "20"})
    urls = ",".join((first.server.url, NOBODY, second.server.url))
    with closing(ManagerClient(urls, ExchangedToken(file, "d"))) as client:
        assert client.request("GET", "/v1/deployment") == {"name": "d"}
        assert client.url == second.server.url
    with (
        closing(ManagerClient(first.server.url, ExchangedToken(file, "d"))) as client,
        pytest.raises(Unreachable, match="no keys") as failed,
    ):
        client.request("GET", "/v1/deployment")
    assert failed.value.retry_after == 20.0


def test_a_refusal_of_the_file_is_the_callers(file: Path) -> None:
    manager = Managed()
    body = {"error": "invalid_request", "code": "token_refused", "message": "no identity", "hint": "add one"}
    manager.exchange = (400, body, {})
    with closing(ManagerClient(manager.server.url, ExchangedToken(file, "d"))) as client:
        for _ in range(3):
            with pytest.raises(TokenRefused, match="no identity") as refused:
                client.request("GET", "/v1/deployment")
    assert "signature-of-it" not in str(refused.value) + str(refused.value.hint)
    assert manager.server.count("POST", "/v1/token") == 1
    assert manager.server.count("GET", "/v1/deployment") == 0
