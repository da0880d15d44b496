"""Models and commands that prove themselves by their platform's token: no key, no token of gusset's."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.agent.conftest import memory
from tests.cli.test_serve import children, predict, served, write_model
from tests.conftest import Cli, leaks_in
from tests.faults.clocks import clock_off_by, has_faketime
from tests.manager.conftest import Manager
from tests.manager.issuer import DISCOVERY, Issuer, Key, running_issuer, send
from tests.manager.test_access import records
from tests.manager.test_serve import NEW, VALUE, put, sha
from tests.serving.conftest import eventually

__all__ = ["memory"]  # a fixture
OLDER = b"hf_" + b"qR5sT7uV" * 5


@pytest.fixture
def issuer() -> Iterator[Issuer]:
    with running_issuer(Key.make("k", "EdDSA")) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "my-model")


def exchanges(admin: httpx.Client) -> list[dict[str, Any]]:
    return records(admin, action="identity.exchange", limit="1000")


class Platform:
    """Keeps the file of a workload's token current, as Kubernetes does: each new one replaces the file."""

    def __init__(self, issuer: Issuer, file: Path) -> None:
        self.issuer = issuer
        self.file = file
        self.tokens: list[str] = []

    def put(self, seconds: int = 3600) -> None:
        self.tokens.append(self.issuer.token(exp=int(time.time()) + seconds))
        new = self.file.with_suffix(".new")
        new.write_text(self.tokens[-1])
        new.replace(self.file)

    @contextmanager
    def replacing(self, *, every: float, seconds: int) -> Iterator[None]:
        stop = threading.Event()

        def run() -> None:
            while not stop.wait(every):
                self.put(seconds)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def secrets(self) -> list[bytes]:
        return [token.split(".")[2].encode() for token in self.tokens]


@pytest.fixture
def platform(issuer: Issuer, tmp_path: Path) -> Platform:
    made = Platform(issuer, tmp_path / "jwt")
    made.put()
    return made


@pytest.fixture
def workload(manager: Manager, platform: Platform, tmp_path: Path) -> Cli:
    """The command line of a machine that has nothing but the platform's token."""
    environ = manager.gusset.environ | {
        "GUSSET_HOME": str(tmp_path / "workload"),
        "GUSSET_SETTINGS": str(tmp_path / "none"),
        "GUSSET_MANAGER": manager.address,
        "GUSSET_IDENTITY_TOKEN_FILE": str(platform.file),
    }
    return Cli(tmp_path / "workload", environ)


@pytest.fixture
def administrator(manager: Manager, tmp_path: Path) -> Cli:
    return manager.laptop(tmp_path / "administrator")


@pytest.fixture
def identity(administrator: Cli, issuer: Issuer, admin: httpx.Client) -> None:
    """The deployment `my-model`, registered without a token, and an identity of it."""
    put(admin, VALUE)
    options = ("--deployment", "my-model", "--secrets", "hf_access_token", "--issuer", issuer.url)
    administrator("identity", "add", "ranker", *options, "--subject", "s")


def readiness(address: str) -> str:
    return str(httpx.get(f"{address}/v1/models/model").json().get("secrets", {}).get("last_error", ""))


@pytest.mark.usefixtures("identity")
def test_a_model_is_served_without_anything_stored(
    manager: Manager, admin: httpx.Client, workload: Cli, platform: Platform, folder: Path, tmp_path: Path
) -> None:
    """Delivery, rotation and the replica's report; neither token is in a log, an argument or the environment."""
    with served(workload, str(folder), errors=tmp_path / "err") as (address, process):
        assert predict(address).json() == {"sha": sha(VALUE)}
        put(admin, NEW)
        eventually(lambda: predict(address).json() == {"sha": sha(NEW)})

        def holds() -> bool:
            [replica] = admin.get("/v1/deployments/my-model").json()["replicas"]
            return bool(replica["live"] and replica["versions"] == {"hf_access_token": 2})

        eventually(holds)
        for pid in (process.pid, *children(process.pid)):
            visible = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert b"gusset_idt_" not in visible
            assert not leaks_in(visible, *platform.secrets())
    assert admin.get("/v1/deployments/my-model/tokens").json()["tokens"] == []
    written = manager.log.read_bytes() + (tmp_path / "err").read_bytes()
    written += admin.get("/v1/audit", params={"limit": "1000"}).content
    assert b"gusset_idt_" not in written
    assert not leaks_in(written, *platform.secrets())
    manager.gusset("audit", "verify")


@pytest.mark.usefixtures("identity")
def test_a_stream_that_outlives_its_token_goes_on_with_the_next(
    manager: Manager, admin: httpx.Client, workload: Cli, platform: Platform, folder: Path, tmp_path: Path
) -> None:
    """The platform's tokens live four seconds: three of them end while the model follows changes."""
    platform.put(4)
    with (
        platform.replacing(every=1.0, seconds=4),
        served(workload, str(folder), errors=tmp_path / "err") as (address, _),
    ):
        for value in (NEW, OLDER, VALUE):
            begun = len(exchanges(admin))
            eventually(lambda begun=begun: len(exchanges(admin)) >= begun + 2, "the token before has ended")
            put(admin, value)
            eventually(lambda value=value: predict(address).json() == {"sha": sha(value)})
            assert readiness(address) == ""
    assert len(exchanges(admin)) >= 4
    assert "cannot be followed" not in (tmp_path / "err").read_text()


@has_faketime
@pytest.mark.parametrize("seconds", [3600, -3600], ids=["ahead", "behind"])
@pytest.mark.usefixtures("identity")
def test_a_node_with_a_wrong_clock_follows_changes(
    admin: httpx.Client, workload: Cli, platform: Platform, folder: Path, tmp_path: Path, seconds: int
) -> None:
    """The manager decides whether a token is valid; the replica counts how long its own will last."""
    node = Cli(workload.home, workload.environ | clock_off_by(seconds))
    platform.put(4)
    with (
        platform.replacing(every=1.0, seconds=4),
        served(node, str(folder), errors=tmp_path / "err") as (address, _),
    ):
        eventually(lambda: len(exchanges(admin)) >= 3, "the first token has ended")
        put(admin, NEW)
        eventually(lambda: predict(address).json() == {"sha": sha(NEW)})
        assert readiness(address) == ""


@pytest.mark.usefixtures("identity")
def test_a_removed_identity_is_logged_and_the_values_stay(
    admin: httpx.Client, administrator: Cli, workload: Cli, folder: Path, tmp_path: Path
) -> None:
    with served(workload, str(folder), errors=tmp_path / "err") as (address, _):
        administrator("identity", "remove", "ranker")
        eventually(lambda: "no identity matches" in readiness(address))
        assert "access was revoked" in readiness(address)
        assert predict(address).json() == {"sha": sha(VALUE)}


@pytest.mark.usefixtures("identity")
def test_an_issuer_that_is_down_is_no_missing_secret(
    workload: Cli, issuer: Issuer, folder: Path, tmp_path: Path
) -> None:
    """The start ends with the status for unreachable, and says what is."""
    issuer.responses[DISCOVERY] = lambda request: send(request, {}, 500)
    done = workload("serve", str(folder), "--port", "0", status=8)
    assert b"keys of the token's issuer cannot be fetched" in done.stderr


def test_a_start_without_an_identity_is_denied(
    manager: Manager, admin: httpx.Client, workload: Cli, platform: Platform, folder: Path
) -> None:
    put(admin, VALUE)
    done = workload("serve", str(folder), "--port", "0", status=7)
    assert b"issuer is not trusted" in done.stderr
    assert not leaks_in(done.stderr + done.stdout, *platform.secrets())


@pytest.mark.usefixtures("identity")
def test_exec_and_the_option_use_the_token_too(
    admin: httpx.Client, workload: Cli, platform: Platform, administrator: Cli
) -> None:
    """All that the deployment declares; the file may be named by the option instead."""
    listing = ("--all", "--", "sh", "-c", "ls $GUSSET_SECRETS_DIR")
    assert workload("exec", *listing).stdout == b"hf_access_token\n"
    del workload.environ["GUSSET_IDENTITY_TOKEN_FILE"]
    done = workload("exec", "--identity-token-file", str(platform.file), *listing)
    assert done.stdout == b"hf_access_token\n"
    both = workload("exec", *listing, status=2, GUSSET_IDENTITY_TOKEN_FILE="x", GUSSET_TOKEN_FILE="y")
    assert b"two tokens" in both.stderr
    del workload.environ["GUSSET_MANAGER"]
    alone = workload("exec", *listing, status=2, GUSSET_IDENTITY_TOKEN_FILE="x")
    assert b"none is set" in alone.stderr
    missing = workload(
        "exec", *listing, status=2, GUSSET_IDENTITY_TOKEN_FILE="/missing", GUSSET_MANAGER="http://127.0.0.1:1"
    )
    assert b"cannot read the identity token file /missing" in missing.stderr


@pytest.mark.usefixtures("identity")
def test_an_agent_uses_the_token_too(workload: Cli, memory: Path) -> None:
    """It provides what the deployment declares, and refuses to be another deployment's."""
    workload("agent", "--deployment", "my-model", "--dir", str(memory), "--once")
    assert (memory / "hf_access_token").read_bytes() == VALUE
    other = workload("agent", "--deployment", "other", "--dir", str(memory), "--once", status=7)
    assert b"the deployment my-model, not to other" in other.stderr


@pytest.mark.usefixtures("identity")
def test_a_replaced_key_of_the_vault_is_no_interruption(
    manager: Manager, admin: httpx.Client, workload: Cli, folder: Path, tmp_path: Path
) -> None:
    """Tokens of before are unknown after a restart of the manager; the model exchanges its own again."""
    with served(workload, str(folder), errors=tmp_path / "err") as (address, _):
        manager.gusset("key", "rotate", "--audit")
        manager.stop()
        manager.start()
        put(admin, NEW)
        eventually(lambda: predict(address).json() == {"sha": sha(NEW)})
        eventually(lambda: readiness(address) == "")


def test_identities_and_issuers_are_added_listed_and_removed_by_commands(
    administrator: Cli, issuer: Issuer, tmp_path: Path
) -> None:
    jwks, other = tmp_path / "jwks.json", "https://kubernetes.default.svc.cluster.local"
    jwks.write_text(json.dumps(issuer.jwks()))
    assert b"added, with 1 keys" in administrator("issuer", "add", issuer.url).stdout
    administrator("issuer", "add", other, "--jwks", str(jwks))
    down = administrator("issuer", "add", "http://127.0.0.1:1")
    assert b"cannot be fetched at the moment" in down.stderr
    administrator("issuer", "remove", "http://127.0.0.1:1")
    listed = json.loads(administrator("issuer", "list", "--output", "json").stdout)["issuers"]
    assert [(each["url"], each["keys_from"]) for each in listed] == [
        (issuer.url, "discovery"),
        (other, "content"),
    ]

    options = ("--deployment", "d", "--subject", "s", "--issuer", other)
    missing = administrator("identity", "add", "i", *options, status=5)
    assert b"no such deployment" in missing.stderr
    claims = ("--claim", "/kubernetes.io/namespace=prod", "--claim", "/a=b=c", "--audience", "vault")
    administrator("identity", "add", "i", *options, *claims, "--secrets", "x,y")
    [made] = json.loads(administrator("identity", "list", "--output", "json").stdout)["identities"]
    assert made["claims"] == {"/kubernetes.io/namespace": "prod", "/a": "b=c"}
    assert (made["audience"], made["deployment"], made["name"]) == ("vault", "d", "i")
    assert b"/a=b=c" in administrator("identity", "list").stdout
    shown = json.loads(administrator("deployment", "show", "d", "--output", "json").stdout)
    assert shown["secrets"] == ["x", "y"]
    administrator("deployment", "register", "d", "--secrets", "z")
    shown = json.loads(administrator("deployment", "show", "d", "--output", "json").stdout)
    assert shown["secrets"] == ["z"]
    used = administrator("issuer", "remove", other, status=6)
    assert b"identities use that issuer: i" in used.stderr
    administrator("identity", "remove", "i")
    administrator("issuer", "remove", other)
    administrator("identity", "remove", "i", status=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--claim", "ref=main"), b"JSON Pointer"),
        (("--claim", "/ref"), b"JSON Pointer"),
        (("--claim", "/~2=x"), b"JSON Pointer"),
        (("--jwks", "/missing"), b"cannot read /missing"),
        (("--jwks", "http://issuer.example/keys"), b"must begin with https"),
        (("--secrets", "a b"), b"name"),
    ],
)
def test_a_wrong_option_is_named_in_the_error(
    administrator: Cli, options: tuple[str, ...], message: bytes
) -> None:
    rule = ("--deployment", "d", "--subject", "s", "--issuer", "https://issuer.example", "--secrets", "x")
    done = administrator("identity", "add", "i", *rule, *options, status=2)
    assert message in done.stderr


def test_a_private_key_is_neither_sent_on_nor_shown(administrator: Cli, tmp_path: Path) -> None:
    file = tmp_path / "private.json"
    file.write_text(
        '{"keys": [{"kty": "OKP", "crv": "Ed25519", "x": "AAAA", "d": "the-private-part-of-it"}]}'
    )
    done = administrator("issuer", "add", "https://issuer.example", "--jwks", str(file), status=2)
    assert b"private or symmetric key" in done.stderr
    assert b"the-private-part" not in done.stderr + done.stdout


def test_a_workload_that_nobody_bound_reads_in_its_log_how_to_bind_it(
    administrator: Cli, workload: Cli, issuer: Issuer, folder: Path
) -> None:
    """With what its token has, quoted for a shell."""
    administrator("issuer", "add", issuer.url)
    errors = workload("serve", str(folder), "--port", "0", status=7).stderr.decode()
    assert "no identity matches the token of the subject 's'" in errors
    assert f"gusset identity add NAME --deployment DEPLOYMENT --issuer {issuer.url} --subject s" in errors
