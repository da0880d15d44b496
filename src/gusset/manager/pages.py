"""The pages: which address is whose, who may come, and what surrounds each answer.

Sessions, the check of forms against forgery, the policy for content, and errors
as pages. What a page says is its handler's.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from gusset.errors import Denied, GussetError, NotFound, NotSignedIn, outcome_of
from gusset.manager import running_pages, secret_pages, team_pages
from gusset.manager.assets import static
from gusset.manager.callers import Caller, Doorkeeper, FirstLink, address_of
from gusset.manager.entrance import HOME, Entrance
from gusset.manager.forms import from_elsewhere, read_form
from gusset.manager.operations import Workers
from gusset.manager.render import environment
from gusset.manager.surroundings import frames_of
from gusset.manager.visits import Form, Onward, Shown, Visit, csrf_of, opened_notice, sealed_notice, told
from gusset.vault.audit import Actor
from gusset.vault.opening import Vault

log = logging.getLogger("gusset.manager")

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_TITLES = {
    401: "That does not let you in",
    403: "You may not do that",
    404: "There is nothing here",
    409: "Somebody was there first",
    413: "That is too large",
    429: "Too often",
    500: "Something broke in gusset",
    503: "It cannot be done for the moment",
}
_NOTICE = "gusset_notice"

Handler = Callable[[Visit], Shown | Onward]


@dataclass(frozen=True, slots=True)
class Place:
    """One address, and who may come there. `slow`: it hashes a password. `writes`: secrets may change."""

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    who: Literal["anybody", "person", "admin"] = "person"
    slow: bool = False
    writes: bool = False


def places(entrance: Entrance) -> list[Place]:
    """Every page, and every form's address."""
    s, t, r = secret_pages, team_pages, running_pages
    one, key, team = "/settings/secrets/{id}", "/settings/api-keys", "/settings/teams"
    person, deployment = "/settings/people/{id}", "/settings/deployments/{id}"
    return [
        Place("GET", "/signin", entrance.sign_in_page, "anybody"),
        Place("POST", "/signin", entrance.sign_in, "anybody", slow=True),
        Place("POST", "/signout", entrance.sign_out, "anybody"),
        Place("GET", "/setup/{link}", entrance.setup_page, "anybody"),
        Place("POST", "/setup", entrance.setup, "anybody", slow=True),
        Place("GET", "/settings/account", entrance.account_page),
        Place("POST", "/settings/account/password", entrance.change_password, slow=True),
        Place("GET", "/settings/secrets", s.list_page),
        Place("POST", "/settings/secrets", s.add, writes=True),
        Place("GET", one, s.one_page),
        Place("POST", one + "/value", s.replace, writes=True),
        Place("POST", one + "/note", s.annotate),
        Place("POST", one + "/versions/{number:int}/rollback", s.roll_back, writes=True),
        Place("POST", one + "/versions/{number:int}/destroy", s.destroy, writes=True),
        Place("POST", one + "/delete", s.delete, writes=True),
        Place("POST", one + "/restore", s.restore, writes=True),
        Place("GET", key, t.keys_page),
        Place("POST", key, t.make_key),
        Place("POST", key + "/{prefix}/revoke", t.revoke_key),
        Place("GET", "/settings/people", t.people_page, "admin"),
        Place("POST", "/settings/people", t.invite, "admin"),
        Place("POST", person + "/link", t.new_link, "admin"),
        Place("POST", person + "/role", t.set_role, "admin"),
        Place("POST", person + "/disable", t.disable, "admin"),
        Place("POST", person + "/enable", t.enable, "admin"),
        Place("POST", team, t.create_team, "admin"),
        Place("POST", team + "/{id}/members", t.put_in, "admin"),
        Place("POST", team + "/{id}/members/{person}/remove", t.take_out, "admin"),
        Place("GET", r.DEPLOYMENTS, r.deployments_page),
        Place("GET", deployment, r.deployment_page),
        Place("POST", deployment + "/remove", r.remove_deployment),
        Place("POST", deployment + "/tokens/{prefix}/revoke", r.revoke_token),
        Place("GET", r.AUDIT, r.audit_page, "admin"),
        Place("GET", r.AUDIT + "/export", r.export, "admin"),
        Place("POST", r.AUDIT + "/verify", r.verify, "admin"),
        Place("GET", "/settings/{rest:path}", _nothing),
    ]


def _nothing(_: Visit) -> Shown:
    raise NotFound("there is no such page", hint="The address is wrong, or what it named is gone.")
