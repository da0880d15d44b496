"""The browser that the other tests of this folder drive."""

from __future__ import annotations

from playwright.sync_api import Browser


def test_chromium_shows_a_page(browser: Browser) -> None:
    """Chromium starts here and shows what it is given."""
    page = browser.new_page()
    page.set_content("<title>gusset</title><h1>here</h1>")
    assert (page.title(), page.inner_text("h1")) == ("gusset", "here")
    page.close()
