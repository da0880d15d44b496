"""Heads that no ordinary client sends: each gets a response below 500, and nothing else suffers."""

from __future__ import annotations

import socket

import pytest

from tests.manager.conftest import Manager
from tests.manager.test_durable import started_by

_FORM = b"Content-Type: application/x-www-form-urlencoded\r\n"
_LARGE = b"Content-Length: 99999999\r\n"
_TARGETS = (
    b"/signin",
    b"/settings/audit",
    b"/v1/secrets",
    b"/v1/token",
    b"/v1/deployment/changes",
    b"/readyz",
)
_SUFFIXES = (b"?\xff", b"?next=\xff&team=\xc3\xa9", b"?%ff", b"?%", b"/\xff?\xff", b"/%ff%00%2f..", b"#\xff")
_HOSTS = (b"", b"[", b"[::1", b"\xff", b"[\xff]", b"x:\xff", b"x:99999999", b"a b", b"@", b"x/y?z")
_HEADERS = (
    b"Accept-Language: \xff;q=\xff\r\n",
    b"Authorization: \xff\r\n",
    b"Authorization: Bearer \r\n",
    b"Authorization: Bearer gst_" + b"\xff" * 40 + b"\r\n",
    b"Authorization: Bearer eyJ.\xff.\xff\r\n",
    b"Content-Length: \xb2\r\n",
    b"Content-Length: -1\r\n",
    b"Content-Length: " + b"9" * 5000 + b"\r\n",
    b"Content-Type: \xff\r\n",
    b"Content-Type: multipart/form-data; boundary=\xff\r\n",
    b"Cookie: \xff=\xff; gusset_session=\xff; gusset_form=\xff; gusset_notice=\xff; gusset_device=\xff\r\n",
    b"HX-Request: true\r\nHX-Current-URL: http://[\xff\r\n",
    b"Idempotency-Key: \xff\r\n",
    b"Origin: http://[\r\n",
    b"Origin: \xff\r\n",
    b"X-Forwarded-For: [\xff\r\nX-Forwarded-Proto: \xff\r\n",
    b"X-Vault-Token: \xff\r\n",
)


def _odd_heads() -> list[bytes]:
    """GET, a form, and a form that is refused for its size, for each target and each oddity."""
    odd = [(suffix, b"x", b"") for suffix in _SUFFIXES]
    odd += [(b"", host, b"") for host in _HOSTS]
    odd += [(b"", b"x", header) for header in _HEADERS]
    return [
        b"%b %b%b HTTP/1.1\r\nHost: %b\r\n%b%bConnection: close\r\n\r\n"
        % (method, target, suffix, host, header, own if b"Content-" not in header else b"")
        for target in _TARGETS
        for suffix, host, header in odd
        for method, own in (
            (b"GET", b""),
            (b"POST", _FORM + b"Content-Length: 1\r\n"),
            (b"POST", _FORM + _LARGE),
        )
    ]


def _status(manager: Manager, head: bytes) -> int:
    """The status of the response to a head and one byte."""
    with socket.create_connection(("127.0.0.1", manager.port), timeout=20) as client:
        client.sendall(head + b"a")
        response = b""
        while len(response) < 12 and (data := client.recv(4096)):
            response += data
    assert response.startswith(b"HTTP/1.1 "), (head, response)
    return int(response[9:12])


def test_an_odd_head_is_no_bug(manager: Manager) -> None:
    """Whoever sends it, to pages, the API and probes; the fixture looks for bugs in the log."""
    for head in _odd_heads():
        keyed = head.replace(
            b"Connection:", b"Authorization: Bearer %b\r\nConnection:" % manager.key.encode()
        )
        for sent in (head, keyed):
            assert 200 <= _status(manager, sent) < 500, sent


@pytest.mark.parametrize(
    ("target", "host"), [(b"/signin?\xff", b"x"), (b"/signin", b"[")], ids=["query", "host"]
)
def test_an_odd_head_of_a_slow_form_ends_no_deadline(manager: Manager, target: bytes, host: bytes) -> None:
    """The form is refused, and so is the next request that is too slow."""
    manager.stop()
    code = (
        "import sys\n"
        "from dataclasses import replace\n"
        "from gusset.manager import server\n"
        "server.LIMITS = replace(server.LIMITS, head_seconds=0.5, body_seconds=0.5)\n"
        "from gusset.cli.main import main; main(['manager', '--port', sys.argv[1]])\n"
    )
    with started_by(code, manager):
        head = b"POST %b HTTP/1.1\r\nHost: %b\r\n%bContent-Length: 2\r\n\r\n" % (target, host, _FORM)
        assert _status(manager, head) in (400, 408)
        assert _status(manager, b"GET / HTTP/1.1\r\nHost: ") == 408
