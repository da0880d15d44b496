"""gusset's settings: where it keeps its files, and how it behaves.

The only module that reads gusset's own environment variables and the settings
file; everything else is passed a `Settings`.
"""

# Imports in functions: every command reads the settings, and most need none of these.

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from gusset.errors import NotSignedIn, UsageError
from gusset.portable import accessible_to_others, write_private_file
from gusset.secrets.value import SecretValue

# The environment variables that the root key command gets.
_COMMAND_VARIABLES = ("PATH", "HOME", "USER", "LANG", "TMPDIR", "XDG_RUNTIME_DIR", "SYSTEMROOT")
_CREDENTIAL = "gusset-root-key"  # the name of the systemd credential

NameCollisions = Literal["refuse", "overwrite"]

# Key of settings.toml -> the variable that beats it.
_VARIABLES = {
    "home": "GUSSET_HOME",
    "cache": "GUSSET_CACHE",
    "database": "GUSSET_DATABASE",
    "root_key_file": "GUSSET_ROOT_KEY_FILE",
    "root_key_command": "GUSSET_ROOT_KEY_COMMAND",
    "root_key_passphrase_file": "GUSSET_ROOT_KEY_PASSPHRASE_FILE",
    "witness_file": "GUSSET_WITNESS_FILE",
    "manager": "GUSSET_MANAGER",
    "manager_ca": "GUSSET_MANAGER_CA",
    "token_file": "GUSSET_TOKEN_FILE",
    "identity_token_file": "GUSSET_IDENTITY_TOKEN_FILE",
    "name_collisions": "GUSSET_NAME_COLLISIONS",
}
# Written by `gusset login`, for the manager that the file itself names; no variable beats these.
_LOGIN = ("api_key", "insecure_http")


@dataclass(frozen=True, slots=True)
class Login:
    """What `gusset login` keeps: a manager, and the file that has the key for that manager and no other.

    `manager` may be a list of addresses, with commas between them.
    """

    manager: str
    file: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One reading of the settings file and the environment, without the API key in the file.

    `cache` is for what can be made or fetched again: environments of models, and weights.
    `database` is a URL; one of PostgreSQL may have a password. `name_collisions` says what writing a
    secret through another spelling of its name does: "refuse" or "overwrite".
    The root key comes from `root_key_command` if there is one, else from `root_key_credential`,
    else from `root_key_file`. `identity_token_file` has a JSON Web Token of the workload's platform, which
    is exchanged at the manager. `manager_ca` has certificates of authorities (PEM) that are trusted for the
    manager, besides the public ones. `command_environ` is the environment of `root_key_command`.
    """

    home: Path
    cache: Path
    database: str = field(repr=False)
    root_key_file: Path
    witness_file: Path
    root_key_command: str | None = None
    root_key_credential: Path | None = None
    root_key_passphrase_file: Path | None = None
    command_environ: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    manager: str | None = None
    manager_ca: Path | None = None
    token_file: Path | None = None
    identity_token_file: Path | None = None
    docker_host: str | None = None
    insecure_http: bool = False
    login: Login | None = None
    name_collisions: NameCollisions = "refuse"

    def key_for(self, manager: str) -> SecretValue:
        """The key to show to `manager`: that of the token file, else the one kept for just this manager.

        Raises:
            NotSignedIn: there is none.
            UsageError: the token file cannot be used, or what is kept is not a key.
        """
        if self.token_file is not None:
            return read_key(self.token_file)
        if self.login is not None and _addresses(manager) <= _addresses(self.login.manager):
            key = _read(self.login.file, with_key=True)["api_key"].encode()
            if not is_key(key):
                raise UsageError(
                    f"the api_key in {self.login.file} is not a key",
                    hint=f"log in again: `gusset login {manager}`",
                )
            return SecretValue(key)
        raise NotSignedIn(
            f"there is no key for the manager at {manager}", hint=f"log in: `gusset login {manager}`"
        )

    def with_root_key_command(self, command: str) -> Settings:
        """The same settings, with the root key from a command. Raises UsageError if a file is named."""
        if self.root_key_file != self.home / "root.key":
            raise _two_sources()
        return replace(self, root_key_command=command, root_key_credential=None)

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Settings:
        """Read `environ` and the settings file that it points to.

        Raises:
            UsageError: the file is not TOML, has an unknown key, or a value of the wrong kind.
        """
        path = settings_file(environ)
        values: dict[str, str] = _read(path)
        values |= {key: environ[name] for key, name in _VARIABLES.items() if environ.get(name)}
        home = _expanded(values["home"]) if "home" in values else _user_folder("data")
        home = home.absolute()
        return cls(
            home=home,
            cache=_path(values, "cache") or _user_folder("cache"),
            database=values.get("database") or f"sqlite:///{home / 'vault.db'}",
            root_key_file=_path(values, "root_key_file") or home / "root.key",
            witness_file=_path(values, "witness_file") or home / "audit.witness",
            root_key_command=_root_key_command(values),
            root_key_credential=_credential(values, environ),
            root_key_passphrase_file=_path(values, "root_key_passphrase_file"),
            command_environ=tuple((name, environ[name]) for name in _COMMAND_VARIABLES if name in environ),
            manager=values.get("manager"),
            manager_ca=_path(values, "manager_ca"),
            token_file=_path(values, "token_file"),
            identity_token_file=_path(values, "identity_token_file"),
            docker_host=environ.get("DOCKER_HOST") or None,
            insecure_http=values.get("insecure_http") == "yes",
            login=_login(path),
            name_collisions=_name_collisions(values.get("name_collisions", "refuse")),
        )


def _root_key_command(values: Mapping[str, str]) -> str | None:
    command = values.get("root_key_command")
    if command is not None and "root_key_file" in values:
        raise _two_sources()
    return command


def _two_sources() -> UsageError:
    return UsageError(
        "the root key has two sources: root_key_file and root_key_command",
        hint="remove one of them from settings.toml or the environment "
        "(GUSSET_ROOT_KEY_FILE, GUSSET_ROOT_KEY_COMMAND), or leave out --root-key-command",
    )


def _credential(values: Mapping[str, str], environ: Mapping[str, str]) -> Path | None:
    """The systemd credential with the root key, if the service has one and no setting names a source."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder or "root_key_file" in values or "root_key_command" in values:
        return None
    path = Path(folder) / _CREDENTIAL
    return path if path.exists() else None


def _addresses(managers: str) -> set[str]:
    """The addresses in a list with commas."""
    return {url.strip().rstrip("/") for url in managers.split(",")}


def settings_file(environ: Mapping[str, str]) -> Path:
    """`gusset/settings.toml` in the platform's config folder, or what GUSSET_SETTINGS names."""
    if named := environ.get("GUSSET_SETTINGS"):
        return _expanded(named)
    return _user_folder("config") / "settings.toml"


def save_login(path: Path, manager: str, api_key: SecretValue, *, insecure_http: bool) -> None:
    """Keep a manager and its key in the settings file, which others then may not read.

    Raises:
        OSError: the file cannot be written; what was there stays.
    """
    values = {"manager": manager, "api_key": api_key.reveal().decode("ascii")}
    _rewrite(path, values | ({"insecure_http": "yes"} if insecure_http else {}))


def forget_login(path: Path) -> None:
    """Take the manager and its key out of the settings file. Raises OSError."""
    _rewrite(path, {})


_LOGIN_LINE = r"\s*(manager|api_key|insecure_http)\s*="


def _rewrite(path: Path, values: Mapping[str, str]) -> None:
    """Replace the lines of the last login with `values`; all other lines stay as they are."""
    import json

    old = path.read_text("utf-8").splitlines() if path.exists() else []
    lines = [f"{key} = {json.dumps(text)}" for key, text in values.items()]
    lines += [line for line in old if not re.match(_LOGIN_LINE, line)]
    write_private_file(path, "".join(line + "\n" for line in lines).encode())


def is_key(data: bytes) -> bool:
    """Whether a header can contain `data` as a key: one line of printable ASCII."""
    return re.fullmatch(rb"[\x20-\x7e]+", data) is not None


def read_key(path: Path) -> SecretValue:
    """The key in a file that others cannot read. Raises UsageError."""
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            key = file.read(4096).strip()
    except OSError as error:
        raise UsageError(f"cannot read the token file {path}: {error.strerror}") from None
    if accessible_to_others(mode):
        raise UsageError(f"others can read the token file {path}", hint=f"chmod 600 {path}")
    if not key:
        raise UsageError(f"the token file {path} is empty")
    if not is_key(key):
        raise UsageError(
            f"the token file {path} does not contain just a key",
            hint="write the key into it again, on one line, as ASCII text without a byte order mark",
        )
    return SecretValue(key)


def _login(path: Path) -> Login | None:
    values = _read(path)
    if "api_key" not in values or "manager" not in values:
        return None
    if accessible_to_others(path.stat().st_mode):
        raise UsageError(f"{path} holds an API key, and others can read it", hint=f"chmod 600 {path}")
    return Login(values["manager"], path)


# Kind of file -> on Linux, the variable with the folder for such files, and the folder without the variable.
_USER_FOLDERS = {
    "config": ("XDG_CONFIG_HOME", ".config"),
    "data": ("XDG_DATA_HOME", ".local/share"),
    "cache": ("XDG_CACHE_HOME", ".cache"),
}


def _user_folder(kind: Literal["config", "data", "cache"]) -> Path:
    """Where the platform has gusset's files of this kind."""
    home = os.environ.get("HOME", "")
    if sys.platform == "linux" and home.startswith("/"):
        # What platformdirs returns, without importing it, which would slow `gusset secret list` by a tenth.
        variable, default = _USER_FOLDERS[kind]
        base = os.environ.get(variable, "")
        return (Path(base) if base.startswith("/") else Path(home, default)) / "gusset"
    from platformdirs import PlatformDirs

    path: Path = getattr(PlatformDirs("gusset"), f"user_{kind}_path")
    return path


def _path(values: Mapping[str, str], key: str) -> Path | None:
    return _expanded(values[key]).absolute() if key in values else None


def _expanded(text: str) -> Path:
    """The path, with the home folder for `~`. Raises UsageError."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{text} begins with the home folder of an unknown account", hint="write the path in full"
        ) from None


_KEY_LINE = rb"(?m)^[ \t]*api_key[ \t]*=(.*)$"


def _read(path: Path, *, with_key: bool = False) -> dict[str, str]:
    """The settings in the file. `api_key` is empty unless `with_key` is set.

    Without `with_key`, the key is overwritten in the buffer before anything copies it: a server must
    not have it anywhere in its memory.
    """
    try:
        with path.open("rb", buffering=0) as file:
            data = bytearray(os.fstat(file.fileno()).st_size)
            del data[file.readinto(data) :]
        if not with_key:
            for line in re.finditer(_KEY_LINE, data):
                start, end = line.span(1)
                data[start:end] = b' ""'.ljust(end - start)
        text = data.decode("utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the settings file {path}: {type(error).__name__}") from error
    import tomllib

    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the settings file {path} is not TOML: {error}") from error
    for key, value in found.items():
        if key not in _VARIABLES and key not in _LOGIN:
            raise UsageError(f"{path}: unknown setting {key!r}", hint=f"known: {', '.join(_VARIABLES)}")
        if not isinstance(value, str):
            raise UsageError(f"{path}: {key} is a text in quotes, not {type(value).__name__}")
        if "\0" in value:
            raise UsageError(f"{path}: {key} contains a NUL character")
    return found


def _name_collisions(text: str) -> NameCollisions:
    for known in get_args(NameCollisions):
        if text == known:
            return known  # type: ignore[no-any-return]  # one of the literals just listed
    raise UsageError(
        "name_collisions is neither 'refuse' nor 'overwrite'",
        hint="set it in settings.toml, or GUSSET_NAME_COLLISIONS in the environment",
    )
