"""The tests' own hub refuses and remembers what the examples' tests rely on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.examples.conftest import make_token
from tests.examples.hub import COMMIT, Hub, serving


@pytest.fixture
def shelf(tmp_path: Path, token: bytes) -> Iterator[Hub]:
    """A hub with one file in its gated repository."""
    (tmp_path / "config.json").write_bytes(b"{}")
    with serving(Hub("org/gated", tmp_path, token)) as hub:
        yield hub


def ask(hub: Hub, path: str, token: bytes | None = None, method: str = "HEAD") -> httpx.Response:
    headers = {} if token is None else {"Authorization": f"Bearer {token.decode()}"}
    return httpx.request(method, hub.address + path, headers=headers, trust_env=False)


def test_files_need_the_right_token(shelf: Hub, token: bytes) -> None:
    """A request without a token, or with an unknown one, gets no file but the error code that clients read."""
    path = "/org/gated/resolve/main/config.json"
    for caller in (None, make_token()):
        refused = ask(shelf, path, caller)
        assert (refused.status_code, refused.headers["X-Error-Code"]) == (401, "GatedRepo")

    accepted = ask(shelf, path, token, "GET")
    assert (accepted.status_code, accepted.content) == (200, b"{}")
    assert accepted.headers["X-Repo-Commit"] == COMMIT
    assert [request.caller for request in shelf.requests] == ["anonymous", "refused", "accepted"]


def test_the_list_of_a_gated_repositorys_files_is_public(shelf: Hub) -> None:
    """As at the real hub its page is there for all, but a wrong token is refused there too."""
    assert ask(shelf, "/api/models/org/gated", method="GET").json()["sha"] == COMMIT
    assert ask(shelf, "/api/models/org/gated/tree/main", method="GET").json()[0]["path"] == "config.json"
    assert ask(shelf, "/api/models/org/gated", make_token()).status_code == 401


def test_a_missing_file_has_its_own_error_code(shelf: Hub, token: bytes) -> None:
    """Clients try optional files, and tell "no such file" from a refusal by its code."""
    absent = ask(shelf, "/org/gated/resolve/main/tokenizer.json", token)
    assert (absent.status_code, absent.headers["X-Error-Code"]) == (404, "EntryNotFound")


def test_a_request_for_another_host_is_recorded_and_not_forwarded(shelf: Hub) -> None:
    """As a proxy the hub forwards nothing, and records who tried."""
    with httpx.Client(proxy=shelf.address, trust_env=False) as client:
        assert client.get("http://elsewhere.test/model").status_code == 502

    assert shelf.strays == ["http://elsewhere.test/model"]
    assert shelf.requests == []
