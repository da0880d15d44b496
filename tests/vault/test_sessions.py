"""How people sign in."""

from __future__ import annotations

import pytest

from gusset.errors import NotSignedIn
from gusset.secrets.value import SecretValue
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.services import sessions
from gusset.vault.services.sessions import MAX_SESSION_LIFETIME
from tests.vault.conftest import Clock

ADA = "ada@example.com"
OLD, NEW = SecretValue(b"correct horse battery"), SecretValue(b"staple horse battery")


def test_a_password_that_is_changed_while_it_is_verified_signs_nobody_in(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session would be newer than the change, and so would not end with it."""
    ada, _ = vault.people.create_first(ADA, OLD, actor="setup")
    _, kept = vault.sessions.sign_in(ADA, OLD)
    verify = sessions.verify_password

    def verify_slowly(stored: str | None, password: SecretValue) -> bool:
        monkeypatch.undo()
        verified = verify(stored, password)
        vault.sessions.change_password(ada, OLD, NEW, keep=kept.reveal().decode(), actor=ADA)
        return verified

    monkeypatch.setattr(sessions, "verify_password", verify_slowly)
    with pytest.raises(NotSignedIn, match="password is wrong"):
        vault.sessions.sign_in(ADA, OLD)
    assert vault.sessions.authenticate(kept.reveal().decode()) is not None
    vault.sessions.sign_in(ADA, NEW)


def test_the_token_of_a_session_is_known_as_long_as_a_session_can_last(
    settings: Settings, clock: Clock
) -> None:
    """Also by another process, after a rotation of the keys, and when its row is gone; no other text is."""
    with open_vault(settings, clock=clock) as vault, open_vault(settings, clock=clock) as other:
        vault.people.create_first(ADA, OLD, actor="setup")
        vault.key_rotation.rotate(actor=ADA)
        _, session = vault.sessions.sign_in(ADA, OLD)
        token = session.reveal().decode()
        vault.sessions.sign_out(token, actor=ADA)
        assert other.sessions.is_genuine(token)
        other.key_rotation.rotate(actor=ADA)
        assert vault.sessions.is_genuine(token)
        made, random, mac = token.split(".")
        for text in (f"{int(made) + 1}.{random}.{mac}", f"{random}.{mac}", f"{token}x", random, ""):
            assert not vault.sessions.is_genuine(text)
        clock.advance(MAX_SESSION_LIFETIME.total_seconds() + 1)
        assert not vault.sessions.is_genuine(token)
