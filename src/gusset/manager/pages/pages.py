"""Serves the pages: sessions, the check of forms, authorization, and errors as pages.

What a page shows is up to its handler; `routes` says which handler that is.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from math import ceil

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from gusset.addresses import network_of
from gusset.errors import Denied, GussetError, IntegrityError, NotFound, TooManyAttempts, outcome_of
from gusset.manager.api.router import public_text
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.bootstrap_link import BootstrapLink
from gusset.manager.auth.callers import PersonCaller
from gusset.manager.auth.rate_limiter import RateLimiter
from gusset.manager.bugs import log_bug
from gusset.manager.executors import Executors
from gusset.manager.integrity_watch import IntegrityWatch
from gusset.manager.pages.assets import static
from gusset.manager.pages.auth_pages import HOME, AuthPages
from gusset.manager.pages.form_parser import read_form
from gusset.manager.pages.page_types import Form, Page, PageRequest, Redirect
from gusset.manager.pages.responder import HEADERS, PageResponder, cookie_name
from gusset.manager.pages.routes import PageRoute, page_routes
from gusset.vault import deadline
from gusset.vault.audit.actor import Actor
from gusset.vault.wiring import Vault

PAGES_OF_STRANGER = 600  # a minute, for one address, without being signed in

_TITLES = {
    401: "Access denied",
    403: "Not allowed",
    404: "Not found",
    409: "Conflict",
    413: "Too large",
    429: "Too many attempts",
    500: "Internal error",
    503: "Temporarily unavailable",
}


class Pages:
    """The pages as Starlette routes."""

    def __init__(
        self,
        vault: Vault,
        authenticator: Authenticator,
        executors: Executors,
        *,
        on_write: Callable[[], None],
        integrity: IntegrityWatch,
        bootstrap_link: BootstrapLink | None,
    ) -> None:
        self._vault = vault
        self._authenticator = authenticator
        self._executors = executors
        self._on_write = on_write
        self._integrity = integrity
        self._strangers = RateLimiter(PAGES_OF_STRANGER, 60.0)
        self._routes = page_routes(AuthPages(bootstrap_link))

    def routes(self) -> list[BaseRoute]:
        async def home(_: Request) -> Response:
            return RedirectResponse(HOME, 303, HEADERS)

        pages: list[BaseRoute] = [self._starlette_route(route) for route in self._routes]
        return [Route("/", home), Route("/settings", home), Route("/static/{name}", static), *pages]

    def _starlette_route(self, route: PageRoute) -> Route:
        run = self._executors.run_slow if route.slow else self._executors.run_page

        async def endpoint(request: Request) -> Response:
            request.scope["route_path"] = route.path.replace(":path", "")
            try:
                form = await read_form(request) if route.method == "POST" else Form()
            except HTTPException as error:
                return self.refuse_form(request, error)
            response = await run(self._respond, route, request, form)
            deadline.remove()  # a download is read while it is sent
            return response

        return Route(route.path, endpoint, methods=[route.method])

    def refuse_form(self, request: Request, error: HTTPException) -> Response:
        """The response to a body that is too large, too slow, or not a form."""
        response = self._responder(request).page(_error_page(error.status_code, error.detail))
        response.headers["connection"] = "close"
        return response

    def _respond(self, route: PageRoute, request: Request, form: Form) -> Response:
        """Authenticate, check the form, authorize, then call the handler. In a thread."""
        responder = self._responder(request)
        try:
            responder = self._authenticate(request, required=route.audience != "anybody")
            if responder.caller is None:
                self._limit_stranger(request)
            if responder.caller is None and route.audience != "anybody":
                return responder.redirect_to_sign_in()
            self._authorize(route, responder, form)
            try:
                result = route.handler(self._page_request(responder, form))
            finally:
                if route.writes:
                    self._on_write()
            if isinstance(result, Page):
                return responder.page(result)
            return responder.redirect(result) if isinstance(result, Redirect) else responder.download(result)
        except Denied as error:
            return self._error_response(responder, self._record_refusal(request, responder.caller, error))
        except GussetError as error:
            return self._error_response(responder, error)
        except Exception as error:
            log_bug(error)
            page = _error_page(500, "this is a bug in gusset; its log has the details")
            return self._responder(request).page(page)

    def _responder(
        self, request: Request, caller: PersonCaller | None = None, session: str = ""
    ) -> PageResponder:
        try:
            return PageResponder(request, caller, session, integrity=self._integrity.result)
        except ValueError:  # older versions of Starlette make a URL of any Host
            raise HTTPException(400, "the request's Host is not a host") from None

    def _authenticate(self, request: Request, *, required: bool) -> PageResponder:
        """A responder for the person whose session cookie the request carries, or for nobody.

        Nobody also where a session or account was altered in the database, or has no row any more, unless
        one is required: that must keep nobody from signing in or out.
        """
        session = request.cookies.get(cookie_name("gusset_session", request.url.scheme == "https"), "")
        if not session:
            return self._responder(request)
        try:
            caller = self._authenticator.authenticate_session(session, address=_address(request))
        except (IntegrityError, NotFound):
            if required:
                raise
            caller = None
        return self._responder(request, caller, session)

    def _authorize(self, route: PageRoute, responder: PageResponder, form: Form) -> None:
        """Raises Denied for a form from another site or session, and on admin pages for members."""
        if route.method == "POST":
            responder.check_form(form)
        if route.audience == "admin" and responder.caller is not None:
            responder.caller.require_scope("admin")

    def _page_request(self, responder: PageResponder, form: Form) -> PageRequest:
        request = responder.request
        return PageRequest(
            vault=self._vault,
            signed_in=responder.caller,
            session=responder.session_cookie,
            device=responder.device,
            address=_address(request),
            path=request.path_params,
            query=request.query_params,
            form=form,
            base_url=responder.base_url,
            now=datetime.now(UTC),
        )

    def _error_response(self, responder: PageResponder, error: GussetError) -> Response:
        status = outcome_of(error).http
        response = responder.page(_error_page(status, *public_text(error)))
        if isinstance(error, TooManyAttempts):
            response.headers["retry-after"] = str(ceil(error.retry_after or 1))
        return response

    def _limit_stranger(self, request: Request) -> None:
        if wait := self._strangers.take(network_of(_address(request))):
            raise TooManyAttempts(
                "too many pages were requested from this address", hint="Wait a minute.", retry_after=wait
            )

    def _record_refusal(self, request: Request, caller: PersonCaller | None, error: Denied) -> GussetError:
        """Record a refusal in the audit log. Returns the error to show."""
        auth_request = AuthRequest.from_starlette(request)
        if caller is None:
            target = f"{auth_request.method} {auth_request.route}"
            self._vault.access_keys.record_refusal(Actor("somebody", auth_request.address), target, error)
            return error
        try:
            self._authenticator.record_refusal(auth_request, caller, error)
        except TooManyAttempts as too_many:
            return too_many
        return error


def _address(request: Request) -> str | None:
    return request.client.host if request.client else None


def _error_page(status: int, message: str, hint: str | None = None) -> Page:
    title = _TITLES.get(status, "Something went wrong")
    context = {
        "title": title,
        "message": _sentence(message),
        "hint": _sentence(hint) if hint else None,
    }
    return Page(template="error.html", title=title, context=context, status=status)


def _sentence(text: str) -> str:
    end = "" if text.endswith((".", "?")) else "."
    return f"{text[:1].upper()}{text[1:]}{end}"
