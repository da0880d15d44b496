"""A proxy before a real engine: it changes what the engine creates, or responds in its place."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

Change = Callable[[dict[str, Any]], object]
Respond = Callable[[bytes], bytes | None]


@contextlib.contextmanager
def engine_with(
    address: str, change: Change = lambda _: None, respond: Respond = lambda _: None
) -> Iterator[str]:
    """The address of a proxy that calls `change` with the description of each container to be created.

    `respond` is called with each request line: with what to respond; None forwards the request.
    """
    with (
        tempfile.TemporaryDirectory(prefix="gusset-between-") as folder,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{folder}/engine.sock")
        listener.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    threading.Thread(target=forward, args=(client,), daemon=True).start()

        def forward(client: socket.socket) -> None:
            with client, socket.socket(socket.AF_UNIX) as engine:
                engine.connect(address.removeprefix("unix://"))
                back = threading.Thread(target=_forward_bytes, args=(engine, client), daemon=True)
                back.start()
                with contextlib.suppress(OSError):
                    _forward_requests(client, engine, change, respond)
                    engine.shutdown(socket.SHUT_WR)
                back.join()

        threading.Thread(target=accept, daemon=True).start()
        yield f"unix://{folder}/engine.sock"
        listener.shutdown(socket.SHUT_RDWR)


def _forward_bytes(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _forward_requests(source: socket.socket, target: socket.socket, change: Change, respond: Respond) -> None:
    """Forward one request after another; after one with an upgrade, all bytes that follow."""
    while head := _head(source):
        first, *lines = head.splitlines(keepends=True)
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        body = (
            source.recv(length, socket.MSG_WAITALL)
            if (length := int(fields.get(b"content-length", 0)))
            else b""
        )
        if (response := respond(first)) is not None:
            source.sendall(response)
            continue
        if b"/containers/create" in first:
            description = json.loads(body)
            change(description)
            body = json.dumps(description).encode()
            lines = [line for line in lines if not line.lower().startswith(b"content-length")]
            lines.append(b"Content-Length: %d\r\n" % len(body))
        target.sendall(first + b"".join(lines) + b"\r\n" + body)
        if b"upgrade" in fields:
            _forward_bytes(source, target)
            return


def _head(source: socket.socket) -> bytes:
    """The lines of a request's head, read byte by byte so that nothing of the body is read."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := source.recv(1)):
        head += byte
    return head.removesuffix(b"\r\n")
