"""The model's own code: found, imported, constructed, loaded and called. Runs in the worker only."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from gusset.errors import ModelFailed


class LazyDataResolver:
    """What models of the Truss format expect; there is nothing to wait for here."""

    def block_until_download_complete(self, log_stats: bool = True, issue_collect: bool = True) -> str:
        return ""

    def raise_if_not_collected(self) -> None:
        return None


def own_trace(error: BaseException, model_file: Path) -> str:
    """The traceback from the model's file on: what went before is gusset's, and of no use to its author."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next((i for i, frame in enumerate(frames) if Path(frame.filename) == model_file), 0)
    shown = error.__traceback__
    for _ in range(first):
        shown = shown.tb_next if shown else None
    return "".join(traceback.format_exception(type(error), error, shown))


def import_model(folder: Path, model_file: Path, packages: Sequence[Path]) -> ModuleType:
    """Import the model's file, under the name that its own imports expect.

    `model/model.py` is `model.model`, so that `from .x import y` and
    `from model.x import y` work; another file is a module by its stem.
    `packages` come last on the path: what is installed wins.
    """
    root, name = _module_of(folder, model_file)
    sys.path.insert(0, str(root))
    sys.path.extend(str(path) for path in packages if path.is_dir())
    spec = importlib.util.spec_from_file_location(name, model_file)
    if spec is None or spec.loader is None:
        raise ModelFailed(f"{model_file} cannot be imported", hint="its name must end in .py")
    if "." in name:
        importlib.import_module(name.rpartition(".")[0])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _module_of(folder: Path, model_file: Path) -> tuple[Path, str]:
    """Where imports start, and the file's dotted name from there."""
    inside = model_file.parent
    if inside != folder and inside.name.isidentifier():
        return inside.parent, f"{inside.name}.{model_file.stem}"
    return inside, model_file.stem


def construct(module: ModuleType, class_name: str, offered: dict[str, Any]) -> Any:
    """Make the model, with those of `offered` that its `__init__` takes.

    Raises:
        ModelFailed: there is no such class.
    """
    cls = getattr(module, class_name, None)
    if cls is None:
        raise ModelFailed(
            f"{module.__file__} has no class {class_name}",
            hint=f"add one, or name yours in config.yaml: model_class_name: ...\n{SKELETON.format(name=class_name)}",
        )
    taken = inspect.signature(cls).parameters
    everything = any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values())
    return cls(**{name: value for name, value in offered.items() if everything or name in taken})


SKELETON = """
class {name}:
    def __init__(self, **kwargs):
        self._secrets = kwargs["secrets"]

    def predict(self, inputs):
        return inputs
"""

LOAD_TRIES = 2
LOAD_PAUSE = 1.0  # seconds


async def load(model: Any, retrying: Callable[[BaseException], None]) -> None:
    """Call `load`, if there is one; once more, a second later, when it fails."""
    function = getattr(model, "load", None)
    if function is None:
        return
    for attempt in range(1, LOAD_TRIES + 1):
        try:
            result = function()
            if inspect.isawaitable(result):
                await result
            return
        except Exception as error:
            if attempt == LOAD_TRIES:
                raise
            retrying(error)
            await asyncio.sleep(LOAD_PAUSE)


@dataclass(frozen=True, slots=True)
class Stage:
    """One method of the model. `is_async`: it is awaited on the loop, not run on a model thread."""

    call: Callable[..., Any]
    is_async: bool
    takes_inputs: bool


class Pipeline:
    """`preprocess`, `predict` and `postprocess` of a model, those that it has.

    Raises:
        ModelFailed: there is no `predict`, or a method takes what nobody gives it.
    """

    def __init__(self, model: Any, model_file: Path) -> None:
        if not callable(getattr(model, "predict", None)):
            name = type(model).__name__
            raise ModelFailed(
                f"the class {name} in {model_file} has no predict",
                hint=f"add it:\n{SKELETON.format(name=name)}",
            )
        names = ("preprocess", "predict", "postprocess")
        self.stages = tuple(_stage(model, name) for name in names if callable(getattr(model, name, None)))

    def run(self, inputs: Any) -> Any:
        """All stages in this thread; for a model without a coroutine among them."""
        for stage in self.stages:
            inputs = stage.call(inputs) if stage.takes_inputs else stage.call()
        return inputs

    async def run_on_loop(self, inputs: Any, in_thread: Callable[..., Awaitable[Any]]) -> Any:
        """Coroutines here, everything else through `in_thread`."""
        for stage in self.stages:
            arguments = (inputs,) if stage.takes_inputs else ()
            if stage.is_async:
                inputs = await stage.call(*arguments)
            else:
                inputs = await in_thread(stage.call, *arguments)
            if inspect.isawaitable(inputs):
                inputs = await inputs
        return inputs

    @property
    def is_sync(self) -> bool:
        return not any(stage.is_async for stage in self.stages)


def _stage(model: Any, name: str) -> Stage:
    function = getattr(model, name)
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY and p.kind is not p.VAR_KEYWORD]
    needed = [
        p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if len(needed) > 1:
        raise ModelFailed(
            f"`{name}` is given the inputs alone, but takes {', '.join(p.name for p in needed)}",
            hint=f"write `def {name}(self, inputs)`",
        )
    return Stage(function, inspect.iscoroutinefunction(function), bool(positional))
