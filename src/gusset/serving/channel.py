"""The socket between supervisor and worker: messages of JSON, each preceded by its length.

Secret values cross here and nowhere else, in base64, since they may be any bytes.
"""

from __future__ import annotations

import base64
import json
import socket
from collections.abc import Mapping
from typing import Any

from gusset.secrets.value import SecretValue

_LENGTH = 4  # bytes


def send(channel: socket.socket, message: Mapping[str, Any]) -> None:
    """Raises OSError when the other side has gone."""
    data = json.dumps(message).encode()
    channel.sendall(len(data).to_bytes(_LENGTH, "big") + data)


def receive(channel: socket.socket) -> dict[str, Any] | None:
    """The next message; None when the other side has gone."""
    head = _exactly(channel, _LENGTH)
    if head is None:
        return None
    data = _exactly(channel, int.from_bytes(head, "big"))
    return None if data is None else dict(json.loads(data))


def _exactly(channel: socket.socket, size: int) -> bytes | None:
    parts = bytearray()
    while len(parts) < size:
        try:
            part = channel.recv(size - len(parts))
        except OSError:
            return None
        if not part:
            return None
        parts += part
    return bytes(parts)


def pack(values: Mapping[str, SecretValue]) -> dict[str, str]:
    """Values as a message carries them."""
    return {name: base64.b64encode(value.reveal()).decode() for name, value in values.items()}


def unpack(values: Mapping[str, str]) -> dict[str, SecretValue]:
    return {name: SecretValue(base64.b64decode(text)) for name, text in values.items()}
