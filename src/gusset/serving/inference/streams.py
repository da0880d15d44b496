"""Sends the chunks of a model's generator to a client.

Chunks that are ready at the same time are written together, so those of a slow
generator leave one by one and those of a fast one in few writes. A generator
waits while its client does not read.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeGuard

from gusset.runtime.exchange import LAST_CHUNK, Exchange, Headers, chunk
from gusset.secrets.masking import MaskingStream

_MAX_BUFFERED = 256 * 1024  # bytes that a generator may have produced and that are not written yet
_MAX_CHUNKS_PER_TURN = 64  # of an async generator, before other tasks of the loop get their turn
CONTENT_TYPE = (b"content-type", b"application/octet-stream")


class ResponseStream:
    """The response that one generator produces for one client.

    `send_all` runs on a model thread, and the stream may be made on one; everything else
    runs on the loop's thread.
    """

    def __init__(
        self,
        exchange: Exchange,
        headers: Headers,
        loop: asyncio.AbstractEventLoop,
        *,
        must_stop: Callable[[], bool],
        masking: MaskingStream | None = None,
    ) -> None:
        """`must_stop` says, once the client has disconnected, whether the generator is to be closed.

        `masking` masks the chunks; what it holds back of one leaves with the next.
        """
        self._masking = masking
        self._exchange = exchange
        self._must_stop = must_stop
        self._headers = (CONTENT_TYPE, *headers)
        self._loop = loop
        self._ready: list[bytes] = []
        self._flush_scheduled = False
        self._produced = 0  # bytes from the generator,
        self._written = 0  # and bytes of them that have been written
        self._may_continue = threading.Event()
        self._drained: asyncio.Event | None = None
        self.has_begun = False
        exchange.on_writable = self._wake_generator

    def send_all(self, generator: Generator[Any, None, None]) -> BaseException | None:
        """Send all chunks of a generator, on a thread other than the loop's. Returns what it raised."""
        exchange, ready = self._exchange, self._ready
        try:
            try:
                for part in generator:
                    data = part if type(part) is bytes else encode(part)
                    if self._masking is not None:
                        data = self._masking.feed(data)
                    if exchange.disconnected:
                        if self._must_stop():
                            break
                        continue
                    if data:
                        ready.append(data)
                        self._produced += len(data)
                        if not self._flush_scheduled:
                            self._flush_scheduled = True
                            self._loop.call_soon_threadsafe(self._flush)
                        if self._produced - self._written > _MAX_BUFFERED or not exchange.writable:
                            self._wait_until_written()
            finally:
                generator.close()
        except BaseException as error:  # SystemExit too: a model's error like any other
            return error
        return None

    async def send_all_async(self, generator: AsyncGenerator[Any, None]) -> BaseException | None:
        """Send all chunks of an async generator. Returns what it raised."""
        chunks = 0
        try:
            try:
                async for part in generator:
                    data = part if type(part) is bytes else encode(part)
                    if self._masking is not None:
                        data = self._masking.feed(data)
                    if data:
                        self._ready.append(data)
                        self._produced += len(data)
                        if not self._flush_scheduled:
                            self._flush_scheduled = True
                            self._loop.call_soon(self._flush)
                    chunks += 1
                    if chunks == _MAX_CHUNKS_PER_TURN:
                        chunks = 0
                        await asyncio.sleep(0)
                    if not self._exchange.writable and not self._exchange.disconnected:
                        self._drained = asyncio.Event()
                        await self._drained.wait()
            finally:
                await generator.aclose()
        except asyncio.CancelledError:
            if self._exchange.disconnected:
                raise
            return asyncio.CancelledError()
        except BaseException as error:
            return error
        return None

    def finish(self) -> None:
        """Complete the response after the generator's last chunk."""
        if self._masking is not None and (held := self._masking.flush()):
            self._ready.append(held)
        data = self._take_ready()
        last = b"" if self._exchange.is_http_1_0 else LAST_CHUNK
        if self.has_begun:
            self._exchange.end(data + last)
        else:
            self._begin(data)
            self._exchange.end(last)

    def abort(self) -> None:
        """Send what is ready, then close the connection, so that the client sees an incomplete response."""
        self._flush()
        self._exchange.cut()

    @property
    def is_empty(self) -> bool:
        """Whether there was no chunk yet, so that an error response may still be sent instead."""
        return not (self.has_begun or self._ready)

    def on_disconnect(self) -> None:
        self._wake_generator()

    def _flush(self) -> None:
        self._flush_scheduled = False
        data = self._take_ready()
        if data:
            if self.has_begun:
                self._exchange.write(data)
            else:
                self._begin(data)
        self._may_continue.set()

    def _begin(self, data: bytes) -> None:
        self.has_begun = True
        self._exchange.start(200, self._headers, data)

    def _take_ready(self) -> bytes:
        """The chunks that are ready, as they are to be written."""
        ready = self._ready
        parts = ready[:]
        del ready[: len(parts)]  # the model thread may have appended more meanwhile
        self._written += sum(map(len, parts))
        if self._exchange.is_http_1_0:
            return b"".join(parts)
        return b"".join([chunk(part) for part in parts])

    def _wait_until_written(self) -> None:
        exchange = self._exchange
        while not exchange.disconnected and (
            self._produced - self._written > _MAX_BUFFERED or not exchange.writable
        ):
            self._may_continue.clear()
            # Checked again, since the event may have been set just before it was cleared.
            if not exchange.disconnected and (
                self._produced - self._written > _MAX_BUFFERED or not exchange.writable
            ):
                self._may_continue.wait()

    def _wake_generator(self) -> None:
        self._may_continue.set()
        if self._drained is not None:
            self._drained.set()


def encode(part: Any) -> bytes:
    """The bytes of one chunk.

    Raises:
        TypeError: it is neither str nor bytes.
    """
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, bytes | bytearray | memoryview):
        return bytes(part)
    raise TypeError(f"the chunks of a stream must be str or bytes, not {type(part).__name__}")


def collect(generator: Generator[Any, None, None], must_stop: Callable[[], bool]) -> str:
    """All chunks of a generator, joined; those so far when it `must_stop`."""
    parts = []
    try:
        for part in generator:
            if must_stop():
                break
            parts.append(_encode_any(part))
    finally:
        generator.close()
    return b"".join(parts).decode()


async def collect_async(generator: AsyncGenerator[Any, None]) -> str:
    """All chunks of an async generator, joined."""
    parts = []
    try:
        async for part in generator:
            parts.append(_encode_any(part))  # a comprehension would not close the generator
    finally:
        await generator.aclose()
    return b"".join(parts).decode()


def _encode_any(part: Any) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()


def is_generator(result: Any) -> TypeGuard[Generator[Any, None, None]]:
    return inspect.isgenerator(result)


def is_async_generator(result: Any) -> TypeGuard[AsyncGenerator[Any, None]]:
    return inspect.isasyncgen(result)
