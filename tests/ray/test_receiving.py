"""The calls by which a replica fetches a request from Ray's proxy."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

Messages = list[dict[str, Any]]
DISCONNECT = {"type": "http.disconnect"}


def part(body: bytes, *, more: bool) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


async def received(fetches: list[Messages], count: int) -> tuple[Messages, int]:
    """The first `count` messages that an application receives, and how often the proxy was called for them."""
    from ray.serve._private.http_util import ASGIReceiveProxy

    from gusset.ray.receiving import fetched_on_demand

    calls = 0

    async def fetch(metadata: object) -> bytes:
        nonlocal calls
        calls += 1
        return pickle.dumps(fetches[calls - 1])

    proxy = ASGIReceiveProxy({"type": "http"}, None, fetch)
    fetching = asyncio.create_task(proxy.fetch_until_disconnect())  # in this order, as Ray's replica does it
    receive = fetched_on_demand(proxy)
    messages = [await receive() for _ in range(count)]
    await asyncio.sleep(0.01)  # in which Ray would fetch more
    fetching.cancel()
    return messages, calls


def test_a_small_request_costs_one_call() -> None:
    """The proxy is not called again for the disconnect, which nobody awaits."""
    whole = part(b"{}", more=False)
    assert asyncio.run(received([[whole], [DISCONNECT]], 1)) == ([whole], 1)


def test_a_request_in_parts_is_fetched_to_its_end() -> None:
    """All parts arrive in order, from as many calls as it takes."""
    parts = [part(b"1", more=True), part(b"2", more=True), part(b"3", more=False)]
    assert asyncio.run(received([parts[:1], parts[1:], [DISCONNECT]], 3))[0] == parts


def test_an_awaited_disconnect_is_received_again_and_again() -> None:
    """As ASGI asks for."""
    whole = part(b"{}", more=False)
    assert asyncio.run(received([[whole], [DISCONNECT]], 3))[0] == [whole, DISCONNECT, DISCONNECT]


def test_a_receive_of_another_server_is_left_alone() -> None:
    """Such as that of a replica behind HAProxy."""
    from gusset.ray.receiving import fetched_on_demand

    async def receive() -> dict[str, Any]:
        return DISCONNECT

    assert fetched_on_demand(receive) is receive
