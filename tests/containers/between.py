"""A real engine with other defaults: what it is asked to create is changed on the way to it."""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def engine_with(address: str, change: Callable[[dict[str, Any]], object]) -> Iterator[str]:
    """The address of an engine like that one, but that `change` is applied to each container's description."""
    with (
        tempfile.TemporaryDirectory(prefix="gusset-between-") as folder,
        socket.socket(socket.AF_UNIX) as door,
    ):
        door.bind(f"{folder}/engine.sock")
        door.listen()

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    ours, _ = door.accept()
                    threading.Thread(target=carry, args=(ours,), daemon=True).start()

        def carry(ours: socket.socket) -> None:
            with ours, socket.socket(socket.AF_UNIX) as theirs:
                theirs.connect(address.removeprefix("unix://"))
                back = threading.Thread(target=_bytes, args=(theirs, ours), daemon=True)
                back.start()
                with contextlib.suppress(OSError):
                    _requests(ours, theirs, change)
                    theirs.shutdown(socket.SHUT_WR)
                back.join()

        threading.Thread(target=accept, daemon=True).start()
        yield f"unix://{folder}/engine.sock"
        door.shutdown(socket.SHUT_RDWR)


def _bytes(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


def _requests(
    source: socket.socket, target: socket.socket, change: Callable[[dict[str, Any]], object]
) -> None:
    """One request after the other; after one that asks for a bare connection, whatever comes."""
    while head := _head(source):
        first, *lines = head.splitlines(keepends=True)
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        body = (
            source.recv(length, socket.MSG_WAITALL)
            if (length := int(fields.get(b"content-length", 0)))
            else b""
        )
        if b"/containers/create" in first:
            asked = json.loads(body)
            change(asked)
            body = json.dumps(asked).encode()
            lines = [line for line in lines if not line.lower().startswith(b"content-length")]
            lines.append(b"Content-Length: %d\r\n" % len(body))
        target.sendall(first + b"".join(lines) + b"\r\n" + body)
        if b"upgrade" in fields:
            _bytes(source, target)
            return


def _head(source: socket.socket) -> bytes:
    """Its lines, without the empty one; byte by byte, so that nothing of what follows is taken."""
    head = b""
    while not head.endswith(b"\r\n\r\n") and (byte := source.recv(1)):
        head += byte
    return head.removesuffix(b"\r\n")
