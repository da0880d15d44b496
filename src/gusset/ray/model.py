"""A loaded model with its secrets and its HTTP API: what a replica is, without Ray."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gusset import __version__
from gusset.errors import GussetError, ModelFailed, UsageError
from gusset.package.config import load_package
from gusset.ray.asgi import ModelApp
from gusset.ray.downloads import downloaded
from gusset.ray.output import MaskedOutput, log_masked
from gusset.ray.plan import ReplicaPlan
from gusset.ray.secrets import ReplicaSecrets
from gusset.ray.source import open_source
from gusset.runtime.declared_secrets import names_to_read
from gusset.runtime.limits import Limits
from gusset.runtime.process import harden
from gusset.runtime.supervision import SecretIntake
from gusset.serving.deployment import ModelDeployment
from gusset.serving.http_api.assembly import make_api
from gusset.serving.http_api.endpoints import ModelApi
from gusset.serving.http_api.metrics import Metrics
from gusset.serving.inference.methods import Methods
from gusset.serving.inference.response_masking import ResponseMasker
from gusset.serving.protocol import FAILED_STEPS
from gusset.serving.worker import exact_types, spawned_children
from gusset.serving.worker.import_hooks import call_on_import
from gusset.serving.worker.lazy_data import DownloadState
from gusset.serving.worker.loop_watchdog import watch_loop
from gusset.serving.worker.model_loader import StartFailed, start_model
from gusset.settings import Settings


class ServedModel:
    """One replica's model. `app` serves it; `stop` ends what follows its secrets."""

    def __init__(self, api: ModelApi, app: ModelApp, resources: contextlib.ExitStack) -> None:
        self._api = api
        self._resources = resources
        self.app = app

    @classmethod
    async def start(cls, plan: ReplicaPlan, find_folder: Callable[[ReplicaPlan, Path], Path]) -> ServedModel:
        """Protect this process, read the secrets, then import and load the model.

        Requests are handled on the running event loop. `find_folder` gives the model's folder on this
        node; its second argument is a folder for what can be fetched again.

        Raises:
            ModelFailed: whatever went wrong, in one masked text, without a cause or context: Ray stores
                and shows an exception with all of them.
        """
        harden()
        intake = SecretIntake()
        resources = contextlib.ExitStack()
        resources.callback(MaskedOutput.start(intake.masker).stop)
        starter = _Starter(plan, intake, resources, asyncio.get_running_loop())
        failure = ""
        try:
            methods = await asyncio.to_thread(starter.start, find_folder)
            return starter.serve(methods)
        except StartFailed as error:
            failure = f"{FAILED_STEPS[error.step]}\n{error.trace(starter.deployment.folder)}"
        except GussetError as error:
            hint = f"\n{error.hint}" if error.hint else ""
            failure = f"{error.message}{hint}"
        except Exception as error:  # a library's message may quote a value
            failure = f"the replica could not start: {type(error).__name__}"
        failure = intake.mask_log(failure)
        resources.close()
        raise ModelFailed(failure)

    async def reason_not_ready(self) -> str | None:
        """Why the model is not ready, by its `is_healthy`; None if it is."""
        return await self._api.reason_not_ready()

    async def stop(self) -> None:
        """Report to the source that this replica has stopped, and forward what was printed."""
        await asyncio.to_thread(self._resources.close)


class _Starter:
    """The steps of a start. `start` blocks, on a thread of its own; `serve` runs on the event loop."""

    deployment: ModelDeployment
    secrets: ReplicaSecrets

    def __init__(
        self,
        plan: ReplicaPlan,
        intake: SecretIntake,
        resources: contextlib.ExitStack,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`resources` are closed when the replica stops, or when its start fails."""
        self._plan = plan
        self._intake = intake
        self._resources = resources
        self._loop = loop

    def start(self, find_folder: Callable[[ReplicaPlan, Path], Path]) -> Methods:
        """Read the secrets and load the model. Raises GussetError or StartFailed."""
        plan, settings = self._plan, Settings.load(os.environ)
        if plan.version != __version__:
            raise UsageError(
                f"this node has gusset {__version__}, and the application was made by {plan.version}",
                hint="install the same version on all nodes",
            )
        folder = find_folder(plan, settings.cache)
        self.deployment = replace(ModelDeployment.from_package(load_package(folder)), name=plan.name)
        log_masked(self._intake.masker, logging.DEBUG if self.deployment.debug_logs else logging.INFO)
        source = self._resources.enter_context(
            open_source(plan.access, settings, deployment=plan.name, names=names_to_read(self.deployment))
        )
        self.secrets = ReplicaSecrets.start(self.deployment, source, self._intake, plan.allow_missing)
        self._resources.callback(self.secrets.stop)
        return self._load(settings.cache)

    def _load(self, cache: Path) -> Methods:
        deployment = self.deployment
        os.environ.update(deployment.environment_variables)
        call_on_import({**exact_types.ON_IMPORT, **spawned_children.ON_IMPORT})
        os.chdir(deployment.folder)
        logins = self.secrets.values_of(deployment.download_secrets)
        self._resources.enter_context(downloaded(deployment, logins, self._intake.masker, cache / "weights"))
        state = DownloadState(deployment.downloads)
        state.advance(everything=True)
        return start_model(
            deployment,
            self.secrets.mapping,
            self._wait,
            downloads=state,
            on_instance=_import_websocket_libraries,
        )

    def _wait(self, result: Awaitable[Any]) -> Any:
        """The result of an awaitable of `load`, on the event loop that serves requests."""

        async def wait() -> Any:
            return await result

        return asyncio.run_coroutine_threadsafe(wait(), self._loop).result()

    def serve(self, methods: Methods) -> ServedModel:
        """The model, ready to serve."""
        secrets, masker = self.secrets, self._intake.masker
        metrics = Metrics(
            lambda: secrets.versions,
            lambda: masker.hits.total,
            mask=lambda text: masker.mask(text, "metrics"),
            caller_auth=secrets.caller_auth,
        )
        api = make_api(
            methods,
            self.deployment,
            self._loop,
            masker=ResponseMasker(masker, results=self._plan.masks_responses),
            metrics=metrics,
            last_error=lambda: secrets.last_error,
            lagging=lambda: None,  # this process is the only one that holds values
        )
        watch_loop(self._loop, self.deployment.folder)
        app = ModelApp(api, metrics, secrets.caller_auth, body_limit=Limits().body)
        return ServedModel(api, app, self._resources)


def _import_websocket_libraries(methods: Methods) -> None:
    """Import them before `load`, so that a missing one fails the start."""
    if methods.websocket is not None:
        import gusset.serving.http_api.websockets  # noqa: F401
