"""Writers that write through several managers at once, and what must be in the vault afterwards."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from gusset.vault import open_vault
from tests.conftest import Cli, seconds_since
from tests.faults.conftest import LIMIT
from tests.manager.conftest import Manager
from tests.vault.conftest import settings_in

_SLACK = 1.0  # seconds that a request may take longer here: the client shares two cores with everything else
_GIVES_UP = 60.0  # seconds
_EXPECTED = ("", "unreachable", "outcome_unknown", "host", "conflict")


class Load:
    """Each writer has a secret of its own, and writes its next value when the one before is acknowledged.

    A write that fails is repeated with the same `Idempotency-Key`, by the next manager. So each
    acknowledged write makes just one version, whatever was killed meanwhile.
    """

    def __init__(self, managers: Sequence[Manager], writers: int, writes: int | None = None) -> None:
        """Each writer makes `writes` writes; as many as it can until `stop` where that is None."""
        self.acknowledged = [0] * writers
        self.failures: Counter[str] = Counter()
        self.slowest = 0.0
        self.problems: list[str] = []
        self._managers = managers
        self._writes = writes
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(writer,)) for writer in range(writers)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ends when each writer has made its writes, or at once where their number is not limited."""
        for thread in self._threads:
            thread.start()
        try:
            yield
        except BaseException:
            self._writes = None
            raise
        finally:
            if self._writes is None:
                self._stopped.set()
            for thread in self._threads:
                thread.join()
        assert not self.problems, (self.problems, self.failures, self.slowest)

    def _run(self, writer: int) -> None:
        clients = [manager.client() for manager in self._managers]
        try:
            while not self._stopped.is_set() and self.acknowledged[writer] != self._writes:
                self._write(clients, writer)
        finally:
            for client in clients:
                client.close()

    def _write(self, clients: Sequence[httpx.Client], writer: int) -> None:
        """Send one write until it is acknowledged."""
        count = self.acknowledged[writer]
        body = {"name": f"writer-{writer}", "value": value(writer, count + 1)}
        headers = {"idempotency-key": f"{writer}-{count}"}
        gives_up, attempt, unsure = time.monotonic() + _GIVES_UP, writer + count, False
        while time.monotonic() < gives_up:
            attempt += 1
            code = self._request(clients[attempt % len(clients)], body, headers)
            if code == "conflict" and not unsure:
                self.problems.append("a write that was refused before has been made")
            if code in ("", "conflict"):  # made now; or before, by a request that got no response
                self.acknowledged[writer] = count + 1
                return
            unsure = unsure or code in ("killed", "outcome_unknown")
            time.sleep(0.05)
        self.problems.append(f"writer {writer} gave up")
        self._stopped.set()

    def _request(self, client: httpx.Client, body: dict[str, str], headers: dict[str, str]) -> str:
        """The code of the error, "" for none, "killed" where no response came."""
        began = time.monotonic()
        try:
            response = client.post("/v1/secrets", json=body, headers=headers)
        except httpx.TransportError:
            code = "killed"
        else:
            code = "" if response.status_code == 200 else response.json()["code"]
            if code not in _EXPECTED:
                self.problems.append(f"{response.status_code} {response.text}")
        took = seconds_since(began)
        self.slowest = max(self.slowest, took)
        if took > LIMIT + _SLACK:
            self.problems.append(f"a request took {took:.1f} s: {code}")
        if code:
            self.failures[code] += 1
        return code


def value(writer: int, version: int) -> str:
    return f"value {version} of writer {writer}"


def check_all_there(load: Load, gusset: Cli) -> None:
    """Each acknowledged write is one version with its value, there are no others, and the chain verifies."""
    home = gusset.home
    with open_vault(settings_in(home, database=gusset.environ["GUSSET_DATABASE"])) as vault:
        assert vault.audit.verify().problems == ()
        for writer, count in enumerate(load.acknowledged):
            name = f"writer-{writer}"
            versions = [found.version for found in vault.secrets.reader.history(name)]
            assert versions == list(range(1, count + 1)), f"{name}: {count} acknowledged, {versions}"
            for version in {1, count // 2 or 1, count}:
                found = vault.secrets.delivery.reveal(name, version=version, actor="test").reveal()
                assert found.decode() == value(writer, version)
