"""Recognizes the head of the last request on the same connection, so that it is not parsed again."""

from __future__ import annotations

import httptools

from gusset.runtime.exchange import Exchange, ResponseWriter

_END = b"\r\n\r\n"
# Heads with these concern more than their own request: how it is framed, or what becomes of the connection.
_NOT_LEARNED = frozenset((b"expect", b"transfer-encoding", b"upgrade"))
_KEEP_ALIVE = b"keep-alive"  # what HTTP/1.1 does in any case, and many clients always say


class RepeatedHead:
    """A head, byte for byte, and what it says. It determines the size of the body, and so of the request."""

    __slots__ = ("_fields", "_headers", "_method", "_path", "_query", "data", "request_size", "size", "url")

    def __init__(self, data: bytes, message: _Message, method: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.request_size = self.size + int(message.fields.get(b"content-length", b"0"))
        self.url = message.url
        self._method = method
        self._path, _, self._query = message.url.partition(b"?")
        self._headers = message.headers
        self._fields = message.fields

    @classmethod
    def learn(cls, request: bytes, last: bytes) -> RepeatedHead | None:
        """The head of `request` if the previous request, `last`, has the same one and it is plain; else None.

        Plain is HTTP/1.1 to a path, with one Host, no header twice, and nothing after the body.
        """
        end = request.find(_END) + len(_END)
        head = request[:end]
        if head != last[:end]:
            return None
        message = _Message()
        parser = httptools.HttpRequestParser(message)
        try:
            parser.feed_data(head[:-1])
            if message.is_complete:  # it has ended before
                return None
            parser.feed_data(head[-1:])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return None
        if not message.is_complete or not _is_plain(message, parser):
            return None
        learned = cls(head, message, parser.get_method())
        return learned if learned.request_size == len(request) else None

    def make_exchange(self, connection: ResponseWriter) -> Exchange:
        """Another request with this head; its body is empty."""
        exchange = Exchange(connection, self._method, self._headers.copy(), self._fields.copy())
        exchange.path, exchange.query = self._path, self._query
        exchange.keep_alive = True
        return exchange


class _Message:
    """What httptools finds in one head."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.fields: dict[bytes, bytes] = {}
        self.is_complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))
        self.fields.setdefault(name.lower(), value)

    def on_headers_complete(self) -> None:
        self.is_complete = True


def _is_plain(message: _Message, parser: httptools.HttpRequestParser) -> bool:
    return (
        parser.get_http_version() == "1.1"
        and parser.should_keep_alive()
        and not parser.should_upgrade()
        and message.url[:1] == b"/"
        and message.url.isascii()
        and b"#" not in message.url
        and b"host" in message.fields
        and len(message.fields) == len(message.headers)
        and _NOT_LEARNED.isdisjoint(message.fields)
        and message.fields.get(b"connection", _KEEP_ALIVE).lower() == _KEEP_ALIVE
    )
