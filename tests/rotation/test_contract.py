"""What gusset accepts from a provider's program, and what it never repeats."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest

from gusset.errors import ProviderFailed
from gusset.rotation.contract import create_request, parse_created, revoke_request, verify_request
from gusset.rotation.state import ProviderRotation, Step

VALUE = "hf_Zx81QqLmN4vTtYbWs93KdPfGhJcR2aXe5u"
ROTATION = ProviderRotation(
    secret_id="s1",
    id="abc",
    name="db",
    team="default",
    step=Step.CREATE,
    version=2,
    handle="new",
    current="old",
    revoke=["old"],
    started_at="2026-01-01T00:00:00.000Z",
    started_by="ada",
)


def output(**fields: object) -> bytes:
    return json.dumps({"value": VALUE, "handle": "key-1"} | fields).encode()


def test_the_value_arrives_exactly() -> None:
    """As text or as base64, with a time of expiry or without."""
    made = parse_created(output(expires_at="2031-01-31T12:00:00Z"))
    assert (made.value.reveal(), made.handle) == (VALUE.encode(), "key-1")
    assert made.expires_at == datetime(2031, 1, 31, 12, tzinfo=UTC)

    data = bytes(range(256))
    encoded = json.dumps({"value_base64": base64.b64encode(data).decode(), "handle": "h", "more": 1}).encode()
    assert parse_created(encoded).value.reveal() == data


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"null",
        b"[]",
        VALUE.encode(),
        output()[:-1],
        output() * 2,
        b"[" * 100_000,
        output(value=None),
        output(value=""),
        output(value=1),
        output(value="x" * 65_537),
        output(value="\ud800"),
        output(value_base64="eA=="),
        output(value=None, value_base64=VALUE + "!"),
        output(handle=None),
        output(handle=""),
        output(handle="a\nb"),
        output(handle="x" * 1001),
        output(handle="key of " + VALUE),
        output(expires_at="tomorrow"),
        output(expires_at=5),
        output(expires_at="2031-01-31T12:00:00"),
        output(expires_at="0001-01-01T00:00:00+01:00"),
        b" " * 600_000,
    ],
)
def test_bad_output_is_refused_and_not_repeated(bad: bytes) -> None:
    """The message says what is wrong without a word of the output: any of it may be a value."""
    with pytest.raises(ProviderFailed) as error:
        parse_created(bad)
    assert VALUE not in f"{error.value} {error.value.hint}"


def test_only_verify_gets_a_value() -> None:
    """Requests name secret, rotation and handles; the value goes to the program only to be verified."""
    made = parse_created(output())
    assert json.loads(create_request(ROTATION)) == {
        "contract": 1,
        "step": "create",
        "rotation": "abc",
        "secret": "db",
        "team": "default",
        "current": "old",
    }
    revoke = json.loads(revoke_request(ROTATION, "old"))
    assert (revoke["step"], revoke["handle"], revoke["current"]) == ("revoke", "old", "new")
    verify = json.loads(verify_request(ROTATION, made))
    assert (verify["handle"], verify["value"]) == ("key-1", VALUE)
