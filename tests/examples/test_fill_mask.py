"""The example that gusset is for: a gated model of a hub, its token from the vault, real transformers.

Every test runs twice: `token=` with a current transformers, and
`use_auth_token=`, letter for letter as in published models, with an old one.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Cli
from tests.examples.conftest import PATIENCE, Server, Variant, Workspace, make_token
from tests.examples.environments import CURRENT
from tests.examples.hub import Hub

SENTENCE = "The capital of France is [MASK]."
SetToken = Callable[[bytes], Any]


def best(response: httpx.Response) -> str:
    """The word that the model prefers."""
    assert response.status_code == 200, response.text
    return str(response.json()[0]["token_str"])


# All of it with the newest libraries, and that the token reaches the hub with those of `use_auth_token`, too.
both_variants = pytest.mark.parametrize(
    "variant", ["token", pytest.param("use_auth_token", marks=pytest.mark.matrix)], indirect=True
)


@both_variants
def test_without_the_secret_nothing_starts(workspace: Workspace, variant: Variant, hub: Hub) -> None:
    """`serve` names the missing secret and what adds it; neither code nor hub is touched."""
    server = workspace.serve(variant.folder)

    assert server.ended_with(5)
    assert "hf_access_token" in server.printed()
    assert "gusset secret set hf_access_token" in server.printed()
    assert hub.requests == []


def test_the_right_token_serves_also_after_it_changed(
    workspace: Workspace, variant: Variant, hub: Hub, set_token: SetToken, token: bytes
) -> None:
    """A person adds the token and serves the folder; calls succeed, also after the token changed."""
    set_token(token)
    server = workspace.serve(variant.folder)

    assert best(server.predict(SENTENCE)) == "paris"
    assert hub.downloads, "the files came from the hub"
    assert {request.caller for request in hub.downloads} == {"accepted"}
    assert "refused" not in hub.callers

    set_token(other := make_token())
    assert best(server.predict(SENTENCE)) == "paris"
    assert workspace.leaks(token, other) == []
    assert server.stop() == 0
    assert workspace.leaks(token, other) == []


@both_variants
def test_a_wrong_token_ends_serve_with_the_hubs_refusal(
    workspace: Workspace, variant: Variant, hub: Hub, set_token: SetToken, token: bytes, wrong: bytes
) -> None:
    """The hub's own error is shown, the token nowhere; with the right one in its place, serving works."""
    set_token(wrong)
    refused = workspace.serve(variant.folder)

    assert refused.ended_with(9)
    assert "GatedRepoError: 401" in refused.printed()
    assert variant.repo_id in refused.printed()
    assert "refused" in hub.callers
    assert "accepted" not in hub.callers
    assert workspace.leaks(wrong) == []

    set_token(token)
    accepted = workspace.serve(variant.folder)
    assert best(accepted.predict(SENTENCE)) == "paris"
    assert accepted.stop() == 0
    assert workspace.leaks(wrong, token) == []


@both_variants
def test_a_token_put_right_reaches_the_running_model(
    workspace: Workspace, lazy: Path, hub: Hub, set_token: SetToken, token: bytes, wrong: bytes
) -> None:
    """A model that asks for its token when it needs it recovers from a wrong one without a restart."""
    set_token(wrong)
    server = workspace.serve(lazy)
    worker = server.predict(None).json()
    refusal = server.predict(SENTENCE)
    assert refusal.status_code == 500
    assert "refused" in hub.callers

    set_token(token)
    assert best(first_good_response(server)) == "paris"

    assert server.predict(None).json() == worker
    assert "asking the hub with ***" in server.printed()
    assert workspace.leaks(wrong, token) == []
    assert wrong.decode() not in refusal.text
    assert server.stop() == 0
    assert workspace.leaks(wrong, token) == []


def first_good_response(server: Server) -> httpx.Response:
    """The first response that is not an error: a new version is on its way to the model."""
    deadline = time.monotonic() + PATIENCE
    while (response := server.predict(SENTENCE)).status_code != 200:
        assert time.monotonic() < deadline, server.printed()
        time.sleep(0.1)
    return response


@pytest.mark.parametrize("variant", ["use_auth_token"], indirect=True)
def test_the_old_keyword_no_longer_reaches_the_hub(
    workspace: Workspace,
    variant: Variant,
    hub: Hub,
    gusset: Cli,
    set_token: SetToken,
    token: bytes,
    tmp_path: Path,
) -> None:
    """A current transformers drops `use_auth_token=`: the hub sees no token, and `check` says so before."""
    set_token(token)
    assert b"write token=" in gusset("check", str(variant.folder)).stderr

    shutil.copytree(variant.folder, folder := tmp_path / "today")
    shutil.copy(CURRENT.folder / "requirements.txt", folder)
    server = workspace.serve(folder)

    assert server.ended_with(9)
    assert hub.callers == {"anonymous"}
