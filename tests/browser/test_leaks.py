"""A stored value is nowhere in a browser: no answer, no document, no history, no form that fills itself in again."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Site
from tests.conftest import leaks_in

VALUE = "sk-proj-" + "Zq7LeAkme9" * 5
LATER = "sk-proj-" + "Xw4rOtAted" * 5


NUMBERS = itertools.count()


@pytest.fixture
def used(site: Site) -> Site:
    """A secret that went through every form there is."""
    page = site.page
    site.keep_answers()
    name = f"leaky_{next(NUMBERS)}"
    site.add(name, VALUE)
    site.open(name)
    page.get_by_label("New value").fill(LATER)
    page.get_by_role("button", name="Replace").click()
    site.row("v1").get_by_role("button", name="Roll back").click()
    expect(site.row("v3")).to_contain_text("current")
    site.row("v2").locator("summary").click()
    site.row("v2").get_by_role("button", name="Destroy v2").click()
    page.get_by_label("New value").fill(LATER)
    page.get_by_label("or a file").set_input_files(
        files=[{"name": "both.txt", "mimeType": "text/plain", "buffer": VALUE.encode()}]
    )
    page.get_by_role("button", name="Replace").click()
    expect(page.get_by_role("alert")).to_contain_text("use only one")
    for path in ("secrets", "audit", "deployments", "secrets?deleted=1", "account", "api-keys", "people"):
        page.goto(f"/settings/{path}")
    page.goto("/settings/secrets")
    site.row(name).get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo").click()
    expect(site.row(name)).to_have_count(1)
    return site


def everything_in(site: Site) -> bytes:
    """All that the page can tell: markup, fields, storage, history, caches."""
    seen = site.page.evaluate(
        """async () => ({
          markup: document.documentElement.outerHTML,
          fields: [...document.querySelectorAll("input, textarea, select")].map((field) => field.value),
          local: {...localStorage}, session: {...sessionStorage}, state: history.state, url: location.href,
          caches: "caches" in window ? await caches.keys() : [],
          cookies: document.cookie,
        })"""
    )
    return json.dumps(seen).encode()


def test_no_answer_holds_a_value(used: Site) -> None:
    """Of all that the manager sent, headers too, nothing holds either value in any form."""
    assert len(used.kept) > 20
    for url, headers, body in used.kept:
        assert not leaks_in(headers, VALUE.encode(), LATER.encode()), url
        assert not leaks_in(body, VALUE.encode(), LATER.encode()), url
    assert not [url for url in used.requested if leaks_in(url.encode(), VALUE.encode(), LATER.encode())]


def test_no_document_storage_or_cookie_holds_a_value(used: Site) -> None:
    """Nor does anything that a script, an extension or a copy of the tab could read."""
    assert not leaks_in(everything_in(used), VALUE.encode(), LATER.encode())
    assert not leaks_in(json.dumps(used.context.storage_state()).encode(), VALUE.encode(), LATER.encode())


def test_going_back_finds_an_empty_field(site: Site) -> None:
    """What was typed and sent, or typed and left, is not in the field when one comes back to it."""
    page = site.page
    page.get_by_label("Name").fill("went_back")
    page.get_by_label("Value").fill(VALUE)
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("went_back")).to_contain_text("v1")
    page.go_back()
    assert not leaks_in(everything_in(site), VALUE.encode())
    page.goto("/settings/secrets")
    page.get_by_label("Value").fill(LATER)
    page.get_by_role("link", name="Account").click()
    page.go_back()
    expect(page.get_by_label("Value")).to_have_value("")
    page.get_by_label("Value").fill(LATER)
    page.reload()
    expect(page.get_by_label("Value")).to_have_value("")
    assert not leaks_in(everything_in(site), LATER.encode())


def test_nothing_is_kept_by_the_browser(used: Site) -> None:
    """Every page says no-store, so nothing of it is in a cache or in the page that Back shows after a sign-out."""
    pages = [a for a in used.answers if "/static/" not in a.url]
    kept = {a.url for a in pages if a.all_headers().get("cache-control") != "no-store"}
    assert pages
    assert not kept
    page = used.page
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_the_policy_for_content_stops_what_does_not_belong(site: Site) -> None:
    """A script or a style that somebody got into the page does not run, and nothing is fetched from elsewhere."""
    page = site.page
    done: Any = page.evaluate(
        """() => {
          const script = document.createElement("script");
          script.textContent = "window.wasRun = true";
          document.body.append(script);
          const image = new Image();
          return new Promise((resolve) => {
            image.onerror = () => resolve({ran: !!window.wasRun, image: "refused"});
            image.onload = () => resolve({ran: !!window.wasRun, image: "loaded"});
            image.src = "https://example.invalid/x.png";
          });
        }"""
    )
    assert done == {"ran": False, "image": "refused"}
    assert len(site.said) == 2 and all("Content Security Policy" in line for line in site.said)
    site.said.clear()
    site.requested[:] = [url for url in site.requested if "example.invalid" not in url]
