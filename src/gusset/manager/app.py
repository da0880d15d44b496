"""The manager's ASGI application: what surrounds every request, and how the routes come together."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gusset.errors import GussetError
from gusset.manager.api.handlers import OPERATIONS
from gusset.manager.api.openapi import openapi
from gusset.manager.api.router import Api
from gusset.manager.api.serializers import audit_lines
from gusset.manager.auth.access_cache import AccessCache
from gusset.manager.auth.authenticator import Authenticator, AuthRequest
from gusset.manager.auth.authorization import authorize
from gusset.manager.auth.bootstrap_link import BootstrapLink
from gusset.manager.executors import Executors
from gusset.manager.live.delivery import Changes, Delivery
from gusset.manager.middleware import Metrics, Middleware, on_error, on_http_error
from gusset.manager.pages.pages import Pages
from gusset.vault.wiring import Vault

log = logging.getLogger("gusset.manager")


@dataclass(frozen=True, slots=True)
class Manager:
    """The parts of a running manager; `app` is the ASGI application."""

    app: ASGIApp
    changes: Changes


def make_manager(vault: Vault, first: BootstrapLink | None = None) -> Manager:
    """Join the parts over an open vault; `first` is the link of one that nobody has set up."""
    executors, metrics, cache = Executors(), Metrics(), AccessCache(vault)
    authenticator = Authenticator(vault, cache)
    changes = Changes(vault.change_poller)
    metrics.streams.set_function(lambda: changes.streams)
    delivery = Delivery(vault, authenticator, executors, changes)
    operations = [*OPERATIONS, *delivery.operations()]
    document = openapi(operations)

    async def spec(_: Request) -> Response:
        return JSONResponse(document)

    async def alive(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        """Whether the vault answers."""
        await executors.run(vault.people.has_any)
        return JSONResponse({"status": "ok"})

    async def measured(_: Request) -> Response:
        return metrics.response()

    async def export(request: Request) -> Response:
        """The whole audit log, in pieces."""
        request.scope["route_path"] = "/v1/audit/export"
        await executors.run(authorize, authenticator, AuthRequest.from_starlette(request), "admin")
        return StreamingResponse(audit_lines(vault), media_type="application/x-ndjson")

    routes: list[BaseRoute] = [
        Route("/v1/deployment/changes", delivery.stream),
        Route("/v1/audit/export", export),
        Route("/v1/spec", spec),
        Route("/healthz", alive),
        Route("/readyz", ready),
        Route("/metrics", measured),
        *Pages(vault, authenticator, executors, wrote=changes.wrote, bootstrap_link=first).routes(),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        changes.start()
        yield
        changes.stop()
        executors.close()
        cache.close()

    handlers: Any = {GussetError: on_error, HTTPException: on_http_error}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    api = Api(vault, authenticator, cache, executors=executors, wrote=changes.wrote, beside=app)
    for operation in operations:
        api.add(operation)
    return Manager(Middleware(api, metrics), changes)
