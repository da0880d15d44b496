"""The pages over HTTP: who gets in, forms that cannot be forged, what each response forbids. Browsers: tests/browser."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator

import httpx
import pytest

from gusset.manager.pages.auth_pages import AuthPages
from gusset.manager.pages.routes import page_routes
from tests.manager.conftest import ADMIN, PASSWORD, Manager

ROUTES = page_routes(AuthPages(None))


class Visitor:
    """What a browser does of cookies and forms, by hand."""

    def __init__(self, manager: Manager) -> None:
        self.http = httpx.Client(base_url=manager.address, timeout=20, trust_env=False)

    def csrf(self, path: str = "/settings/account") -> str:
        """The token that the forms of a page carry."""
        page = self.http.get(path)
        found = re.search(r'name="csrf" value="([0-9a-f]+)"', page.text)
        assert found, page.text
        return found[1]

    def sign_in(self, email: str = ADMIN, password: bytes = PASSWORD, **more: str) -> httpx.Response:
        form = {"email": email, "password": password.decode(), "csrf": self.csrf("/signin"), **more}
        return self.http.post("/signin", data=form)

    def send(self, path: str, page: str = "/settings/account", **fields: str) -> httpx.Response:
        """A form, as a page of this session gives it."""
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
    """A route's address with something in it for each of its names."""
    return re.sub(r"\{[^}]+\}", "7", path)


# --- who gets in


def test_a_stranger_is_sent_to_sign_in(stranger: Visitor) -> None:
    """No page and no form answers anybody who is not signed in."""
    for route in (r for r in ROUTES if r.audience != "anybody"):
        response = stranger.http.request(route.method, path_of(route.path))
        assert response.status_code == 303, route
        assert response.headers["location"].startswith("/signin")


def test_a_session_is_a_cookie_that_scripts_and_other_sites_do_not_get(stranger: Visitor) -> None:
    """HttpOnly and SameSite; over HTTPS also Secure, and bound to the host by its name."""
    response = stranger.sign_in()
    cookie = next(c for c in response.headers.get_list("set-cookie") if c.startswith("gusset_session="))
    assert "HttpOnly" in cookie and "SameSite=lax" in cookie and "Path=/" in cookie


def test_over_https_cookies_are_bound_to_the_host(manager: Manager) -> None:
    """Behind a proxy that ends TLS: Secure, and a name that no other host can set."""
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


def test_signing_out_ends_the_session_itself(ada: Visitor) -> None:
    """Not only the cookie goes: who kept a copy of it has nothing."""
    token = ada.http.cookies["gusset_session"]
    assert ada.send("/signout").status_code == 303
    copied = httpx.get(
        ada.http.base_url.join("/settings/secrets"), cookies={"gusset_session": token}, trust_env=False
    )
    assert (copied.status_code, copied.headers["location"]) == (303, "/signin")


def test_signing_in_leads_nowhere_else(stranger: Visitor) -> None:
    """A link to sign in cannot send people to another site afterwards."""
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


def test_signing_in_leads_back_to_where_one_was_going(stranger: Visitor) -> None:
    """The page that was asked for comes after the password."""
    asked = stranger.http.get("/settings/audit?actor=ada")
    assert asked.headers["location"] == "/signin?next=/settings/audit%3Factor%3Dada"
    assert (
        stranger.sign_in(next="/settings/audit?actor=ada").headers["location"] == "/settings/audit?actor=ada"
    )


def test_guessing_passwords_ends_after_some(stranger: Visitor) -> None:
    """Ten failures, then 429 for a while, also for the right password; nobody else's sign-in is told apart."""
    said = {
        stranger.sign_in(email, b"wrong").status_code for email in (ADMIN, "no@example.com") for _ in range(5)
    }
    assert said == {401}
    refused = stranger.sign_in()
    assert (refused.status_code, "Too many failed attempts" in refused.text) == (429, True)


def test_a_member_sees_no_page_of_administrators(manager: Manager, stranger: Visitor) -> None:
    """People and audit log response 403 to a member, forms too; the refusals are in the log."""
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


def test_a_member_of_another_team_sees_nothing_of_it(manager: Manager, stranger: Visitor) -> None:
    """Ids that are guessed or were seen once: 404, for the page and for every form of it."""
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


# --- forms that cannot be forged


def test_a_form_of_another_site_or_session_is_refused(ada: Visitor) -> None:
    """Without the session's token, with another's, or sent by another site: 403, and nothing is done."""
    good = ada.csrf()
    from_elsewhere = (
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://x.example"},
    )
    for path in (path_of(route.path) for route in ROUTES if route.method == "POST"):
        assert ada.http.post(path, data={}).status_code == 403, path
        assert ada.http.post(path, data={"csrf": "0" * 64}).status_code == 403, path
        for headers in from_elsewhere:
            assert ada.http.post(path, data={"csrf": good}, headers=headers).status_code == 403, path


def test_signing_in_cannot_be_forged_either(stranger: Visitor) -> None:
    """Nobody is signed in as somebody else by a form of another site."""
    form = {"email": ADMIN, "password": PASSWORD.decode()}
    assert stranger.http.post("/signin", data=form).status_code == 403
    good = stranger.csrf("/signin")
    assert stranger.http.post("/signin", data={**form, "csrf": good[::-1]}).status_code == 403


def test_a_notice_is_shown_once_and_only_ours(ada: Visitor) -> None:
    """What a page says comes from this manager and this session; a cookie that somebody made up says nothing."""
    ada.add("noticed", b"a value")
    assert "noticed was stored" in ada.http.get("/settings/secrets").text
    assert "noticed was stored" not in ada.http.get("/settings/secrets").text
    ada.http.cookies.set("gusset_notice", "eyJraW5kIjoib2sifQ", domain="127.0.0.1", path="/settings")
    assert 'class="notice' not in ada.http.get("/settings/secrets").text


# --- what an response forbids


def test_every_answer_is_kept_by_nobody_and_loads_nothing_foreign(ada: Visitor) -> None:
    """no-store, and a policy that names this site alone; errors and redirects are no exception."""
    for path in ["/signin", "/settings/secrets", "/settings/nothing", "/setup/none", "/settings"]:
        response = ada.http.get(path)
        assert response.headers["cache-control"] == "no-store"
        policy = response.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
        assert "unsafe" not in policy and "http" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"


def test_pages_have_neither_inline_scripts_nor_inline_styles(ada: Visitor) -> None:
    """What the policy would stop is not there in the first route."""
    ada.add("one", b"a value")
    for route in (r for r in ROUTES if r.method == "GET"):
        text = ada.http.get(path_of(route.path)).text
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son[a-z]+=|\sstyle=|<style", text), route.path


def test_static_files_are_kept_for_ever_by_their_fingerprint(stranger: Visitor) -> None:
    """A new release has new addresses; without the fingerprint a browser asks again; nothing else is served."""
    page = stranger.http.get("/signin").text
    for url in map(html.unescape, re.findall(r'(?:src|href)="(/static/[^"]+)"', page)):
        response = stranger.http.get(url)
        assert response.status_code == 200
        assert "immutable" in response.headers["cache-control"]
        bare = stranger.http.get(url.partition("?")[0], headers={"if-none-match": response.headers["etag"]})
        assert (bare.status_code, bare.headers["cache-control"]) == (304, "no-cache")
    for name in ("../render.py", "%2e%2e/render.py", "nothing.js", ""):
        assert stranger.http.get(f"/static/{name}").status_code == 404


# --- bad input


def test_what_is_no_name_is_refused_and_not_repeated(ada: Visitor) -> None:
    """The page says what a name is; the field is empty again, since a value may have stood in it."""
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


def test_any_text_is_a_value(ada: Visitor) -> None:
    """NUL, marks, markup, SQL, any letters: stored exactly, shown nowhere."""
    odd = ("a\0b", "\u202e right to left", "<script>alert(1)</script>", "' or 1=1 --", "café \U0001f9f5")
    for number, value in enumerate(odd):
        assert ada.add(f"odd{number}", value.encode()).status_code == 303
        page = ada.http.get("/settings/secrets").text
        assert f"odd{number} was stored" in page
        assert value not in page and html.escape(value) not in page


@pytest.mark.parametrize("path", ["/settings/secrets", "/settings/account/password"])
def test_bytes_that_are_no_text_are_not_made_into_some(ada: Visitor, path: str) -> None:
    """A field that is not UTF-8, a form that is cut off, or none at all: refused, not guessed at."""
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


def test_a_body_that_is_too_large_is_refused(ada: Visitor) -> None:
    """A page is no way to fill the memory; a value just over its limit is told so by name."""
    try:
        status = ada.add("large", b"x" * 2_000_000).status_code
    except httpx.TransportError:  # the manager closed the connection while the rest was still being sent
        status = 413
    assert status == 413
    ada.http = httpx.Client(base_url=ada.http.base_url, cookies=ada.http.cookies, trust_env=False)
    response = ada.add("large", b"x" * 65_537)
    assert (response.status_code, "65536" in response.text.replace(",", "")) == (400, True)


def test_odd_addresses_show_a_page_all_the_same(ada: Visitor) -> None:
    """What stands in an address is not an error of the person who looks at it."""
    for query in ["page=x", "page=0", "page=-1", "page=999999999999", "before=x", "before=1e9", "q=%00%ff"]:
        assert ada.http.get(f"/settings/secrets?{query}").status_code == 200
        assert ada.http.get(f"/settings/audit?{query}").status_code == 200


def test_a_part_of_a_page_is_sent_where_a_part_is_asked_for(ada: Visitor) -> None:
    """The live filter gets its rows alone; one whose session has ended is sent to sign in as a whole."""
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
