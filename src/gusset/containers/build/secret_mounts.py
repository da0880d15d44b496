"""From `build.secret_to_path_mapping` to mounts of secrets, for build_commands and for the installation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from gusset.containers.build.build_plan import BuildSecret
from gusset.containers.build.instructions import BuildSecretMount
from gusset.environments.plan import LOGIN_FILES
from gusset.runtime.declared_secrets import DeclaredSecret, DeclaredSecrets, read_secrets
from gusset.secrets.sources.source import SecretSource
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.package.config import Package
    from gusset.package.problems import ProblemCollector

_KEY = ("build", "secret_to_path_mapping")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_PATH = re.compile(r'/[^\x00-\x20\x7f,"\\$]+')  # as an option of RUN can hold it
_NETRC = "gusset-netrc"
_UV_CONFIG = "UV_CONFIG_FILE"
_LOGINS = PurePosixPath("/run/secrets/gusset")


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSecretNames(DeclaredSecrets):
    """The secrets that the build of a folder reads."""

    @classmethod
    def from_package(cls, package: Package, names: Sequence[str]) -> BuildSecretNames:
        """These secrets of a folder's `secret_to_path_mapping`."""
        tree = package.problem_collector().tree
        found = []
        for name in names:
            location = tree.location((*_KEY, name))
            found.append(DeclaredSecret(name, location.line if location else None))
        return cls(
            name=f"the build of {package.config.model_name or package.folder.resolve().name}",
            config_file=str(package.config_file),
            secrets=tuple(found),
        )

    def read(self, source: SecretSource) -> dict[str, SecretValue]:
        """The values.

        Raises:
            SecretsMissing, Denied, Unreachable: see `read_secrets`.
        """
        return {name: delivered.value for name, delivered in read_secrets(self, source).items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class MountedSecrets:
    """The secrets of a build, and where instructions mount them.

    `commands` is for build_commands, `installation` for the installation of requirements, and `variables`
    tell the installer about the files there.
    """

    secrets: tuple[BuildSecret, ...] = ()
    commands: tuple[BuildSecretMount, ...] = ()
    installation: tuple[BuildSecretMount, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @classmethod
    def from_package(cls, package: Package, report: ProblemCollector, *, installer: str) -> MountedSecrets:
        """Those of a checked folder, whose `installer` is "uv" or "pip". Problems are added to `report`."""
        config = package.config
        mapping = {
            name: path
            for name, path in config.build.secret_to_path_mapping.items()
            if _is_usable(name, path, report)
        }
        if len(set(mapping.values())) < len(mapping):
            report.add(_KEY, "two secrets have the same path", "give each its own path", at_key=True)
        secrets, commands = [], []
        if config.build_commands:
            secrets = [BuildSecret(id=name, target=path, names=(name,)) for name, path in mapping.items()]
            commands = [BuildSecretMount(name, path) for name, path in mapping.items()]
        found = cls(secrets=tuple(secrets), commands=tuple(commands))
        return found._with_logins(mapping, report, installer)

    def _with_logins(
        self, mapping: dict[str, str], report: ProblemCollector, installer: str
    ) -> MountedSecrets:
        netrc = [name for name, path in mapping.items() if _kind(path) == ".netrc"]
        kinds = ("pip.conf", "uv.toml") if installer == "uv" else ("pip.conf",)
        configs = [name for name, path in mapping.items() if _kind(path) in kinds]
        for name in configs[1:]:
            hint = "remove one of them"
            report.add((*_KEY, name), "only one pip.conf or uv.toml can be used", hint, at_key=True)
        found = self.with_netrc(netrc) if netrc else self
        for name in configs[:1]:
            to_uv = installer == "uv" and _kind(mapping[name]) == "pip.conf"
            secret = _login(f"gusset-{installer}-config", (name,), to_uv=to_uv)
            variable = _UV_CONFIG if installer == "uv" else "PIP_CONFIG_FILE"
            found = found._with_login(secret, variable)
        return found

    def with_netrc(self, names: Sequence[str] = (), logins: bytes = b"") -> MountedSecrets:
        """These, and a .netrc of secrets and `logins` for the installation, joined with one that is there."""
        old = next((each for each in self.secrets if each.id == _NETRC), None)
        if old is None:
            return self._with_login(_login(_NETRC, tuple(names), logins=logins), "NETRC")
        joined = replace(old, names=(*old.names, *names), logins=old.logins + logins)
        return replace(self, secrets=tuple(joined if each is old else each for each in self.secrets))

    def _with_login(self, secret: BuildSecret, variable: str) -> MountedSecrets:
        mount = BuildSecretMount(secret.id, secret.target)
        return replace(
            self,
            secrets=(*self.secrets, secret),
            installation=(*self.installation, mount),
            variables=(*self.variables, (variable, mount.target)),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all secrets."""
        return tuple(dict.fromkeys(name for each in self.secrets for name in each.names))

    def for_installation(self) -> Iterator[str]:
        """Assignments for the shell that tell the installer about the files."""
        return (f"{variable}={path}" for variable, path in self.variables)

    @property
    def has_config(self) -> bool:
        """Whether uv gets indexes from a secret."""
        return any(variable == _UV_CONFIG for variable, _ in self.variables)

    def without_config(self) -> MountedSecrets:
        """These, for an installation from the machine's indexes."""
        return replace(self, variables=tuple(each for each in self.variables if each[0] != _UV_CONFIG))

    def without_installation(self) -> MountedSecrets:
        """These without the logins, for a folder that installs nothing."""
        ids = {mount.id for mount in self.installation}
        kept = tuple(each for each in self.secrets if each.id not in ids)
        return replace(self, secrets=kept, installation=(), variables=())


def _is_usable(name: str, path: str, report: ProblemCollector) -> bool:
    if not _ID.fullmatch(name):
        report.add(
            (*_KEY, name), "a build cannot mount a secret of this name", "use only letters", at_key=True
        )
        return False
    if not _PATH.fullmatch(path) or ".." in PurePosixPath(path).parts:
        hint = "write an absolute path without spaces and commas, as in /app/.netrc"
        report.add((*_KEY, name), "a build cannot mount a secret at this path", hint)
        return False
    return True


def _login(id: str, names: tuple[str, ...], *, to_uv: bool = False, logins: bytes = b"") -> BuildSecret:
    return BuildSecret(id=id, target=str(_LOGINS / id), names=names, to_uv=to_uv, logins=logins)


def _kind(path: str) -> str:
    name = PurePosixPath(path).name
    return ".netrc" if name == "_netrc" else name if name in LOGIN_FILES else ""


def netrc_lines(logins: Sequence[tuple[str, str, str]]) -> bytes:
    """The content of a .netrc, from hosts, users and passwords."""
    return "".join(f"machine {host} login {user} password {word}\n" for host, user, word in logins).encode()
