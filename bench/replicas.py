"""Replicas as the manager sees them: clients of the protocol, thousands of them in one process."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable

import httpx

from gusset.client.replica_lease import seconds_to_renewal

OF_ONE_DEPLOYMENT = 500
_HEAD = "Host: 127.0.0.1:8700\r\nAccept: */*\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nUser-Agent: python-httpx/0.28\r\n"  # as httpx sends it


class Replica:
    """A stream of changes, a connection for requests, and a lease that is renewed."""

    def __init__(self, port: int, token: str, *, address: str = "127.0.0.1") -> None:
        """`address` is the replica's own."""
        self._port = port
        self._address = address
        self._head = _HEAD + f"Authorization: Bearer {token}\r\n"
        self.on_fetched: Callable[[], object] = lambda: None  # called with each new version
        self._session = ""
        self._replica = ""
        self.versions: dict[str, int] = {}
        self._lock = asyncio.Lock()  # one request at a time
        self.fetches = self.renewals = self.events = 0
        self.refused = 0  # requests that got 503, and were sent again

    async def open(self) -> None:
        """Fetch the values, begin the lease, and open the stream."""
        self._reader, self._writer = await self._connect()
        await self._fetch()
        self.on_fetched()
        await self.renew({"host": "bench", "versions": self.versions})
        self._stream, self._stream_writer = await self._connect()
        self._stream_writer.write(f"GET /v1/deployment/changes HTTP/1.1\r\n{self._head}\r\n".encode())
        head = await self._stream.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))

    def close_requests(self) -> None:
        """Keep only the stream."""
        self._writer.close()

    async def follow(self) -> None:
        """Fetch the values after each change."""
        async for line in self._stream:
            if b'"event"' in line:
                self.events += 1
            if b'"changed"' in line:
                before = self.versions
                await self._fetch()
                if self.versions != before:
                    self.on_fetched()
                    await self.renew({"host": "bench", "versions": self.versions})

    async def keep_lease(self) -> None:
        """Renew the lease again and again."""
        await asyncio.sleep(random.uniform(0, 8))  # replicas do not all start at once
        while True:
            await self.renew()
            await asyncio.sleep(seconds_to_renewal(time.time()))

    async def _fetch(self) -> None:
        data = json.loads(await self._request("POST", "/v1/deployment/secrets", b"{}"))
        self._session, self._replica = data["session_key"] or self._session, data["replica"]
        self.versions = {name: each["version"] for name, each in data["secrets"].items()}
        self.fetches += 1

    async def renew(self, report: dict[str, object] | None = None) -> None:
        """Renew the lease, with what has changed."""
        path = f"/v1/deployment/replicas/{self._replica}"
        await self._request("PUT", path, json.dumps(report).encode() if report else b"")
        self.renewals += 1

    async def _request(self, method: str, path: str, body: bytes) -> bytes:
        session = f"Gusset-Session: {self._session}\r\n" if self._session else ""
        head = f"{method} {path} HTTP/1.1\r\n{self._head}{session}Content-Length: {len(body)}\r\n\r\n"
        async with self._lock:
            self._writer.write(head.encode() + body)
            response = await self._reader.readuntil(b"\r\n\r\n")
            length = int(response.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            data = await self._reader.readexactly(length)
        if response.startswith(b"HTTP/1.1 503"):  # the database was too slow: again, as gusset's client does
            self.refused += 1
            await asyncio.sleep(random.uniform(0, 0.5))
            return await self._request(method, path, body)
        assert response.startswith(b"HTTP/1.1 200"), response
        return data


def deployment_tokens(admin: httpx.Client, replicas: int, secrets: list[str]) -> list[str]:
    """A token for each replica: of deployments with `OF_ONE_DEPLOYMENT` replicas each."""
    tokens: list[str] = []
    for number in range(-(-replicas // OF_ONE_DEPLOYMENT)):
        body = {"name": f"bench-{number}", "secrets": secrets}
        made = admin.post("/v1/deployments", json=body).raise_for_status().json()
        tokens += [made["token"]] * OF_ONE_DEPLOYMENT
    return tokens[:replicas]
