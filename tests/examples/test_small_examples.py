"""Two small examples, served from their folders alone: an API's key, and weights of a gated repository."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.cli.test_serve import predict, served
from tests.conftest import Cli
from tests.containers.conftest import skip_if
from tests.examples import hub as hubs
from tests.examples.conftest import make_token
from tests.examples.environments import (
    HOME,
    NEIGHBOURS,
    SEARCH,
    FolderEnvironment,
    Unavailable,
    tiny_bert,
)
from tests.serving.conftest import eventually

pytestmark = pytest.mark.torch  # their environments are those of `make examples`


def example(environment: FolderEnvironment, gusset: Cli, tmp_path: Path, **changes: str) -> Path:
    """A copy of an example with some texts of its config changed, to be served in the environment of `make examples`."""
    if not environment.ready:
        skip_if(environment.reason)
    folder = Path(shutil.copytree(environment.folder, tmp_path / environment.folder.name))
    config = (folder / "config.yaml").read_text()
    for old, new in changes.items():
        assert old in config
        config = config.replace(old, new)
    (folder / "config.yaml").write_text(config)
    gusset.environ["GUSSET_CACHE"] = str(HOME)
    return folder


@contextmanager
def api(accepted: list[str]) -> Iterator[str]:
    """An API on loopback that responds to those who present one of the accepted keys."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers["authorization"] in [f"Bearer {key}" for key in accepted]
            body = json.dumps({"path": self.path}).encode()
            self.send_response(200 if known else 401)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1/search"
        server.shutdown()


def test_the_search_example_uses_the_newest_key(gusset: Cli, tmp_path: Path) -> None:
    """A new value of the secret is used by the next request that the API must answer."""
    accepted = ["search-key-of-january"]
    with api(accepted) as url:
        folder = example(SEARCH, gusset, tmp_path, **{"https://search.example.com/v1/search": url})
        gusset("secret", "set", "search_api_key", input=accepted[0].encode())
        with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
            assert predict(address, {"text": "a lake"}).json() == {"path": "/v1/search?q=a+lake"}
            accepted[:] = ["search-key-of-february"]
            assert predict(address, {"text": "a river"}).status_code == 500
            gusset("secret", "set", "search_api_key", input=accepted[0].encode())
            eventually(lambda: predict(address, {"text": "a river"}).status_code == 200, "the new key")
    assert "search-key" not in (tmp_path / "errors").read_text()


def test_the_word_neighbours_have_their_weights_before_load(gusset: Cli, tmp_path: Path) -> None:
    """The token downloads them from the gated repository, and does not reach the model."""
    token = make_token()
    try:
        repository = tiny_bert()
    except Unavailable as error:
        skip_if(str(error))
    mount = tmp_path / "models" / "neighbours"
    folder = example(NEIGHBOURS, gusset, tmp_path, **{"/models/word-neighbours": str(mount)})
    gusset("secret", "set", "hf_access_token", input=token)
    with hubs.serving(hubs.Hub("your-org/gated-bert", repository, token)) as hub:
        gusset.environ |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "huggingface")}
        with served(gusset, str(folder), errors=tmp_path / "errors") as (address, _):
            found = predict(address, {"word": "paris"}).json()
    assert found[0] == "paris"
    assert len(found) == 5
    assert {request.caller for request in hub.downloads} == {"accepted"}
    assert (mount / "model.safetensors").is_file()
    assert token.decode() not in (tmp_path / "errors").read_text()
