"""What somebody did by a right that had ended, whose row was put back for a moment, is in the log for good.

Whoever can write the database can put an old row back, use what it gives, and have the newest row again: all
rows then agree with the log. Each record has the rows on which its actor's rights rested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest

from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.audit.actor import Actor
from gusset.vault.services.people import TokenChoice
from gusset.vault.storage.signed_rows import Right, SignedTable
from gusset.vault.storage.tables import (
    ACCESS_KEYS,
    DEPLOYMENTS,
    IDENTITIES,
    ISSUERS,
    MEMBERS,
    SESSIONS,
    USERS,
)
from tests.vault.conftest import Clock, Sql
from tests.vault.rights import ADA, BOB, ISSUER, NEW_PASSWORD, PASSWORD, Hidden, Rights, disable, prefix

pytestmark = pytest.mark.slow  # each hashes a few passwords


@pytest.fixture
def vault(settings: Settings, clock: Clock) -> Iterator[Vault]:
    with open_vault(settings, clock=clock) as opened:
        yield opened


class Rows:
    """The rows of a table, which can be put back as they are now."""

    def __init__(self, sql: Sql, table: SignedTable) -> None:
        self._sql, self._table = sql, table
        self._names = ", ".join(table.all_columns)
        self._rows = sql(f"SELECT {self._names} FROM {table.name}")

    def put_back(self) -> None:
        self._sql(f"DELETE FROM {self._table.name}")
        places = ", ".join("?" * len(self._table.all_columns))
        for row in self._rows:
            self._sql(f"INSERT INTO {self._table.name} ({self._names}) VALUES ({places})", *row)


@dataclass(frozen=True)
class End:
    """How a right of bob's, or of his deployment, ends; the rows on which it rested, and which of them ended."""

    table: SignedTable
    key: Callable[[Rights], str]
    end: Callable[[Rights], object]
    rests_on: Callable[[Rights], Sequence[Right]]
    by: str  # the action that ended it
    removes: bool = False


def of_key(rights: Rights) -> Sequence[Right]:
    info = rights.vault.access_keys.authenticate(rights.key, kinds=["key"])
    return (*info.rights, *rights.vault.people.get(rights.bob.id).rights)


def of_session(rights: Rights) -> Sequence[Right]:
    person = rights.vault.sessions.authenticate(rights.session)
    assert person is not None
    return person.rights


def of_token(rights: Rights) -> Sequence[Right]:
    info = rights.vault.access_keys.authenticate(rights.token, kinds=["token"])
    return (*info.rights, *rights.vault.deployments.grant(info).rights)


def of_identity(rights: Rights) -> Sequence[Right]:
    [identity] = rights.vault.identities.of_teams([rights.team])
    tokens = rights.vault.identity_tokens
    issued = tokens.issue(identity, seconds_left=600, details={}, actor="workload")
    return tokens.authenticate(issued.token)[1].rights


def of_issuer(rights: Rights) -> Sequence[Right]:
    issuer = rights.vault.issuers.find(ISSUER)
    assert issuer is not None
    return (issuer.right,)


def bob_id(rights: Rights) -> str:
    return rights.bob.id


def session_key(rights: Rights) -> str:
    return hashlib.sha256(f"session:{rights.session}".encode()).hexdigest()


def only(table: SignedTable) -> Callable[[Rights], str]:
    def key(rights: Rights) -> str:
        [(found,)] = rights.sql(f"SELECT {table.key[0]} FROM {table.name}")
        return str(found)

    return key


def demote(rights: Rights) -> None:
    rights.vault.people.update(rights.bob.id, role="member", actor=ADA)


def remove_issuer(rights: Rights) -> None:
    rights.vault.identities.remove(rights.team, "workload", actor=ADA)
    rights.vault.issuers.remove(ISSUER, actor=ADA)


ENDS = {
    "a key": End(ACCESS_KEYS, lambda each: each.key_prefix, Rights.revoke_key, of_key, "api_key.revoke"),
    "a token's maker": End(
        ACCESS_KEYS, lambda each: each.key_prefix, Rights.revoke_key, of_token, "api_key.revoke"
    ),
    "a role, by a key": End(USERS, bob_id, demote, of_key, "person.role"),
    "a role, in a session": End(USERS, bob_id, demote, of_session, "person.role"),
    "a membership": End(
        MEMBERS,
        lambda each: f"{each.team}/{each.bob.id}",
        lambda each: each.vault.teams.remove_member(each.team, each.bob.id, actor=ADA),
        of_key,
        "team.remove_member",
        removes=True,
    ),
    "a session": End(
        SESSIONS,
        session_key,
        lambda each: each.vault.sessions.sign_out(each.session, actor=BOB),
        of_session,
        "session.end",
        removes=True,
    ),
    "what a deployment declares": End(
        DEPLOYMENTS,
        only(DEPLOYMENTS),
        lambda each: each.vault.deployments.declare(each.team, "model", ["y"], actor=ADA),
        of_identity,
        "deployment.register",
    ),
    "an identity": End(
        IDENTITIES,
        only(IDENTITIES),
        lambda each: each.vault.identities.remove(each.team, "workload", actor=ADA),
        of_identity,
        "identity.remove",
        removes=True,
    ),
    "an issuer": End(ISSUERS, lambda _: ISSUER, remove_issuer, of_issuer, "issuer.remove", removes=True),
}


@pytest.mark.parametrize("case", ENDS.values(), ids=ENDS.keys())
def test_what_was_done_by_a_right_that_had_ended_is_named_although_its_row_is_right_again(
    rights: Rights,
    clock: Clock,
    case: End,
) -> None:
    key, rows = case.key(rights), Rows(rights.sql, case.table)
    written = {(table, row): seq for table, row, seq, _ in case.rests_on(rights)}[case.table.name, key]
    case.end(rights)
    ended = Rows(rights.sql, case.table)
    clock.advance(61)

    rows.put_back()
    act(rights, case.rests_on(rights))
    ended.put_back()

    problems = rights.vault.audit.verify().problems
    [problem] = [each for each in problems if f" rests on {key} " in each]
    changed = "removed it: it had been put back" if case.removes else "changed it: it had been rolled back"
    assert problem.startswith(f"{case.table.name}: record ")
    assert f" in its state of record {written}, but record " in problem
    assert f" ({case.by} " in problem and problem.endswith(f") had {changed}")


def act(rights: Rights, rests_on: Sequence[Right]) -> None:
    rights.vault.teams.create("intruders", actor=Actor(BOB, rights=rests_on))


@pytest.mark.sqlite("the log is the same on both databases")
@pytest.mark.parametrize(("seconds", "is_named"), [(59, False), (61, True)])
def test_a_request_may_have_been_checked_before_its_right_ended(
    rights: Rights,
    clock: Clock,
    seconds: float,
    is_named: bool,
) -> None:
    """Up to a minute before: it may have waited for the database meanwhile."""
    rests_on = of_key(rights)
    rights.revoke_key()
    clock.advance(seconds)
    act(rights, rests_on)
    assert bool(rights.vault.audit.verify().problems) is is_named


@pytest.mark.sqlite("the log is the same on both databases")
def test_another_change_gives_an_ended_right_no_new_minute(rights: Rights, clock: Clock) -> None:
    """Many rows can be changed by those whose rights rest on them: their own accounts, for instance."""
    rests_on = of_session(rights)
    demote(rights)
    clock.advance(61)
    rights.vault.sessions.change_password(rights.bob, PASSWORD, NEW_PASSWORD, keep=rights.session, actor=BOB)
    act(rights, rests_on)
    assert [problem for problem in rights.vault.audit.verify().problems if problem.startswith("users: ")]


@pytest.mark.sqlite("the log is the same on both databases")
def test_of_several_changes_within_a_minute_each_state_may_have_been_checked(
    rights: Rights, clock: Clock
) -> None:
    states = []
    for role in ("member", "admin", "member"):
        states.append(of_session(rights))
        rights.vault.people.update(rights.bob.id, role=role, actor=ADA)  # type: ignore[arg-type]
        clock.advance(19)
    for number, rests_on in enumerate(states):
        rights.vault.teams.create(str(number), actor=Actor(BOB, rights=rests_on))
    assert rights.vault.audit.verify().problems == ()
    clock.advance(40)  # the second and the third are 78 and 59 seconds old
    act(rights, states[1])
    rights.vault.teams.create("3", actor=Actor(BOB, rights=states[2]))
    assert {each.split(" ")[3] for each in rights.vault.audit.verify().problems} == {"(team.create"}
    assert all("intruders" in each for each in rights.vault.audit.verify().problems)


@pytest.mark.sqlite("the log is the same on both databases")
def test_another_row_with_the_number_of_the_newest_record_gives_no_right(rights: Rights) -> None:
    """One that a transaction has written which was rolled back: the next one has got its number."""
    [*others, (table, key, seq, _)] = of_key(rights)
    act(rights, [*others, (table, key, seq, "0123456789abcdef")])
    [problem] = rights.vault.audit.verify().problems
    assert f"rests on {key} in its state of record {seq}" in problem


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_right_that_had_ended_is_named_once(rights: Rights, clock: Clock) -> None:
    """It may have acted often."""
    rests_on = of_key(rights)
    rights.revoke_key()
    clock.advance(61)
    for number in range(3):
        rights.vault.teams.create(str(number), actor=Actor(BOB, rights=rests_on))
    assert len(rights.vault.audit.verify().problems) == 1


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_password_that_had_been_replaced_begins_no_session_unnoticed(rights: Rights, clock: Clock) -> None:
    account = Rows(rights.sql, USERS)
    rights.vault.sessions.change_password(rights.bob, PASSWORD, NEW_PASSWORD, keep=rights.session, actor=BOB)
    changed = Rows(rights.sql, USERS)
    clock.advance(61)
    account.put_back()
    rights.vault.sessions.sign_in(BOB, PASSWORD)
    changed.put_back()
    [problem] = rights.vault.audit.verify().problems
    assert f"(session.create {BOB}) rests on {rights.bob.id} in its state of record" in problem


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_row_that_no_record_has_written_gives_no_right_unnoticed(rights: Rights) -> None:
    act(rights, [("access_keys", "aaaaaaaa", 3, "00")])
    [problem] = rights.vault.audit.verify().problems
    assert problem.endswith("rests on aaaaaaaa, but no record says that it was written")


@pytest.mark.sqlite("the log is the same on both databases")
def test_rights_that_did_not_end_are_not_named(rights: Rights, clock: Clock) -> None:
    """Although other rows of the same people change."""
    demote(rights)
    rights.vault.people.update(rights.bob.id, role="admin", actor=ADA)
    clock.advance(1000)
    for rests_on in (of_key, of_session, of_token, of_identity, of_issuer):
        rights.vault.teams.create(f"by {rests_on.__name__}", actor=Actor(BOB, rights=rests_on(rights)))
    assert rights.vault.audit.verify().problems == ()


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_refused_act_rests_on_no_right(rights: Rights) -> None:
    rests_on = of_key(rights)
    act(rights, rests_on)
    with pytest.raises(Exception, match="already a team"):
        act(rights, rests_on)
    done, refused = list(rights.vault.audit.export())[-2:]
    assert done.data()["details"]["rights"] == [list(each) for each in rests_on]
    assert refused.outcome == "conflict" and "rights" not in refused.data()["details"]


@pytest.mark.sqlite("the log is the same on both databases")
def test_people_are_not_shown_the_rows_of_rights(rights: Rights) -> None:
    """They are for programs, and are exported."""
    act(rights, of_key(rights))
    [*_, record] = rights.vault.audit.export()
    assert "rights" in record.data()["details"] and "rights" not in record.shown()["details"]


# --- rows that are hidden while they should end


def of_bob(rights: Rights, what: str) -> tuple[SignedTable, str]:
    """The table and key of something that ends when bob is disabled."""
    if what == "identity":
        return IDENTITIES, rights.vault.identities.of_teams([rights.team])[0].id
    if what == "link":
        return ACCESS_KEYS, prefix(rights.vault.invitations.new_link(rights.bob.id, actor=ADA))
    return ACCESS_KEYS, prefix(rights.token if what == "token" else rights.key)


@pytest.mark.sqlite("the log is the same on both databases")
@pytest.mark.parametrize(
    ("what", "choice"),
    [
        ("key", "revoke"),
        ("link", "revoke"),
        ("token", "revoke"),
        ("token", "pass"),
        ("identity", "revoke"),
        ("identity", "pass"),
    ],
)
def test_what_was_hidden_while_its_owner_was_disabled_is_named(
    rights: Rights, what: str, choice: TokenChoice
) -> None:
    """Once the account is enabled again, it could be put back."""
    table, key = of_bob(rights, what)
    [(written,)] = rights.sql(f"SELECT changed_seq FROM {table.name} WHERE {table.key[0]} = ?", key)
    hidden = Hidden(rights, table, table.key[0], key)
    disable(rights, choice)
    [problem, *_] = rights.vault.audit.verify().problems
    rights.vault.people.update(rights.bob.id, disabled=False, actor=ADA)
    hidden.put_back()

    assert rights.vault.audit.verify().problems == (problem,)
    assert problem.startswith(f"{table.name}: record ")
    assert f" (person.disable {BOB}) left {key} as it was, which record {written} (" in problem
    assert problem.endswith(") had written: it had been removed or altered")


@pytest.mark.sqlite("the log is the same on both databases")
@pytest.mark.parametrize("what", ["token", "identity", "first key"])
def test_what_has_passed_to_somebody_or_was_made_with_an_account_is_missed_too(
    rights: Rights, what: str
) -> None:
    """The first administrator's key, and what passed to her, when she is disabled herself."""
    [(first_key, ada)] = rights.sql("SELECT prefix, user_id FROM access_keys WHERE name = 'first key'")
    table, key = (ACCESS_KEYS, first_key) if what == "first key" else of_bob(rights, what)
    disable(rights, "pass")
    rights.vault.people.update(rights.bob.id, disabled=False, actor=ADA)
    hidden = Hidden(rights, table, table.key[0], key)
    rights.vault.people.update(ada, disabled=True, tokens="revoke", actor=BOB)
    hidden.put_back()
    [problem] = rights.vault.audit.verify().problems
    assert f" (person.disable {ADA}) left {key} as it was" in problem


@pytest.mark.sqlite("the log is the same on both databases")
@pytest.mark.parametrize("choice", ["revoke", "pass"])
def test_nothing_is_missed_when_people_are_disabled_and_enabled(rights: Rights, choice: TokenChoice) -> None:
    """Although some of what they made had ended before, or passed to them."""
    rights.vault.deployments.register(rights.team, "other", ["x"], actor=BOB)
    rights.vault.deployments.remove(rights.team, "other", actor=BOB)
    _, key = rights.vault.access_keys.create(rights.bob.id, "2", scopes=["admin"], gives=[], actor=BOB)
    rights.vault.access_keys.revoke(prefix(key), actor=BOB, allowed=lambda _: True)
    [(ada,)] = rights.sql("SELECT id FROM users WHERE email = ?", ADA)
    for _ in range(2):
        for disabled, by in ((rights.bob.id, ADA), (ada, BOB)):
            rights.vault.people.update(disabled, disabled=True, tokens=choice, actor=by)
            rights.vault.people.update(disabled, disabled=False, actor=by)
            name = ADA if disabled == ada else BOB
            rights.vault.access_keys.create(disabled, "new", scopes=["admin"], gives=[], actor=name)
            rights.vault.invitations.new_link(disabled, actor=by)
    assert rights.vault.audit.verify().problems == ()


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_session_that_was_hidden_while_it_was_ended_is_named(rights: Rights) -> None:
    hidden = Hidden(rights, SESSIONS, "hash", bytes.fromhex(session_key(rights)))
    rights.vault.sessions.sign_out(rights.session, actor=BOB)
    assert rights.vault.audit.verify().problems == ()
    hidden.put_back()
    [problem] = rights.vault.audit.verify().problems
    assert problem.endswith(f"(session.end {BOB}), but is in the database again")


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_session_whose_row_was_altered_is_ended_when_its_holder_signs_out(rights: Rights) -> None:
    """It would be valid once the row is right again."""
    rights.sql("UPDATE sessions SET user_id = 'x'")
    rights.vault.sessions.sign_out(rights.session, actor=BOB)
    assert rights.sql("SELECT count(*) FROM sessions") == [(0,)]


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_password_that_was_chosen_by_a_link_that_had_been_replaced_is_named(rights: Rights) -> None:
    """The newer link was hidden meanwhile, and the older one while it was replaced."""
    older = rights.vault.invitations.new_link(rights.bob.id, actor=ADA)
    hidden = Hidden(rights, ACCESS_KEYS, "prefix", prefix(older))
    newer = prefix(rights.vault.invitations.new_link(rights.bob.id, actor=ADA))
    hidden.put_back()
    other = Hidden(rights, ACCESS_KEYS, "prefix", newer)
    rights.vault.invitations.accept(older, NEW_PASSWORD)
    other.put_back()
    [problem] = rights.vault.audit.verify().problems
    assert f"(person.password {BOB}) rests on the link {prefix(older)}, which that of record" in problem


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_deployment_that_was_hidden_while_it_was_registered_again_is_named(rights: Rights) -> None:
    """Removing it would end only the new one's tokens."""
    hidden = Hidden(rights, DEPLOYMENTS, "name", "model")
    rights.vault.deployments.register(rights.team, "model", ["x"], actor=BOB)
    rights.vault.deployments.remove(rights.team, "model", actor=ADA)
    hidden.put_back()
    [problem] = rights.vault.audit.verify().problems
    assert "(deployment.register model) added " in problem and problem.endswith("that had been removed")


@pytest.mark.sqlite("the log is the same on both databases")
def test_a_deployment_may_be_registered_again_after_it_was_removed(rights: Rights) -> None:
    for _ in range(2):
        rights.vault.deployments.register(rights.team, "model", ["x"], actor=BOB)
        rights.vault.deployments.remove(rights.team, "model", actor=ADA)
    other = rights.vault.teams.create("other", actor=ADA)
    for team in (rights.team, other.id):
        rights.vault.deployments.register(team, "model", ["x"], actor=BOB)
    assert rights.vault.audit.verify().problems == ()
