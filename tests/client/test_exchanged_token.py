"""When a workload exchanges its token, with a manager and a clock of the test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gusset.client.exchanged_token import ExchangedToken
from gusset.errors import GussetError, TokenAmbiguous, TokenRefused, Unreachable, UsageError

JWT = b"header.claims.signature-of-the-platform"


class FakeManager:
    """Gives tokens that live ten minutes, or raises `error`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.forms: list[Mapping[str, str]] = []
        self.error: GussetError | None = None
        self.lifetime = 600
        self.foreign: Mapping[str, Any] | None = None  # the response of another server

    def clock(self) -> float:
        return self.now

    def post(self, path: str, form: Mapping[str, str]) -> Mapping[str, Any]:
        assert path == "/v1/token"
        self.forms.append(form)
        if self.foreign is not None:
            return self.foreign
        if isinstance(self.error, TokenAmbiguous) and "audience" in form:
            return {"access_token": "for-" + form["audience"], "expires_in": self.lifetime}
        if self.error is not None:
            raise self.error
        return {"access_token": f"token-{len(self.forms)}", "expires_in": self.lifetime}


@pytest.fixture
def manager() -> FakeManager:
    return FakeManager()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jwt"
    path.write_bytes(JWT + b"\n")
    return path


@pytest.fixture
def token(manager: FakeManager, file: Path) -> ExchangedToken:
    return ExchangedToken(file, "d", clock=manager.clock)


def get(token: ExchangedToken, manager: FakeManager) -> str:
    return token.get(manager.post).reveal().decode()


def test_a_token_is_used_until_shortly_before_it_ends(
    token: ExchangedToken, manager: FakeManager, file: Path
) -> None:
    """Then the file is read anew: the platform has replaced it meanwhile."""
    assert get(token, manager) == "token-1"
    manager.now += 359
    assert get(token, manager) == "token-1"
    file.write_bytes(b"another.token.of-the-platform")
    manager.now += 122
    assert get(token, manager) == "token-2"
    assert manager.forms[1]["subject_token"] == "another.token.of-the-platform"


def test_replicas_exchange_at_different_times(manager: FakeManager, file: Path) -> None:
    """Of a hundred that started together, no more than a few return in one second."""
    tokens = [ExchangedToken(file, "d", clock=manager.clock) for _ in range(100)]
    for each in tokens:
        each.get(manager.post)
    busiest, before = 0, len(manager.forms)
    for _ in range(600):
        manager.now += 1
        for each in tokens:
            each.get(manager.post)
        busiest, before = max(busiest, len(manager.forms) - before), len(manager.forms)
    assert busiest < 20


def test_a_manager_that_fails_is_no_failure_while_the_token_lives(
    token: ExchangedToken, manager: FakeManager
) -> None:
    """It is tried again every ten seconds or so; when the token has ended, the error is the caller's."""
    get(token, manager)
    manager.error = Unreachable("down")
    for _ in range(590):
        manager.now += 1
        assert get(token, manager) == "token-1"
    assert 5 < len(manager.forms) < 60
    manager.now += 11
    with pytest.raises(Unreachable):
        get(token, manager)
    manager.error = None
    assert get(token, manager).startswith("token-")


def test_a_refused_token_is_shown_again_only_after_a_pause(
    token: ExchangedToken, manager: FakeManager, file: Path
) -> None:
    """Every thread that needs one gets the same error meanwhile. A new token in the file is shown at once."""
    manager.error = TokenRefused("no identity matches", hint="add one")
    for _ in range(10):
        with pytest.raises(TokenRefused, match="no identity matches") as refused:
            get(token, manager)
        assert refused.value.hint == "add one"
        manager.now += 1
    assert len(manager.forms) == 1
    file.write_bytes(b"a.new.one")
    with pytest.raises(TokenRefused):
        get(token, manager)
    assert len(manager.forms) == 2
    manager.now += 31
    manager.error = None
    assert get(token, manager) == "token-3"


def test_the_deployment_is_named_where_the_token_stands_for_several(
    token: ExchangedToken, manager: FakeManager
) -> None:
    manager.error = TokenAmbiguous("several")
    assert get(token, manager) == "for-d"


def test_a_token_that_the_manager_refused_is_dropped(token: ExchangedToken, manager: FakeManager) -> None:
    """But not the one that another thread has got meanwhile."""
    get(token, manager)
    token.drop(b"token-0")
    assert get(token, manager) == "token-1"
    token.drop(b"token-1")
    assert get(token, manager) == "token-2"


def test_a_file_that_cannot_be_read_is_named(token: ExchangedToken, manager: FakeManager, file: Path) -> None:
    file.write_bytes(b" \n")
    with pytest.raises(UsageError, match="is empty"):
        get(token, manager)
    file.unlink()
    with pytest.raises(UsageError, match="cannot read the identity token file"):
        get(token, manager)


def test_no_repr_has_a_token(token: ExchangedToken, manager: FakeManager) -> None:
    get(token, manager)
    assert "signature" not in repr(token) and "token-1" not in repr(token)


@pytest.mark.parametrize(
    "body",
    [
        {"status": "maintenance"},
        {"access_token": 5, "expires_in": 600},
        {"access_token": "t", "expires_in": "soon"},
        {"access_token": "t", "expires_in": None},
    ],
)
def test_a_response_that_is_not_a_managers_is_no_token(
    token: ExchangedToken, manager: FakeManager, body: Mapping[str, Any]
) -> None:
    """Something else responded in its place: the token before is used while it is valid."""
    assert get(token, manager) == "token-1"
    manager.foreign = body
    manager.now += 500
    assert get(token, manager) == "token-1"
    manager.now += 200
    with pytest.raises(Unreachable, match="not that of a gusset manager"):
        get(token, manager)
    manager.foreign = None
    assert get(token, manager) == "token-4"
