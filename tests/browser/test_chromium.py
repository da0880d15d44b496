"""The browser itself."""

from __future__ import annotations

from playwright.sync_api import Browser


def test_chromium_renders_a_page(browser: Browser) -> None:
    """Chromium starts and renders HTML."""
    page = browser.new_page()
    page.set_content("<title>gusset</title><h1>here</h1>")
    assert (page.title(), page.inner_text("h1")) == ("gusset", "here")
    page.close()
