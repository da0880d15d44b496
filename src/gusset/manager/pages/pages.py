"""The pages: which address is whose, who may come, and what surrounds each answer.

Sessions, the check of forms against forgery, the policy for content, and errors
as pages. What a page says is its handler's.
"""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import quote

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from gusset.errors import Denied, GussetError, NotFound, outcome_of
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.bootstrap_link import BootstrapLink
from gusset.manager.auth.callers import PersonCaller
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.manager.executors import Executors
from gusset.manager.middleware import frames_of
from gusset.manager.pages import deployment_pages, secret_pages, team_pages
from gusset.manager.pages.assets import static
from gusset.manager.pages.auth_pages import HOME, AuthPages
from gusset.manager.pages.form_parser import from_elsewhere, read_form
from gusset.manager.pages.page_types import (
    Download,
    Form,
    Page,
    PageRequest,
    Redirect,
    csrf_of,
    opened_notice,
    sealed_notice,
    told,
)
from gusset.manager.pages.rendering import environment
from gusset.vault.audit.audit_log import Actor
from gusset.vault.wiring import Vault

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

Handler = Callable[[PageRequest], Page | Redirect | Download]


@dataclass(frozen=True, slots=True)
class Place:
    """One address, and who may come there. `slow`: it hashes a password. `writes`: secrets may change."""

    method: Literal["GET", "POST"]
    path: str
    handler: Handler
    who: Literal["anybody", "person", "admin"] = "person"
    slow: bool = False
    writes: bool = False


def places(entrance: AuthPages) -> list[Place]:
    """Every page, and every form's address."""
    s, t, r = secret_pages, team_pages, deployment_pages
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
        # A form with a fault is shown at the form's own address: who asks for that gets the page it is on.
        Place("GET", one + "/value", _back(one)),
        Place("GET", person + "/link", _back("/settings/people")),
        Place("GET", "/settings/account/password", _back("/settings/account")),
        Place("GET", r.AUDIT + "/verify", _back(r.AUDIT), "admin"),
        Place("GET", "/settings/{rest:path}", _nothing),
    ]


def _back(to: str) -> Handler:
    return lambda visit: Redirect(to.format(**visit.path))


def _nothing(_: PageRequest) -> Page:
    raise NotFound("there is no such page", hint="The address is wrong, or what it named is gone.")


class Pages:
    """Makes routes of the places."""

    def __init__(
        self,
        vault: Vault,
        authenticator: Authenticator,
        executors: Executors,
        *,
        wrote: Callable[[], None],
        bootstrap_link: BootstrapLink | None,
    ) -> None:
        self._vault = vault
        self._authenticator = authenticator
        self._executors = executors
        self._wrote = wrote
        self._templates = environment()
        self._failures = RateLimiter()
        self._places = places(AuthPages(bootstrap_link))

    def routes(self) -> list[BaseRoute]:
        async def home(_: Request) -> Response:
            return RedirectResponse(HOME, 303, _HEADERS)

        made: list[BaseRoute] = [self._route(place) for place in self._places]
        return [Route("/", home), Route("/settings", home), Route("/static/{name}", static), *made]

    def _route(self, place: Place) -> Route:
        run = self._executors.run_slow if place.slow else self._executors.run_page

        async def endpoint(request: Request) -> Response:
            request.scope["route_path"] = place.path.replace(":int", "").replace(":path", "")
            try:
                form = await read_form(request) if place.method == "POST" else Form()
            except HTTPException as error:
                return self._refused(request, error)
            return await run(self._answer, place, request, form)

        return Route(place.path, endpoint, methods=[place.method])

    def _refused(self, request: Request, error: HTTPException) -> Response:
        """A body that was too large, too slow, or no form."""
        answer = PageResponder(request, None, "").page(
            self._templates, _error_page(error.status_code, error.detail)
        )
        answer.headers["connection"] = "close"
        return answer

    def _answer(self, place: Place, request: Request, form: Form) -> Response:
        """On a thread: who comes, may they, is the form theirs; then the handler."""
        secure = request.url.scheme == "https"
        session = request.cookies.get(cookie("gusset_session", secure), "")
        caller: PersonCaller | None = None
        try:
            if session:
                address = request.client.host if request.client else None
                caller = self._authenticator.authenticate_session(session, address=address)
            desk = PageResponder(request, caller, session)
            if caller is None and place.who != "anybody":
                return desk.to_sign_in()
            visit = self._visit(place, desk, form)
            try:
                result = place.handler(visit)
            finally:
                if place.writes:
                    self._wrote()
            if isinstance(result, Page):
                return desk.page(self._templates, result, caller.teams if caller else ())
            return desk.onward(result) if isinstance(result, Redirect) else desk.download(result)
        except Denied as error:
            self._record(request, caller, error)
            return self._failed(request, caller, session, error)
        except GussetError as error:
            return self._failed(request, caller, session, error)
        except Exception as error:
            log.error("A bug in gusset: %s", frames_of(error))  # noqa: TRY400  # its message may hold a value
            page = _error_page(500, "gusset has a bug; its log says where")
            return PageResponder(request, None, "").page(self._templates, page)

    def _visit(self, place: Place, desk: PageResponder, form: Form) -> PageRequest:
        """Raises Denied for a form of another site or another session, and for who is no administrator."""
        request = desk.request
        if place.method == "POST":
            desk.check(form)
        if place.who == "admin" and desk.caller is not None:
            desk.caller.require_scope("admin")
        return PageRequest(
            self._vault,
            desk.caller,
            desk.session,
            request.client.host if request.client else None,
            request.path_params,
            request.query_params,
            form,
            desk.here,
            datetime.now(UTC),
        )

    def _failed(
        self, request: Request, caller: PersonCaller | None, session: str, error: GussetError
    ) -> Response:
        status = outcome_of(error).http
        page = _error_page(status, told(GussetError(error.message)) or "", error.hint)
        answer = PageResponder(request, caller, session).page(
            self._templates, page, caller.teams if caller else ()
        )
        if status == 429:
            answer.headers["retry-after"] = "60"
        return answer

    def _record(self, request: Request, caller: PersonCaller | None, error: Denied) -> None:
        """Every refusal is written down; of many from one address who is nobody's, only the first."""
        if caller is not None:
            self._authenticator.record_refusal(AuthRequest.from_starlette(request), caller, error)
            return
        address = request.client.host if request.client else None
        if self._failures.count(address or "?"):
            what = f"{request.method} {request.scope['route_path']}"
            self._vault.access.refused(Actor("somebody", address), what, error)


class PageResponder:
    """Where one request is answered: it knows the browser's cookies, and puts new ones into answers."""

    def __init__(self, request: Request, caller: PersonCaller | None, session: str) -> None:
        self.request = request
        self.caller = caller
        self.session = session if caller else ""
        self.secure = request.url.scheme == "https"
        self.here = f"{request.url.scheme}://{request.url.netloc}"
        self._form_token = request.cookies.get(cookie("gusset_form", self.secure), "")

    def check(self, form: Form) -> None:
        """Raises Denied for a form that this browser was not given by this manager."""
        owner = self.session or self._form_token
        good = bool(owner) and hmac.compare_digest(csrf_of(owner).encode(), form.raw("csrf").encode())
        if from_elsewhere(self.request) or not good:
            raise Denied(
                "that form was not made for this session", hint="Go back, reload the page, and send it again."
            )

    def page(self, templates: Any, shown: Page, teams: Sequence[Any] = ()) -> Response:
        """A page, with what every page needs."""
        fresh = not self.session and not self._form_token
        owner = self.session or self._form_token or secrets.token_urlsafe(32)
        said = self.request.cookies.get(_NOTICE)
        notice = shown.notice or (opened_notice(said, self.session) if self.session else None)
        partial = shown.part is not None and "hx-request" in self.request.headers
        context = {
            "user": self.caller.person if self.caller else None,
            "csrf": csrf_of(owner),
            "teams": teams,
            "notice": notice,
            "now": datetime.now(UTC),
            "manager_url": self.here,
            "page_title": shown.title,
            **shown.context,
        }
        html = templates.get_template(shown.part if partial else shown.template).render(context)
        answer = Response(html, shown.status, _HEADERS, "text/html; charset=utf-8")
        if fresh:
            self._put(answer, "gusset_form", owner, "strict")
        if said and not partial:
            answer.delete_cookie(_NOTICE, path="/settings")
        return answer

    def onward(self, onward: Redirect) -> Response:
        """Elsewhere, with a notice for the next page and perhaps another session."""
        answer = RedirectResponse(onward.to, 303, _HEADERS)
        session = self.session
        if onward.session is not None:
            session = onward.session.reveal().decode() if onward.session else ""
            self._put(answer, "gusset_session", session, "lax")
        if onward.notice and session:
            said = sealed_notice(onward.notice, session)
            answer.set_cookie(
                _NOTICE, said, 60, path="/settings", secure=self.secure, httponly=True, samesite="strict"
            )
        return answer

    def download(self, download: Download) -> Response:
        """A file to keep."""
        told_as = {"content-disposition": f'attachment; filename="{download.name}"'}
        return StreamingResponse(download.pieces, 200, _HEADERS | told_as, download.kind)

    def to_sign_in(self) -> Response:
        """Sign in first, then come back; a part of a page that asks sends the whole page there."""
        url = self.request.url
        if "hx-request" in self.request.headers:
            came = self.request.headers.get("hx-current-url", "").partition(self.here)[2] or HOME
            return Response(status_code=401, headers={**_HEADERS, "hx-redirect": _sign_in_url(came)})
        came = f"{url.path}?{url.query}" if url.query else url.path
        return RedirectResponse(_sign_in_url(came if self.request.method == "GET" else HOME), 303, _HEADERS)

    def _put(self, answer: Response, name: str, text: str, site: Literal["lax", "strict"]) -> None:
        """A cookie of this host alone, until the browser ends; an empty text takes it away."""
        answer.set_cookie(
            cookie(name, self.secure),
            text,
            max_age=None if text else 0,
            secure=self.secure,
            httponly=True,
            samesite=site,
        )


def cookie(name: str, secure: bool) -> str:
    """A cookie's name; over HTTPS one that only this host can have set."""
    return f"__Host-{name}" if secure else name


def _sign_in_url(came: str) -> str:
    return f"/signin?next={quote(came, safe='/')}" if came != HOME else "/signin"


def _error_page(status: int, message: str, hint: str | None = None) -> Page:
    title = _TITLES.get(status, "That did not work")
    context = {"title": title, "message": message.rstrip(".") + ".", "hint": hint}
    return Page("error.html", title, context, status=status)
