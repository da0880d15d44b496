"""The audit log of a manager, for `gusset audit`."""

# Imports in functions: httpx is slow to import.

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gusset.client.manager_client import ManagerClient

_PAGE = 1000  # records of one response


class RemoteAudit:
    """The audit log on a manager; the API key must be an administrator's. Records are JSON objects."""

    def __init__(self, client: ManagerClient) -> None:
        self._client = client

    def show(self, *, limit: int, **filters: str | None) -> list[dict[str, Any]]:
        """The newest `limit` matching records, oldest first."""
        query = {name: text for name, text in filters.items() if text is not None}
        found: list[dict[str, Any]] = []
        while len(found) < limit:
            wanted = min(_PAGE, limit - len(found))
            page = self._client.request("GET", "/v1/audit", query=query | {"limit": str(wanted)})["records"]
            found += page
            if len(page) < wanted:
                break
            query["before"] = str(page[-1]["seq"])
        return found[::-1]

    def verify(self) -> Mapping[str, Any]:
        """`records`, `checkpoints`, `head` and `problems`, as the manager found them."""
        return self._client.request("POST", "/v1/audit/verify")

    def export(self) -> Iterator[dict[str, Any]]:
        """Every record, oldest first."""
        import httpx

        try:
            with self._client.http.stream(
                "GET", "/v1/audit/export", headers=self._client.auth_headers()
            ) as response:
                if response.status_code != 200:
                    response.read()
                    self._client.parse_response(response)
                for line in response.iter_lines():
                    yield json.loads(line)
        except (httpx.HTTPError, UnicodeError) as error:
            raise self._client.unreachable(error) from None
