"""Two managers on one PostgreSQL behind one address: who guesses passwords has one budget, and 401 stays 401."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.faults.conftest import database, gusset, put, server, set_up, start  # noqa: F401  # fixtures
from tests.manager.conftest import Manager
from tests.manager.test_pages import Visitor
from tests.postgres_server import PostgresServer

Start = Callable[[str], Manager]
Visit = Callable[[Manager], Visitor]


@pytest.fixture
def visit() -> Iterator[Visit]:
    """Makes visitors of a manager."""
    with ExitStack() as stack:

        def visiting(manager: Manager) -> Visitor:
            visitor = Visitor(manager)
            stack.enter_context(visitor.http)
            return visitor

        yield visiting


def test_wrong_passwords_at_two_managers_use_up_one_budget(start: Start, visit: Visit) -> None:  # noqa: F811
    """Five at each, then both refuse even the right one; a browser that is known signs in."""
    one, two = visit(start("one")), visit(start("two"))
    known = visit(start("three"))
    assert known.sign_in().status_code == 303
    known.http.cookies.delete("gusset_session")
    assert [each.sign_in(password=b"wrong").status_code for each in (one, two) * 5] == [401] * 10
    refused = [each.sign_in() for each in (one, two)]
    assert [each.status_code for each in refused] == [429, 429]
    assert all(0 < int(each.headers["retry-after"]) <= 30 for each in refused)
    assert known.sign_in().status_code == 303


def test_attempts_at_the_same_moment_do_not_exceed_the_budget(start: Start, visit: Visit) -> None:  # noqa: F811
    """Eight at each of two managers at once: at most ten are verified. A busy machine may refuse some by 503."""
    visitors = [visit(manager) for manager in (start("one"), start("two")) for _ in range(8)]
    statuses: list[int] = []
    threads = [
        threading.Thread(
            target=lambda each=each: statuses.append(each.sign_in(password=b"wrong").status_code)
        )
        for each in visitors
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(statuses) == 16 and set(statuses) <= {401, 429, 503}
    assert statuses.count(401) <= 10 and 401 in statuses


def test_signing_in_uses_nothing_up(start: Start, visit: Visit) -> None:  # noqa: F811
    """A person may sign in more than ten times, at one manager or the other."""
    one, two = start("one"), start("two")
    for manager in (one, two) * 6:
        assert visit(manager).sign_in().status_code == 303


def test_a_session_is_valid_at_both_managers_until_it_ends_at_one(start: Start, visit: Visit) -> None:  # noqa: F811
    """Forms, too: what one manager has rendered the other accepts."""
    one, two = visit(start("one")), visit(start("two"))
    assert one.sign_in().status_code == 303
    two.http.cookies.update(one.http.cookies)
    assert two.http.get("/settings/account").status_code == 200
    form = {"csrf": one.csrf(), "name": "x"}
    added = two.http.post("/settings/secrets", data=form, files={"value": (None, b"value")})
    assert added.status_code == 303, added.text
    assert one.send("/signout").status_code == 303
    assert two.http.get("/settings/account").status_code == 303


def test_a_refused_attempt_is_no_write_where_the_budget_is_known_to_be_used_up(
    start: Start,  # noqa: F811
    visit: Visit,
    server: PostgresServer,  # noqa: F811
) -> None:
    """The manager that refused once refuses the next ones without the database."""
    one, two = visit(start("one")), visit(start("two"))
    assert {one.sign_in(password=b"wrong").status_code for _ in range(10)} == {401}
    assert two.sign_in(password=b"wrong").status_code == 429  # this manager learns it from the database
    server.stop()
    try:
        assert {each.sign_in(password=b"wrong").status_code for each in (one, two)} == {429}
    finally:
        server.start()


def test_a_revoked_token_gets_401_however_many_replicas_have_it(start: Start) -> None:  # noqa: F811
    """Never 429, which a replica would take for unreachable; a good token is not limited by their failures."""
    one, two = start("one"), start("two")
    with one.client() as admin:
        put(admin, "x")
        revoked, good = (
            admin.post("/v1/deployments", json={"name": name, "secrets": ["x"]}).json()["token"]
            for name in ("old", "new")
        )
        assert admin.delete("/v1/deployments/old").status_code == 200
        for manager in (one, two):
            with manager.client("gusset_key_nonsense") as stranger:
                assert 429 in [stranger.get("/v1/secrets").status_code for _ in range(25)]
        for number in range(60):  # thirty replicas at each manager, which all have one address
            manager = (one, two)[number % 2]
            with manager.client(revoked) as replica:
                assert replica.post("/v1/deployment/secrets").status_code == 401
                assert replica.get("/v1/deployment/changes").status_code == 401
            with manager.client(good) as replica:
                assert replica.post("/v1/deployment/secrets").status_code == 200
