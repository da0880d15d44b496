"""Whoever can write the database, but has no root key, keeps no right from being ended by rows of their own."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from gusset.errors import Conflict, NotSignedIn, TokenRefused
from gusset.secrets.value import SecretValue
from gusset.vault.services.people import TokenChoice
from gusset.vault.storage.signed_rows import SignedTable
from gusset.vault.storage.tables import ACCESS_KEYS, IDENTITIES, MEMBERS, SESSIONS, TEAMS, USERS
from tests.vault.rights import (
    ADA,
    BOB,
    NEW_PASSWORD,
    PASSWORD,
    Hidden,
    Rights,
    disable,
    prefix,
)

pytestmark = pytest.mark.slow  # each hashes a few passwords

# Rows that belong to nobody, each made for a table.
FORGED_KEY = {"prefix": "aaaaaaaa", "hash": b"1" * 32}
FORGED_SESSION = {"hash": b"1" * 32}
FORGED_IDENTITY = {"id": "forged", "name": "forged"}


def test_forged_rows_keep_no_key_from_being_revoked(rights: Rights) -> None:
    """A key that says that it was made by it."""
    rights.add_like(ACCESS_KEYS, {**FORGED_KEY, "created_by": f"{BOB} (key {rights.key_prefix})"})

    rights.revoke_key()

    assert not rights.key_is_valid() and not rights.token_is_valid()


def in_the_way_of_disabling(rights: Rights) -> dict[SignedTable, Mapping[str, Any]]:
    """In each table a row that says that it is bob's, or made by him."""
    bob = rights.bob.id
    return {
        ACCESS_KEYS: {**FORGED_KEY, "created_by": BOB, "user_id": bob, "kind": "token"},
        SESSIONS: {**FORGED_SESSION, "user_id": bob},
        IDENTITIES: {**FORGED_IDENTITY, "created_by": BOB},
        USERS: {"id": "forged", "email": "forged@example.com", "role": "admin"},
        MEMBERS: {"team_id": "forged", "user_id": bob},
        TEAMS: {"id": "forged", "name": "forged"},
    }


@pytest.mark.parametrize(
    "table", [ACCESS_KEYS, SESSIONS, IDENTITIES, USERS, MEMBERS, TEAMS], ids=lambda each: each.name
)
def test_forged_rows_keep_nobody_from_being_disabled_or_demoted(rights: Rights, table: SignedTable) -> None:
    rights.add_like(table, in_the_way_of_disabling(rights)[table])

    rights.vault.people.update(rights.bob.id, role="member", actor=ADA)
    disabled = rights.vault.people.update(rights.bob.id, disabled=True, tokens="revoke", actor=ADA)

    assert (disabled.role, [team.id for team in disabled.teams]) == ("member", [rights.team])
    assert not rights.key_is_valid() and not rights.token_is_valid()
    found = rights.sql("SELECT count(*) FROM identities WHERE id <> 'forged'")
    found += rights.sql("SELECT count(*) FROM sessions WHERE hash <> ?", FORGED_SESSION["hash"])
    assert found == [(0,), (0,)]


@pytest.mark.parametrize("table", [SESSIONS, USERS, MEMBERS, TEAMS], ids=lambda each: each.name)
def test_forged_rows_keep_nobody_from_acting(rights: Rights, table: SignedTable) -> None:
    """An administrator sees every team but what was forged, and a forged membership gives nothing."""
    rights.add_like(table, in_the_way_of_disabling(rights)[table])
    vault = rights.vault

    assert vault.sessions.authenticate(rights.session) is not None
    person, _ = vault.sessions.sign_in(BOB, PASSWORD)
    assert [team.id for team in person.teams] == [team.id for team in vault.teams.all()] == [rights.team]
    assert vault.people.get(rights.bob.id).teams == person.teams
    assert vault.audit.verify().problems


NO_TEXT = "CAST(x'ff' AS TEXT)"


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE teams SET name = 'forged'",
        "UPDATE members SET mac = x'00'",
        "UPDATE deployments SET name = 'forged'",
        pytest.param(
            f"UPDATE deployments SET name = {NO_TEXT}", marks=pytest.mark.sqlite("PostgreSQL checks texts")
        ),
        pytest.param(
            f"UPDATE teams SET name = {NO_TEXT}", marks=pytest.mark.sqlite("PostgreSQL checks texts")
        ),
        pytest.param(
            f"INSERT INTO sessions SELECT x'01', user_id, {NO_TEXT}, seen_at, expires_at, changed_seq, mac FROM sessions",
            marks=pytest.mark.sqlite("PostgreSQL checks texts"),
        ),
    ],
)
def test_an_altered_team_membership_or_text_keeps_no_right_from_being_ended(
    rights: Rights, change: str
) -> None:
    """Of an administrator who is still signed in, and has a token and an identity in that team."""
    rights.sql(change)
    person = rights.vault.sessions.authenticate(rights.session)
    assert person is not None and person.has_altered_teams is ("teams" in change or "members" in change)

    assert rights.vault.teams.remove_member(rights.team, rights.bob.id, actor=ADA).teams == ()
    disable(rights, "revoke")

    assert not rights.key_is_valid() and not rights.token_is_valid()
    assert rights.sql("SELECT count(*) FROM identities") == [(0,)]
    assert rights.vault.sessions.authenticate(rights.session) is None


def test_a_forged_membership_is_replaced_by_a_right_one(rights: Rights) -> None:
    rights.sql("UPDATE members SET mac = x'00' WHERE user_id = ?", rights.bob.id)
    added = rights.vault.teams.add_member(rights.team, rights.bob.id, actor=ADA)
    assert [team.id for team in added.teams] == [rights.team] and not added.has_altered_teams


def test_forged_memberships_keep_nobody_from_being_taken_out_of_a_team(rights: Rights) -> None:
    rights.add_like(MEMBERS, {"team_id": "forged", "user_id": rights.bob.id})

    removed = rights.vault.teams.remove_member(rights.team, rights.bob.id, actor=ADA)

    assert removed.teams == ()


def test_forged_sessions_keep_nobody_from_signing_in_or_changing_the_password(rights: Rights) -> None:
    """One that has ended, which is removed at each sign-in, and one that would be ended."""
    ended = "2000-01-01T00:00:00.000Z"
    rights.add_like(SESSIONS, {**FORGED_SESSION, "expires_at": ended, "user_id": rights.bob.id})

    _, kept = rights.vault.sessions.sign_in(BOB, PASSWORD)
    rights.vault.sessions.change_password(
        rights.bob, PASSWORD, NEW_PASSWORD, keep=kept.reveal().decode(), actor=BOB
    )

    assert rights.vault.sessions.authenticate(kept.reveal().decode()) is not None
    assert rights.vault.sessions.authenticate(rights.session) is None


def test_forged_keys_keep_no_link_from_being_replaced_or_used(rights: Rights) -> None:
    """A new link, and the password that is chosen by it, end what somebody has who knows the old password."""
    rights.add_like(ACCESS_KEYS, {**FORGED_KEY, "kind": "link", "user_id": rights.bob.id})
    replaced = rights.vault.invitations.new_link(rights.bob.id, actor=ADA)

    rights.vault.invitations.accept(rights.vault.invitations.new_link(rights.bob.id, actor=ADA), NEW_PASSWORD)

    assert rights.vault.sessions.authenticate(rights.session) is None
    with pytest.raises(NotSignedIn, match="revoked"):
        rights.vault.invitations.check_link(replaced)


def test_forged_rows_keep_no_deployment_from_being_removed(rights: Rights) -> None:
    [(deployment,)] = rights.sql("SELECT id FROM deployments")
    rights.add_like(ACCESS_KEYS, {**FORGED_KEY, "kind": "token", "deployment_id": deployment})
    rights.add_like(IDENTITIES, {**FORGED_IDENTITY, "deployment_id": deployment})

    rights.vault.deployments.remove(rights.team, "model", actor=ADA)

    assert not rights.token_is_valid()
    assert rights.sql("SELECT id FROM identities") == [("forged",)]


def test_forged_rows_keep_no_identity_from_being_removed(rights: Rights) -> None:
    rights.add_like(TEAMS, {"id": "forged", "name": "forged"})

    rights.vault.identities.remove(rights.team, "workload", actor=ADA)

    assert rights.sql("SELECT count(*) FROM identities") == [(0,)]


def test_a_forged_administrator_does_not_count(rights: Rights) -> None:
    """Nobody could end anything after the last one was disabled."""
    rights.vault.people.update(rights.bob.id, role="member", actor=ADA)
    [(ada,)] = rights.sql("SELECT id FROM users WHERE email = ?", ADA)
    rights.sql("UPDATE users SET role = 'admin' WHERE email = ?", BOB)
    with pytest.raises(Conflict):
        rights.vault.people.update(ada, role="member", actor=ADA)


def end_by_password(rights: Rights, session: str) -> None:
    rights.vault.sessions.change_password(rights.bob, PASSWORD, NEW_PASSWORD, keep=session, actor=BOB)


def end_by_link(rights: Rights, _: str) -> None:
    rights.vault.invitations.accept(rights.vault.invitations.new_link(rights.bob.id, actor=ADA), NEW_PASSWORD)


def end_by_disabling(rights: Rights, _: str) -> None:
    disable(rights, "revoke")
    rights.vault.people.update(rights.bob.id, disabled=False, actor=ADA)


@pytest.mark.parametrize("end", [end_by_password, end_by_link, end_by_disabling])
@pytest.mark.parametrize("then", ["nothing", "role", "password"])
def test_a_session_that_was_hidden_while_all_ended_stays_ended(
    rights: Rights, end: Callable[[Rights, str], None], then: str
) -> None:
    """Also after a later change that other sessions survive."""
    _, kept = rights.vault.sessions.sign_in(BOB, PASSWORD)
    hidden = Hidden(rights, SESSIONS, "hash", hashlib.sha256(f"session:{rights.session}".encode()).digest())
    end(rights, kept.reveal().decode())

    hidden.put_back()
    assert rights.vault.sessions.authenticate(rights.session) is None
    if then == "role":
        rights.vault.people.update(rights.bob.id, role="member", actor=ADA)
    elif then == "password":
        password = PASSWORD if end is end_by_disabling else NEW_PASSWORD
        rights.vault.sessions.change_password(rights.bob, password, PASSWORD, keep=rights.session, actor=BOB)
    assert rights.vault.sessions.authenticate(rights.session) is None
    is_kept = end is end_by_password and then != "password"
    assert (rights.vault.sessions.authenticate(kept.reveal().decode()) is not None) is is_kept


def test_a_change_of_the_role_ends_no_session(rights: Rights) -> None:
    for role in ("member", "admin"):
        rights.vault.people.update(rights.bob.id, role=role, actor=ADA)  # type: ignore[arg-type]
        rights.vault.people.update(rights.bob.id, disabled=False, actor=ADA)
        person = rights.vault.sessions.authenticate(rights.session)
        assert person is not None and person.role == role
    assert rights.vault.audit.verify().problems == ()


def test_a_token_that_was_hidden_while_its_makers_key_was_revoked_stays_revoked(rights: Rights) -> None:
    """Also one whose maker is a key that was hidden, too."""
    _, other = rights.vault.access_keys.create(
        rights.bob.id, "other", scopes=["deployments"], gives=["*"], actor=rights.with_key
    )
    *_, token = rights.vault.deployments.register(
        rights.team, "model", ["x"], actor=f"{BOB} (key {prefix(other)})"
    )
    hidden = [Hidden(rights, ACCESS_KEYS, "prefix", prefix(key)) for key in (rights.token, other, token)]
    rights.revoke_key()
    for each in hidden:
        each.put_back()

    assert not rights.token_is_valid()
    assert not rights.is_valid(other, "key") and not rights.is_valid(token, "token")


@pytest.mark.parametrize("choice", ["revoke", "pass"])
def test_a_token_that_was_hidden_while_its_maker_was_disabled_stays_ended(
    rights: Rights, choice: TokenChoice
) -> None:
    """By the account alone: it was made on a page, with no key."""
    *_, token = rights.vault.deployments.register(rights.team, "model", ["x"], actor=BOB)
    hidden = Hidden(rights, ACCESS_KEYS, "prefix", prefix(token))
    disable(rights, choice)

    hidden.put_back()

    assert not rights.is_valid(token, "token")
    assert rights.token_is_valid() is (choice == "pass")


@pytest.mark.parametrize("change", ["UPDATE users SET email = 'x'", "DELETE FROM users"])
def test_what_a_person_made_gives_nothing_without_their_account(rights: Rights, change: str) -> None:
    """A disabled account could else be removed or renamed, and be in nobody's way."""
    *_, token = rights.vault.deployments.register(rights.team, "model", ["x"], actor=BOB)
    [identity] = rights.vault.identities.of_teams([rights.team])
    identity_tokens = rights.vault.identity_tokens
    issued = identity_tokens.issue(identity, seconds_left=600, details={}, actor="workload").token
    assert rights.is_valid(token, "token")

    rights.sql(f"{change} WHERE email = ?", BOB)

    assert not rights.is_valid(token, "token")
    with pytest.raises(NotSignedIn, match=f"there is no account {BOB} any more"):
        identity_tokens.authenticate(issued)


@pytest.mark.parametrize("table", ["deployments", "teams"])
def test_an_identity_whose_deployment_or_team_is_missing_can_be_removed(rights: Rights, table: str) -> None:
    rights.sql(f"DELETE FROM {table}")
    disable(rights, "revoke")
    assert rights.vault.identities.of_teams([rights.team]) == []


def test_an_identity_that_was_hidden_while_its_maker_was_disabled_stays_ended(rights: Rights) -> None:
    """It gets no token, and one that it got before is refused."""
    [identity] = rights.vault.identities.of_teams([rights.team])

    def issue() -> SecretValue:
        tokens = rights.vault.identity_tokens
        return tokens.issue(identity, seconds_left=600, details={}, actor="workload").token

    token = issue()
    rights.vault.identity_tokens.authenticate(token)
    hidden = Hidden(rights, IDENTITIES, "id", identity.id)
    disable(rights, "revoke")

    hidden.put_back()

    with pytest.raises(NotSignedIn, match="disabled"):
        rights.vault.identity_tokens.authenticate(token)
    with pytest.raises(TokenRefused, match="disabled"):
        issue()


def test_what_passes_to_an_administrator_stays_valid(rights: Rights) -> None:
    """Its maker is the administrator from then on."""
    disable(rights, "pass")
    assert rights.token_is_valid()
    [identity] = rights.vault.identities.of_teams([rights.team])
    tokens = rights.vault.identity_tokens
    issued = tokens.issue(identity, seconds_left=600, details={}, actor="workload")
    tokens.authenticate(issued.token)


@pytest.mark.parametrize("used", [False, True])
def test_a_link_that_was_hidden_while_it_was_replaced_stays_replaced(rights: Rights, used: bool) -> None:
    """Before and after the newer link was used."""
    older = rights.vault.invitations.new_link(rights.bob.id, actor=ADA)
    hidden = Hidden(rights, ACCESS_KEYS, "prefix", prefix(older))
    newer = rights.vault.invitations.new_link(rights.bob.id, actor=ADA)
    if used:
        rights.vault.invitations.accept(newer, NEW_PASSWORD)

    hidden.put_back()

    with pytest.raises(NotSignedIn, match="replaced"):
        rights.vault.invitations.accept(older, PASSWORD)
    if not used:
        rights.vault.invitations.accept(newer, NEW_PASSWORD)


def test_a_membership_that_was_hidden_while_it_ended_is_named(rights: Rights) -> None:
    """The record says that it is gone."""
    hidden = Hidden(rights, MEMBERS, "user_id", rights.bob.id)
    rights.vault.teams.remove_member(rights.team, rights.bob.id, actor=ADA)

    hidden.put_back()

    assert any(each.startswith("members: ") for each in rights.vault.audit.verify().problems)
