"""The page of secrets in a real browser: adding secrets."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Site, accessibility_problems

VALUE = "hf_" + "aB3dE6gH" * 5
ANY_UTC = re.compile(r" UTC$")


def test_an_added_secret_is_listed_and_stored_exactly(site: Site) -> None:
    """Its value is not in the page."""
    page = site.page
    site.add("hf_access_token", VALUE)
    row = site.row("hf_access_token")
    expect(row).to_contain_text("v1")
    expect(row).to_contain_text("just now")
    expect(row.get_by_role("cell").nth(2).locator("time")).to_have_attribute("title", ANY_UTC)
    expect(page.get_by_label("Value")).to_have_value("")
    assert site.stored("hf_access_token") == VALUE.encode()
    assert VALUE not in page.content()
    assert accessibility_problems(page) == []


def test_a_suspicious_value_is_stored_unchanged_with_a_warning(site: Site) -> None:
    """The value doctor's findings are in the notice."""
    site.add("hf_with_space", f"{VALUE} ")
    notice = site.page.get_by_role("status").filter(has_text="hf_with_space was stored")
    expect(notice).to_contain_text("ends in white space")
    assert site.stored("hf_with_space") == f"{VALUE} ".encode()


def test_an_empty_value_is_stored_only_if_confirmed(site: Site) -> None:
    """Pressing Enter too early stores nothing; a checkbox confirms."""
    page = site.page
    page.get_by_label("Name").fill("perhaps_empty")
    page.get_by_role("button", name="Add secret").click()
    expect(page.get_by_role("alert")).to_contain_text("The value is empty")
    expect(page.get_by_label("Name")).to_have_value("perhaps_empty")
    assert accessibility_problems(page) == []
    page.get_by_label("Store even if empty").check()
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("perhaps_empty")).to_contain_text("v1")
    assert site.stored("perhaps_empty") == b""


PEM = "-----BEGIN PRIVATE KEY-----\nMIIBVQIBADANBgkqhkiG9w0BAQ==\n-----END PRIVATE KEY-----\n"


def test_pasted_text_keeps_its_line_ends(site: Site) -> None:
    """The one-line input becomes a masked textarea, since it would drop the line ends of a PEM key."""
    page = site.page
    page.get_by_label("Name").fill("pasted_key")
    page.get_by_label("Value").focus()
    page.evaluate(
        """text => {
          const data = new DataTransfer(); data.setData("text/plain", text);
          document.activeElement.dispatchEvent(
            new ClipboardEvent("paste", {clipboardData: data, bubbles: true, cancelable: true}));
        }""",
        PEM,
    )
    field = page.get_by_label("Value")
    expect(field).to_be_focused()
    expect(field).to_have_value(PEM)
    expect(field).to_have_css("-webkit-text-security", "disc")
    page.get_by_role("button", name="Show").click()
    expect(field).to_have_css("-webkit-text-security", "none")
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("pasted_key")).to_contain_text("v1")
    assert site.stored("pasted_key") == PEM.encode()


@pytest.mark.parametrize("data", [b"\x00\xff\r\n\n\r", b"a line\r\nanother\r\n", b"\xef\xbb\xbfbom"])
def test_a_file_is_stored_byte_for_byte(site: Site, data: bytes) -> None:
    """Binary data, all kinds of line ends, and a byte order mark."""
    page, name = site.page, f"file_{data.hex()}"
    page.get_by_label("Name").fill(name)
    page.get_by_text("File, note, expiry date").click()
    page.get_by_label("or a file").set_input_files(
        files=[{"name": "value.bin", "mimeType": "application/octet-stream", "buffer": data}]
    )
    page.get_by_role("button", name="Add secret").click()
    expect(site.row(name)).to_contain_text("v1")
    assert site.stored(name) == data


def test_a_file_that_is_too_large_is_refused_before_the_upload(site: Site) -> None:
    """The limit is 65,536 bytes; the browser reports more at the field."""
    page = site.page
    page.get_by_label("Name").fill("too_large")
    page.get_by_text("File, note, expiry date").click()
    field = page.get_by_label("or a file")
    field.set_input_files(files=[{"name": "x", "mimeType": "text/plain", "buffer": b"x" * 65_537}])
    page.get_by_role("button", name="Add secret").click()
    assert "65,536" in field.evaluate("field => field.validationMessage")
    field.set_input_files(files=[{"name": "x", "mimeType": "text/plain", "buffer": b"x" * 65_536}])
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("too_large")).to_contain_text("v1")


def test_a_value_entered_as_the_name_is_not_stored(site: Site) -> None:
    """The message tells which kind of token it is, and the page does not repeat it."""
    page = site.page
    page.get_by_label("Name").fill(VALUE)
    page.get_by_label("Value").fill("hf_access_token")
    page.get_by_role("button", name="Add secret").click()
    expect(page.get_by_role("alert")).to_contain_text("looks like a Hugging Face token")
    assert VALUE not in page.content()
    expect(page.get_by_label("Name")).to_have_value("")


def test_an_invalid_name_is_refused_by_the_browser(site: Site) -> None:
    """Nothing is sent for a name with a space."""
    page = site.page
    page.get_by_label("Name").fill("hf token")
    page.get_by_label("Value").fill(VALUE)
    before = len(site.requested)
    page.get_by_role("button", name="Add secret").click()
    assert page.get_by_label("Name").evaluate("field => field.validity.patternMismatch")
    assert len(site.requested) == before


def test_another_spelling_of_a_name_is_a_conflict(site: Site) -> None:
    """`a-b` after `a_b` is refused, and the message names the existing secret."""
    page = site.page
    site.add("one_spelling", "first")
    page.get_by_label("Name").fill("one-spelling")
    page.get_by_label("Value").fill("second")
    page.get_by_role("button", name="Add secret").click()
    expect(page.get_by_role("alert")).to_contain_text("another spelling of the secret one_spelling")
    assert site.stored("one_spelling") == b"first"


def test_a_typed_value_is_masked_until_shown(site: Site) -> None:
    """A button shows and hides it."""
    page = site.page
    field = page.get_by_label("Value")
    expect(field).to_have_attribute("type", "password")
    button = page.get_by_role("button", name="Show")
    button.click()
    expect(field).to_have_attribute("type", "text")
    page.get_by_role("button", name="Hide").click()
    expect(field).to_have_attribute("type", "password")


def test_markup_in_a_note_is_shown_as_text(site: Site) -> None:
    """HTML and quotes; direction marks, which could reorder the text around them, as their codes."""
    page = site.page
    note = "<img src=x onerror=alert(1)>\"'&amp; \u202eevil"
    page.get_by_label("Name").fill("noted")
    page.get_by_label("Value").fill("a value")
    page.get_by_text("File, note, expiry date").click()
    page.get_by_label("Note").fill(note)
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("noted")).to_contain_text(note.replace("\u202e", "\\u202e"))
    assert page.locator("main img").count() == 0
