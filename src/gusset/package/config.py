"""Reads a model folder: its `config.yaml`, checked in full, and where its code lies. Runs nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from gusset.errors import ConfigInvalid, Problem
from gusset.package import keys, rules
from gusset.package.problems import Reporter, kind_of
from gusset.package.rules import SecretSlot
from gusset.package.schema import TrussConfig
from gusset.package.yaml_tree import Tree, read_tree

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Package:
    """A model folder whose configuration is sound. All paths are absolute."""

    folder: Path
    config_file: Path
    config: TrussConfig = field(repr=False)
    secrets: Mapping[str, SecretSlot]
    """The declared secrets, in the order of the file."""
    warnings: tuple[Problem, ...]
    _dumped: dict[str, Any] = field(repr=False)
    _tree: Tree = field(repr=False)
    shown_file: str = CONFIG_FILE
    """The config file as the caller named it, as problems show it."""

    @property
    def is_image(self) -> bool:
        """Whether it is a custom image with a server of its own, rather than a Python model."""
        return self.config.docker_server is not None

    @property
    def model_module_dir(self) -> Path:
        return self.folder / self.config.model_module_dir

    @property
    def model_class(self) -> str:
        return self.config.model_class_name

    @property
    def model_file(self) -> Path | None:
        """The file with the model's class; None for an image. It may be absent: see `check_package`.

        A folder without the file that config.yaml names may have a `main.py`
        instead, in `model_module_dir` or at its root.
        """
        if self.is_image:
            return None
        named = self.model_module_dir / self.config.model_class_filename
        others = (self.model_module_dir / "main.py", self.folder / "main.py")
        return next((path for path in (named, *others) if path.is_file()), named)

    @property
    def data_dir(self) -> Path:
        return self.folder / self.config.data_dir

    @property
    def packages_dirs(self) -> tuple[Path, ...]:
        """Folders whose contents are importable: the bundled one, then the external ones."""
        names = (self.config.bundled_packages_dir, *self.config.external_package_dirs)
        return tuple(self.folder / name for name in names)

    @property
    def environment_variables(self) -> dict[str, str]:
        return dict(self.config.environment_variables)

    def source_of(self, *path: Any) -> tuple[int | None, int | None]:
        """Line and column of what stands at a path of keys, or of its nearest parent."""
        place = self._tree.place(path)
        return (place.line, place.column) if place else (None, None)

    def dump(self) -> dict[str, Any]:
        """What the model gets as `config`: all keys with their defaults, unknown ones kept; plain JSON types.

        Under `secrets` there are names with None, whatever the file says.
        """
        return cast(dict[str, Any], _copy(self._dumped))

    def reporter(self) -> Reporter:
        """For more problems of this file, found by checks."""
        tree = self._tree
        return Reporter(Tree(tree.data, tree.keys, tree.values, text=tree.text), self.shown_file)


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(value) for value in data] if isinstance(data, list) else data


def load_package(folder: Path, config_file: Path | None = None) -> Package:
    """Read and check the model folder; `config_file` is another file than its `config.yaml`.

    Raises:
        ConfigInvalid: something is wrong; `problems` holds everything, each with its place and what would
            be right, and nothing of any value.
    """
    folder = Path(folder)
    config_file = folder / CONFIG_FILE if config_file is None else Path(config_file)
    data = _read(folder, config_file)
    tree = read_tree(data, str(config_file))
    report = Reporter(tree, str(config_file))
    plain = _top(tree, report)
    config, slots = _validate(plain, report) if plain is not None else (None, {})
    dumped = _dump(config, report) if config else {}
    rules.credentials_in(report)
    problems = report.sorted()
    if config is None or not all(problem.warning for problem in problems):
        raise ConfigInvalid(_summary(config_file, problems), problems=problems)
    return Package(
        folder=folder.absolute(),
        config_file=config_file.absolute(),
        config=config,
        secrets=slots,
        warnings=tuple(problems),
        _dumped=dumped,
        _tree=tree,
        shown_file=str(config_file),
    )


def _read(folder: Path, config_file: Path) -> bytes:
    if not folder.is_dir():
        what = "is not a folder" if folder.exists() else "does not exist"
        raise _unreadable(folder, f"{folder} {what}", "name the folder that holds config.yaml")
    if not config_file.is_file():
        beside = config_file.with_suffix(".yml")
        hint = (
            f"rename {beside} to {config_file.name}"
            if beside.is_file()
            else f"make one with `gusset init {folder}`"
        )
        raise _unreadable(config_file, f"there is no {config_file}", hint)
    try:
        return config_file.read_bytes()
    except OSError as error:
        reason = (error.strerror or "an error").lower()
        raise _unreadable(config_file, f"{config_file} cannot be read: {reason}", "see to its mode") from None


def _unreadable(file: Path, message: str, hint: str) -> ConfigInvalid:
    return ConfigInvalid(message, hint=hint, problems=[Problem(message, hint, str(file), code="not_found")])


def _top(tree: Tree, report: Reporter) -> dict[Any, Any] | None:
    """The top-level map; an empty file is one without keys. None when there is nothing to check."""
    if not tree.data:
        return None if tree.problems else {}
    if not isinstance(tree.data, dict):
        report.add(
            (),
            f"{kind_of(tree.data)} where the map of keys belongs",
            "begin with a key, as in `model_name: ...`",
        )
        return None
    return tree.data


def _validate(plain: dict[Any, Any], report: Reporter) -> tuple[TrussConfig | None, dict[str, SecretSlot]]:
    keys.report_unknown(plain, report)
    data, slots = rules.prepare(plain, report)
    if isinstance(data.get("trt_llm"), dict):
        from gusset.package.trt_llm import check_trt_llm

        data["trt_llm"] = check_trt_llm(data, report)
    try:
        return TrussConfig.model_validate(data), slots
    except ValidationError as error:
        report.add_validation(error)
    return None, slots


def _dump(config: TrussConfig, report: Reporter) -> dict[str, Any]:
    try:
        return config.model_dump(mode="json")
    except (PydanticSerializationError, ValueError, RecursionError):
        report.add(
            (),
            "the file holds something that cannot be given to a model",
            "write texts, numbers, lists, maps",
        )
        return {}


def _summary(file: Path, problems: list[Problem]) -> str:
    errors = sum(not problem.warning for problem in problems)
    return f"{file} has {errors} error" + ("" if errors == 1 else "s")


def unsupported_for_serving(package: Package) -> list[Problem]:
    """What this configuration asks for that `gusset serve` does not do; each names its key."""
    report = package.reporter()
    for path, key in keys.refused(package.config):
        report.add(
            path,
            f"{key.path} is not served by gusset: {key.about}",
            key.instead,
            code="unsupported",
            at_key=True,
        )
    for path, smallest, largest in _RANGES:
        number = _at(package.config, path)
        if number is not None and not smallest <= number <= largest:
            hint = f"write a number from {smallest} to {largest}"
            report.add(path, "out of the range that can be served", hint, code="unsupported")
    return report.sorted()


_MAX_SECONDS = 10**9  # longer than any process lives, and small enough for every clock
_RANGES = (
    (("runtime", "predict_concurrency"), 1, 10**6),
    (("runtime", "streaming_read_timeout"), 0, _MAX_SECONDS),
    (("runtime", "transport", "ping_interval_seconds"), 0, _MAX_SECONDS),
    (("runtime", "transport", "ping_timeout_seconds"), 0, _MAX_SECONDS),
)
"""Numbers that Truss takes without bounds, with the smallest and the largest that a server can use."""


def _at(config: TrussConfig, path: tuple[str, ...]) -> float | None:
    found: Any = config
    for name in path:
        found = getattr(found, name, None)
    return cast("float | None", found)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `config.yaml`, for editors."""
    from gusset.package.json_schema import make

    return make()
