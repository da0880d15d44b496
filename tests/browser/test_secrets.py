"""The page of secrets in a real browser: what a person does there, from the first secret on."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import Site, faults

VALUE = "hf_" + "aB3dE6gH" * 5
ANY_UTC = re.compile(r" UTC$")


def test_a_person_adds_a_secret(site: Site) -> None:
    """Name, Value, Add secret: it is listed, stored exactly, and its value is in no page."""
    page = site.page
    site.add("hf_access_token", VALUE)
    row = site.row("hf_access_token")
    expect(row).to_contain_text("v1")
    expect(row).to_contain_text("just now")
    expect(row.get_by_role("cell").nth(2).locator("time")).to_have_attribute("title", ANY_UTC)
    expect(page.get_by_label("Value")).to_have_value("")
    assert site.stored("hf_access_token") == VALUE.encode()
    assert VALUE not in page.content()
    assert faults(page) == []


def test_what_seems_wrong_with_a_value_is_said_and_it_is_kept_exactly(site: Site) -> None:
    """The value doctor warns on the page; it alters nothing."""
    site.add("hf_with_space", f"{VALUE} ")
    said = site.page.get_by_role("status").filter(has_text="hf_with_space was stored")
    expect(said).to_contain_text("ends in white space")
    assert site.stored("hf_with_space") == f"{VALUE} ".encode()


def test_an_empty_value_is_stored_only_when_it_is_meant(site: Site) -> None:
    """Enter pressed too early stores nothing; the box says that it is meant."""
    page = site.page
    page.get_by_label("Name").fill("perhaps_empty")
    page.get_by_role("button", name="Add secret").click()
    expect(page.get_by_role("alert")).to_contain_text("The value is empty")
    expect(page.get_by_label("Name")).to_have_value("perhaps_empty")
    assert faults(page) == []
    page.get_by_label("Store even if empty").check()
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("perhaps_empty")).to_contain_text("v1")
    assert site.stored("perhaps_empty") == b""


PEM = "-----BEGIN PRIVATE KEY-----\nMIIBVQIBADANBgkqhkiG9w0BAQ==\n-----END PRIVATE KEY-----\n"


def test_pasted_lines_stay_lines(site: Site) -> None:
    """A one-line field would run a pasted PEM key together; the page gives it a field with lines, still masked."""
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
def test_a_file_is_kept_to_the_byte(site: Site, data: bytes) -> None:
    """Bytes, line ends of any kind and a byte order mark come out as they went in."""
    page, name = site.page, f"file_{data.hex()}"
    page.get_by_label("Name").fill(name)
    page.get_by_text("File, note, expiry date").click()
    page.get_by_label("or a file").set_input_files(
        files=[{"name": "value.bin", "mimeType": "application/octet-stream", "buffer": data}]
    )
    page.get_by_role("button", name="Add secret").click()
    expect(site.row(name)).to_contain_text("v1")
    assert site.stored(name) == data


def test_a_file_that_is_too_large_is_refused_before_it_is_sent(site: Site) -> None:
    """65,536 bytes are the most; one more and the browser says so, next to the field."""
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


def test_a_value_in_the_field_for_the_name_is_not_stored_as_a_name(site: Site) -> None:
    """A token that was pasted into the wrong field is named for what it is, and not shown again."""
    page = site.page
    page.get_by_label("Name").fill(VALUE)
    page.get_by_label("Value").fill("hf_access_token")
    page.get_by_role("button", name="Add secret").click()
    expect(page.get_by_role("alert")).to_contain_text("looks like a Hugging Face token")
    assert VALUE not in page.content()
    expect(page.get_by_label("Name")).to_have_value("")


def test_a_name_is_checked_as_it_is_typed(site: Site) -> None:
    """A space in a name: the browser says so before anything is sent."""
    page = site.page
    page.get_by_label("Name").fill("hf token")
    page.get_by_label("Value").fill(VALUE)
    before = len(site.requested)
    page.get_by_role("button", name="Add secret").click()
    assert page.get_by_label("Name").evaluate("field => field.validity.patternMismatch")
    assert len(site.requested) == before


def test_another_spelling_is_a_conflict_that_names_the_first(site: Site) -> None:
    """`a-b` after `a_b` is told, not silently made one with it."""
    page = site.page
    site.add("one_spelling", "first")
    page.get_by_label("Name").fill("one-spelling")
    page.get_by_label("Value").fill("second")
    page.get_by_role("button", name="Add secret").click()
    expect(page.get_by_role("alert")).to_contain_text("one_spelling in another spelling")
    assert site.stored("one_spelling") == b"first"


def test_show_and_hide(site: Site) -> None:
    """The value is masked until the person asks to see what they type."""
    page = site.page
    field = page.get_by_label("Value")
    expect(field).to_have_attribute("type", "password")
    button = page.get_by_role("button", name="Show")
    button.click()
    expect(field).to_have_attribute("type", "text")
    page.get_by_role("button", name="Hide").click()
    expect(field).to_have_attribute("type", "password")


def test_markup_in_a_note_stays_text(site: Site) -> None:
    """HTML, quotes and right-to-left marks in a note are shown as text."""
    page = site.page
    note = "<img src=x onerror=alert(1)>\"'&amp; \u202eevil"
    page.get_by_label("Name").fill("noted")
    page.get_by_label("Value").fill("a value")
    page.get_by_text("File, note, expiry date").click()
    page.get_by_label("Note").fill(note)
    page.get_by_role("button", name="Add secret").click()
    expect(site.row("noted")).to_contain_text(note)
    assert page.locator("main img").count() == 0
