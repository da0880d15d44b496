"""Masks values in a model's responses: in errors always, in results if that was chosen."""

# Import in a function: most models send no response by ASGI.

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from gusset.runtime.responses import Response
from gusset.secrets.masking import Masker, MaskingStream

CHANNEL = "response"


class ResponseMasker:
    """Masks what a model sends to callers. Results too, when `results` is true."""

    def __init__(self, masker: Masker, *, results: bool) -> None:
        self._masker = masker
        self.results = results

    def text(self, text: str) -> str:
        return self._masker.mask_text(text, CHANNEL)

    def body(self, body: bytes) -> bytes:
        return self._masker.mask(body, CHANNEL)

    def response(self, response: Response) -> Response:
        """The response with its body and headers masked."""
        headers = tuple(map(self._header, response.headers))
        return Response(response.status, self.body(response.body), response.content_type, headers)

    def strings(self, value: Any) -> Any:
        """A value with all strings in its dicts, lists and tuples masked, before they are escaped."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, bytes | bytearray | memoryview):
            return self.body(bytes(value))
        if isinstance(value, dict):
            return {self.strings(key): self.strings(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.strings(item) for item in value]
        if isinstance(value, tuple):
            return tuple(self.strings(item) for item in value)
        return value

    def stream(self) -> MaskingStream:
        return self._masker.stream(CHANNEL)

    def stream_of_result(self) -> MaskingStream | None:
        """For the chunks of a result; None if results are not masked."""
        return self.stream() if self.results else None

    def asgi(self, send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """ASGI's `send`, with masked headers and body for an error; for a result if these are masked."""
        from gusset.runtime.asgi import body_of

        stream: MaskingStream | None = None

        async def send_masked(message: Any) -> None:
            nonlocal stream
            if message["type"] == "http.response.start" and (self.results or message["status"] >= 400):
                stream = self.stream()
                message = {**message, "headers": self._headers(message.get("headers", ()))}
            elif message["type"] == "http.response.body" and stream is not None:
                body = stream.feed(body_of(message))
                if not message.get("more_body", False):
                    body += stream.flush()
                message = {**message, "body": body}
            await send(message)

        return send_masked

    def _headers(self, headers: Any) -> list[tuple[bytes, bytes]]:
        """Masked, and without the length, which masking changes."""
        return [self._header(header) for header in headers if header[0].lower() != b"content-length"]

    def _header(self, header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """A masked header, whose value may be in Latin-1 instead of UTF-8."""
        name, value = header
        masked = self.text(self.body(value).decode("latin-1")).encode("latin-1")
        return self._masker.mask_header_name(name, CHANNEL), masked

    def websocket(self, send: Callable[[Any], Awaitable[None]]) -> Callable[[Any], Awaitable[None]]:
        """ASGI's `send` of a websocket, with a masked close reason; messages if results are masked."""

        async def send_masked(message: Any) -> None:
            if message["type"] == "websocket.close" or self.results:
                masked = {
                    key: self.strings(message[key]) for key in ("reason", "text", "bytes") if key in message
                }
                message = {**message, **masked}
            await send(message)

        return send_masked
