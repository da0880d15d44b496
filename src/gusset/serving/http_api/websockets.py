"""A model's websockets: uvicorn's protocol on connections handed over by the HTTP server.

Imported only for a model that has a `websocket` method, or when a client wants one from another model.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState
from uvicorn.config import Config
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from gusset.runtime.exchange import Exchange
from gusset.runtime.logs import model_traceback
from gusset.serving.inference.methods import Method
from gusset.serving.inference.response_masking import ResponseMasker
from gusset.serving.inference.responses import MODEL_ERROR

log = logging.getLogger("gusset")

_MAX_MESSAGE = 100 * 1024 * 1024  # bytes
_PING_SECONDS = 20.0
NOT_IMPLEMENTED = "WebSocket is not implemented on this deployment."


class Websockets:
    """Opens websockets for the model's method, and closes them at shutdown."""

    def __init__(
        self,
        method: Method | None,
        loop: asyncio.AbstractEventLoop,
        masker: ResponseMasker,
        *,
        folder: Path,
        transport: Mapping[str, Any],
    ) -> None:
        """`method` None closes every websocket at once, with the reason.

        `transport` is that section of the config; it may set the seconds between pings.
        """
        self._method = method
        self._loop = loop
        self._masker = masker
        self._folder = folder
        self._state = ServerState()
        self._config = Config(
            self.serve,
            interface="asgi3",
            lifespan="off",
            log_config=None,
            ws_max_size=_MAX_MESSAGE,
            ws_ping_interval=transport.get("ping_interval_seconds") or _PING_SECONDS,
            ws_ping_timeout=transport.get("ping_timeout_seconds") or _PING_SECONDS,
        )
        self._config.loaded_app = self.serve
        self._config.loaded = True
        logging.getLogger("uvicorn").setLevel(logging.WARNING)

    def open(self, exchange: Exchange) -> None:
        """Take over the connection of a client that requests a websocket."""
        exchange.hand_over(partial(_Protocol, self._config, self._state, self._loop))

    async def drain(self) -> None:
        """Close all websockets with 1012, and wait for the model's method to return."""
        for connection in tuple(self._state.connections):
            connection.shutdown()
        while self._state.tasks:
            await asyncio.wait(self._state.tasks)

    async def serve(self, scope: Any, receive: Any, send: Any) -> None:
        """An ASGI application: accept the websocket and run the model's method.

        An error that it raises closes with 1011.
        """
        scope["headers"] = [(name.lower(), value) for name, value in scope["headers"]]  # as ASGI demands
        websocket = WebSocket(scope, receive, self._masker.websocket(send))
        await websocket.accept()
        if self._method is None:
            await _close(websocket, 1003, NOT_IMPLEMENTED)
            return
        try:
            await self._method.function(websocket)
        except WebSocketDisconnect as error:
            log.info("Client terminated websocket connection: %s", error.code)
            return
        except Exception as error:
            log.error("%s\n%s", MODEL_ERROR, model_traceback(error, self._folder))  # noqa: TRY400
            await _close(websocket, 1011, MODEL_ERROR)
            return
        await _close(websocket, 1000, "")


class _Protocol(WebSocketsSansIOProtocol):
    """One websocket. `on_lost` is called once its connection is lost."""

    def __init__(
        self,
        config: Config,
        state: ServerState,
        loop: asyncio.AbstractEventLoop,
        on_lost: Callable[[], object],
    ) -> None:
        super().__init__(config, state, {}, loop)
        self._on_lost = on_lost

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()
        super().connection_lost(exc)


async def _close(websocket: WebSocket, code: int, reason: str) -> None:
    """Close, unless either side has done so already."""
    connected = WebSocketState.CONNECTED
    if websocket.client_state is connected and websocket.application_state is connected:
        await websocket.close(code, reason)
