"""The pages over HTTP: access, CSRF, headers and invalid input. What needs a browser is in tests/browser."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from itertools import cycle

import httpx
import pytest

from gusset.manager.pages.auth_pages import AuthPages
from gusset.manager.pages.routes import page_routes
from gusset.vault.storage.tables import SESSIONS, USERS
from tests.manager.conftest import ADMIN, PASSWORD, Manager
from tests.vault.conftest import run_sql

ROUTES = page_routes(AuthPages(None))


class Visitor:
    """A client that handles cookies and forms as a browser does."""

    def __init__(self, manager: Manager) -> None:
        self.http = httpx.Client(base_url=manager.address, timeout=20, trust_env=False)

    def csrf(self, path: str = "/settings/account") -> str:
        """The CSRF token in a page's forms."""
        page = self.http.get(path)
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert found, page.text
        return found[1]

    def sign_in(self, email: str = ADMIN, password: bytes = PASSWORD, **more: str) -> httpx.Response:
        form = {"email": email, "password": password.decode(), "csrf": self.csrf("/signin"), **more}
        return self.http.post("/signin", data=form)

    def send(self, path: str, page: str = "/settings/account", **fields: str) -> httpx.Response:
        """Submit a form with this session's CSRF token."""
        return self.http.post(path, data={**fields, "csrf": self.csrf(page)})

    def add(self, name: str, value: bytes, **fields: str) -> httpx.Response:
        form = {"csrf": self.csrf(), "name": name, **fields}
        return self.http.post("/settings/secrets", data=form, files={"value": (None, value)})


@pytest.fixture
def stranger(manager: Manager) -> Iterator[Visitor]:
    visitor = Visitor(manager)
    yield visitor
    visitor.http.close()


@pytest.fixture
def ada(stranger: Visitor) -> Visitor:
    """The administrator, signed in."""
    assert stranger.sign_in().status_code == 303
    return stranger


def path_of(path: str) -> str:
    """A route's path with a value for each parameter."""
    return re.sub(r"\{[^}]+\}", "7", path)


# --- access


def test_pages_redirect_to_sign_in_without_a_session(stranger: Visitor) -> None:
    """Every page and form for people does."""
    for route in (r for r in ROUTES if r.audience != "anybody"):
        response = stranger.http.request(route.method, path_of(route.path))
        assert response.status_code == 303, route
        assert response.headers["location"].startswith("/signin")


def test_the_session_cookie_is_not_available_to_scripts_or_other_sites(stranger: Visitor) -> None:
    """It is HttpOnly and SameSite."""
    response = stranger.sign_in()
    cookie = next(c for c in response.headers.get_list("set-cookie") if c.startswith("gusset_session="))
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie


def test_over_https_cookies_are_bound_to_the_host(manager: Manager) -> None:
    """Behind a reverse proxy with TLS they are Secure, with the prefix __Host-."""
    assert manager.stop() == 0
    manager.start("--trusted-proxy", "127.0.0.1")
    https = {"x-forwarded-proto": "https", "x-forwarded-for": "192.0.2.7"}
    with manager.client("", **https) as client:
        page = client.get("/signin")
        given = page.headers["set-cookie"]
        assert given.startswith("__Host-gusset_form=") and "Secure" in given and "SameSite=strict" in given
        token = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert token
        form = {"email": ADMIN, "password": PASSWORD.decode(), "csrf": token[1]}
        response = client.post("/signin", data=form, headers={"cookie": given.partition(";")[0]})
        assert response.headers["set-cookie"].startswith("__Host-gusset_session=")
        assert "Secure" in response.headers["set-cookie"]
    with manager.client() as admin:
        [record] = admin.get("/v1/audit", params={"action": "session.create"}).json()["records"]
    assert record["details"]["from"] == "192.0.2.7"


def test_signing_out_ends_the_session_on_the_server(ada: Visitor) -> None:
    """A copy of the cookie is worthless afterwards."""
    token = ada.http.cookies["gusset_session"]
    assert ada.send("/signout").status_code == 303
    copied = httpx.get(
        ada.http.base_url.join("/settings/secrets"), cookies={"gusset_session": token}, trust_env=False
    )
    assert (copied.status_code, copied.headers["location"]) == (303, "/signin")


def test_a_session_that_was_hidden_while_its_holder_signed_out_is_named(
    manager: Manager, ada: Visitor
) -> None:
    """Whoever writes the database could put it back afterwards, for somebody who has a copy of the cookie."""
    names = ", ".join(SESSIONS.all_columns)
    csrf = ada.csrf()
    [row] = run_sql(manager.database, f"SELECT {names} FROM sessions")
    run_sql(manager.database, "DELETE FROM sessions")
    assert ada.http.post("/signout", data={"csrf": csrf}).status_code == 303
    run_sql(manager.database, f"INSERT INTO sessions ({names}) VALUES ({', '.join('?' * len(row))})", *row)
    verified = manager.gusset("audit", "verify", status=10)
    assert b"(session.end somebody), but is in the database again" in verified.stderr


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE sessions SET expires_at = '2999-01-01T00:00:00.000Z'",
        "UPDATE users SET role = 'member'",
        "DELETE FROM users",
        pytest.param(
            "UPDATE sessions SET seen_at = x'00'", marks=pytest.mark.sqlite("PostgreSQL checks types")
        ),
    ],
)
def test_an_altered_session_or_account_keeps_nobody_from_signing_out(
    manager: Manager, ada: Visitor, change: str
) -> None:
    """The sign-out is recorded, and whoever has a copy of the cookie gets nothing once the row is as before."""
    csrf, token = ada.csrf(), ada.http.cookies["gusset_session"]
    users, sessions = (", ".join(table.all_columns) for table in (USERS, SESSIONS))
    [user] = run_sql(manager.database, f"SELECT {users} FROM users")
    [session] = run_sql(manager.database, f"SELECT {sessions} FROM sessions")
    run_sql(manager.database, change)

    assert ada.http.get("/signin").status_code == 200
    assert ada.http.post("/signout", data={"csrf": csrf}).status_code == 303
    run_sql(manager.database, "DELETE FROM sessions")
    run_sql(manager.database, "DELETE FROM users")
    for table, columns, row in (("users", users, user), ("sessions", sessions, session)):
        run_sql(
            manager.database, f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(row))})", *row
        )

    verified = manager.gusset("audit", "verify", status=10)
    assert b"(session.end somebody), but is in the database again" in verified.stderr
    assert token not in ada.http.cookies.values()


def test_sign_outs_without_a_session_are_limited(manager: Manager, ada: Visitor) -> None:
    """Each leaves an audit record."""
    csrf, token = ada.csrf(), ada.http.cookies["gusset_session"]
    run_sql(manager.database, "DELETE FROM sessions")
    seen = []
    for _ in range(11):
        ada.http.cookies.set("gusset_session", token)
        seen.append(ada.http.post("/signout", data={"csrf": csrf}).status_code)
        ada.http.cookies.clear()
    assert seen == [303] * 10 + [429]


def test_a_form_from_before_the_sign_in_is_not_accepted_after_it(manager: Manager, stranger: Visitor) -> None:
    """Its cookie is not the session's: others of the same browser may know it."""
    csrf = stranger.csrf("/signin")
    assert stranger.sign_in().status_code == 303
    assert "gusset_form" in stranger.http.cookies
    refused = stranger.http.post("/settings/secrets", data={"csrf": csrf, "name": "x"})
    assert refused.status_code == 403
    assert stranger.add("x", b"v").status_code == 303


@pytest.mark.parametrize("token", ["", "x", "x.", ".x", f"{'A' * 43}.{'0' * 32}", "\u00e4.\u00e4"])
def test_only_what_is_the_token_of_a_session_is_signed_out(
    manager: Manager, stranger: Visitor, token: str
) -> None:
    """Else anybody could fill the audit log."""
    before = run_sql(manager.database, "SELECT max(seq) FROM audit")
    form, cookie = stranger.csrf("/signin"), f"gusset_session={token}".encode()
    cookie += f"; gusset_form={stranger.http.cookies['gusset_form']}".encode()
    response = stranger.http.post("/signout", data={"csrf": form}, headers=[(b"cookie", cookie)])
    assert (response.status_code, response.headers["location"]) == (303, "/signin")
    assert run_sql(manager.database, "SELECT max(seq) FROM audit") == before


def test_signing_in_never_redirects_to_another_site(stranger: Visitor) -> None:
    """The parameter `next` accepts only pages of the settings."""
    for wanted in [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example",
        "/settings/../x",
        "javascript:alert(1)",
        "/v1/x",
    ]:
        assert stranger.sign_in(next=wanted).headers["location"] == "/settings/secrets"
        stranger.http.cookies.delete("gusset_session")


def test_signing_in_redirects_to_the_requested_page(stranger: Visitor) -> None:
    """With its query."""
    redirected = stranger.http.get("/settings/audit?actor=ada")
    assert redirected.headers["location"] == "/signin?next=/settings/audit%3Factor%3Dada"
    assert (
        stranger.sign_in(next="/settings/audit?actor=ada").headers["location"] == "/settings/audit?actor=ada"
    )


def test_failed_sign_ins_are_rate_limited(stranger: Visitor) -> None:
    """After ten failures even the right password gets 429; unknown people get the same response as known ones."""
    for email in (ADMIN, "no@example.com"):
        assert {stranger.sign_in(email, b"wrong").status_code for _ in range(10)} == {401}
        refused = stranger.sign_in(email)
        assert (refused.status_code, "Too many failed attempts" in refused.text) == (429, True)
        assert 1 <= int(refused.headers["retry-after"]) <= 30


def test_members_cannot_open_pages_for_administrators(manager: Manager, stranger: Visitor) -> None:
    """Pages and forms give 403, and the refusals are recorded."""
    manager.member("mem@example.com")
    assert stranger.sign_in("mem@example.com").status_code == 303
    for route in (r for r in ROUTES if r.audience == "admin"):
        if route.method == "GET":
            response = stranger.http.get(path_of(route.path))
        else:
            response = stranger.send(path_of(route.path))
        assert response.status_code == 403, route
    with manager.client() as admin:
        records = admin.get("/v1/audit", params={"action": "request.refuse"}).json()["records"]
    assert {"mem@example.com"} == {record["actor"] for record in records}


def test_other_teams_secrets_and_deployments_give_404(manager: Manager, stranger: Visitor) -> None:
    """Their pages and all their forms, with known ids."""
    with manager.client() as admin:
        made = admin.post("/v1/secrets", json={"name": "theirs", "value": "a value"}).json()
        admin.post("/v1/deployments", json={"name": "theirs", "secrets": ["theirs"]})
        deployment = admin.get("/v1/deployments").json()["deployments"][0]["id"]
        other = admin.post("/v1/teams", json={"name": "other"}).json()["id"]
        default = admin.get("/v1/teams").json()["teams"][0]["id"]
    manager.member("mem@example.com", teams=[other])
    stranger.sign_in("mem@example.com")
    secret = f"/settings/secrets/{made['id']}"
    for path in (secret, f"/settings/deployments/{deployment}", f"/settings/secrets?team={default}"):
        assert stranger.http.get(path).status_code == 404, path
    forms = ("value", "note", "delete", "restore", "versions/1/rollback", "versions/1/destroy")
    for path in (*(f"{secret}/{form}" for form in forms), f"/settings/deployments/{deployment}/remove"):
        assert stranger.send(path, value="x").status_code == 404, path
    response = stranger.send("/settings/secrets", team=default, name="mine", value="x")
    assert response.status_code == 404
    with manager.client() as admin:
        assert admin.get("/v1/secrets/theirs").json()["version"] == 1


# --- CSRF


def test_a_form_from_another_site_or_session_is_refused(ada: Visitor) -> None:
    """403 without the session's CSRF token, with another one, or if the browser says that another site sent it."""
    good = ada.csrf()
    from_elsewhere = (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://x.example"},
    )
    paths = [path_of(route.path) for route in ROUTES if route.method == "POST"]
    # In turn: further refusals of one session would be too many in a minute.
    for path, headers in zip(paths, cycle(from_elsewhere), strict=False):
        assert ada.http.post(path, data={}).status_code == 403, path
        assert ada.http.post(path, data={"csrf": "0" * 64}).status_code == 403, path
        assert ada.http.post(path, data={"csrf": good}, headers=headers).status_code == 403, path


def test_the_sign_in_form_is_protected_from_csrf_too(stranger: Visitor) -> None:
    """Another site cannot sign a person in to someone else's account."""
    form = {"email": ADMIN, "password": PASSWORD.decode()}
    assert stranger.http.post("/signin", data=form).status_code == 403
    good = stranger.csrf("/signin")
    assert stranger.http.post("/signin", data={**form, "csrf": good[::-1]}).status_code == 403


def test_a_notice_is_shown_once_and_only_if_signed_for_the_session(ada: Visitor) -> None:
    """A forged cookie shows nothing."""
    ada.add("noticed", b"a value")
    assert "noticed was stored" in ada.http.get("/settings/secrets").text
    assert "noticed was stored" not in ada.http.get("/settings/secrets").text
    ada.http.cookies.set("gusset_notice", "eyJraW5kIjoib2sifQ", domain="127.0.0.1", path="/settings")
    assert 'class="notice' not in ada.http.get("/settings/secrets").text


# --- response headers


def test_no_response_is_cached_or_may_load_from_other_sites(ada: Visitor) -> None:
    """no-store and a content security policy for this site only, also for errors and redirects."""
    for path in ["/signin", "/settings/secrets", "/settings/nothing", "/setup/none", "/settings"]:
        response = ada.http.get(path)
        assert response.headers["cache-control"] == "no-store"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


def test_pages_have_neither_inline_scripts_nor_inline_styles(ada: Visitor) -> None:
    """The content security policy would block them."""
    ada.add("one", b"a value")
    for route in (r for r in ROUTES if r.method == "GET"):
        text = ada.http.get(path_of(route.path)).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=|\sstyle=|<style", text), route.path


def test_static_files_with_a_fingerprint_are_cached_forever(stranger: Visitor) -> None:
    """Without the fingerprint the browser revalidates; no other file is served."""
    page = stranger.http.get("/signin").text
    for url in map(html.unescape, re.findall(r'(?:src|href)="(/static/[^"]+)"', page)):
        response = stranger.http.get(url)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
        bare = stranger.http.get(url.partition("?")[0], headers={"if-none-match": response.headers["etag"]})
        assert (bare.status_code, bare.headers["cache-control"]) == (304, "no-cache")
    for name in ("../render.py", "%2e%2e/render.py", "nothing.js", ""):
        assert stranger.http.get(f"/static/{name}").status_code == 404


# --- invalid input


def test_an_invalid_name_is_refused_and_not_repeated(ada: Visitor) -> None:
    """The field is empty afterwards, since it may have held a value."""
    for name in [
        "",
        " ",
        "a b",
        "a/b",
        "../x",
        "..",
        ".",
        "a\n",
        "a\0",
        "%00",
        "na\u202eme",
        "<b>",
        "x" * 254,
        "'; drop table x",
    ]:
        response = ada.add(name, b"a value")
        assert response.status_code == 400
        field = re.search(r'id="name" name="name" value="([^"]*)"', response.text)
        assert field and field[1] == ""
        assert "No secrets yet" in response.text


def test_any_text_can_be_a_value(ada: Visitor) -> None:
    """NUL, direction marks, markup, SQL and emoji are accepted, and shown nowhere."""
    odd = ("a\0b", "\u202e right to left", "<script>alert(1)</script>", "' or 1=1 --", "café \U0001f9f5")
    for number, value in enumerate(odd):
        assert ada.add(f"odd{number}", value.encode()).status_code == 303
        page = ada.http.get("/settings/secrets").text
        assert f"odd{number} was stored" in page
        assert value not in page and html.escape(value) not in page


@pytest.mark.parametrize("path", ["/settings/secrets", "/settings/account/password"])
def test_a_malformed_form_is_refused(ada: Visitor, path: str) -> None:
    """Fields that are not UTF-8, truncated forms, and bodies that are not forms."""
    good = ada.csrf()
    kind = {"content-type": "multipart/form-data; boundary=x"}
    part = b'--x\r\ncontent-disposition: form-data; name="%s"\r\n\r\n%s\r\n'
    body = part % (b"csrf", good.encode()) + part % (b"name", b"cut") + part % (b"value", b"\xff\xfe")
    for sent in (body + b"--x--\r\n", b"no form", b""):
        assert ada.http.post(path, content=sent, headers=kind).status_code in (400, 403), sent
    encoded = {"content-type": "application/x-www-form-urlencoded"}
    raw = f"csrf={good}&name=cut&value=%ff".encode()
    assert ada.http.post(path, content=raw, headers=encoded).status_code == 400
    assert ada.http.post(path, json={"csrf": good}).status_code == 415
    assert "No secrets yet" in ada.http.get("/settings/secrets").text


def test_a_body_or_value_that_is_too_large_is_refused(ada: Visitor) -> None:
    """A large body gets 413; for a value just over the limit, the message has the limit."""
    try:
        status = ada.add("large", b"x" * 2_000_000).status_code
    except httpx.TransportError:  # the manager closed the connection while the rest was still being sent
        status = 413
    assert status == 413
    ada.http = httpx.Client(base_url=ada.http.base_url, cookies=ada.http.cookies, trust_env=False)
    response = ada.add("large", b"x" * 65_537)
    assert (response.status_code, "65536" in response.text.replace(",", "")) == (400, True)


def test_invalid_query_parameters_are_ignored(ada: Visitor) -> None:
    """A page with unusual parameters is shown instead of an error."""
    for query in [
        "page=x",
        "page=0",
        "page=-1",
        "page=999999999999",
        "before=x",
        "before=1e9",
        "q=%00%ff",
        "actor=%00",
    ]:
        assert ada.http.get(f"/settings/secrets?{query}").status_code == 200
        assert ada.http.get(f"/settings/audit?{query}").status_code == 200


def test_an_htmx_request_gets_only_part_of_the_page(ada: Visitor) -> None:
    """The live filter gets the rows; after the session has ended, the whole page is redirected to sign in."""
    ada.add("rowed", b"a value")
    part = ada.http.get("/settings/secrets?q=row", headers={"hx-request": "true"}).text
    assert "rowed" in part and "<html" not in part and 'id="rows"' in part
    ada.http.cookies.clear()
    here = str(ada.http.base_url.join("/settings/secrets?q=row"))
    response = ada.http.get("/settings/secrets?q=row", headers={"hx-request": "true", "hx-current-url": here})
    assert (response.status_code, response.headers["hx-redirect"]) == (
        401,
        "/signin?next=/settings/secrets%3Fq%3Drow",
    )
