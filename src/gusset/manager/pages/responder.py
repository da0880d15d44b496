"""Turns what a page handler returns into a response, and manages the browser's cookies."""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from datetime import UTC, datetime
from math import ceil
from secrets import token_urlsafe
from typing import Literal
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse

from gusset.errors import Denied
from gusset.manager.auth.callers import PersonCaller
from gusset.manager.pages.auth_pages import HOME
from gusset.manager.pages.form_parser import is_cross_site
from gusset.manager.pages.page_types import Download, Form, Page, Redirect
from gusset.manager.pages.rendering import environment
from gusset.manager.pages.session_tokens import (
    DEVICE_SECONDS,
    NOTICE_SECONDS,
    csrf_token,
    load_notice,
    sign_notice,
)
from gusset.vault.audit.continuous import Integrity
from gusset.vault.services.person import TeamInfo

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}
_NOTICE_COOKIE = "gusset_notice"


class PageResponder:
    """Responds to one request. Without a session, forms are bound to the cookie `gusset_form`."""

    def __init__(
        self,
        request: Request,
        caller: PersonCaller | None,
        session: str,
        *,
        integrity: Integrity,
    ) -> None:
        self.request = request
        self.caller = caller
        self.session_cookie = session
        self.session = session if caller else ""
        self.base_url = f"{request.url.scheme}://{request.url.netloc}"
        self._integrity = integrity
        self._secure = request.url.scheme == "https"
        self.device = request.cookies.get(cookie_name("gusset_device", self._secure), "")
        self._form_cookie = request.cookies.get(cookie_name("gusset_form", self._secure), "")

    def check_form(self, form: Form) -> None:
        """Raises Denied unless the form comes from a page that this manager gave to this browser."""
        known = [self.session] if self.session else [self.session_cookie, self._form_cookie]
        owners = [owner for owner in known if owner]
        given = form.raw("csrf").encode()
        valid = any(hmac.compare_digest(csrf_token(owner).encode(), given) for owner in owners)
        if is_cross_site(self.request) or not valid:
            raise Denied(
                "this form does not belong to your session",
                hint="Go back, reload the page, and submit it again.",
            )

    def page(self, page: Page) -> Response:
        """Render a page with what every template needs: user, teams, notice, CSRF token."""
        owner = self.session or self._form_cookie or token_urlsafe(32)
        signed = self.request.cookies.get(_NOTICE_COOKIE)
        notice = load_notice(signed, self.session) if signed and self.session else None
        partial = page.part is not None and "hx-request" in self.request.headers
        teams: Sequence[TeamInfo] = self.caller.teams if self.caller else ()
        context = {
            "user": self.caller.person if self.caller else None,
            "csrf": csrf_token(owner),
            "teams": teams,
            "integrity": self._integrity,
            "notice": page.notice or notice,
            "now": datetime.now(UTC),
            "manager_url": self.base_url,
            "page_title": page.title,
            **page.context,
        }
        template = page.part if partial and page.part else page.template
        html = environment().get_template(template).render(context)
        response = Response(html, page.status, HEADERS, "text/html; charset=utf-8")
        if page.retry_after is not None:
            response.headers["retry-after"] = str(ceil(page.retry_after))
        if not self.session and not self._form_cookie:
            self._set_cookie(response, "gusset_form", owner, "strict")
        if signed and not partial:
            response.delete_cookie(_NOTICE_COOKIE, path="/settings")
        return response

    def redirect(self, redirect: Redirect) -> Response:
        """Redirect, with a notice for the next page and perhaps another session."""
        response = RedirectResponse(redirect.location, 303, HEADERS)
        session = self.session
        if redirect.session is not None:
            session = redirect.session.reveal().decode() if redirect.session else ""
            self._set_cookie(response, "gusset_session", session, "lax")
        if redirect.device:
            self._set_cookie(response, "gusset_device", redirect.device, "strict", seconds=DEVICE_SECONDS)
        if redirect.notice and session:
            response.set_cookie(
                _NOTICE_COOKIE,
                sign_notice(redirect.notice, session),
                NOTICE_SECONDS,
                path="/settings",
                secure=self._secure,
                httponly=True,
                samesite="strict",
            )
        return response

    def download(self, download: Download) -> Response:
        """A file that the browser saves."""
        disposition = {"content-disposition": f'attachment; filename="{download.filename}"'}
        return StreamingResponse(download.chunks, 200, HEADERS | disposition, download.media_type)

    def redirect_to_sign_in(self) -> Response:
        """Sign in first, then return here. An htmx request makes the browser leave the whole page."""
        url = self.request.url
        if "hx-request" in self.request.headers:
            page_url = self.request.headers.get("hx-current-url", "").partition(self.base_url)[2] or HOME
            return Response(status_code=401, headers={**HEADERS, "hx-redirect": _sign_in_url(page_url)})
        page_url = f"{url.path}?{url.query}" if url.query else url.path
        if self.request.method != "GET":
            page_url = HOME
        return RedirectResponse(_sign_in_url(page_url), 303, HEADERS)

    def _set_cookie(
        self,
        response: Response,
        name: str,
        text: str,
        samesite: Literal["lax", "strict"],
        *,
        seconds: int | None = None,
    ) -> None:
        """Set a cookie for this host, until the browser closes unless for `seconds`; "" deletes it."""
        response.set_cookie(
            cookie_name(name, self._secure),
            text,
            max_age=seconds if text else 0,
            secure=self._secure,
            httponly=True,
            samesite=samesite,
        )


def cookie_name(name: str, secure: bool) -> str:
    """Over HTTPS with a prefix that lets only this host set the cookie."""
    return f"__Host-{name}" if secure else name


def _sign_in_url(next_url: str) -> str:
    return f"/signin?next={quote(next_url, safe='/')}" if next_url != HOME else "/signin"
