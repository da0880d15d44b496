"""What is to run: everything that supervisor and worker need to know of a model folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gusset.errors import SecretsMissing
from gusset.secrets.source import Delivered, SecretSource

if TYPE_CHECKING:
    from gusset.package.config import Package


@dataclass(frozen=True, slots=True)
class Deployment:
    """One model folder as it is served.

    `declared` maps each secret's name to where it is declared
    (`config.yaml:3`), for messages; `optional` are those that may be missing.
    """

    name: str
    folder: Path
    model_file: Path
    class_name: str
    declared: Mapping[str, str] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    config: Mapping[str, Any] = field(default_factory=dict)
    data_dir: Path | None = None
    packages: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    concurrency: int = 1

    @classmethod
    def from_package(cls, package: Package) -> Deployment:
        if package.model_file is None:
            raise ValueError("a custom image has no model file")
        return cls(
            name=package.name,
            folder=package.folder,
            model_file=package.model_file,
            class_name=package.class_name,
            declared={name: f"{package.config_file}:{slot.line}" for name, slot in package.secrets.items()},
            optional=frozenset(name for name, slot in package.secrets.items() if slot.optional),
            config=package.dump(),
            data_dir=package.data_dir,
            packages=package.packages_dirs,
            environment=package.environment_variables,
            concurrency=max(1, package.predict_concurrency),
        )

    def plan(self) -> dict[str, Any]:
        """What the worker is told, as JSON: no value is in it."""
        return {
            "folder": str(self.folder),
            "model_file": str(self.model_file),
            "class_name": self.class_name,
            "declared": list(self.declared),
            "config": dict(self.config),
            "data_dir": str(self.data_dir or self.folder / "data"),
            "packages": [str(path) for path in self.packages],
            "environment": dict(self.environment),
            "concurrency": self.concurrency,
        }


def read_secrets(
    deployment: Deployment, source: SecretSource, allow_missing: Collection[str] = ()
) -> Mapping[str, Delivered]:
    """All declared secrets, in one read, before any code of the model is imported.

    `allow_missing` names those that may lack; "all" stands for every one.

    Raises:
        SecretsMissing: some lack; the message lists each with its line and the command that adds it.
        Denied, Unreachable: the source said so.
    """
    found = source.read(list(deployment.declared)) if deployment.declared else {}
    allowed = deployment.optional | set(allow_missing)
    lacking = [name for name in deployment.declared if name not in found and name not in allowed]
    if lacking and "all" not in allowed:
        lines = [f"{deployment.declared[name]}: {name} has no value" for name in lacking]
        raise SecretsMissing(
            f"{deployment.name} declares secrets that do not exist\n" + "\n".join(lines),
            names=lacking,
            hint="\n".join(f"gusset secret set {name}" for name in lacking),
        )
    return found
