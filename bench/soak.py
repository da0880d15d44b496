"""Good and bad requests together, for a given time: python bench/soak.py [seconds]

64 clients at once, first of a model with an async `predict`, then for as long of one with a sync `predict`. Nothing
but what the model itself raises may be a 5xx, and the memory of the server's processes must not grow after the first
fifth of the time. Ends with status 1 when one of them does not hold.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from pathlib import Path

from peers import memory_mb

CLIENTS = 64
KEPT = 20  # requests on one connection that is kept open
ASYNC = """
    import asyncio


    class Model:
        async def predict(self, model_input):
            kind = model_input.get("kind")
            if kind == "raise":
                raise ValueError("on request")
            if kind == "wait":
                await asyncio.sleep(model_input["seconds"])
            if kind == "stream":
                return self.stream(model_input["chunks"])
            return model_input

        async def stream(self, chunks):
            for number in range(chunks):
                yield f"chunk {number}\\n" * 20
                if number % 10 == 0:
                    await asyncio.sleep(0.001)
"""
# A thread is not cancelled when its client leaves: it waits for a moment only.
SYNC = """
    import time


    class Model:
        def predict(self, model_input):
            kind = model_input.get("kind")
            if kind == "raise":
                raise ValueError("on request")
            if kind == "wait":
                time.sleep(min(model_input["seconds"], 0.05))
            if kind == "stream":
                return self.stream(model_input["chunks"])
            return model_input

        def stream(self, chunks):
            for number in range(chunks):
                yield f"chunk {number}\\n" * 20
                if number % 10 == 0:
                    time.sleep(0.001)
"""
MODELS = {"async predict": ASYNC, "sync predict": SYNC}

Client = Callable[[int], Awaitable[str]]


@contextlib.asynccontextmanager
async def connected(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(port: int, data: bytes, *, read: int = -1) -> bytes:
    """Send, and read to the end, or so many bytes, and leave."""
    async with connected(port) as (reader, writer):
        writer.write(data)
        await writer.drain()
        return await asyncio.wait_for(reader.read(read), 60)


async def echo_often(port: int, bodies: Iterable[bytes]) -> str:
    """Send bodies of one size on one connection, so that the head repeats; the outcome of all."""
    async with connected(port) as (reader, writer), asyncio.timeout(60):
        for body in bodies:
            writer.write(request(body, connection="keep-alive"))
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if status(head) != "200":
                return status(head)
            if json.loads(await reader.readexactly(length)) != json.loads(body):
                return "the response to another request"
    return "200"


def request(body: bytes, head: str = "POST /predict HTTP/1.1", *, connection: str = "close") -> bytes:
    lines = (head, "Host: 127.0.0.1", f"Connection: {connection}", f"Content-Length: {len(body)}", "", "")
    return "\r\n".join(lines).encode() + body


def body_of(**body: object) -> bytes:
    return request(json.dumps(body).encode())


def status(response: bytes) -> str:
    return response[9:12].decode() or "closed"


def kinds() -> dict[str, tuple[Client, set[str]]]:
    """What a client may do, and the outcomes that are right for it."""
    chance = random.Random(7)

    async def good(port: int) -> str:
        return status(await exchange(port, body_of(kind="echo", text="x" * chance.randrange(5000))))

    async def repeated(port: int) -> str:
        texts = (chance.randbytes(20).hex() for _ in range(KEPT))
        return await echo_often(port, [json.dumps({"kind": "echo", "text": text}).encode() for text in texts])

    async def large(port: int) -> str:
        return status(await exchange(port, body_of(kind="echo", text="x" * 300_000)))

    async def stream(port: int) -> str:
        response = await exchange(port, body_of(kind="stream", chunks=100))
        return status(response) if response.endswith(b"0\r\n\r\n") else "cut"

    async def waiting(port: int) -> str:
        return status(await exchange(port, body_of(kind="wait", seconds=0.05)))

    async def raising(port: int) -> str:
        return status(await exchange(port, body_of(kind="raise")))

    async def not_json(port: int) -> str:
        return status(await exchange(port, request(chance.randbytes(200))))

    async def garbage(port: int) -> str:
        return status(await exchange(port, chance.randbytes(300) + b"\r\n\r\n"))

    async def wrong_method(port: int) -> str:
        return status(await exchange(port, request(b"", "DELETE /predict HTTP/1.1")))

    async def nowhere(port: int) -> str:
        return status(await exchange(port, request(b"", f"GET /{chance.random()} HTTP/1.1")))

    async def leaves_early(port: int) -> str:
        await exchange(port, body_of(kind="wait", seconds=5), read=0)
        return "left"

    async def leaves_stream(port: int) -> str:
        await exchange(port, body_of(kind="stream", chunks=100_000), read=2000)
        return "left"

    async def truncated(port: int) -> str:
        await exchange(port, body_of(kind="echo", text="x" * 1000)[:-500], read=0)
        return "left"

    async def probe(port: int) -> str:
        return status(await exchange(port, request(b"", "GET /v1/models/model HTTP/1.1")))

    return {
        "echo": (good, {"200"}),
        f"{KEPT} echoes on one connection": (repeated, {"200"}),
        "300 KB": (large, {"200"}),
        "stream": (stream, {"200"}),
        "waits 50 ms": (waiting, {"200"}),
        "the model raises": (raising, {"500"}),
        "not JSON": (not_json, {"400"}),
        "not HTTP": (garbage, {"400", "closed"}),
        "wrong method": (wrong_method, {"405"}),
        "no such path": (nowhere, {"404"}),
        "leaves before the response": (leaves_early, {"left"}),
        "leaves in a stream": (leaves_stream, {"left"}),
        "leaves in its own body": (truncated, {"left"}),
        "readiness": (probe, {"200"}),
    }


async def soak(port: int, seconds: float, pid: int) -> tuple[Counter[tuple[str, str]], list[float]]:
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    seen: Counter[tuple[str, str]] = Counter()
    memory: list[float] = []
    table = kinds()

    async def client(number: int) -> None:
        chance = random.Random(number)
        while loop.time() < until:
            name = chance.choice(list(table))
            try:
                outcome = await table[name][0](port)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                outcome = type(error).__name__
            seen[name, outcome] += 1

    async def watch() -> None:
        while loop.time() < until:
            await asyncio.sleep(seconds / 50)
            memory.append(memory_mb(pid)[1])

    await asyncio.gather(watch(), *(client(number) for number in range(CLIENTS)))
    return seen, memory


def main(seconds: float) -> int:
    """The exit status."""
    return max([soak_model(name, code, seconds) for name, code in MODELS.items()])


def soak_model(kind: str, code: str, seconds: float) -> int:
    """Print what happened; 1 if it was not right, else 0."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "soaked"
        (folder / "model").mkdir(parents=True)
        (folder / "model" / "model.py").write_text(textwrap.dedent(code))
        (folder / "config.yaml").write_text("runtime: {predict_concurrency: 64}\n")
        gusset = Path(sys.executable).parent / "gusset"
        with (Path(name) / "log").open("wb") as log:
            server = subprocess.Popen(
                [gusset, "serve", folder, "--port", "0", "--output", "json"],
                stdout=subprocess.PIPE,
                stderr=log,
            )
        try:
            assert server.stdout
            port = int(json.loads(server.stdout.readline())["address"].rpartition(":")[2])
            seen, memory = asyncio.run(soak(port, seconds, server.pid))
        finally:
            server.send_signal(signal.SIGTERM)
            ended = server.wait(30)
    right = {name: outcomes for name, (_, outcomes) in kinds().items()}
    wrong = {key: count for key, count in seen.items() if key[1] not in right[key[0]]}
    warm, late = max(memory[10:20]), max(memory[-10:])
    title = f"{kind}, {seconds:g} s of {CLIENTS} clients: {sum(seen.values()):,} requests or connections"
    print(f"\n### {title}\n")
    print("| what | outcome | requests |\n|---|---|---:|")
    for (what, outcome), count in sorted(seen.items()):
        print(f"| {what} | {outcome}{' **wrong**' if (what, outcome) in wrong else ''} | {count:,} |")
    print(f"\nmemory after warm-up {warm:.0f} MB, at the end {late:.0f} MB; exit status {ended}")
    return int(bool(wrong) or late > 1.1 * warm or ended != 0)


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 300.0))
