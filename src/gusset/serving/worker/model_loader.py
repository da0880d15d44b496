"""Imports the model's class from its folder, constructs it, checks its methods and loads it.

Runs user code, in the worker. Knows nothing of HTTP.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import logging
import sys
import time
import types
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from gusset.runtime.logs import model_traceback
from gusset.secrets.mapping import Secrets
from gusset.serving.deployment import ModelDeployment
from gusset.serving.inference.methods import Methods, ModelDefinitionError, find_methods
from gusset.serving.protocol import StartStep
from gusset.serving.worker.lazy_data import DownloadState, LazyDataResolver

log = logging.getLogger("gusset")

Await = Callable[[Awaitable[Any]], Any]

_LOAD_ATTEMPTS = 2
_LOAD_RETRY_DELAY = 1.0  # seconds


class StartFailed(Exception):
    """A step of the model's start failed; `__cause__` is the error that it raised."""

    def __init__(self, step: StartStep) -> None:
        super().__init__(step)
        self.step = step

    def trace(self, folder: Path) -> str:
        """The traceback of the error, from the first frame in the model's `folder` on. Not masked."""
        error = self.__cause__ or self
        return str(error) if isinstance(error, ModelDefinitionError) else model_traceback(error, folder)


def start_model(
    deployment: ModelDeployment,
    secrets: Secrets,
    wait: Await,
    *,
    downloads: DownloadState,
    on_instance: Callable[[Methods], object] = lambda methods: None,
) -> Methods:
    """Import the model's class, construct, check and load it.

    `wait` runs a coroutine to its end. `on_instance` is called before `load`,
    which waits for all `downloads`; the import waits for external data. `on_instance` may
    raise StartFailed.

    Raises:
        StartFailed: the import, `__init__`, a signature check or `load` failed.
    """
    downloads.wait_for_external_data()
    cls = _step(StartStep.IMPORT, lambda: import_class(deployment))
    resolver = LazyDataResolver(downloads)
    instance = _step(StartStep.INIT, lambda: construct(cls, deployment, secrets, resolver))
    file = deployment.model_file.relative_to(deployment.folder)
    description = f"The class {deployment.model_class} in {file}"
    methods: Methods = _step(StartStep.CHECK, lambda: find_methods(instance, description))
    on_instance(methods)
    downloads.wait()
    _load(instance, wait)
    return methods


def _step(step: StartStep, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except BaseException as error:  # SystemExit, too, is a failed start
        raise StartFailed(step) from error


def _load(instance: Any, wait: Await) -> None:
    load = getattr(instance, "load", None)
    if load is None:
        return
    for attempt in range(1, _LOAD_ATTEMPTS + 1):
        try:
            result = load()
            if inspect.isawaitable(result):
                wait(result)
        except BaseException as error:
            if attempt == _LOAD_ATTEMPTS:
                raise StartFailed(StartStep.LOAD) from error
            log.warning("Failed to load model. Retrying in a second: %s", type(error).__name__)
            time.sleep(_LOAD_RETRY_DELAY)
        else:
            return


def import_class(deployment: ModelDeployment) -> Callable[..., Any]:
    """The class (or factory) that the config names. Its module can use relative imports."""
    folder, file = deployment.folder, deployment.model_file
    sys.path.insert(0, str(folder))
    sys.path.extend(map(str, deployment.package_dirs))
    module = _import_file(file, file.relative_to(folder).with_suffix("").parts)
    cls: Callable[..., Any] | None = getattr(module, deployment.model_class, None)
    if not callable(cls):
        raise ModelDefinitionError(f"{file.relative_to(folder)} has no class {deployment.model_class}")
    return cls


def _import_file(file: Path, parts: tuple[str, ...]) -> types.ModuleType:
    """The module at `file`, named by its path in the folder, as in `model.model`."""
    for depth in range(1, len(parts)):
        _import_package(".".join(parts[:depth]), file.parents[len(parts) - 1 - depth])
    name = ".".join(parts)
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ModelDefinitionError(f"{file.name} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _import_package(name: str, directory: Path) -> None:
    """Import the folder as a package of this name, even if an installed package has the same name."""
    if (directory / "__init__.py").is_file():
        importlib.import_module(name)
        return
    package = types.ModuleType(name)
    package.__path__ = [str(directory)]
    sys.modules[name] = package


def _data_dir(deployment: ModelDeployment) -> Path:
    """The folder for the model's data, which exists even if the model's folder has none."""
    folder = deployment.data_dir or deployment.folder / "data"
    if folder.is_dir():
        return folder
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True)
        return folder
    import tempfile  # few models need it

    return Path(tempfile.mkdtemp(prefix="gusset-data-"))  # the model's folder is read-only


def construct(
    cls: Callable[..., Any], deployment: ModelDeployment, secrets: Secrets, resolver: LazyDataResolver
) -> Any:
    """The model's object, constructed with those keyword arguments that its signature accepts."""
    available: dict[str, Any] = {
        "config": dict(deployment.config),
        "data_dir": _data_dir(deployment),
        "secrets": secrets,
        "environment": None,
        "lazy_data_resolver": resolver,
    }
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        available = {name: value for name, value in available.items() if name in parameters}
    return cls(**available)
