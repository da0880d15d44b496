"""The streams of changes as the manager's event loop sees them: in this process, with a real vault and real sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest

from gusset.client.manager_source import STREAM_TIMEOUT
from gusset.manager.app import make_manager
from gusset.manager.live import streams
from gusset.runtime.http_server import HttpServer
from gusset.runtime.trusted_proxies import TrustedProxies
from gusset.settings import Settings
from gusset.vault import Vault, open_vault
from gusset.vault.commit.loop_writer import make_server_writer

PATIENCE = 20.0
MANY = 50
BEAT = b'{"event":"beat"}\n'


@pytest.fixture
def vault(environ: dict[str, str]) -> Iterator[Vault]:
    with open_vault(Settings.load(environ), make_writer=make_server_writer) as opened:
        yield opened


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks and heartbeats as often as the manager looks at its streams."""
    monkeypatch.setattr(streams, "HEARTBEAT_SECONDS", 0.1)
    monkeypatch.setattr(streams, "CHECK_SECONDS", 0.1)


def new_token(vault: Vault, deployment: str) -> bytes:
    """That of a new deployment."""
    [team] = vault.teams.all()
    return vault.deployments.register(team.id, deployment, ["mine"], actor="ada")[2].reveal()


class Replica:
    """A client with an open stream."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, port: int, token: bytes) -> Replica:
        """A replica that has received its first event."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /v1/deployment/changes HTTP/1.1\r\nHost: a\r\n")
        writer.write(b"Authorization: Bearer %b\r\n\r\n" % token)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        assert b'"event":"hello"' in await reader.readuntil(b"}\n\r\n")
        return cls(reader, writer)

    async def wait_for_beat(self) -> None:
        """Read the next event, which must be a heartbeat."""
        assert await self._reader.readuntil(b"}\n\r\n") == b"%x\r\n%b\r\n" % (len(BEAT), BEAT)

    async def leave(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


@asynccontextmanager
async def managing(vault: Vault) -> AsyncIterator[int]:
    """Run the manager on this event loop, without what it does beside requests; its port."""
    manager = make_manager(
        vault, bootstrap_link=None, proxies=TrustedProxies(None), scheme="http", key_rate=0
    )
    server = HttpServer(manager.middleware)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    port: int = listener.getsockname()[1]
    manager.change_feed.start()
    await server.start(listener)
    try:
        async with asyncio.timeout(PATIENCE):
            yield port
    finally:
        manager.end_streams()
        await server.drain()
        manager.executors.close()
        manager.cache.close()


@pytest.mark.usefixtures("fast")
def test_each_of_many_idle_streams_gets_heartbeats_and_none_has_a_task(vault: Vault) -> None:
    """A client opens a silent stream again, and thousands of idle replicas must cost next to nothing."""
    token = new_token(vault, "d")

    async def scenario() -> None:
        async with managing(vault) as port:
            before = asyncio.all_tasks()
            replicas = [await Replica.connect(port, token) for _ in range(MANY)]
            for _ in range(3):
                for replica in replicas:
                    await replica.wait_for_beat()
                assert asyncio.all_tasks() == before
            for replica in replicas:
                await replica.leave()

    asyncio.run(scenario())


def test_heartbeats_come_before_a_client_gives_up_its_stream() -> None:
    """One may be late by a check, and the check by what a busy manager is late."""
    assert streams.HEARTBEAT_SECONDS + streams.CHECK_SECONDS < STREAM_TIMEOUT
