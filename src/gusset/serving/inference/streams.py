"""A generator's chunks on their way to a client.

What is ready is written at once, and whatever becomes ready meanwhile is
written together: a slow generator's chunks leave one by one, a quick one's in
few writes. A client that does not read makes the generator wait.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, TypeGuard

from gusset.runtime.exchange import LAST_CHUNK, Exchange, Headers, chunk

_AHEAD = 256 * 1024  # bytes that a generator may be ahead of what has been written
_TOGETHER = 64  # chunks that an async generator may give without letting others go on
STREAMED = (b"content-type", b"application/octet-stream")


class ResponseStream:
    """Between one generator and one client."""

    def __init__(self, exchange: Exchange, headers: Headers, loop: asyncio.AbstractEventLoop) -> None:
        self._exchange = exchange
        self._headers = (STREAMED, *headers)
        self._loop = loop
        self._ready: list[bytes] = []
        self._waking = False
        self._made = 0  # bytes put,
        self._taken = 0  # and bytes of them that have been written
        self._room = threading.Event()
        self._drained: asyncio.Event | None = None
        self.has_begun = False
        exchange.on_writable = self._make_room

    def send_all(self, generator: Generator[Any, None, None]) -> BaseException | None:
        """Put all that a generator gives, on a thread other than the loop's; what it raised, if it did."""
        exchange, ready = self._exchange, self._ready
        try:
            try:
                for part in generator:
                    data = part if type(part) is bytes else encoded(part)
                    if exchange.gone:
                        break
                    if data:
                        ready.append(data)
                        self._made += len(data)
                        if not self._waking:
                            self._waking = True
                            self._loop.call_soon_threadsafe(self._flush)
                        if self._made - self._taken > _AHEAD or not exchange.writable:
                            self._wait_for_room()
            finally:
                generator.close()
        except BaseException as error:  # SystemExit too: a model's error like any other
            return error
        return None

    async def send_all_async(self, generator: AsyncGenerator[Any, None]) -> BaseException | None:
        """Put all that an async generator gives; what it raised, if it did."""
        together = 0
        try:
            try:
                async for part in generator:
                    data = part if type(part) is bytes else encoded(part)
                    if data:
                        self._ready.append(data)
                        self._made += len(data)
                        if not self._waking:
                            self._waking = True
                            self._loop.call_soon(self._flush)
                    together += 1
                    if together == _TOGETHER:
                        together = 0
                        await asyncio.sleep(0)
                    if not self._exchange.writable:
                        self._drained = asyncio.Event()
                        await self._drained.wait()
            finally:
                await generator.aclose()
        except asyncio.CancelledError:
            if self._exchange.gone:
                raise
            return asyncio.CancelledError()
        except BaseException as error:
            return error
        return None

    def finish(self) -> None:
        """The generator has ended as it should: so does the answer."""
        data = self._framed()
        last = b"" if self._exchange.is_old else LAST_CHUNK
        if self.has_begun:
            self._exchange.end(data + last)
        else:
            self._begin(data)
            self._exchange.end(last)

    def abort(self) -> None:
        """The generator has failed after its first chunk: the client gets what there is, and sees it end."""
        self._flush()
        self._exchange.cut()

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been put yet: then the answer may still become another one."""
        return not (self.has_begun or self._ready)

    def on_disconnect(self) -> None:
        """The client has gone: nobody waits for room any more."""
        self._make_room()

    def _flush(self) -> None:
        self._waking = False
        data = self._framed()
        if data:
            if self.has_begun:
                self._exchange.write(data)
            else:
                self._begin(data)
        self._room.set()

    def _begin(self, data: bytes) -> None:
        self.has_begun = True
        self._exchange.start(200, self._headers, data)

    def _framed(self) -> bytes:
        ready = self._ready
        parts = ready[:]
        del ready[: len(parts)]  # another thread may have appended meanwhile
        self._taken += sum(map(len, parts))
        if self._exchange.is_old:
            return b"".join(parts)
        return b"".join([chunk(part) for part in parts])

    def _wait_for_room(self) -> None:
        exchange = self._exchange
        while not exchange.gone and (self._made - self._taken > _AHEAD or not exchange.writable):
            self._room.clear()
            if not exchange.gone and (self._made - self._taken > _AHEAD or not exchange.writable):
                self._room.wait()

    def _make_room(self) -> None:
        self._room.set()
        if self._drained is not None:
            self._drained.set()


def encoded(part: Any) -> bytes:
    """One chunk that a generator gave, as bytes.

    Raises:
        TypeError: it is neither text nor bytes.
    """
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, bytes | bytearray | memoryview):
        return bytes(part)
    raise TypeError(f"a stream is made of str and bytes, this one gave {type(part).__name__}")


def collect(generator: Generator[Any, None, None], has_gone: Callable[[], bool]) -> str:
    """All that a generator gives, as one text, for a client that asks for JSON."""
    parts = []
    try:
        for part in generator:
            if has_gone():
                break
            parts.append(_collected(part))
    finally:
        generator.close()
    return b"".join(parts).decode()


async def collect_async(generator: AsyncGenerator[Any, None]) -> str:
    """All that an async generator gives, as one text."""
    parts = []
    try:
        async for part in generator:
            parts.append(_collected(part))  # a comprehension could not be closed
    finally:
        await generator.aclose()
    return b"".join(parts).decode()


def _collected(part: Any) -> bytes:
    return part if isinstance(part, bytes) else str(part).encode()


def is_generator(result: Any) -> TypeGuard[Generator[Any, None, None]]:
    return inspect.isgenerator(result)


def is_async_generator(result: Any) -> TypeGuard[AsyncGenerator[Any, None]]:
    return inspect.isasyncgen(result)
