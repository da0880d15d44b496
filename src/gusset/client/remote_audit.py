"""The audit log of a manager, for `gusset audit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
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
        return self._client.request("POST", "/v1/audit/verify", timeout=inf)

    def export(self) -> Iterator[dict[str, Any]]:
        """Every record, oldest first."""
        return self._client.json_lines("/v1/audit/export")
