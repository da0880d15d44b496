"""Routes besides the API's operations and the pages: probes, metrics, the document, the export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from gusset.manager.api.serializers import audit_lines
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.authorization import authorize
from gusset.manager.executors import Executors
from gusset.manager.housekeeping import ManagerReports, WriteProbe
from gusset.manager.integrity_watch import IntegrityWatch
from gusset.manager.metrics import Metrics
from gusset.vault import deadline
from gusset.vault.wiring import Vault


class ServiceRoutes:
    """The service routes. All but the export of the audit log are open to everybody."""

    def __init__(
        self,
        vault: Vault,
        authenticator: Authenticator,
        executors: Executors,
        *,
        reports: ManagerReports,
        integrity: IntegrityWatch,
        metrics: Metrics,
        document: Callable[[], Mapping[str, Any]],
    ) -> None:
        """`document` makes the OpenAPI document, slowly the first time."""
        self._vault = vault
        self._authenticator = authenticator
        self._executors = executors
        self._reports = reports
        self._integrity = integrity
        self._metrics = metrics
        self._document = document
        self._write_probe = WriteProbe(vault, executors)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/v1/audit/export", self._export_audit_log),
            Route("/v1/spec", self._spec),
            Route("/healthz", self._healthz),
            Route("/readyz", self._readyz),
            Route("/metrics", self._expose_metrics),
        ]

    async def _export_audit_log(self, request: Request) -> Response:
        """The whole audit log, in pieces."""
        request.scope["route_path"] = "/v1/audit/export"
        auth_request = AuthRequest.from_starlette(request)
        await self._executors.run(authorize, self._authenticator, auth_request, "admin")
        deadline.remove()
        return StreamingResponse(audit_lines(self._vault), media_type="application/x-ndjson")

    def _spec(self, _: Request) -> Response:  # run on a thread, since it is not async
        return JSONResponse(self._document())

    async def _healthz(self, _: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _readyz(self, _: Request) -> Response:
        """Whether the vault can be read and written, and its keys be read again.

        Problems that continuous verification found do not make it unready: other secrets are still served.
        """
        self._reports.check()
        await self._executors.run(self._vault.people.has_any)
        await self._write_probe.check()
        result = self._integrity.result
        integrity = {
            "problems": len(result.problems),
            "records_verified_at": result.records_at,
            "rows_verified_at": result.rows_at,
        }
        return JSONResponse({"status": "ok", "integrity": integrity})

    async def _expose_metrics(self, _: Request) -> Response:
        content_type = "text/plain; version=0.0.4; charset=utf-8"
        return Response(self._metrics.exposition(), media_type=content_type)
