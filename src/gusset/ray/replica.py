"""The class that Ray Serve runs: one object for each replica, in a process of its own.

Ray pickles this class by its name, so gusset must be installed on the nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gusset.errors import ModelFailed
from gusset.ray.folders import find_folder
from gusset.ray.model import ServedModel
from gusset.ray.receiving import fetched_on_demand
from ray import serve

if TYPE_CHECKING:
    from gusset.ray.asgi import Receive, Scope, Send
    from gusset.ray.plan import ReplicaPlan


class _App:
    """The ASGI application of the replica whose process this is. Ray pickles it, so it holds nothing."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await _model().app(scope, fetched_on_demand(receive), send)
        else:
            await _model().app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """ASGI's lifespan protocol: Ray ends it after a replica has finished its requests."""
        await receive()
        await send({"type": "lifespan.startup.complete"})  # `ModelReplica` is complete only after this
        await receive()
        await _model().stop()
        await send({"type": "lifespan.shutdown.complete"})


def _model() -> ServedModel:
    model: ServedModel = serve.get_replica_context().servable_object.model  # type: ignore[attr-defined]
    return model


@serve.ingress(_App())
class ModelReplica:
    """Serves a model folder in a replica of Ray Serve."""

    async def __init__(self, plan: ReplicaPlan) -> None:  # type: ignore[misc]  # Ray awaits it
        """Returns when the model has loaded, so that Ray sends no request before.

        Raises:
            ModelFailed: it did not start. The message is masked.
        """
        self.model = await ServedModel.start(plan, find_folder)

    async def check_health(self) -> None:
        """Called by Ray every few seconds; it replaces the replica when this raises repeatedly.

        Raises:
            ModelFailed: the model's `is_healthy` says that it is not ready.
        """
        if (reason := await self.model.reason_not_ready()) is not None:
            raise ModelFailed(f"The model is not ready. {reason}")
