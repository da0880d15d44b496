"""A model folder as plain data for serving: paths, names and limits. Reads and runs nothing."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gusset.errors import ConfigInvalid
from gusset.portable import real_path
from gusset.runtime.declared_secrets import DeclaredSecret
from gusset.weights.download import Download, credential_names

if TYPE_CHECKING:
    from gusset.package.config import Package


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDeployment:
    """A model folder as it is served. All paths are absolute.

    `model_file` defines the class `model_class`. `config` is the model's
    `kwargs["config"]`. `package_dirs` come last on the import path.
    `predict_concurrency` limits how many calls of `predict` run at a time.
    `streaming_read_timeout` is how many seconds may pass between two chunks of
    a stream. `callers` are the secrets that callers present, which the model does
    not get. `data_dir` None means the folder `data`. `downloads` must be there
    before `load`, and external data before the import. `python` is the interpreter
    that runs the model.
    """

    name: str
    folder: Path
    model_file: Path
    model_class: str = "Model"
    config_file: str = "config.yaml"
    config: Mapping[str, Any] = field(default_factory=dict)
    secrets: tuple[DeclaredSecret, ...] = ()
    callers: tuple[DeclaredSecret, ...] = ()
    data_dir: Path | None = None
    package_dirs: tuple[Path, ...] = ()
    environment_variables: Mapping[str, str] = field(default_factory=dict)
    predict_concurrency: int = 1
    streaming_read_timeout: float = 60.0
    transport: Mapping[str, Any] = field(default_factory=dict)
    debug_logs: bool = False
    downloads: tuple[Download, ...] = ()
    python: str = sys.executable

    @property
    def declared(self) -> tuple[str, ...]:
        """The names of all declared secrets, in the config's order."""
        return tuple(secret.name for secret in self.secrets)

    @property
    def download_secrets(self) -> tuple[str, ...]:
        """The names of the secrets that its downloads log in with."""
        return credential_names(self.downloads)

    @classmethod
    def from_package(cls, package: Package) -> ModelDeployment:
        """The deployment of a checked model folder.

        Raises:
            ConfigInvalid: it is a custom image, or the file with the model's class does not exist.
        """
        from gusset.weights.plan import plan_downloads  # for the config's check only, not where it is served

        file = package.model_file
        if file is None:
            raise ConfigInvalid(f"{package.folder} is a custom image, which has no model to run")
        if not file.is_file():
            raise ConfigInvalid(
                f"there is no model code at {file}", hint="add the file with the class, or run: gusset init"
            )
        folder = package.folder.resolve()
        return cls(
            name=package.config.model_name or folder.name,
            folder=folder,
            model_file=file.resolve(),
            model_class=package.model_class,
            config_file=str(package.config_file),
            config=package.dump(),
            secrets=tuple(
                DeclaredSecret(each.name, each.line, each.optional) for each in package.secrets.values()
            ),
            callers=tuple(DeclaredSecret(each.name, each.line) for each in package.callers.values()),
            data_dir=real_path(package.data_dir),
            package_dirs=tuple(path.resolve() for path in package.packages_dirs if path.is_dir()),
            environment_variables=package.environment_variables,
            predict_concurrency=package.config.runtime.predict_concurrency,
            streaming_read_timeout=package.config.runtime.streaming_read_timeout,
            transport=package.config.runtime.transport.model_dump(),
            debug_logs=package.config.runtime.enable_debug_logs,
            downloads=plan_downloads(package),
        )
