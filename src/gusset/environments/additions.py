"""Adds to an environment what gusset's worker needs, and what Truss's server gives every model."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from gusset.environments.decision import short
from gusset.environments.installed import InstalledPackages
from gusset.environments.package_installer import MACHINE, Indexes, PackageInstaller
from gusset.environments.plan import EnvironmentPlan, FileLocation
from gusset.environments.repacked import repack
from gusset.environments.requirement_lines import Requirement
from gusset.environments.uv_failures import failure
from gusset.errors import ConfigInvalid, Denied, GussetError, Problem, Unreachable


@dataclass(frozen=True, slots=True, kw_only=True)
class Additions:
    """What is added after the model's requirements: all of `worker`, and what fits of `truss`.

    `installed` are the packages of gusset's own Python: the last resort where no index responds.
    """

    worker: tuple[Requirement, ...] = field(repr=False)
    truss: tuple[Requirement, ...] = field(repr=False)
    installed: InstalledPackages = field(repr=False)
    warn: Callable[[Problem], object]

    def add(self, packages: PackageInstaller, plan: EnvironmentPlan, models: Indexes) -> None:
        """Add what is not there yet: from the machine's indexes, the model's, or gusset's own Python.

        Raises:
            ConfigInvalid: the model's requirements exclude a package of `worker`.
            GussetError: no index has them; see `failure`.
        """
        present = packages.present()
        missing = list(_missing(self.worker, present, plan.locations))
        usual = [each for each in self.truss if each.name not in present]
        adder = _PackageAdder(packages, plan, self.warn)
        try:
            adder.add(missing, usual, MACHINE)
        except (Unreachable, Denied) as error:
            if not self._add_from_elsewhere(adder, missing, usual, models):
                raise error from None

    def _add_from_elsewhere(
        self, adder: _PackageAdder, missing: list[Requirement], usual: list[Requirement], models: Indexes
    ) -> bool:
        """Add it from the model's indexes, else from gusset's own Python; whether one of them had it."""
        if models != MACHINE:
            try:
                adder.add(missing, usual, models)
            except GussetError:
                pass
            else:
                return True
        there = [each for each in usual if self.installed.find(str(each.name))]
        with self._own_packages([*missing, *there]) as indexes:
            try:
                adder.add(missing, there, indexes)
            except GussetError:
                return False
        return True

    @contextmanager
    def _own_packages(self, requirements: Sequence[Requirement]) -> Iterator[Indexes]:
        with tempfile.TemporaryDirectory(prefix="gusset-wheels-") as folder:
            repack(self.installed, [str(each.name) for each in requirements], Path(folder))
            yield Indexes(lines=(f"--find-links {folder}",), options=("--no-index",))


@dataclass(frozen=True, slots=True)
class _PackageAdder:
    packages: PackageInstaller
    plan: EnvironmentPlan
    warn: Callable[[Problem], object]

    def add(self, needed: Sequence[Requirement], usual: Sequence[Requirement], indexes: Indexes) -> None:
        if not needed and not usual:
            return
        present = self.packages.present()
        everything = [each.text for each in (*needed, *usual)]
        result = self.packages.install(everything, _pins(present), indexes)
        if result.status == 0:
            return
        found = failure(result.message, {}, what="what gusset's worker needs")
        if "No solution found" not in result.text or not isinstance(found, ConfigInvalid):
            raise found
        if needed:
            result = self.packages.install([each.text for each in needed], _pins(present), indexes)
            if result.status != 0:
                raise _conflict(result.message, self.plan)
        for each in usual:
            self._add_one(each, indexes)

    def _add_one(self, requirement: Requirement, indexes: Indexes) -> None:
        result = self.packages.install([requirement.text], _pins(self.packages.present()), indexes)
        if result.status == 0:
            return
        if "No solution found" not in result.text:
            raise failure(result.message, {}, what=f"{requirement.name}, which Truss gives every model")
        self.warn(
            Problem(
                f"{requirement.name} of Truss's list does not fit the requirements: it is left out",
                f"name it under `requirements` if the model imports it\n{result.message}",
                code="left_out",
                warning=True,
            )
        )


def _pins(present: Mapping[str, str]) -> list[str]:
    return [f"{name}=={version}" for name, version in present.items()]


def _missing(
    wanted: Sequence[Requirement], present: Mapping[str, str], locations: Mapping[str, FileLocation]
) -> Iterator[Requirement]:
    """The requirements of the worker that are not there yet.

    Raises:
        ConfigInvalid: one is there in a version that the worker cannot use.
    """
    for each in wanted:
        version = present.get(str(each.name))
        if version is None:
            yield each
        elif not each.specifier.contains(version, prereleases=True) and _applies(each):
            _refuse_version(each, version, locations)


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate()


def _refuse_version(wanted: Requirement, version: str, locations: Mapping[str, FileLocation]) -> NoReturn:
    name = str(wanted.name)
    location = locations.get(name)
    brought = "the model asks for" if location else "the model's requirements bring"
    message = f"{brought} {name} {version}, but gusset's worker needs {short(wanted)}"
    hint = f"allow {short(wanted)} in the requirements"
    problem = (
        location.problem(message, hint, code="conflict")
        if location
        else Problem(message, hint, code="conflict")
    )
    raise ConfigInvalid(message, problems=[problem])


def _conflict(message: str, plan: EnvironmentPlan) -> ConfigInvalid:
    text = f"the model's requirements exclude what gusset's worker needs\n{message}"
    found = failure(text, plan.locations, what=f"the environment of {plan.name}")
    return found if isinstance(found, ConfigInvalid) else ConfigInvalid(text)
