"""Finds the model's class in its folder, makes the object, checks its methods, loads it.

Runs user code, in the worker. Knows nothing of HTTP.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import logging
import sys
import time
import types
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from gusset.secrets.mapping import Secrets
from gusset.serving.inference.methods import Methods, ModelDefinitionError, find_methods

log = logging.getLogger("gusset.serving")

Await = Callable[[Awaitable[Any]], Any]

_LOAD_TRIES = 2
_LOAD_PAUSE = 1.0  # seconds


class StartFailed(Exception):
    """A step of the model's start failed, by the error that is the cause of this one."""

    def __init__(self, step: str) -> None:
        super().__init__(step)
        self.step = step


class LazyDataResolver:
    """What models that wait for downloaded weights call; here nothing has to be waited for."""

    def block_until_download_complete(self, log_stats: bool = True, issue_collect: bool = True) -> str:
        """Return at once."""
        return ""

    def raise_if_not_collected(self) -> None:
        """Nothing was to be collected."""


def start_model(
    plan: Mapping[str, Any],
    secrets: Secrets,
    wait: Await,
    *,
    on_instance: Callable[[], object] = lambda: None,
) -> Methods:
    """Import the code, make the object, check and load it. `wait` runs a coroutine to its end.

    Raises:
        StartFailed: the import, `__init__`, a signature check or `load` failed.
    """
    cls = _step("import", lambda: import_class(plan))
    instance = _step("__init__", lambda: construct(cls, plan, secrets))
    described = f"The class {plan['model_class']} in {Path(plan['model_file']).relative_to(plan['folder'])}"
    methods: Methods = _step("check", lambda: find_methods(instance, described))
    on_instance()
    _load(instance, wait)
    return methods


def _step(name: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except BaseException as error:  # SystemExit is a failed start, not a way out
        raise StartFailed(name) from error


def _load(instance: Any, wait: Await) -> None:
    load = getattr(instance, "load", None)
    if load is None:
        return
    for attempt in range(1, _LOAD_TRIES + 1):
        try:
            result = load()
            if inspect.isawaitable(result):
                wait(result)
        except BaseException as error:
            if attempt == _LOAD_TRIES:
                raise StartFailed("load") from error
            log.warning("Failed to load model. Retrying in a second: %s", type(error).__name__)
            time.sleep(_LOAD_PAUSE)
        else:
            return


def import_class(plan: Mapping[str, Any]) -> Callable[..., Any]:
    """The class (or factory) that the config names, from a module that can use relative imports."""
    folder, file = Path(plan["folder"]), Path(plan["model_file"])
    sys.path.insert(0, str(folder))
    sys.path.extend(plan["package_dirs"])
    module = _import_file(file, file.relative_to(folder).with_suffix("").parts)
    cls = getattr(module, plan["model_class"], None)
    if not callable(cls):
        raise ModelDefinitionError(f"{file.relative_to(folder)} has no class {plan['model_class']}")
    found: Callable[..., Any] = cls
    return found


def _import_file(file: Path, parts: tuple[str, ...]) -> types.ModuleType:
    """The module at `file`, under the name that its place in the folder gives it."""
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
    """Make the folder a package of this name, also where an installed one has the name."""
    if (directory / "__init__.py").is_file():
        importlib.import_module(name)
        return
    package = types.ModuleType(name)
    package.__path__ = [str(directory)]
    sys.modules[name] = package


def construct(cls: Callable[..., Any], plan: Mapping[str, Any], secrets: Secrets) -> Any:
    """The model's object, made with those keyword arguments that its signature has."""
    offered: dict[str, Any] = {
        "config": plan["config"],
        "data_dir": Path(plan["data_dir"]),
        "secrets": secrets,
        "environment": None,
        "lazy_data_resolver": LazyDataResolver(),
    }
    parameters = inspect.signature(cls).parameters
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        offered = {name: value for name, value in offered.items() if name in parameters}
    return cls(**offered)
