"""Where gusset keeps its things and how it was told to behave.

The only reader of the environment and of the settings file. Everything else
gets a `Settings` and asks nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gusset.errors import UsageError

NameCollisions = Literal["refuse", "overwrite"]

# Key of settings.toml -> the variable that beats it.
_VARIABLES = {
    "home": "GUSSET_HOME",
    "database": "GUSSET_DATABASE",
    "root_key_file": "GUSSET_ROOT_KEY_FILE",
    "witness_file": "GUSSET_WITNESS_FILE",
    "manager": "GUSSET_MANAGER",
    "token_file": "GUSSET_TOKEN_FILE",
    "name_collisions": "GUSSET_NAME_COLLISIONS",
}


@dataclass(frozen=True, slots=True)
class Settings:
    """One reading of the settings file and the environment.

    `database` is a SQLAlchemy URL. `name_collisions` says what writing a
    secret through another spelling of its name does: "refuse" or "overwrite".
    """

    home: Path
    database: str
    root_key_file: Path
    witness_file: Path
    manager: str | None = None
    token_file: Path | None = None
    name_collisions: NameCollisions = "refuse"

    @classmethod
    def load(cls, environ: Mapping[str, str]) -> Settings:
        """Read `environ` and the settings file that it points to.

        Raises:
            UsageError: the file is not TOML, has an unknown key, or a value of the wrong kind.
        """
        path = settings_file(environ)
        told: dict[str, str] = _read(path)
        told |= {key: environ[name] for key, name in _VARIABLES.items() if environ.get(name)}
        home = Path(told["home"]).expanduser() if "home" in told else _default_home()
        home = home.absolute()
        return cls(
            home=home,
            database=told.get("database") or f"sqlite:///{home / 'vault.db'}",
            root_key_file=_path(told, "root_key_file") or home / "root.key",
            witness_file=_path(told, "witness_file") or home / "audit.witness",
            manager=told.get("manager"),
            token_file=_path(told, "token_file"),
            name_collisions=_name_collisions(told.get("name_collisions", "refuse")),
        )


def settings_file(environ: Mapping[str, str]) -> Path:
    """`gusset/settings.toml` in the platform's config folder, or what GUSSET_SETTINGS names."""
    if named := environ.get("GUSSET_SETTINGS"):
        return Path(named).expanduser()
    from platformdirs import user_config_path

    return user_config_path("gusset") / "settings.toml"


def _default_home() -> Path:
    from platformdirs import user_data_path

    return user_data_path("gusset")


def _path(told: Mapping[str, str], key: str) -> Path | None:
    return Path(told[key]).expanduser().absolute() if key in told else None


def _read(path: Path) -> dict[str, str]:
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the settings file {path}: {type(error).__name__}") from error
    import tomllib  # most people have no such file, and every command comes by here

    try:
        found: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the settings file {path} is not TOML: {error}") from error
    for key, value in found.items():
        if key not in _VARIABLES:
            raise UsageError(f"{path}: unknown setting {key!r}", hint=f"known: {', '.join(_VARIABLES)}")
        if not isinstance(value, str):
            raise UsageError(f"{path}: {key} is a text in quotes, not {type(value).__name__}")
    return found


def _name_collisions(text: str) -> NameCollisions:
    for known in get_args(NameCollisions):
        if text == known:
            return known  # type: ignore[no-any-return]  # one of the literals just listed
    raise UsageError(
        "name_collisions is neither 'refuse' nor 'overwrite'",
        hint="set it in settings.toml, or GUSSET_NAME_COLLISIONS in the environment",
    )
