"""Clients of Vault that others wrote read from gusset unchanged: `bao`, its agent, and hvac."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import hvac
import pytest
from hvac import exceptions

from tests.conftest import leaks_in
from tests.manager.conftest import Manager
from tests.manager.issuer import Issuer, Key, running_issuer
from tests.manager.openbao import Bao, find_bao
from tests.manager.test_access import records
from tests.manager.test_read_routes import BINARY, VALUE, put
from tests.serving.conftest import eventually

REPO = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def program() -> Path:
    return find_bao()


@pytest.fixture
def token(admin: httpx.Client, deployment: Callable[..., httpx.Client]) -> str:
    """The token of a deployment that declares `token`, `blob` and `absent`; the last does not exist."""
    put(admin, "token", VALUE)
    put(admin, "blob", BINARY)
    put(admin, "other", "of somebody else")
    with deployment("ranker", "token", "blob", "absent") as client:
        return str(client.headers["authorization"].partition(" ")[2])


@pytest.fixture
def bao(manager: Manager, token: str, program: Path, tmp_path: Path) -> Bao:
    home = tmp_path / "bao"
    home.mkdir()
    return Bao(program, home, manager.address, token)


@pytest.fixture
def client(manager: Manager, token: str) -> hvac.Client:
    return hvac.Client(url=manager.address, token=token)


# bao


@pytest.mark.parametrize("args", [["-mount=secret", "token"], ["secret/token"]], ids=["mount", "path"])
def test_bao_reads_a_value(bao: Bao, args: list[str]) -> None:
    assert bao("kv", "get", "-field=value", *args).stdout == VALUE.encode()
    data = json.loads(bao("kv", "get", "-format=json", *args).stdout)["data"]
    assert data["data"] == {"value": VALUE} and data["metadata"]["version"] == 1
    assert VALUE.encode() in bao("kv", "get", *args).stdout


def test_bao_shows_that_a_value_is_base64(bao: Bao) -> None:
    data = json.loads(bao("kv", "get", "-format=json", "-mount=secret", "blob").stdout)["data"]
    assert base64.b64decode(data["data"]["value"]) == BINARY
    assert data["metadata"]["custom_metadata"] == {"encoding": "base64"}


def test_bao_tells_missing_denied_and_a_bad_token_apart(bao: Bao, manager: Manager) -> None:
    missing = bao("kv", "get", "-mount=secret", "absent", status=2)
    assert b"No value found at secret/data/absent" in missing.stdout + missing.stderr
    denied = bao("kv", "get", "-mount=secret", "other", status=2).stderr
    assert b"Code: 403" in denied and b"does not allow other" in denied
    old = bao("kv", "get", "-mount=secret", "-version=7", "token", status=2).stderr
    assert b"only the current version" in old
    nobody = Bao(bao.program, bao.home, manager.address, "nonsense")
    refused = nobody("kv", "get", "-mount=secret", "token", status=2).stderr
    assert b"Code: 403" in refused and b"invalid token" in refused
    elsewhere = bao("kv", "get", "-mount=kv", "token", status=2).stderr
    assert b"mounted at secret/" in elsewhere


def test_bao_changes_nothing(bao: Bao, admin: httpx.Client) -> None:
    for args in (["put", "-mount=secret", "token", "value=x"], ["delete", "-mount=secret", "token"]):
        assert b"secrets are only read here" in bao("kv", *args, status=2).stderr
    bao("kv", "list", "-mount=secret", status=2)
    bao("kv", "metadata", "get", "-mount=secret", "token", status=2)
    assert admin.get("/v1/secrets/token").json()["version"] == 1


def test_bao_knows_the_token(bao: Bao, token: str) -> None:
    about = json.loads(bao("token", "lookup", "-format=json").stdout)["data"]
    assert about["meta"]["deployment"] == "ranker"
    logged_in = bao("login", "-no-print", "-", input=token.encode())
    assert not leaks_in(logged_in.stdout + logged_in.stderr, token.encode())


# Its agent


def agent_config(bao: Bao, *, login: str | None = None) -> str:
    """The configuration of docs/reading.md, with paths of this test, and one second between reads.

    `login` is the method by which it logs in, None for a file with the deployment's token.
    """
    text = (REPO / "docs" / "reading.md").read_text()
    [config] = re.findall(r"```hcl\n(vault .*?)```", text, re.DOTALL)
    if login is not None:
        [method] = re.findall(rf'```hcl\n(auto_auth {{\n  method "{login}".*?)```', text, re.DOTALL)
        method = method.replace('"billing"', '"ranker"').replace("/var/run/secrets/gusset", str(bao.home))
        config = re.sub(r"auto_auth {.*?\n}\n", lambda _: method, config, flags=re.DOTALL)
    changes = {
        "https://secrets.example.com": bao.address,
        "/run/billing": str(bao.home),
        '"1m"': '"1s"',
        "db_password": "token",
    }
    for old, new in changes.items():
        assert old in config
        config = config.replace(old, new)
    return config


def rendered(bao: Bao, value: str) -> Callable[[], bool]:
    file = bao.home / "db.env"
    return lambda: file.exists() and file.read_text() == f"DB_PASSWORD={value}"


def test_the_agent_keeps_a_file_current(bao: Bao, token: str, admin: httpx.Client, manager: Manager) -> None:
    """Its output at the level `trace` and the manager's log have neither the value nor the token."""
    (bao.home / "token").write_text(token)
    with bao.agent(agent_config(bao)) as output:
        eventually(rendered(bao, VALUE))
        put(admin, "token", "the-second-value")
        eventually(rendered(bao, "the-second-value"))
        assert (bao.home / "db.env").stat().st_mode & 0o777 == 0o600
    texts = output.read_bytes() + manager.log.read_bytes()
    assert not leaks_in(texts, VALUE.encode(), b"the-second-value", token.encode())
    versions = [each["details"]["versions"] for each in records(admin, action="secret.deliver")]
    assert {"token": 1} in versions and {"token": 2} in versions


def test_the_agent_keeps_its_file_while_the_manager_is_down(bao: Bao, token: str, manager: Manager) -> None:
    """And goes on when it is back."""
    (bao.home / "token").write_text(token)
    config = agent_config(bao).replace("exit_on_retry_failure         = true", "")
    with bao.agent(config):
        eventually(rendered(bao, VALUE))
        assert manager.stop() == 0
        eventually(lambda: b"connection refused" in (bao.home / "agent.log").read_bytes())
        assert rendered(bao, VALUE)()
        manager.start()
        with manager.client() as admin:
            put(admin, "token", "the-second-value")
        eventually(rendered(bao, "the-second-value"))


@pytest.fixture
def issuer(admin: httpx.Client, token: str) -> Iterator[Issuer]:
    """An issuer whose good tokens stand for the deployment of `token`."""
    with running_issuer(Key.make("one", "ES256")) as running:
        body = {"name": "pods", "deployment": "ranker", "issuer": running.url, "subject": "s"}
        admin.post("/v1/identities", json=body).raise_for_status()
        yield running


def test_the_agent_logs_in_with_a_token_of_the_platform(bao: Bao, issuer: Issuer, manager: Manager) -> None:
    """It logs in again before the short-lived token ends; no long-lived token is on the machine."""
    path, jwt = bao.home / "jwt", issuer.token(exp=issuer.claims()["iat"] + 6)
    path.write_text(jwt)
    with Bao(bao.program, bao.home, bao.address).agent(agent_config(bao, login="jwt")) as output:
        eventually(rendered(bao, VALUE))
        later = issuer.token()
        path.write_text(later)
        with manager.client() as admin:
            eventually(lambda: len(records(admin, action="identity.exchange")) >= 2)
            put(admin, "token", "the-second-value")
        eventually(rendered(bao, "the-second-value"))
    texts = output.read_bytes() + manager.log.read_bytes()
    assert not leaks_in(texts, VALUE.encode(), jwt.encode(), later.encode())


class ProjectedToken:
    """A volume of Kubernetes with a service account's token, which is replaced by one rename of `..data`."""

    def __init__(self, folder: Path, issuer: Issuer) -> None:
        self.tokens: list[str] = []
        self._folder, self._issuer = folder, issuer
        (folder / "token").symlink_to("..data/token")

    def put(self, seconds: int = 3600) -> None:
        now = int(time.time())
        account = {"name": "ranker", "uid": "5b1c9ec1-1b1c-4f6c-8d26-0f4f6d7f1f0a"}
        pod = {"name": "ranker-7d9c", "uid": "f3f6b0f5-6a36-4a5c-9d53-6b0c0f0a2d11"}
        claims = {
            "sub": "system:serviceaccount:prod:ranker",
            "aud": ["gusset"],
            "nbf": now,
            "exp": now + seconds,
            "jti": f"token-{len(self.tokens)}",
            "kubernetes.io": {"namespace": "prod", "serviceaccount": account, "pod": pod},
        }
        self.tokens.append(self._issuer.token(header={"typ": None}, **claims))
        generation, link = self._folder / f"..{len(self.tokens)}", self._folder / "..data_tmp"
        generation.mkdir()
        (generation / "token").write_text(self.tokens[-1])
        link.symlink_to(generation.name)
        link.rename(self._folder / "..data")


def test_the_agents_method_for_kubernetes_logs_in_with_a_projected_token(
    bao: Bao, issuer: Issuer, manager: Manager, admin: httpx.Client
) -> None:
    """It renders the secret, logs in again with a later token, and keeps the file current."""
    body = {"name": "account", "deployment": "ranker", "issuer": issuer.url}
    rule = {
        "subject": "system:serviceaccount:prod:ranker",
        "claims": {"/kubernetes.io/serviceaccount/name": "ranker", "/kubernetes.io/namespace": "prod"},
    }
    admin.post("/v1/identities", json=body | rule).raise_for_status()
    projected = ProjectedToken(bao.home, issuer)
    projected.put(seconds=6)
    with Bao(bao.program, bao.home, bao.address).agent(agent_config(bao, login="kubernetes")) as output:
        eventually(rendered(bao, VALUE))
        projected.put()
        eventually(lambda: len(records(admin, action="identity.exchange")) >= 2)
        put(admin, "token", "the-second-value")
        eventually(rendered(bao, "the-second-value"))
    [first, *_] = records(admin, action="identity.exchange")
    assert first["outcome"] == "ok"
    texts = output.read_bytes() + manager.log.read_bytes()
    assert b"auth.kubernetes" in texts
    assert not leaks_in(texts, VALUE.encode(), *(each.encode() for each in projected.tokens))


# hvac


def test_hvac_reads_a_value(client: hvac.Client) -> None:
    assert client.is_authenticated()
    read = client.secrets.kv.v2.read_secret_version("token", raise_on_deleted_version=True)
    assert read["data"]["data"] == {"value": VALUE}
    assert read["data"]["metadata"]["version"] == 1
    assert client.read("secret/data/token")["data"]["data"] == {"value": VALUE}
    assert client.lookup_token()["data"]["meta"]["deployment"] == "ranker"


def test_hvac_gets_the_errors_that_it_knows(client: hvac.Client, manager: Manager) -> None:
    read = client.secrets.kv.v2.read_secret_version
    with pytest.raises(exceptions.InvalidPath):
        read("absent", raise_on_deleted_version=True)
    with pytest.raises(exceptions.Forbidden, match="does not allow other"):
        read("other", raise_on_deleted_version=True)
    with pytest.raises(exceptions.InvalidRequest, match="cannot contain"):
        read("not a name", raise_on_deleted_version=True)
    nobody = hvac.Client(url=manager.address, token="nonsense")
    assert not nobody.is_authenticated()


def test_hvac_changes_nothing(client: hvac.Client, admin: httpx.Client) -> None:
    with pytest.raises(exceptions.VaultError, match="only read here"):
        client.secrets.kv.v2.create_or_update_secret("token", secret={"value": "x"})
    assert admin.get("/v1/secrets/token").json()["version"] == 1


@pytest.mark.parametrize("kind", ["jwt", "kubernetes"])
def test_hvac_logs_in_with_a_token_of_the_platform(manager: Manager, issuer: Issuer, kind: str) -> None:
    """The token that it gets reads just what the deployment declares."""
    client = hvac.Client(url=manager.address)
    method: Any = client.auth.kubernetes.login if kind == "kubernetes" else client.auth.jwt.jwt_login
    auth = method(role="ranker", jwt=issuer.token())["auth"]
    client.token = auth["client_token"]
    assert (auth["lease_duration"], auth["renewable"]) == (600, False)
    read = client.secrets.kv.v2.read_secret_version
    assert read("token", raise_on_deleted_version=True)["data"]["data"] == {"value": VALUE}
    with pytest.raises(exceptions.Forbidden):
        read("other", raise_on_deleted_version=True)
    assert 0 < client.lookup_token()["data"]["ttl"] <= 600


def test_a_login_that_proves_nothing_is_refused(
    manager: Manager, admin: httpx.Client, issuer: Issuer
) -> None:
    """Each refusal is recorded, and has nothing of the token."""
    good, stranger = issuer.token(), issuer.token(sub="somebody else")
    bodies: list[Any] = [{"role": "other", "jwt": good}, {"role": "ranker", "jwt": stranger}]
    bodies += [{"role": "ranker", "jwt": good[:-8] + "AAAAAAAA"}, {"role": "ranker", "jwt": "x"}]
    bodies += [{"role": "ranker"}, {"jwt": 7}, [], "text"]
    with manager.client("") as client:
        for method in ("POST", "PUT"):
            for body in bodies:
                response = client.request(method, "/v1/auth/jwt/login", json=body)
                assert response.status_code == 400, (body, response.text)
                assert response.json().keys() == {"errors"} and response.json()["errors"]
                assert not leaks_in(response.content, good.encode(), stranger.encode())
        assert client.post("/v1/auth/jwt/login", content=b"{").status_code == 400
        assert client.get("/v1/auth/jwt/login").status_code == 405
        assert client.post("/v1/auth/jwt/login", json={"jwt": "x" * 70_000}).status_code == 413
    targets = {each["target"] for each in records(admin, action="request.refuse")}
    assert targets >= {"POST /v1/auth/jwt/login", "PUT /v1/auth/jwt/login"}
    assert not leaks_in(manager.log.read_bytes(), good.encode(), stranger.encode())
