"""Reads and checks a model folder: its `config.yaml` and the paths of its code, which is never run."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import PydanticSerializationError

from gusset.errors import ConfigInvalid, Problem
from gusset.package import keys, rules
from gusset.package.problems import ProblemCollector, type_name
from gusset.package.quantity import MAX_SECONDS
from gusset.package.rules import Declarations, SecretEntry
from gusset.package.schema import TrussConfig
from gusset.package.yaml_tree import Tree, read_tree

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, kw_only=True)
class Package:
    """A model folder with a valid configuration. All paths are absolute."""

    folder: Path
    config_file: Path
    config: TrussConfig = field(repr=False)
    secrets: Mapping[str, SecretEntry]
    """The declared secrets, in the order of the file."""
    callers: Mapping[str, SecretEntry]
    """The secrets that are the keys of its callers, which the model does not get."""
    warnings: tuple[Problem, ...]
    _dumped: dict[str, Any] = field(repr=False)
    _tree: Tree = field(repr=False)
    display_file: str = CONFIG_FILE
    """The config file as the caller wrote it, for messages."""

    @property
    def is_image(self) -> bool:
        """Whether this is a custom image with its own server, and not a Python model."""
        return self.config.docker_server is not None

    @property
    def has_engine(self) -> bool:
        """Whether the hosted platform would run an inference engine, so that the folder may have no code."""
        return self.config.trt_llm is not None or self.config.bis_llm is not None

    @property
    def model_module_dir(self) -> Path:
        return self.folder / self.config.model_module_dir

    @property
    def model_class(self) -> str:
        return self.config.model_class_name

    @property
    def model_file(self) -> Path | None:
        """The file with the model's class; None for an image. It may not exist: see `check_package`.

        When the file that config.yaml names does not exist, a `main.py` in
        `model_module_dir` or in the folder itself is used.
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
        """The folders on the import path: the bundled one, then the external ones."""
        names = (self.config.bundled_packages_dir, *self.config.external_package_dirs)
        return tuple(self.folder / name for name in names)

    @property
    def environment_variables(self) -> dict[str, str]:
        return dict(self.config.environment_variables)

    def dump(self) -> dict[str, Any]:
        """The `config` for the model: all keys with their defaults, and unknown keys, as JSON types.

        `secrets` maps each name to None, whatever the file contains.
        """
        return cast(dict[str, Any], _copy(self._dumped))

    def with_callers(self, names: Sequence[str]) -> Package:
        """This folder with more callers, those of `gusset serve --callers`.

        Raises:
            ConfigInvalid: one of them is also among the model's secrets.
        """
        problems = self.problem_collector()
        for name in names:
            if secret := rules.same_secret(name, self.secrets):
                problems.add(
                    ("secrets", secret),
                    rules.caller_is_secret(name, secret),
                    rules.CALLER_HINT,
                    code="caller_is_secret",
                    at_key=True,
                )
        if found := problems.sorted():
            raise ConfigInvalid(_summary(Path(self.display_file), found), problems=found)
        given = {name: SecretEntry(name, None, None) for name in names}
        return replace(self, callers=given | dict(self.callers))

    def problem_collector(self) -> ProblemCollector:
        """A new collector for problems that later checks find in this file."""
        tree = self._tree
        without_problems = Tree(data=tree.data, keys=tree.keys, values=tree.values, text=tree.text)
        return ProblemCollector(without_problems, self.display_file)


def _copy(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: _copy(value) for key, value in data.items()}
    return [_copy(value) for value in data] if isinstance(data, list) else data


def load_package(folder: Path, config_file: Path | None = None) -> Package:
    """Read and check a model folder; `config_file` replaces its `config.yaml`.

    Raises:
        ConfigInvalid: there are errors. Its `problems` are all of them, each with a location
            and a hint, and without the text of any value.
    """
    folder = Path(folder)
    config_file = folder / CONFIG_FILE if config_file is None else Path(config_file)
    data = _read(folder, config_file)
    tree = read_tree(data, str(config_file))
    problems = ProblemCollector(tree, str(config_file))
    plain = _top_level_map(tree, problems)
    config, declared = _validate(plain, problems) if plain is not None else (None, Declarations({}, {}))
    dumped = _dump(config, problems) if config else {}
    rules.report_credentials(problems)
    found = problems.sorted()
    if config is None or not all(problem.warning for problem in found):
        raise ConfigInvalid(_summary(config_file, found), problems=found)
    return Package(
        folder=folder.absolute(),
        config_file=config_file.absolute(),
        config=config,
        secrets=declared.secrets,
        callers=declared.callers,
        warnings=tuple(found),
        _dumped=dumped,
        _tree=tree,
        display_file=str(config_file),
    )


def _read(folder: Path, config_file: Path) -> bytes:
    try:
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise _unreadable(folder, f"{folder} {what}", "name a folder that contains config.yaml")
        if not config_file.is_file():
            similar = config_file.with_suffix(".yml")
            hint = (
                f"rename {similar} to {config_file.name}"
                if similar.is_file()
                else f"create one with `gusset init {shlex.quote(str(folder))}`"
            )
            raise _unreadable(config_file, f"there is no {config_file}", hint)
        return config_file.read_bytes()
    except OSError as error:
        reason = (error.strerror or "an error").lower()
        raise _unreadable(
            config_file, f"{config_file} cannot be read: {reason}", "check the path and its permissions"
        ) from None


def _unreadable(file: Path, message: str, hint: str) -> ConfigInvalid:
    return ConfigInvalid(
        message, hint=hint, problems=[Problem(message, hint, file=str(file), code="not_found")]
    )


def _top_level_map(tree: Tree, problems: ProblemCollector) -> dict[Any, Any] | None:
    """The top-level map, empty for an empty file; None when there is nothing to check."""
    if not tree.data:
        return None if tree.problems else {}
    if not isinstance(tree.data, dict):
        problems.add(
            (),
            f"expected a map of keys, found {type_name(tree.data)}",
            "start with a key, as in `model_name: ...`",
        )
        return None
    return tree.data


def _validate(plain: dict[Any, Any], problems: ProblemCollector) -> tuple[TrussConfig | None, Declarations]:
    keys.report_unknown(plain, problems)
    prepared, declared = rules.prepare(plain, problems)
    data = dict(prepared)
    if isinstance(data.get("trt_llm"), dict):
        from gusset.package.trt_llm import check_trt_llm  # few files have this section

        data["trt_llm"] = check_trt_llm(data, problems)
    config = None
    try:
        config = TrussConfig.model_validate(data)
    except ValidationError as error:
        problems.add_validation(error)
    if not all(problem.warning for problem in problems.found):
        _report_refused(prepared, problems)  # else `unsupported_for_serving` does it
    return config, declared


def _dump(config: TrussConfig, problems: ProblemCollector) -> dict[str, Any]:
    try:
        return config.model_dump(mode="json")
    except (PydanticSerializationError, ValueError, RecursionError):
        problems.add(
            (),
            "the file contains something that cannot be passed to a model",
            "write texts, numbers, lists and maps",
        )
        return {}


def _summary(file: Path, problems: list[Problem]) -> str:
    errors = sum(not problem.warning for problem in problems)
    return f"{file} has {errors} error" + ("" if errors == 1 else "s")


def unsupported_for_serving(package: Package) -> list[Problem]:
    """The keys of this configuration that keep `gusset serve` from starting."""
    problems = package.problem_collector()
    _report_refused(package.dump(), problems)
    for path, smallest, largest in _RANGES:
        number = _at(package.config, path)
        if number is not None and not smallest <= number <= largest:
            hint = f"write a number from {smallest} to {largest}"
            problems.add(path, "outside the range that can be served", hint, code="unsupported")
    return problems.sorted()


def _report_refused(data: Mapping[Any, Any], problems: ProblemCollector) -> None:
    for path, key in keys.refused_keys(data):
        problems.add(
            path,
            f"gusset cannot serve {key.path}: {key.about}",
            key.instead,
            code="unsupported",
            at_key=True,
        )


_RANGES = (
    (("runtime", "predict_concurrency"), 1, 10**6),
    (("runtime", "streaming_read_timeout"), 0, MAX_SECONDS),
    (("runtime", "transport", "ping_interval_seconds"), 0, MAX_SECONDS),
    (("runtime", "transport", "ping_timeout_seconds"), 0, MAX_SECONDS),
)
"""Numbers that Truss does not limit, with the smallest and the largest that a server can use."""


def _at(config: TrussConfig, path: tuple[str, ...]) -> float | None:
    found: Any = config
    for name in path:
        found = getattr(found, name, None)
    return cast("float | None", found)


def json_schema() -> dict[str, Any]:
    """The JSON Schema of `config.yaml`, for editors."""
    from gusset.package.json_schema import make  # only `gusset schema` needs it

    return make()
