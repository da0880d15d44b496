"""The pages work without JavaScript, by keyboard, on a phone, in dark mode and with a screen reader."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, accessibility_problems
from tests.browser.test_versions import replica

PAGES = (
    "secrets",
    "secrets?deleted=1",
    "deployments",
    "identities",
    "api-keys",
    "people",
    "audit",
    "account",
)


def test_secrets_can_be_managed_without_javascript(open_site: Callable[..., Site]) -> None:
    """Signing in, adding, filtering, replacing, deleting and undoing use plain forms and links."""
    site = open_site(java_script_enabled=False)
    page = site.sign_in()
    for name in ("plain_one", "plain_two"):
        site.add(name, "a value")
    page.get_by_label("Filter", exact=True).fill("_TWO")
    page.get_by_role("button", name="Filter").click()
    expect(site.row("plain_one")).to_have_count(0)
    expect(site.row("plain_two")).to_have_count(1)
    site.row("plain_two").get_by_role("link", name="Replace").click()
    page.get_by_label("New value").fill("another value")
    page.get_by_role("button", name="Replace").click()
    expect(page.get_by_role("status")).to_contain_text("Version 2 is current now")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_role("status").filter(has_text="plain_two was restored")).to_be_visible()
    assert site.stored("plain_two") == b"another value"
    for useless in page.locator("[data-copy], [data-show]").all():
        expect(useless).to_be_hidden()


def test_secrets_can_be_managed_by_keyboard(site: Site) -> None:
    """Skip to the content, add a secret, delete it, undo; the focus is always visible."""
    page = site.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to content")).to_be_focused()
    expect(page.get_by_role("link", name="Skip to content")).to_be_in_viewport()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Name")).to_be_focused()
    page.keyboard.type("by_keyboard")
    page.keyboard.press("Tab")
    expect(page.get_by_label("Value")).to_be_focused()
    page.keyboard.type("a value")
    page.keyboard.press("Enter")
    expect(site.row("by_keyboard")).to_contain_text("v1")
    tab_to(page, "Delete by_keyboard")
    page.keyboard.press("Enter")
    expect(site.row("by_keyboard")).to_have_count(0)
    tab_to(page, "Undo")
    page.keyboard.press("Space")
    expect(site.row("by_keyboard")).to_contain_text("v1")


def tab_to(page: Page, text: str) -> None:
    """Press Tab until the focused element has this text; each focused element must have an outline."""
    for _ in range(60):
        page.keyboard.press("Tab")
        label, outline = page.evaluate(
            "[document.activeElement.innerText, getComputedStyle(document.activeElement).outlineStyle]"
        )
        assert outline != "none", f"no visible focus on {label!r}"
        if label.split() == text.split():
            return
    raise AssertionError(f"Tab never reached {text}")


def test_the_filter_narrows_the_list_while_typing(site: Site) -> None:
    """Without a reload; the URL keeps the filter; long lists are paginated."""
    with site.manager.client() as admin:
        many = [{"name": f"many_{number:03}", "value": "a value"} for number in range(60)]
        assert admin.post("/v1/secrets:batch", json={"secrets": many}).status_code == 200
    page = site.page
    page.reload()
    pages = page.get_by_role("navigation", name="List pages")
    expect(pages).to_contain_text("Page 1 of")
    page.evaluate("window.sameDocument = true")
    page.get_by_label("Filter", exact=True).press_sequentially("many_05")
    expect(site.row("many_0")).to_have_count(10)
    expect(page.get_by_label("Filter", exact=True)).to_be_focused()
    assert page.evaluate("window.sameDocument")
    page.reload()
    expect(site.row("many_0")).to_have_count(10)
    page.goto("/settings/secrets?q=many")
    pages.get_by_role("link", name="Next").click()
    expect(pages).to_contain_text("Page 2 of 3, 60 secrets")
    expect(site.row("many_025")).to_have_count(1)
    page.get_by_label("Filter", exact=True).fill("nothing is so called")
    expect(page.get_by_text("No secret of team default has")).to_be_visible()
    assert accessibility_problems(page) == []


@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        (360, "light"),
        (1280, "dark"),
        pytest.param(360, "dark", marks=pytest.mark.matrix),
        pytest.param(1280, "light", marks=pytest.mark.matrix),
    ],
)
def test_every_page_fits_its_screen_and_is_accessible(
    open_site: Callable[..., Site], signed_in: Any, scheme: str, width: int
) -> None:
    """No page scrolls sideways, and axe finds no problem, in light and dark mode."""
    options: dict[str, Any] = {"color_scheme": scheme, "viewport": {"width": width, "height": 760}}
    site = open_site(storage_state=signed_in, **options)
    longest = "a-long-name." * 21
    with site.manager.client() as admin:
        made = admin.post("/v1/secrets", json={"name": longest, "value": "a value", "note": "n" * 200}).json()
        replica(site, longest, deployment="d" * 200)
        deployment = admin.get("/v1/deployments").json()["deployments"][0]["id"]
    for path in (*PAGES, f"secrets/{made['id']}", f"deployments/{deployment}", "nothing"):
        check(site, f"/settings/{path}", width)
    stranger = open_site(**options)
    check(stranger, "/signin", width)
    check(stranger, "/setup/no-such-link", width)


def check(site: Site, path: str, width: int) -> None:
    site.page.goto(path)
    wide = site.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, f"{path} is {wide} pixels wide"
    assert accessibility_problems(site.page) == [], path


def test_an_open_page_updates_its_relative_times(site: Site) -> None:
    """In the same words as the server."""
    page = site.page
    site.add("aging", "a value")
    time = site.row("aging").locator("time").first
    stated = time.get_attribute("datetime")
    page.clock.install()
    page.goto("/settings/secrets")
    page.clock.fast_forward("02:10")
    expect(time).to_have_text("2 minutes ago")
    page.clock.fast_forward("25:00:00")
    expect(time).to_have_text("yesterday")
    assert time.get_attribute("datetime") == stated
