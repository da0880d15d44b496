"""Who is let in by the callers' keys, and what is left of a key in the request."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from gusset.runtime.caller_auth import CallerAuth, CallerDigests
from gusset.runtime.exchange import AcceptedHeader, Exchange

KEY = b"caller-Zx81QqLmN4vTtYbWs93KdPfGhJcR2aXe"
OTHER = b"caller-7GhTrW2bNpQx5LkMvC9sYdFj3HzRt8Ue"
HEADER = b"Api-Key " + KEY


def digests(**keys: bytes) -> CallerDigests:
    return {name: (sha256(key).digest(),) for name, key in keys.items()}


class Connection:
    """What a gate uses of a connection."""

    accepted: AcceptedHeader | None = None


def request(*headers: tuple[bytes, bytes], connection: Any = None) -> Exchange:
    fields: dict[bytes, bytes] = {}
    for name, value in headers:
        fields.setdefault(name.lower(), value)
    connection = connection or Connection()
    exchange = Exchange(connection, b"POST", list(headers), fields)
    exchange.path = b"/predict"
    return exchange


def test_a_header_that_a_connection_has_sent_before_is_refused_once_the_key_is_replaced() -> None:
    auth = CallerAuth(digests(app=KEY))
    connection = Connection()

    def is_refused(header: bytes = HEADER) -> bool:
        return auth.gate(request((b"Authorization", header), connection=connection)) is not None

    assert not is_refused()
    assert not is_refused()
    assert is_refused(HEADER[:-1])
    assert is_refused(HEADER + b"x")
    auth.replace(digests(app=OTHER))
    assert is_refused()
    assert is_refused()
    auth.replace(digests(other=KEY))
    assert not is_refused()
    auth.replace({})
    assert is_refused()
    auth.replace(digests(app=KEY))
    assert not is_refused()
    assert auth.requests == {"app": 3, "other": 1}
    assert auth.refused == 5


def test_what_one_connection_has_sent_lets_no_other_in() -> None:
    auth = CallerAuth(digests(app=KEY))
    assert auth.gate(request((b"Authorization", HEADER))) is None
    assert auth.gate(request((b"Host", b"x"))) is not None
    connection = Connection()
    assert auth.gate(request((b"Authorization", HEADER), connection=connection)) is None
    assert auth.gate(request((b"Host", b"x"), connection=connection)) is not None


def test_a_caller_may_write_its_header_in_several_ways() -> None:
    auth = CallerAuth(digests(app=KEY))
    for scheme in (b"Api-Key ", b"api-key  ", b"Bearer ", b"BEARER "):
        for _ in range(2):
            assert auth.authenticate(scheme + KEY) == "app"
    for refused in (KEY, b"Basic " + KEY, b"Api-Key", b"Api-Key " + KEY[:-1], b"Api-Key " + OTHER, b""):
        for _ in range(2):
            assert auth.authenticate(refused) is None


def test_a_large_header_is_not_remembered() -> None:
    auth = CallerAuth(digests(app=KEY))
    connection = Connection()
    for _ in range(2):
        large = request((b"Authorization", b"Api-Key" + b" " * 1000 + KEY), connection=connection)
        assert auth.gate(large) is None
    assert connection.accepted is None


def test_a_remembered_header_is_not_in_texts() -> None:
    auth = CallerAuth(digests(app=KEY))
    connection = Connection()
    assert auth.gate(request((b"Authorization", HEADER), connection=connection)) is None
    assert connection.accepted is not None
    assert KEY.decode() not in repr(connection.accepted)


@pytest.mark.parametrize("position", [0, 1, 2])
def test_the_handler_does_not_get_the_key_wherever_the_header_is(position: int) -> None:
    auth = CallerAuth(digests(app=KEY))
    others = [(b"Host", b"x"), (b"Accept", b"*/*")]
    for headers in ([(b"authorization", HEADER), *others], [*others, (b"AUTHORIZATION", HEADER)]):
        assert auth.gate(request(*headers)) is None
    headers = others.copy()
    headers.insert(position, (b"Authorization", HEADER))
    for _ in range(2):
        exchange = request(*headers)
        assert auth.gate(exchange) is None
        assert exchange.headers == others
        assert b"authorization" not in exchange.fields


def test_the_handler_gets_no_key_of_a_header_that_is_repeated() -> None:
    auth = CallerAuth(digests(app=KEY))
    single = [(b"Host", b"x"), (b"Authorization", HEADER)]
    for headers in (
        single,
        [*single, (b"authorization", HEADER)],
        [*single, (b"Authorization", b"Api-Key 2")],
    ):
        exchange = request(*headers)
        assert auth.gate(exchange) is None
        assert exchange.headers == [(b"Host", b"x")]
