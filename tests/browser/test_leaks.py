"""A stored value never appears in a browser: in no response, document, storage, history or restored form."""

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
    """The pages after a secret went through every form."""
    page = site.page
    site.keep_responses()
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


def state_of(site: Site) -> bytes:
    """Everything a script could read: markup, fields, storage, history state, cache names, cookies."""
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


def test_no_response_contains_a_value(used: Site) -> None:
    """Nor any response header or requested URL, in any encoding."""
    assert len(used.kept) > 20
    for url, headers, body in used.kept:
        assert not leaks_in(headers, VALUE.encode(), LATER.encode()), url
        assert not leaks_in(body, VALUE.encode(), LATER.encode()), url
    assert not [url for url in used.requested if leaks_in(url.encode(), VALUE.encode(), LATER.encode())]


def test_no_document_storage_or_cookie_contains_a_value(used: Site) -> None:
    """Nor anything else that a script, an extension or a duplicated tab could read."""
    assert not leaks_in(state_of(used), VALUE.encode(), LATER.encode())
    assert not leaks_in(json.dumps(used.context.storage_state()).encode(), VALUE.encode(), LATER.encode())


def test_the_value_field_is_empty_after_going_back(site: Site) -> None:
    """Whether the value was submitted or only typed, and after a reload."""
    page = site.page
    page.get_by_label("Name").fill("went_back")
    page.get_by_label("Value").fill(VALUE)
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("went_back")).to_contain_text("v1")
    page.go_back()
    assert not leaks_in(state_of(site), VALUE.encode())
    page.goto("/settings/secrets")
    page.get_by_label("Value").fill(LATER)
    page.get_by_role("link", name="Account").click()
    page.go_back()
    expect(page.get_by_label("Value")).to_have_value("")
    page.get_by_label("Value").fill(LATER)
    page.reload()
    expect(page.get_by_label("Value")).to_have_value("")
    assert not leaks_in(state_of(site), LATER.encode())


def test_pages_are_not_cached_by_the_browser(used: Site) -> None:
    """They are no-store, so that Back after signing out shows the sign-in page."""
    pages = [a for a in used.responses if "/static/" not in a.url]
    kept = {a.url for a in pages if a.all_headers().get("cache-control") != "no-store"}
    assert pages
    assert not kept
    page = used.page
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()


def test_the_content_security_policy_blocks_injected_scripts_and_images(site: Site) -> None:
    """An inline script does not run, and an image from another host is not loaded."""
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
    assert len(site.messages) == 2 and all("Content Security Policy" in line for line in site.messages)
    site.messages.clear()
    site.requested[:] = [url for url in site.requested if "example.invalid" not in url]
