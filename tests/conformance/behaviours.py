"""The behaviours of a model that gusset promises, each a small model folder under `models/`.

A folder holds a model as a user would write it, and `behaviour.yaml`: one
sentence that states the behaviour, requests with the expected responses, and,
where Truss's own server differs on purpose, how.
"""

from __future__ import annotations

import datetime
import decimal
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import yaml

from gusset.serving.inference.msgpack_codec import pack, unpack

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """One folder. `truss`: how Truss differs. `fails`: exit status and output of a start that fails.

    `log`: a text that the log then contains.
    """

    folder: Path
    position: int
    what: str
    calls: list[dict[str, Any]]
    truss: str | None
    fails: Mapping[str, Any] | None
    log: str | None
    secrets: Mapping[str, str]

    @property
    def name(self) -> str:
        return self.folder.name


def behaviours() -> list[Behaviour]:
    """All of them, in the order of the document."""
    return sorted(map(read, MODELS.iterdir()), key=lambda behaviour: behaviour.position)


def read(folder: Path) -> Behaviour:
    data = yaml.safe_load((folder / "behaviour.yaml").read_text())
    return Behaviour(
        folder=folder,
        position=data["position"],
        what=data["what"],
        calls=data.get("calls", []),
        truss=data.get("truss"),
        fails=data.get("fails"),
        log=data.get("log"),
        secrets=data.get("secrets", {}),
    )


def check_call(address: str, call: dict[str, Any]) -> None:
    """Send one request, again while its response is not yet that of `until`, and check the response."""
    deadline = time.monotonic() + 30
    text, cut, response = _send(address, call)
    while "until" in call and text.decode() != call["until"] and time.monotonic() < deadline:
        text, cut, response = _send(address, call)
    shown = f"{call}: {response.status_code} {text!r}"
    assert response.status_code == call.get("status", 200), shown
    assert cut == call.get("cut", False), shown
    for name, value in call.get("headers", {}).items():
        assert response.headers.get(name) == value, f"{name} in {response.headers} of {shown}"
    if "json" in call:
        assert httpx.Response(200, content=text).json() == call["json"], shown
    if "text" in call:
        assert text.decode() == call["text"], shown
    if "hex" in call:
        assert text.hex() == call["hex"], shown
    if "unpacked" in call:
        assert _plain(unpack(text)) == call["unpacked"], shown
    for part in call.get("has", ()):
        assert part in text.decode(), shown


def _send(address: str, call: dict[str, Any]) -> tuple[bytes, bool, httpx.Response]:
    """The response's body as far as it arrived, whether it was cut off, and the response."""
    headers = dict(call.get("send_headers", {}))
    content = None
    if "send" in call or "get" not in call:
        content = json.dumps(call.get("send")).encode()
    if "body" in call:
        content = call["body"].encode()
    if "hex_body" in call:
        content = bytes.fromhex(call["hex_body"])
    if "pack" in call:
        content = pack(_rich(call["pack"]))
        headers.setdefault("Content-Type", "application/octet-stream")
    method = call.get("method", "GET" if "get" in call else "POST")
    path = call.get("get") or call.get("path", "/v1/models/model:predict")
    got, cut = b"", False
    with httpx.stream(
        method, address + path, content=content, headers=headers, timeout=30, trust_env=False
    ) as response:
        try:
            for part in response.iter_raw():
                got += part
        except httpx.RemoteProtocolError:
            cut = True
    return got, cut, response


def _rich(value: Any) -> Any:
    """Decode values that YAML has no type for: `{$array: ...}`, `{$date: ...}`, `{$decimal: ...}`."""
    if isinstance(value, dict):
        if "$array" in value:
            return np.array(value["$array"])
        if "$date" in value:
            return datetime.date.fromisoformat(value["$date"])
        if "$decimal" in value:
            return decimal.Decimal(value["$decimal"])
        return {key: _rich(each) for key, each in value.items()}
    return [_rich(each) for each in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    """Encode them, to be compared with those in `behaviour.yaml`."""
    if isinstance(value, np.ndarray):
        return {"$array": value.tolist()}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {"$bytes": value.hex()}
    if isinstance(value, datetime.date):
        return {"$date": value.isoformat()}
    if isinstance(value, decimal.Decimal):
        return {"$decimal": str(value)}
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value
