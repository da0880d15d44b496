"""CSRF tokens and signed notices belong to one session."""

from __future__ import annotations

import pytest
from itsdangerous import TimestampSigner

from gusset.manager.pages.page_types import Notice
from gusset.manager.pages.session_tokens import (
    DEVICE_SECONDS,
    NOTICE_SECONDS,
    csrf_token,
    known_device,
    load_notice,
    sign_device,
    sign_notice,
)

NOTICE = Notice("warning", "x was stored.", undo_url="/undo", details=("ends in white space: check it",))


def test_a_signed_notice_loads_in_its_own_session() -> None:
    """With all its fields."""
    assert load_notice(sign_notice(NOTICE, "session"), "session") == NOTICE


@pytest.mark.parametrize("session", ["", "another session"])
def test_a_notice_of_another_session_is_ignored(session: str) -> None:
    assert load_notice(sign_notice(NOTICE, session), "session") is None


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "\udc80", "x" * 5000])
def test_a_cookie_that_was_not_signed_is_ignored(text: str) -> None:
    assert load_notice(text, "session") is None


def test_an_old_notice_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kept cookie shows nothing after a minute."""
    signed = sign_notice(NOTICE, "session")
    now = TimestampSigner.get_timestamp
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda self: now(self) + NOTICE_SECONDS + 1)
    assert load_notice(signed, "session") is None


def test_a_long_notice_is_shortened_to_fit_a_cookie() -> None:
    """The details are dropped, and the text is cut: a browser would drop the whole cookie."""
    details = tuple(f"finding {number}: {number * 7919 % 104729}" * 5 for number in range(500))
    signed = sign_notice(Notice("ok", "stored", details=details), "session")
    assert len(signed) < 4000
    assert load_notice(signed, "session") == Notice("ok", "stored")


def test_each_session_has_its_own_csrf_token() -> None:
    assert csrf_token("a") != csrf_token("b")


KEY = b"k" * 32


def test_a_browser_is_known_to_the_account_that_it_signed_in_to() -> None:
    """To no other, and each browser has an id of its own."""
    cookie = sign_device("ada@example.com", KEY)
    assert known_device(cookie, "ada@example.com", KEY)
    assert known_device(cookie, "bob@example.com", KEY) is None
    assert known_device(cookie, "ada@example.com", b"another vault's key") is None
    assert known_device(cookie, "ada@example.com", KEY) != known_device(
        sign_device("ada@example.com", KEY), "ada@example.com", KEY
    )


@pytest.mark.parametrize("text", ["", "x", "a.b.c", "\udc80", "x" * 5000])
def test_a_forged_cookie_makes_no_browser_known(text: str) -> None:
    assert known_device(text, "ada@example.com", KEY) is None


def test_a_browser_is_forgotten_after_half_a_year(monkeypatch: pytest.MonkeyPatch) -> None:
    cookie, now = sign_device("ada@example.com", KEY), TimestampSigner(KEY).get_timestamp()
    monkeypatch.setattr(TimestampSigner, "get_timestamp", lambda _: now + DEVICE_SECONDS + 1)
    assert known_device(cookie, "ada@example.com", KEY) is None
