"""How people sign in."""

from __future__ import annotations

import pytest

from gusset.errors import NotSignedIn
from gusset.secrets.value import SecretValue
from gusset.vault import Vault
from gusset.vault.services import sessions

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
