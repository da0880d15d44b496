"""Reads by other tools while the database does not respond: 503, never a value or "missing"."""

from __future__ import annotations

import pytest

from tests.faults.conftest import Starter, put, recovers, timed
from tests.postgres_server import PostgresServer

VALUE = "the-value-of-mine"


@pytest.mark.parametrize("name", ["mine", "absent"])
def test_a_read_without_the_database_is_503(start: Starter, server: PostgresServer, name: str) -> None:
    """Also of a secret that does not exist, and where the client has the current version."""
    manager = start("one")
    with manager.client() as admin:
        assert put(admin, "mine", VALUE).status_code == 200
        made = admin.post("/v1/deployments", json={"name": "d", "secrets": ["mine", "absent"]})
        with manager.client(made.json()["token"], **{"if-none-match": '"1"'}) as client:
            client.get(f"/v1/deployment/secrets/{name}")
            server.stop()
            try:
                for path in (f"/v1/deployment/secrets/{name}", f"/v1/secret/data/{name}"):
                    for method in ("GET", "HEAD") if "deployment" in path else ("GET",):
                        response = timed(lambda: client.request(method, path))  # noqa: B023
                        assert response.status_code == 503, (method, path, response.text)
                        assert response.headers["retry-after"] == "1"
                        assert VALUE not in response.text
            finally:
                server.start()
            recovers(admin)
            assert client.get("/v1/deployment/secrets/mine").status_code == 304
