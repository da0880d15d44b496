"""Settings > Identities: what people add and remove there, and what members cannot."""

from __future__ import annotations

import html
import json
import re

import httpx
import pytest

from tests.manager.conftest import PASSWORD, Manager
from tests.manager.issuer import Issuer, Key
from tests.manager.test_pages import Visitor, ada, stranger

__all__ = ["ada", "stranger"]  # fixtures

PAGE = "/settings/identities"
URL = "https://issuer.example"


@pytest.fixture
def deployment(admin: httpx.Client) -> str:
    """The id of a deployment."""
    made = admin.post("/v1/deployments", json={"name": "ranker", "secrets": ["mine"]})
    return str(made.json()["deployment"]["id"])


def rule(id: str, **changes: str) -> dict[str, str]:
    fields = {"name": "prod", "deployment": id, "issuer": URL, "subject": "s", "audience": "gusset"}
    return fields | {"claims": "/kubernetes.io/namespace=prod\r\n\r\n/ref=a=b"} | changes


def text_of(page: httpx.Response) -> str:
    return html.unescape(page.text)


def test_an_administrator_adds_and_removes_an_identity(
    ada: Visitor, admin: httpx.Client, deployment: str
) -> None:
    """With its issuer, which is not removed while the identity is there."""
    assert "No identities yet" in ada.http.get(PAGE).text
    assert ada.send(PAGE, **rule(deployment)).status_code == 303
    [added] = admin.get("/v1/identities").json()["identities"]
    assert added["claims"] == {"/kubernetes.io/namespace": "prod", "/ref": "a=b"}
    assert (added["issuer"], added["subject"], added["audience"]) == (URL, "s", "gusset")
    page = text_of(ada.http.get(PAGE))
    assert "default/ranker" in page and "/kubernetes.io/namespace=prod" in page and URL in page
    assert ada.send("/settings/issuers/remove", url=URL).status_code == 303
    assert "identities use that issuer" in text_of(ada.http.get(PAGE)).lower()
    assert ada.send(f"{PAGE}/{added['id']}/remove").status_code == 303
    assert ada.send(f"{PAGE}/{added['id']}/remove").status_code == 404
    assert ada.send("/settings/issuers/remove", url=URL).status_code == 303
    assert admin.get("/v1/issuers").json()["issuers"] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"claims": "ref=main"}, "JSON Pointer"),
        ({"claims": "/ref"}, "a claim is a line"),
        ({"claims": "/a=1\n/a=2"}, "twice"),
        ({"issuer": "http://issuer.example"}, "must begin with https://"),
        ({"deployment": "other"}, "choose a deployment"),
        ({"name": "a/b"}, "name"),
        ({"subject": ""}, "subject"),
    ],
)
def test_a_form_with_a_mistake_says_so_and_keeps_what_was_typed(
    ada: Visitor, deployment: str, changes: dict[str, str], message: str
) -> None:
    response = ada.send(PAGE, **rule(deployment, **changes))
    assert response.status_code in (400, 404)
    assert message.lower() in text_of(response).lower()
    assert f'value="{html.escape(changes.get("name", "prod"))}"' in response.text


def test_keys_can_be_pasted_and_private_ones_are_not_repeated(ada: Visitor, admin: httpx.Client) -> None:
    jwks = json.dumps(Issuer(URL, [Key.make("k", "EdDSA")]).jwks())
    assert ada.send("/settings/issuers", url=URL, jwks=jwks, allow_private="yes").status_code == 303
    [listed] = admin.get("/v1/issuers").json()["issuers"]
    assert (listed["keys_from"], listed["allow_private"]) == ("content", True)
    private = jwks.replace('"kty"', '"d": "the-private-part-of-it", "kty"')
    refused = ada.send("/settings/issuers", url=URL + "/2", jwks=private)
    assert refused.status_code == 400
    assert "the-private-part" not in refused.text
    assert "private or symmetric key" in refused.text
    assert ada.send("/settings/issuers", url=URL).status_code == 409


def test_members_see_their_own_identities_and_no_issuers(
    manager: Manager, stranger: Visitor, admin: httpx.Client, deployment: str
) -> None:
    """They cannot add an issuer, nor remove another team's identity."""
    manager.member()
    other = admin.post("/v1/teams", json={"name": "other"}).json()["id"]
    body = {"name": "of-another-team", "deployment": "d", "issuer": URL, "subject": "t", "team_id": other}
    admin.post("/v1/deployments", json={"name": "d", "secrets": [], "team_id": other})
    hidden = admin.post("/v1/identities", json=body).json()["id"]
    stranger.sign_in("mem@example.com", PASSWORD)
    assert stranger.send(PAGE, **rule(deployment, issuer="https://new.example")).status_code == 403
    assert stranger.send(PAGE, **rule(deployment)).status_code == 303
    page = stranger.http.get(PAGE).text
    assert "prod" in page and "of-another-team" not in page
    assert 'id="issuers-title"' not in page
    assert stranger.send(f"{PAGE}/{hidden}/remove").status_code == 404
    for path in ("/settings/issuers", "/settings/issuers/remove"):
        assert stranger.send(path, url=URL).status_code == 403
    assert not re.search(r"<script(?! src)|style=", page)
