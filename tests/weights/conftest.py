from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gusset.secrets.masking import Masker
from gusset.secrets.value import SecretValue
from gusset.weights.cache import WeightsCache
from gusset.weights.download import Download, FetchRequest
from gusset.weights.fetching import FetchOptions, FetchProcess, fetch_environment
from gusset.weights.web import WebClient
from tests.weights.web_server import WebServer, serving


@pytest.fixture
def web() -> Iterator[WebServer]:
    with serving() as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> WeightsCache:
    return WeightsCache.open(tmp_path / "cache")


@pytest.fixture
def client(cache: WeightsCache) -> Iterator[WebClient]:
    """A client that does not wait between retries."""
    client = WebClient(cache, first_delay=0)
    yield client
    client.close()


@dataclass
class Fetch:
    """Downloads by the real process, as the supervisor has it done."""

    root: Path
    errors: int
    environ: dict[str, str] = field(default_factory=dict)
    masker: Masker = field(default_factory=Masker)

    @property
    def output(self) -> str:
        return (self.root / "output").read_text()

    def start(self, *downloads: Download, **values: bytes) -> FetchProcess:
        self.masker.learn({name: SecretValue(value) for name, value in values.items()})
        request = FetchRequest(
            downloads=downloads,
            values=values,
            cache=self.root / "cache",
            data_dir=self.root / "data",
            readable=False,
        )
        options = FetchOptions(masker=self.masker, errors=self.errors, debuggable=False)
        return FetchProcess.start(request, options, fetch_environment({}) | self.environ)

    def __call__(self, *downloads: Download, **values: bytes) -> dict[str, Path]:
        """The folder for each mount. Raises GussetError."""
        process = self.start(*downloads, **values)
        try:
            process.wait_for_external_data()
            return process.wait()
        finally:
            process.kill()


@pytest.fixture
def run_fetch(tmp_path: Path) -> Iterator[Fetch]:
    (tmp_path / "hf").mkdir()
    own = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_ETAG_TIMEOUT": "30"}
    with (tmp_path / "output").open("ab") as output:
        yield Fetch(tmp_path, output.fileno(), own)
