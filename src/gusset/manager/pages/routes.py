"""The routes of all pages and forms, and who may open them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import Literal

from gusset.errors import NotFound
from gusset.manager.pages import (
    api_key_pages,
    audit_pages,
    deployment_pages,
    identity_pages,
    people_pages,
    secret_pages,
)
from gusset.manager.pages.auth_pages import AuthPages
from gusset.manager.pages.page_types import Download, Page, PageRequest, Redirect

PageHandler = Callable[[PageRequest], Page | Redirect | Download]
Audience = Literal["anybody", "person", "admin"]


@dataclass(frozen=True, slots=True)
class PageRoute:
    """One route. `slow` handlers hash a password; after those that `write`, secrets may have changed."""

    method: Literal["GET", "POST"]
    path: str
    handler: PageHandler
    audience: Audience = "person"
    _: KW_ONLY
    slow: bool = False
    writes: bool = False


def page_routes(auth: AuthPages) -> list[PageRoute]:
    """Every page and form."""
    return [
        *_auth_routes(auth),
        *_secret_routes(),
        *_api_key_routes(),
        *_people_routes(),
        *_deployment_routes(),
        *_identity_routes(),
        *_audit_routes(),
        PageRoute("GET", "/settings/{rest:path}", _not_found),
    ]


def _auth_routes(auth: AuthPages) -> list[PageRoute]:
    account = "/settings/account"
    return [
        PageRoute("GET", "/signin", auth.sign_in_page, "anybody"),
        PageRoute("POST", "/signin", auth.sign_in, "anybody", slow=True),
        PageRoute("POST", "/signout", auth.sign_out, "anybody"),
        PageRoute("GET", "/setup/{link}", auth.setup_page, "anybody"),
        PageRoute("POST", "/setup", auth.setup, "anybody", slow=True),
        PageRoute("GET", account, auth.account_page),
        PageRoute("POST", account + "/password", auth.change_password, slow=True),
        PageRoute("GET", account + "/password", _redirect_to(account)),
    ]


def _secret_routes() -> list[PageRoute]:
    one = "/settings/secrets/{id}"
    version = one + "/versions/{number}"
    return [
        PageRoute("GET", "/settings/secrets", secret_pages.list_page),
        PageRoute("POST", "/settings/secrets", secret_pages.add, writes=True),
        PageRoute("GET", one, secret_pages.detail_page),
        PageRoute("POST", one + "/value", secret_pages.replace, writes=True),
        PageRoute("GET", one + "/value", _redirect_to(one)),
        PageRoute("POST", one + "/note", secret_pages.annotate),
        PageRoute("POST", version + "/rollback", secret_pages.roll_back, writes=True),
        PageRoute("POST", version + "/destroy", secret_pages.destroy, writes=True),
        PageRoute("POST", one + "/delete", secret_pages.delete, writes=True),
        PageRoute("POST", one + "/restore", secret_pages.restore, writes=True),
    ]


def _api_key_routes() -> list[PageRoute]:
    base = api_key_pages.API_KEYS
    return [
        PageRoute("GET", base, api_key_pages.list_page),
        PageRoute("POST", base, api_key_pages.create),
        PageRoute("POST", base + "/{prefix}/revoke", api_key_pages.revoke),
    ]


def _people_routes() -> list[PageRoute]:
    base, teams = people_pages.PEOPLE, "/settings/teams"
    person, members = base + "/{id}", teams + "/{id}/members"
    return [
        PageRoute("GET", base, people_pages.list_page, "admin"),
        PageRoute("POST", base, people_pages.invite, "admin"),
        PageRoute("POST", person + "/link", people_pages.create_link, "admin"),
        PageRoute("GET", person + "/link", _redirect_to(base)),
        PageRoute("POST", person + "/role", people_pages.set_role, "admin"),
        PageRoute("POST", person + "/disable", people_pages.disable, "admin"),
        PageRoute("POST", person + "/enable", people_pages.enable, "admin"),
        PageRoute("POST", teams, people_pages.create_team, "admin"),
        PageRoute("POST", members, people_pages.add_member, "admin"),
        PageRoute("POST", members + "/{person}/remove", people_pages.remove_member, "admin"),
    ]


def _deployment_routes() -> list[PageRoute]:
    base = deployment_pages.DEPLOYMENTS
    one = base + "/{id}"
    return [
        PageRoute("GET", base, deployment_pages.list_page),
        PageRoute("GET", one, deployment_pages.detail_page),
        PageRoute("POST", one + "/remove", deployment_pages.remove),
        PageRoute("POST", one + "/tokens/{prefix}/revoke", deployment_pages.revoke_token),
    ]


def _identity_routes() -> list[PageRoute]:
    base, issuers = identity_pages.IDENTITIES, "/settings/issuers"
    return [
        PageRoute("GET", base, identity_pages.list_page),
        PageRoute("POST", base, identity_pages.add),
        PageRoute("POST", base + "/{id}/remove", identity_pages.remove),
        PageRoute("POST", issuers, identity_pages.add_issuer, "admin"),
        PageRoute("GET", issuers, _redirect_to(base), "admin"),
        PageRoute("POST", issuers + "/remove", identity_pages.remove_issuer, "admin"),
    ]


def _audit_routes() -> list[PageRoute]:
    base = audit_pages.AUDIT
    return [
        PageRoute("GET", base, audit_pages.list_page, "admin"),
        PageRoute("GET", base + "/export", audit_pages.export, "admin"),
        PageRoute("POST", base + "/verify", audit_pages.verify, "admin"),
        PageRoute("GET", base + "/verify", _redirect_to(base), "admin"),
    ]


def _redirect_to(path: str) -> PageHandler:
    """For a form's address that is opened by GET, for example by a reload: go to the page with the form."""
    return lambda request: Redirect(path.format(**request.path))


def _not_found(_: PageRequest) -> Page:
    raise NotFound("there is no such page", hint="The address is wrong, or what it pointed to was removed.")
