"""examples/vllm-openai/python with a stand-in for vLLM, which needs a GPU. The image has a test in tests/containers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest

from tests.cli.test_serve import predict, served
from tests.conftest import Cli, leaks_in
from tests.examples import hub as hubs
from tests.examples.conftest import make_token
from tests.serving.conftest import eventually

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "vllm-openai" / "python"
STAND_IN = ROOT / "tests" / "examples" / "vllm_stand_in"
OPENAI_HEADERS = {"accept": "application/json"}  # as OpenAI's client sends, for streams too


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example, with the stand-in in place of the requirement."""
    folder = Path(shutil.copytree(EXAMPLE, tmp_path / "vllm"))
    shutil.copytree(STAND_IN, folder / "packages", ignore=shutil.ignore_patterns("__pycache__"))
    config = (folder / "config.yaml").read_text()
    changed = re.sub(r"python_version: .*\nrequirements:\n  - vllm==.*\n", "", config)
    assert changed != config
    (folder / "config.yaml").write_text(changed)
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def chat(content: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content}], **more}


def events(lines: Iterator[str]) -> Iterator[str]:
    return (line.removeprefix("data: ") for line in lines if line)


def content(event: str) -> str:
    return str(json.loads(event)["choices"][0]["delta"]["content"])


def test_vllm_in_a_model_class(gusset: Cli, folder: Path, repository: Path, tmp_path: Path) -> None:
    """The spawned engine gets the token and downloads with it; the route of OpenAI is streamed, unbuffered."""
    token, errors = make_token(), tmp_path / "errors"
    gusset("secret", "set", "hf_access_token", input=token)
    with hubs.serving(hubs.Hub("your-org/gated-llama", repository, token)) as hub:
        gusset.environ["HF_ENDPOINT"] = hub.address
        with served(gusset, str(folder), errors=errors) as (address, process):
            assert predict(address, {"prompt": "one two", "max_tokens": 3}).json() == "one two one "
            route = f"{address}/v1/chat/completions"
            done = httpx.post(route, json=chat("hello", max_tokens=2), headers=OPENAI_HEADERS).json()
            assert done["choices"][0]["message"] == {"role": "assistant", "content": "hello hello "}
            assert done["choices"][0]["finish_reason"] == "length"
            assert httpx.post(route, json={}).status_code == 400

            asked = chat("wait for it", max_tokens=5_000, stream=True)
            with httpx.stream("POST", route, json=asked, headers=OPENAI_HEADERS, timeout=60) as stream:
                assert stream.headers["content-type"].startswith("text/event-stream")
                received = events(stream.iter_lines())
                assert content(next(received)) == "wait ", "before there is a second word"
                httpx.post(route, json=chat("go on"))
                rest = list(received)
            assert rest.pop() == "[DONE]"
            assert len(rest) == 4_999
            assert json.loads(rest[-1])["choices"][0]["finish_reason"] == "length"

            with httpx.stream("POST", route, json=chat("a b", max_tokens=10**8, stream=True)) as stream:
                next(stream.iter_lines())
            eventually(lambda: "aborted" in errors.read_text(), "a client that leaves ends its request")
            for folder_of in _processes(process.pid):
                with suppress(OSError):  # it has ended
                    found = (folder_of / "cmdline").read_bytes() + (folder_of / "environ").read_bytes()
                    assert not leaks_in(found, token)
    assert {request.caller for request in hub.downloads} == {"accepted"}
    printed = errors.read_text()
    assert "engine with ***" in printed
    assert "'hf_token': '***'" in printed
    assert not leaks_in(printed.encode(), token)


def _processes(pid: int) -> list[Path]:
    """The server, its worker and the engine that this one started, and what lies between."""
    found = [Path(f"/proc/{pid}")]
    for folder in found:
        for children in folder.glob("task/*/children"):
            with suppress(OSError):  # a thread that has ended
                found += [Path(f"/proc/{child}") for child in children.read_text().split()]
    assert len(found) >= 4
    return found
