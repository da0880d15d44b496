"""examples/vllm-openai as a custom image: an image with a stand-in for vLLM, whose routes gusset must not disturb."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.conftest import leaks_in
from tests.containers.conftest import BASE, ServedImage, podman
from tests.containers.vllm_stand_in import HEADERS
from tests.serving.conftest import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "vllm-openai" / "image"
IMAGE = "localhost/gusset-test:vllm"
RECIPE = f"""
FROM {BASE}
COPY vllm_stand_in.py /usr/local/bin/vllm
RUN chmod 755 /usr/local/bin/vllm && useradd --uid 4322 server
USER server
"""
TOKEN = b"hf_Qx7TzLmWbVnRkPsYdGhJcNfAeUiOq2345W"
MESSAGES = [{"role": "user", "content": "hello"}]
CHUNKS = 40_000  # of a large stream: together 20 MB


@pytest.fixture
def vllm(served: ServedImage) -> ServedImage:
    """The example, with the stand-in's image in place of vLLM's; started, but not yet ready."""
    podman("build", "-q", "-t", IMAGE, "-f", "-", str(Path(__file__).parent), input=RECIPE.encode())
    config = (EXAMPLE / "config.yaml").read_text()
    assert "vllm/vllm-openai:v0.11.0" in config
    (served.folder / "config.yaml").write_text(config.replace("vllm/vllm-openai:v0.11.0", IMAGE))
    served.secret("hf_access_token", TOKEN)
    return served.start()


def container_processes(served: ServedImage) -> Iterator[Path]:
    """All processes in the container, as folders of /proc."""
    found = [Path("/proc") / served.engine("inspect", "--format", "{{.State.Pid}}", served.container)]
    for folder in found:
        for children in folder.glob("task/*/children"):
            found += [Path("/proc") / pid for pid in children.read_text().split()]
    yield from found


def test_vllm_as_a_custom_image_serves_every_route_without_showing_the_token(vllm: ServedImage) -> None:
    """Its engine's process gets the token by no argument and no variable; every route passes as it is."""
    vllm.ready()
    with httpx.Client(base_url=vllm.address, timeout=60) as client:
        assert client.get("/v1/models/model").headers["x-path"] == "/health"
        (model,) = client.get("/v1/models").json()["data"]
        assert model == {"id": "your-org/gated-llama", "token": hashlib.sha256(TOKEN).hexdigest()}
        assert b"vllm:num_requests_running" in client.get("/metrics").content
        assert "gusset_model_ready 1" in client.get("/gusset/metrics").text
        many = {f"x-many-{number}": f"{number}-" * 100 for number in range(HEADERS)}
        response = client.post("/v1/chat/completions", json={"messages": MESSAGES}, headers=many)
        assert response.json()["choices"][0]["message"] == MESSAGES[0]
        assert [response.headers[f"x-echo-{number}"] for number in range(HEADERS)] == list(many.values())

        with client.stream(
            "POST", "/predict", json={"messages": MESSAGES, "stream": True, "max_tokens": CHUNKS}
        ) as stream:
            assert stream.headers["content-type"] == "text/event-stream; charset=utf-8"
            lines = stream.iter_lines()
            assert json.loads(next(lines).removeprefix("data: "))["choices"], "before there is a second chunk"
            client.post("/v1/chat/completions", json={"messages": MESSAGES, "go_on": True})
            events = [line for line in lines if line]
        assert len(events) == CHUNKS, "those that follow, and the end"
        assert events[-1] == "data: [DONE]"

    with connect(vllm.address.replace("http", "ws") + "/v1/realtime") as socket:
        socket.send("session.update")
        assert socket.recv() == "session.update"

    processes = list(container_processes(vllm))
    assert len(processes) >= 2
    for folder in processes:
        assert not leaks_in((folder / "cmdline").read_bytes() + (folder / "environ").read_bytes(), TOKEN)
    eventually(lambda: "engine with ***" in vllm.output, "it prints")
    assert vllm.output.count("non-default args") == 1, "started once, however long it takes"
    assert vllm.stop() == 0
    assert not leaks_in(vllm.output.encode(), TOKEN)
    assert not vllm.left_behind()
