"""Joins the parts of the manager: the API, the pages, the stream of changes, and what surrounds them."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from gusset.errors import GussetError
from gusset.manager.api.handlers import OPERATIONS
from gusset.manager.api.openapi import openapi
from gusset.manager.api.operations import Operation
from gusset.manager.api.router import Api, Router, error_response, http_error
from gusset.manager.auth.access_cache import AccessCache
from gusset.manager.auth.authenticator import Authenticator
from gusset.manager.auth.bootstrap_link import BootstrapLink
from gusset.manager.executors import Executors
from gusset.manager.housekeeping import (
    CheckpointTimer,
    LeaseTimer,
    ManagerReports,
    OverlapTimer,
    RefusalTimer,
)
from gusset.manager.identity.exchange import IdentityExchange
from gusset.manager.identity.issuer_keys import IssuerKeys
from gusset.manager.identity.operations import IdentityOperations
from gusset.manager.identity.pinned_http import PinnedHttp
from gusset.manager.identity.token_route import TokenRoute
from gusset.manager.integrity_watch import IntegrityWatch
from gusset.manager.live.change_feed import ChangeFeed
from gusset.manager.live.delivery import Delivery
from gusset.manager.live.renewals import Renewals
from gusset.manager.live.streams import CHANGES, ChangeStreams
from gusset.manager.metrics import Metrics
from gusset.manager.middleware import SECURITY_HEADERS, Middleware
from gusset.manager.pages.pages import Pages
from gusset.manager.read_document import READ_PATHS
from gusset.manager.read_routes import ReadRoutes
from gusset.manager.service_routes import ServiceRoutes
from gusset.runtime import responses
from gusset.runtime.trusted_proxies import TrustedProxies
from gusset.vault.greenlets import GreenletPool
from gusset.vault.wiring import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Manager:
    """The manager without its socket: `middleware` handles the requests."""

    middleware: Middleware
    change_feed: ChangeFeed
    streams: ChangeStreams
    refusal_timer: RefusalTimer
    checkpoint_timer: CheckpointTimer
    reports: ManagerReports
    integrity: IntegrityWatch
    lease_timer: LeaseTimer
    overlap_timer: OverlapTimer
    executors: Executors
    cache: AccessCache

    def start(self) -> None:
        """Start what runs beside requests. Call this on the event loop."""
        self.change_feed.start()
        self.checkpoint_timer.start()
        self.refusal_timer.start()
        self.reports.start()
        self.integrity.start()
        self.lease_timer.start()
        self.overlap_timer.start()

    def end_streams(self) -> None:
        """End the streams of changes, which would never end by themselves, and accept no more."""
        self.streams.stop()
        self.change_feed.stop()

    def close(self) -> None:
        """Release threads and connections, when no request is in flight any more."""
        self.refusal_timer.stop()
        self.reports.stop()
        self.checkpoint_timer.stop()
        self.integrity.stop()
        self.lease_timer.stop()
        self.overlap_timer.stop()
        self.executors.close()
        self.cache.close()


# Seconds. With the wait for a lock in the database it is less than a request may take.
LONGEST_QUEUE = 2.0
# Of an embedded database. A request's key was checked before: that must not be long ago when it is executed.
LONGEST_LOCAL_QUEUE = 20.0


def make_manager(
    vault: Vault,
    *,
    bootstrap_link: BootstrapLink | None,
    proxies: TrustedProxies,
    scheme: str,
    key_rate: int,
) -> Manager:
    """Join the parts over an open vault. `scheme` is the listener's; for `key_rate` see `Authenticator`."""
    shared = _make_shared(vault, key_rate)
    executors, change_feed = shared.executors, shared.change_feed
    pages = Pages(
        vault,
        shared.authenticator,
        executors,
        on_write=change_feed.notify,
        integrity=shared.integrity,
        bootstrap_link=bootstrap_link,
    )
    return Manager(
        middleware=_make_middleware(shared, pages, proxies=proxies, scheme=scheme),
        change_feed=change_feed,
        streams=shared.streams,
        refusal_timer=RefusalTimer(vault, executors),
        checkpoint_timer=CheckpointTimer(vault, executors),
        reports=shared.reports,
        integrity=shared.integrity,
        lease_timer=LeaseTimer(vault, executors, shared.authenticator.write_uses),
        overlap_timer=OverlapTimer(vault, executors, change_feed.notify),
        executors=executors,
        cache=shared.cache,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """What several parts of a manager use."""

    vault: Vault
    executors: Executors
    greenlets: GreenletPool
    cache: AccessCache
    authenticator: Authenticator
    change_feed: ChangeFeed
    streams: ChangeStreams
    integrity: IntegrityWatch
    metrics: Metrics
    reports: ManagerReports


def _make_shared(vault: Vault, key_rate: int) -> _Shared:
    executors = Executors(longest_queue=LONGEST_QUEUE if vault.reads_wait else LONGEST_LOCAL_QUEUE)
    cache, greenlets = AccessCache(vault), GreenletPool(vault.request_seconds)
    authenticator = Authenticator(vault, cache, key_rate=key_rate)
    change_feed = ChangeFeed(vault.change_poller, lambda: vault.epoch)
    integrity = IntegrityWatch(vault.verification())
    metrics = Metrics(lambda: change_feed.streams, lambda: integrity.result)
    streams = ChangeStreams(
        authenticator,
        change_feed,
        greenlets=greenlets,
        headers=SECURITY_HEADERS,
        count=lambda exchange, status: metrics.count(
            CHANGES, status, time.perf_counter() - exchange.received_at
        ),
    )
    return _Shared(
        vault=vault,
        executors=executors,
        greenlets=greenlets,
        cache=cache,
        authenticator=authenticator,
        change_feed=change_feed,
        streams=streams,
        integrity=integrity,
        metrics=metrics,
        reports=ManagerReports(vault, executors),
    )


def _make_middleware(shared: _Shared, pages: Pages, *, proxies: TrustedProxies, scheme: str) -> Middleware:
    vault, authenticator = shared.vault, shared.authenticator
    delivery = Delivery(authenticator)
    keys = IssuerKeys(PinnedHttp())
    identities = IdentityExchange(vault, keys)
    operations = [*OPERATIONS, *IdentityOperations(keys).operations(), *delivery.operations()]
    api = Api(
        vault,
        authenticator,
        shared.cache,
        executors=shared.executors,
        on_write=shared.change_feed.notify,
    )
    return Middleware(
        Router(operations),
        api,
        _make_app(shared, pages, operations),
        shared.metrics,
        streams=shared.streams,
        renewals=Renewals(authenticator, vault.leases),
        tokens=TokenRoute(identities),
        read_routes=ReadRoutes(vault, authenticator, delivery, identities),
        greenlets=shared.greenlets,
        proxies=proxies,
        scheme=scheme,
        refuse_form=pages.refuse_form,
        request_seconds=vault.request_seconds,
    )


def _make_app(shared: _Shared, pages: Pages, operations: Sequence[Operation]) -> Starlette:
    """The application for what is no operation of the API: pages, probes and the like."""
    service = ServiceRoutes(
        shared.vault,
        shared.authenticator,
        shared.executors,
        reports=shared.reports,
        integrity=shared.integrity,
        metrics=shared.metrics,
        document=functools.cache(lambda: openapi(operations, READ_PATHS)),
    )
    exception_handlers: Any = {GussetError: _on_error, HTTPException: _on_http_error}
    return Starlette(routes=[*service.routes(), *pages.routes()], exception_handlers=exception_handlers)


async def _on_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, GussetError)  # noqa: S101  # Starlette's type is wider than what it calls this with
    return _to_starlette(error_response(error))


async def _on_http_error(_: Request, error: Exception) -> Response:
    """Unknown routes and methods."""
    assert isinstance(error, HTTPException)  # noqa: S101
    message = "there is no such route" if error.status_code == 404 else error.detail
    headers = [
        (name.lower().encode(), text.encode("latin-1")) for name, text in (error.headers or {}).items()
    ]
    return _to_starlette(http_error(error.status_code, message, *headers))


def _to_starlette(response: responses.Response) -> Response:
    headers = {name.decode(): text.decode("latin-1") for name, text in response.headers}
    return Response(response.body, response.status, headers, response.content_type.decode())
