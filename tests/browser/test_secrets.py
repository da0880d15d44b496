"""The page of secrets in a real browser: what a person does there, from the first secret on."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.browser.conftest import Site, faults

VALUE = "hf_" + "aB3dE6gH" * 5


def test_a_person_adds_a_secret(site: Site) -> None:
    """Name, Value, Add secret: it is listed, stored exactly, and its value is in no page."""
    page = site.page
    expect(page.get_by_role("heading", name="No secrets yet")).to_be_visible()
    site.add("hf_access_token", VALUE)
    row = page.get_by_role("row").filter(has_text="hf_access_token")
    expect(row).to_contain_text("v1")
    expect(row).to_contain_text("just now")
    assert page.get_by_label("Value").input_value() == ""
    assert site.stored("hf_access_token") == VALUE.encode()
    assert VALUE not in page.content()
    assert faults(page) == []
