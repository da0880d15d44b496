"""What is installed in the image of a Python model, as files for uv and commands that run it."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import requires
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from packaging.requirements import Requirement as Pep508

from gusset.containers.build.build_plan import ContextCopy, ContextFile
from gusset.containers.build.instructions import BindMount, BuildSecretMount, run
from gusset.containers.build.secret_mounts import MountedSecrets, netrc_lines
from gusset.environments.package_installer import option_arguments, option_lines
from gusset.environments.plan import InstallOptions
from gusset.environments.requested import Request
from gusset.environments.resources import TRUSS_FILE, WORKER_FILE, list_text
from gusset.environments.uv import find_uv
from gusset.secrets.value import SecretValue

GUSSET = "/opt/gusset"
"""The folder of the image that has gusset."""

GUSSET_PYTHON = f"{GUSSET}/environment/bin/python"
"""The Python of the image with what gusset needs. The model has another one, so that it may pin anything."""

FOLDER = "install"
"""The folder of the context that the installation mounts."""

_MOUNTED = "/tmp/gusset-install"  # noqa: S108  # in the image
_NOT_IN_IMAGES = frozenset({"uv"})  # nothing is installed when the image runs
_URL_LOGIN = re.compile(r"((?:[a-z]+\+)?https?://)([^/\s@:]*)(?::([^/\s@]*))?@([^/\s:?#]+)")
_EXTRA = re.compile(r'extra == "([^"]+)"')
_NO_INDEX = "UV_NO_INDEX"
_INDEXES = ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexSettings:
    """The machine's settings for package indexes: variables for uv. `certificates` is a file that it trusts.

    `translated` are those variables that come from pip's settings.
    """

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    translated: frozenset[str] = frozenset()
    certificates: Path | None = None
    constraints: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """What is installed, without logins: these are in `logins`, by host."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...]
    runtime: tuple[str, ...]
    options: InstallOptions
    settings: IndexSettings
    local: tuple[ContextCopy, ...]
    logins: tuple[tuple[str, str, str], ...] = field(repr=False)

    @classmethod
    def make(
        cls, request: Request, settings: IndexSettings, environ: Mapping[str, str], extras: Sequence[str]
    ) -> Installation:
        """From what a folder asks for. `extras` are those of gusset; `environ` completes URLs."""
        collector = _Collector(environ)
        found = request.requirements
        options = found.options
        return cls(
            requirements=tuple(
                collector.local_path(collector.without_login(each.text), each.path)
                for each in found.requirements
            ),
            constraints=tuple(collector.without_login(each.text) for each in found.constraints),
            runtime=runtime_requirements(extras),
            options=InstallOptions(
                index_url=collector.without_login(options.index_url) if options.index_url else None,
                extra_index_urls=tuple(map(collector.without_login, options.extra_index_urls)),
                find_links=tuple(map(collector.links, options.find_links)),
                no_index=options.no_index,
                prereleases=options.prereleases,
                no_binary=options.no_binary,
                only_binary=options.only_binary,
                trusted_hosts=options.trusted_hosts,
                require_hashes=options.require_hashes,
            ),
            settings=IndexSettings(
                variables={
                    name: collector.setting(name, text) for name, text in sorted(settings.variables.items())
                },
                translated=settings.translated,
                certificates=settings.certificates,
                constraints=tuple(map(collector.without_login, settings.constraints)),
            ),
            local=tuple(collector.copies),
            logins=tuple(collector.logins),
        )

    def with_logins(self, secrets: MountedSecrets) -> MountedSecrets:
        """The secrets of the build, and the logins that URLs had."""
        if not self.logins:
            return secrets
        return secrets.with_netrc(logins=netrc_lines(self.logins))

    @staticmethod
    def unreachable(settings: IndexSettings) -> list[str]:
        """The indexes of the machine that are left out, since they are folders of it."""
        urls = " ".join(settings.variables.get(name, "") for name in _INDEXES).split()
        return [url for url in urls if is_local(url)]

    def login_values(self) -> dict[str, SecretValue]:
        """What is secret in the logins that URLs had, by what they are for."""
        return {
            f"the login to {host}": SecretValue((word or user).encode()) for host, user, word in self.logins
        }

    def context(self) -> Iterator[ContextFile | ContextCopy]:
        """The files that the installation mounts; uv is among them."""
        yield ContextCopy(path=f"{FOLDER}/uv", source=Path(find_uv()))
        if self.settings.certificates:
            yield ContextCopy(path=f"{FOLDER}/certificates.pem", source=self.settings.certificates)
        yield from self.local
        for name, text in self._texts().items():
            yield ContextFile(path=f"{FOLDER}/{name}", content=text.encode())

    def _texts(self) -> dict[str, str]:
        constraints = (*self.constraints, *self.settings.constraints)
        lines = [*option_lines(self.options), *self.requirements]
        return {
            "requirements.txt": "".join(f"{line}\n" for line in lines),
            "constraints.txt": "".join(f"{line}\n" for line in constraints),
            "gusset.txt": "".join(f"{line}\n" for line in self.runtime),
            "gusset-constraints.txt": "".join(f"{line}\n" for line in self.settings.constraints),
            "worker.txt": list_text(WORKER_FILE),
            "truss.txt": list_text(TRUSS_FILE),
            "tidy.py": _TIDY,
        }

    def instructions(self, python: str, secrets: MountedSecrets) -> Iterator[str]:
        """Install what gusset needs; then the model's requirements, and what is added to them."""
        mounts: list[BindMount | BuildSecretMount] = [BindMount(FOLDER, _MOUNTED), *secrets.installation]
        files = self._texts()
        command = _GUSSET_ENVIRONMENT.format(
            identity=_identity(files, "gusset.txt", "gusset-constraints.txt"),
            folder=_MOUNTED,
            python=_path_of(python),
            environment=str(PurePosixPath(GUSSET_PYTHON).parents[1]),
            install=" || ".join(self._installs(GUSSET_PYTHON, secrets, '"$@"')),
            gusset=GUSSET,
            gusset_python=GUSSET_PYTHON,
            tidy=_tidy(GUSSET_PYTHON),
        )
        yield run(command, mounts)
        if self.requirements:
            identity = _identity(files, "requirements.txt", "constraints.txt")
            install = self._install(_path_of(python), secrets, leave_out=set(self._overridden(secrets)))
            options = map(shlex.quote, option_arguments(self.options))
            words = [install, "-r requirements.txt -c constraints.txt", *options]
            yield run(f"{identity}\ncd {_MOUNTED} && {' '.join(words)} && {_tidy(python)}", mounts)
        command = _ADDITIONS.format(
            identity=_identity(files, "worker.txt", "truss.txt", "constraints.txt"),
            folder=_MOUNTED,
            python=_path_of(python),
            install=" || ".join(self._installs(_path_of(python), secrets, '-c "$pins" "$@"')),
            tidy=_tidy(python),
        )
        yield run(command, mounts)

    def _install(self, python: str, secrets: MountedSecrets, *, leave_out: Collection[str] = ()) -> str:
        variables = {"PYTHONDONTWRITEBYTECODE": "1", "UV_INDEX_STRATEGY": "unsafe-best-match"}
        variables |= {
            name: text
            for name, text in self.settings.variables.items()
            if text and name not in (*leave_out, _NO_INDEX)
        }
        if self.settings.certificates:
            variables["SSL_CERT_FILE"] = f"{_MOUNTED}/certificates.pem"
        words = [f"{name}={shlex.quote(text)}" for name, text in variables.items()]
        words += secrets.for_installation()
        words.append("./uv pip install --no-cache --no-progress --break-system-packages")
        if _NO_INDEX in self.settings.variables and _NO_INDEX not in leave_out:
            words.append("--no-index")  # uv reads no such variable
        return " ".join([*words, "--python", python])

    def _installs(self, python: str, secrets: MountedSecrets, arguments: str) -> Iterator[str]:
        """Install from the machine's indexes, else from those of the model's pip.conf or uv.toml."""
        yield f"{self._install(python, secrets.without_config())} {arguments}"
        if secrets.has_config:
            install = self._install(python, secrets, leave_out=set(self._overridden(secrets)))
            yield f"{install} {arguments}"

    def _overridden(self, secrets: MountedSecrets) -> Iterator[str]:
        """The machine's settings that the model's own indexes replace, as pip would."""
        if secrets.has_config or self.options.index_url:
            yield from {"UV_DEFAULT_INDEX", _NO_INDEX} & self.settings.translated
        if secrets.has_config and "UV_INDEX" in self.settings.translated:
            yield "UV_INDEX"


_GUSSET_ENVIRONMENT = """{identity}
set -e
cd {folder}
install() {{ {install}; }}
./uv venv --quiet --no-config --no-cache --python {python} {environment}
install -r gusset.txt -c gusset-constraints.txt
packages=$({gusset_python} -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo {gusset} > "$packages/gusset.pth"
{tidy}"""

# What is already installed constrains what is added. What does not fit of Truss's list is left out.
_ADDITIONS = """{identity}
set -e
cd {folder}
install() {{ {install}; }}
pins=$(mktemp)
./uv pip list --quiet --format freeze --python {python} > "$pins"
cat constraints.txt >> "$pins"
if ! install -r worker.txt -r truss.txt; then
  install -r worker.txt
  grep -v '^#' truss.txt | while read -r line; do
    install "$line" || echo "left out: $line of Truss's list does not fit the requirements"
  done
fi
rm "$pins"
{tidy}"""

# uv notes when a local package was made, in a file that only uv reads: no two builds have the same.
_TIDY = """import sys
from pathlib import Path

for folder in sys.path:
    for file in Path(folder).glob("*.dist-info/uv_cache.json"):
        file.unlink()
        record = file.with_name("RECORD")
        lines = record.read_text("utf-8").splitlines(keepends=True)
        record.write_text("".join(line for line in lines if "/uv_cache.json," not in line), "utf-8")
"""


def _tidy(python: str) -> str:
    return f"PYTHONDONTWRITEBYTECODE=1 {shlex.quote(python)} tidy.py"


def _path_of(python: str) -> str:
    """For the shell: given its path, uv also uses a Python outside a virtual environment."""
    return f'"$(command -v {shlex.quote(python)})"'


def _identity(files: Mapping[str, str], *names: str) -> str:
    """A comment that changes with the files: old engines do not notice a change of what is mounted."""
    content = "\0".join(files[name] for name in names)
    return f"# {', '.join(names)}: {hashlib.sha256(content.encode()).hexdigest()[:16]}"


def runtime_requirements(extras: Sequence[str]) -> tuple[str, ...]:
    """What gusset itself needs in an image, with these of its extras, as lines for the installer."""
    found = []
    for line in requires("gusset") or ():
        requirement = Pep508(line)
        extra = _EXTRA.search(str(requirement.marker or ""))
        if requirement.name in _NOT_IN_IMAGES or (extra and extra[1] not in extras):
            continue
        if extra:
            requirement.marker = None
        found.append(str(requirement))
    return tuple(sorted(dict.fromkeys(found)))


def is_local(url: str) -> bool:
    """Whether it is an index in a folder of this machine, which a build does not reach."""
    return url.startswith(("file:", "/", "."))


class _Collector:
    """Removes logins from texts, and replaces paths of this machine, keeping both for the build."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.logins: list[tuple[str, str, str]] = []
        self.copies: list[ContextCopy] = []

    def without_login(self, text: str) -> str:
        """The text with its variables replaced and without logins in URLs."""
        if "://" not in text:
            return text
        expanded = _VARIABLE.sub(lambda found: self._environ.get(found[1]) or found[0], text)
        return _URL_LOGIN.sub(self._keep, expanded)

    def _keep(self, found: re.Match[str]) -> str:
        login = (found[4], unquote(found[2]), unquote(found[3] or ""))
        if login not in self.logins:
            self.logins.append(login)
        return f"{found[1]}{found[4]}"

    def local_path(self, text: str, path: Path | None) -> str:
        """The requirement, with the path of its copy in the build in place of its local path."""
        if path is None:
            return text
        source = f"local/{len(self.copies)}/{path.name}"
        self.copies.append(ContextCopy(path=f"{FOLDER}/{source}", source=path, is_model=True))
        mounted = f"{_MOUNTED}/{source}"
        if text.startswith(("-e ", "--editable ")):
            return mounted
        return text.replace(path.as_uri(), f"file://{mounted}").replace(str(path), mounted)

    def links(self, place: str) -> str:
        """A place with links to packages; a folder of this machine is copied."""
        path = Path(place.removeprefix("file://"))
        if "://" in place.removeprefix("file://") or not path.is_dir():
            return self.without_login(place)
        source = f"links/{len(self.copies)}"
        self.copies.append(ContextCopy(path=f"{FOLDER}/{source}", source=path))
        return f"{_MOUNTED}/{source}"

    def setting(self, name: str, text: str) -> str:
        """The value of a variable of uv."""
        if name in _INDEXES:
            return " ".join(each for each in self.without_login(text).split() if not is_local(each))
        if name == "UV_FIND_LINKS":
            return ",".join(self.links(each) for each in text.split(",") if each)
        return self.without_login(text)
