"""Who may call a deployment: callers present keys, which are known here by their digests.

Used where a deployment's requests arrive: by the model's HTTP API, in a process
that also runs the model's code, by the reverse proxy of custom images, and by
the supervisor while no worker accepts connections.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from hashlib import sha256
from hmac import compare_digest
from typing import TYPE_CHECKING, TypeAlias

from gusset.runtime.exchange import AcceptedHeader
from gusset.runtime.responses import Response, caller_error

if TYPE_CHECKING:
    from gusset.runtime.declared_secrets import Values
    from gusset.runtime.exchange import Exchange, KnownKeys
    from gusset.secrets.sources.source import Delivered

CallerDigests: TypeAlias = Mapping[str, tuple[bytes, ...]]
"""For each caller the SHA-256 digests of the keys that it may present."""

AUTHORIZATION = b"authorization"
OPEN_PATHS = frozenset((b"/", b"/ping", b"/v1/models/model", b"/v1/models/model/loaded"))
"""What probes request: open to everyone, by GET and HEAD."""

_SCHEMES = frozenset((b"api-key", b"bearer"))
_MAX_REMEMBERED = 1024  # bytes of a header; there may be any number of spaces in it
_MISSING = "This model is only for its callers. Send the header: Authorization: Api-Key KEY"
_WRONG = "The key in the header Authorization belongs to no caller of this model."


class CallerAuth:
    """Authenticates the callers of one deployment, and counts their requests. Pure: no I/O.

    `requests` counts those that passed, by the caller's name, `refused` the others.
    `replace` may be called on any thread, everything else on one.
    """

    def __init__(self, digests: CallerDigests) -> None:
        self._known = _flat(digests)
        self._position = 0  # of the header in the last request; a client sends it at the same position
        self.requests = Counter(dict.fromkeys(digests, 0))
        self.refused = 0

    def replace(self, digests: CallerDigests) -> None:
        """From now on these are the callers and their keys."""
        self._known = _flat(digests)

    def authenticate(self, authorization: bytes | None) -> str | None:
        """The name of the caller who sent this `Authorization` header; None if there is no such caller.

        The time that it takes does not depend on which key matches.
        """
        return _caller_of(authorization, self._known)

    def check(self, authorization: bytes | None) -> Response | None:
        """None if a caller sent the request, else the response that refuses it. Counts it."""
        return self._count(_caller_of(authorization, self._known), authorization)

    def gate(self, exchange: Exchange) -> Response | None:
        """The gate of a model's `HttpServer` (see `RequestRules`). The model does not get the key.

        The connection remembers the header, which is then only compared until the keys are replaced.
        """
        if (
            exchange.path in OPEN_PATHS
            and is_open(exchange.method, exchange.path)
            and not _has_body(exchange)
        ):
            return None
        fields, headers, position = exchange.fields, exchange.headers, self._position
        authorization = fields.get(AUTHORIZATION)
        accepted = exchange.accepted
        if (
            authorization is not None
            and accepted is not None
            and accepted.known is self._known
            and compare_digest(accepted.header, authorization)
        ):
            self.requests[accepted.caller] += 1
        elif (refused := self._check_first(exchange, authorization)) is not None:
            return refused
        if (
            len(fields) == len(headers)  # none is repeated
            and position < len(headers)
            and headers[position][1] is authorization
        ):
            del headers[position]
        else:
            self._search_and_delete(headers)
        del fields[AUTHORIZATION]
        return None

    def _check_first(self, exchange: Exchange, authorization: bytes | None) -> Response | None:
        """As `check`, and have the connection remember the header of a caller."""
        known = self._known
        caller = _caller_of(authorization, known)
        if caller is not None and authorization is not None and len(authorization) <= _MAX_REMEMBERED:
            exchange.accepted = AcceptedHeader(authorization, caller, known)
        return self._count(caller, authorization)

    def _count(self, caller: str | None, authorization: bytes | None) -> Response | None:
        """Count the request. Returns the response that refuses it, if there is no such caller."""
        if caller is not None:
            self.requests[caller] += 1
            return None
        self.refused += 1
        text = _MISSING if authorization is None else _WRONG
        return caller_error(401, text, (b"www-authenticate", b"Api-Key, Bearer"))

    def _search_and_delete(self, headers: list[tuple[bytes, bytes]]) -> None:
        for position in range(len(headers) - 1, -1, -1):
            if headers[position][0].lower() == AUTHORIZATION:
                del headers[position]
                self._position = position


def is_open(method: bytes, path: bytes) -> bool:
    """Whether everyone may send this request, if it has no body and asks for no other protocol."""
    return path in OPEN_PATHS and method in (b"GET", b"HEAD")


def _has_body(exchange: Exchange) -> bool:
    fields = exchange.fields
    return b"transfer-encoding" in fields or fields.get(b"content-length", b"0") != b"0"


def digests_of(names: Iterable[str], values: Values) -> CallerDigests:
    """The digests of the callers' keys. A caller without a value, or with an empty one, has none.

    During an overlap the previous key is valid, too. Whitespace around a value does not count: no header
    can contain it.
    """
    return {name: tuple(map(_digest, _keys(values.get(name)))) for name in names}


def _keys(delivered: Delivered | None) -> Iterator[bytes]:
    if delivered is not None:
        previous = [delivered.previous.value] if delivered.previous else []
        for value in (delivered.value, *previous):
            if key := value.reveal().strip():
                yield key


def _digest(key: bytes) -> bytes:
    return sha256(key).digest()


def _flat(digests: CallerDigests) -> KnownKeys:
    return tuple((name, digest) for name, known in digests.items() for digest in known)


def _caller_of(authorization: bytes | None, known: KnownKeys) -> str | None:
    if authorization is None:
        return None
    scheme, _, key = authorization.partition(b" ")
    if scheme.lower() not in _SCHEMES:
        return None
    digest = sha256(key.strip()).digest()
    caller = None
    for name, each in known:
        if compare_digest(each, digest):
            caller = name
    return caller
