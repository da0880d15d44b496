"""Reads by other tools: the exact bytes of a secret, and the part of Vault's API that reads secrets."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.conftest import leaks_in
from tests.manager.conftest import Manager
from tests.manager.test_access import records
from tests.manager.test_integrity import sql

REPO = Path(__file__).parents[2]
VALUE = "hf_" + "aB3dE6gH" * 5
BINARY = bytes(range(256))

Register = Callable[..., httpx.Client]


def put(admin: httpx.Client, name: str, value: str | bytes) -> None:
    body = {"name": name, "value": value}
    if isinstance(value, bytes):
        body |= {"value": base64.b64encode(value).decode(), "encoding": "base64"}
    admin.post("/v1/secrets", json=body).raise_for_status()


def deliveries(admin: httpx.Client) -> list[dict[str, Any]]:
    return records(admin, action="secret.deliver")


@pytest.fixture
def reader(admin: httpx.Client, deployment: Register) -> Iterator[httpx.Client]:
    """A client of a deployment that declares `token`, `blob` and `absent`; the last does not exist."""
    put(admin, "token", VALUE)
    put(admin, "blob", BINARY)
    put(admin, "other", "of somebody else")
    with deployment("ranker", "token", "blob", "absent") as client:
        yield client


def exact(client: httpx.Client, name: str, tag: str = "", method: str = "GET") -> httpx.Response:
    headers = {"if-none-match": tag} if tag else {}
    return client.request(method, f"/v1/deployment/secrets/{name}", headers=headers)


def test_a_value_comes_as_its_exact_bytes_with_its_version(reader: httpx.Client, admin: httpx.Client) -> None:
    response = exact(reader, "blob")
    assert (response.status_code, response.content) == (200, BINARY)
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["etag"] == '"1"'
    assert response.headers["cache-control"] == "no-store"
    put(admin, "blob", b"new")
    response = exact(reader, "blob")
    assert (response.content, response.headers["etag"]) == (b"new", '"2"')


def test_an_empty_value_is_an_empty_body(reader: httpx.Client, admin: httpx.Client) -> None:
    put(admin, "absent", "")
    response = exact(reader, "absent")
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")


def test_each_delivery_is_audited_and_an_unchanged_value_writes_nothing(
    reader: httpx.Client, admin: httpx.Client
) -> None:
    """A poll with the ETag of the last response gets 304 until the value changes."""
    assert exact(reader, "token").status_code == 200
    [delivery] = deliveries(admin)
    assert (delivery["actor"], delivery["target"]) == ("deployment ranker", "ranker")
    assert delivery["details"]["versions"] == {"token": 1}
    before = admin.get("/v1/audit").json()["records"][0]["seq"]
    for tag in ('"1"', 'W/"1"', '"7", "1"', "*"):
        response = exact(reader, "token", tag)
        assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", '"1"')
        assert "content-length" not in response.headers
    assert admin.get("/v1/audit").json()["records"][0]["seq"] == before
    put(admin, "token", "new")
    response = exact(reader, "token", '"1"')
    assert (response.status_code, response.text, response.headers["etag"]) == (200, "new", '"2"')
    assert len(deliveries(admin)) == 2


def test_head_says_the_version_and_delivers_nothing(reader: httpx.Client, admin: httpx.Client) -> None:
    response = exact(reader, "token", method="HEAD")
    assert (response.status_code, response.content, response.headers["etag"]) == (200, b"", '"1"')
    assert exact(reader, "token", '"1"', "HEAD").status_code == 304
    assert exact(reader, "absent", method="HEAD").status_code == 404
    assert exact(reader, "other", method="HEAD").status_code == 403
    assert [each for each in deliveries(admin) if each["outcome"] == "ok"] == []
    assert exact(reader, "token").text == VALUE  # on the same connection


def test_a_secret_with_the_name_of_a_deleted_one_has_other_etags(
    reader: httpx.Client, admin: httpx.Client
) -> None:
    """Both have a version 1, which must not be taken for the same value."""
    old = exact(reader, "token").headers["etag"]
    deleted = admin.delete("/v1/secrets/token?force=true")
    assert deleted.status_code == 200
    assert exact(reader, "token", old).status_code == 404
    put(admin, "token", "another secret")
    response = exact(reader, "token", old)
    assert (response.status_code, response.text) == (200, "another secret")
    assert re.fullmatch(r'"1-[\w]+"', response.headers["etag"])
    assert exact(reader, "token", response.headers["etag"]).status_code == 304


def test_a_lease_does_not_begin_by_a_read(reader: httpx.Client, admin: httpx.Client) -> None:
    assert exact(reader, "token").status_code == 200
    assert admin.get("/v1/deployments/ranker").json()["replicas"] == []


@pytest.mark.parametrize("path", ["/v1/deployment/secrets/{}", "/v1/secret/data/{}"])
def test_missing_denied_and_invalid_names_get_different_responses(
    reader: httpx.Client, admin: httpx.Client, path: str
) -> None:
    """404 only for a declared secret that does not exist; no response has a name that was not declared."""
    assert reader.get(path.format("absent")).status_code == 404
    denied = reader.get(path.format("other"))
    assert denied.status_code == 403
    never_existed = reader.get(path.format("othes"))
    assert never_existed.text.replace("othes", "other") == denied.text
    assert reader.get(path.format("not%20a%20name")).status_code == 400
    credential = reader.get(path.format(VALUE))
    assert credential.status_code == 400 and VALUE not in credential.text
    refused = records(admin, action="request.refuse")
    assert {each["target"] for each in refused} >= {"secrets other", "secrets othes"}
    assert any(each["outcome"] == "secret_not_found" for each in deliveries(admin))


def test_polls_of_a_missing_secret_do_not_fill_the_audit_log(
    reader: httpx.Client, admin: httpx.Client
) -> None:
    for _ in range(30):
        assert exact(reader, "absent").status_code == 404
    assert len(deliveries(admin)) == 1


def test_a_missing_secret_is_reported_without_names_of_others(
    admin: httpx.Client, deployment: Register
) -> None:
    put(admin, "db_password_of_payroll", VALUE)
    with deployment("ranker", "db_password_of_payrol") as client:
        response = exact(client, "db_password_of_payrol")
    assert response.status_code == 404 and "payroll" not in response.text


@pytest.mark.parametrize("key", ["", "nonsense", "gusset_tok_aaaaaaaa_" + "A" * 43])
def test_an_invalid_token_is_refused(manager: Manager, admin: httpx.Client, key: str) -> None:
    """401; clients of Vault get 403, by which they know that they have to log in again."""
    with manager.client(key) as client:
        response = exact(client, "token")
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert response.json()["code"] == "not_signed_in"
        for path in ("secret/data/token", "auth/token/lookup-self", "sys/internal/ui/mounts/secret/x"):
            response = client.get(f"/v1/{path}", headers={"x-vault-token": key})
            assert response.status_code == 403
            [text] = response.json()["errors"]
            assert "invalid token" in text and (not key or key not in text)
    targets = {each["target"] for each in records(admin, outcome="not_signed_in")}
    assert {"GET /v1/deployment/secrets/{name}", "GET /v1/secret/data/{name}"} <= targets


def test_a_persons_key_reads_no_value(admin: httpx.Client, reader: httpx.Client) -> None:
    assert exact(admin, "token").status_code == 403
    response = admin.get("/v1/secret/data/token")
    assert response.status_code == 403 and not leaks_in(response.content, VALUE.encode())


def test_a_revoked_token_is_refused_on_the_next_read(reader: httpx.Client) -> None:
    assert exact(reader, "token").status_code == 200
    reader.delete("/v1/deployment/token").raise_for_status()
    assert exact(reader, "token", '"1"').status_code == 401
    assert reader.get("/v1/secret/data/token").status_code == 403


def test_a_value_that_cannot_be_audited_is_not_delivered(
    manager: Manager, reader: httpx.Client, admin: httpx.Client
) -> None:
    """503, never 404: the tools keep what they have. After the loss was accepted, all ETags are new ones."""
    assert exact(reader, "token").status_code == 200
    last = sql(manager, "SELECT max(seq) FROM audit WHERE action <> 'secret.deliver'")
    for table in ("checkpoints", "audit"):
        sql(manager, f"DELETE FROM {table} WHERE seq > {last}")
    for path in ("/v1/deployment/secrets/token", "/v1/secret/data/token", "/v1/deployment/secrets/absent"):
        response = reader.get(path)
        assert response.status_code == 503, (path, response.text)
        assert "retry-after" in response.headers and VALUE not in response.text
    manager.gusset("audit", "accept-loss", "--yes")
    response = exact(reader, "token", '"1"')
    assert response.status_code == 200 and response.headers["etag"] != '"1"'


def test_no_value_or_token_is_in_the_managers_log_or_metrics(
    manager: Manager, reader: httpx.Client, admin: httpx.Client
) -> None:
    """Also where a value stands in the URL by mistake."""
    token = reader.headers["authorization"].partition(" ")[2]
    for name in ("token", "blob", "absent", "other", VALUE):
        for path in (f"/v1/deployment/secrets/{name}", f"/v1/secret/data/{name}", f"/v1/secret/{name}"):
            reader.get(path)
            reader.put(path, json={"data": {"value": VALUE}})
    exported = admin.get("/v1/audit/export").content
    for text in (manager.log.read_bytes(), admin.get("/metrics").content, exported):
        assert not leaks_in(text, VALUE.encode(), BINARY, token.encode())
    assert 'route="/v1/secret/data/{name}"' in admin.get("/metrics").text


# Vault's API


def data(client: httpx.Client, name: str, **query: str) -> httpx.Response:
    return client.get(f"/v1/secret/data/{name}", params=query)


def test_a_value_has_the_fields_of_kv_version_2(reader: httpx.Client, admin: httpx.Client) -> None:
    body = data(reader, "token").json()
    assert body["data"]["data"] == {"value": VALUE}
    metadata = body["data"]["metadata"]
    stored = admin.get("/v1/secrets/token/versions").json()["versions"][0]["created_at"]
    assert metadata == {
        "created_time": stored,
        "custom_metadata": None,
        "deletion_time": "",
        "destroyed": False,
        "version": 1,
    }
    [delivery] = deliveries(admin)
    assert delivery["details"]["versions"] == {"token": 1}
    assert data(reader, "token").headers["cache-control"] == "no-store"


def test_a_value_that_is_no_text_is_base64_and_its_metadata_says_so(reader: httpx.Client) -> None:
    body = data(reader, "blob").json()["data"]
    assert base64.b64decode(body["data"]["value"]) == BINARY
    assert body["metadata"]["encoding"] == "base64"
    assert body["metadata"]["custom_metadata"] == {"encoding": "base64"}


def test_only_the_current_version_is_read(
    manager: Manager, reader: httpx.Client, admin: httpx.Client
) -> None:
    """A refused version is no delivery, and a delivery has no version before the current one."""
    body = {"name": "token", "value": "second", "overlap": 3600}
    admin.post("/v1/secrets", json=body).raise_for_status()
    for version in ("", "0", "2"):
        assert data(reader, "token", version=version).json()["data"]["data"] == {"value": "second"}
    for version in ("1", "3"):
        refused = data(reader, "token", version=version)
        assert refused.status_code == 403 and "current version" in refused.json()["errors"][0]
    assert data(reader, "token", version="x").status_code == 400
    assert data(reader, "absent", version="1").status_code == 404
    delivered = [each["details"] for each in deliveries(admin) if each["outcome"] == "ok"]
    assert [(each["versions"], "previous" in each) for each in delivered] == [({"token": 2}, False)] * 3
    manager.gusset("audit", "verify")


def test_a_secret_that_does_not_exist_is_404_without_an_error(reader: httpx.Client) -> None:
    response = data(reader, "absent")
    assert (response.status_code, response.json()) == (404, {"errors": []})


def test_the_token_may_come_in_vaults_header(manager: Manager, reader: httpx.Client) -> None:
    """Where both headers are sent, it is the one that counts; the exact route does not know it."""
    token = reader.headers["authorization"].partition(" ")[2]
    with manager.client("", **{"x-vault-token": token}) as client:
        assert data(client, "token").status_code == 200
        assert exact(client, "token").status_code == 401
    with manager.client("nonsense", **{"x-vault-token": token}) as client:
        assert data(client, "token").status_code == 200
    with manager.client(token, **{"x-vault-token": ""}) as client:
        assert data(client, "token").status_code == 200


def test_a_token_describes_itself(manager: Manager, admin: httpx.Client, reader: httpx.Client) -> None:
    token = reader.headers["authorization"].partition(" ")[2]
    about = reader.get("/v1/auth/token/lookup-self").json()["data"]
    assert about["id"] == token and about["accessor"] in token
    assert about["meta"] == {"deployment": "ranker", "team": "default"}
    assert (about["renewable"], about["ttl"], about["expire_time"]) == (False, 0, None)
    body = {"name": "brief", "secrets": [], "expires_at": "2099-01-01T00:00:00Z"}
    expiring = admin.post("/v1/deployments", json=body).json()["token"]
    with manager.client(expiring) as client:
        about = client.get("/v1/auth/token/lookup-self").json()["data"]
    assert about["ttl"] > 0 and about["expire_time"].startswith("2099-01-01T00:00:00")


def test_the_mount_is_secret_in_version_2(reader: httpx.Client) -> None:
    for path in ("secret", "secret/", "secret/token", "secret/data/token"):
        mount = reader.get(f"/v1/sys/internal/ui/mounts/{path}").json()["data"]
        assert (mount["path"], mount["type"], mount["options"]) == ("secret/", "kv", {"version": "2"})
    for path in ("kv/token", "secrets/token", ""):
        assert reader.get(f"/v1/sys/internal/ui/mounts/{path}").status_code == 403


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_written(reader: httpx.Client, admin: httpx.Client, method: str) -> None:
    """405 with the methods that the route takes."""
    for path in ("/v1/secret/data/token", "/v1/auth/token/lookup-self", "/v1/sys/internal/ui/mounts/secret"):
        response = reader.request(method, path, json={"data": {"value": "x"}})
        assert (response.status_code, response.headers["allow"]) == (405, "GET")
        assert response.json()["errors"]
    response = reader.request(method, "/v1/deployment/secrets/token", json={})
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD")
    assert response.json()["code"] == "method_not_allowed"
    assert admin.get("/v1/secrets/token").json()["version"] == 1


def test_a_body_is_not_read(reader: httpx.Client) -> None:
    """It has no meaning, however large it is; the connection ends after the response."""
    for path in ("/v1/deployment/secrets/token", "/v1/secret/data/token"):
        response = reader.request("GET", path, content=b"x" * 2_000_000)
        assert (response.status_code, response.headers["connection"]) == (200, "close")


def test_what_gusset_has_not_of_vault_is_an_error_in_vaults_form(reader: httpx.Client) -> None:
    for path in (
        "secret/metadata/token",
        "secret/data/",
        "auth/approle/login",
        "sys/health",
        "secret/data/a/b",
    ):
        response = reader.get(f"/v1/{path}")
        assert response.status_code == 404 and response.json()["errors"], path


def test_a_wrapped_response_is_refused(reader: httpx.Client) -> None:
    """The value must not come in the clear where the client wants it wrapped."""
    response = reader.get("/v1/secret/data/token", headers={"x-vault-wrap-ttl": "60s"})
    assert response.status_code == 400 and VALUE not in response.text


# External Secrets


def manifests() -> list[dict[str, Any]]:
    """The manifests in docs/reading.md."""
    text = (REPO / "docs" / "reading.md").read_text()
    section = text.partition("## External Secrets")[2].partition("\n## ")[0]
    blocks = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
    return [each for block in blocks for each in yaml.safe_load_all(block)]


def render(template: str, values: dict[str, dict[str, str]]) -> str:
    """A template of the operator, as Go renders it: only fields, which is all that the manifest uses."""

    def field(match: re.Match[str]) -> str:
        return values[match[1]][match[2]]

    return re.sub(r"{{ \.(\w+)\.(\w+) }}", field, template)


def test_the_manifest_of_the_documents_gets_the_value(
    manager: Manager, admin: httpx.Client, deployment: Register
) -> None:
    """The request is the one that External Secrets' webhook provider makes of docs/reading.md.

    It renders URL and headers and sends a GET without a body. Without a jsonPath the body is the value;
    404 is a deleted secret, and any other status but 2xx an error, by which nothing changes.
    """
    by_kind = {each["kind"]: each for each in manifests()}
    webhook = by_kind["SecretStore"]["spec"]["provider"]["webhook"]
    assert webhook["result"] == {} and not webhook.keys() & {"method", "body", "auth"}
    [credentials] = webhook["secrets"]
    assert credentials["secretRef"]["name"] == by_kind["Secret"]["metadata"]["name"]
    assert by_kind["Secret"]["metadata"]["labels"] == {"external-secrets.io/type": "webhook"}
    [entry] = by_kind["ExternalSecret"]["spec"]["data"]
    name = entry["remoteRef"]["key"]
    with deployment("app", name) as client:
        token = client.headers["authorization"].partition(" ")[2]
    [key] = by_kind["Secret"]["stringData"]
    values = {"remoteRef": {"key": name}, credentials["name"]: {key: token}}
    path = "/" + render(webhook["url"], values).removeprefix("https://").partition("/")[2]
    headers = {header: render(text, values) for header, text in webhook["headers"].items()}
    headers |= {"user-agent": "Go-http-client/1.1", "accept-encoding": "gzip"}
    with manager.client("") as operator:
        assert operator.get(path, headers=headers).status_code == 404
        put(admin, name, BINARY)
        response = operator.get(path, headers=headers)
        assert (response.status_code, response.content) == (200, BINARY)
        assert "content-encoding" not in response.headers
