"""Rules of `config.yaml` that are applied before the schema: old names, secrets, rules between sections.

Each rule works on the parsed YAML and accepts data of any shape. So its problems
are reported in the same run as those of the schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from posixpath import join, normpath
from typing import Any

from gusset.errors import CredentialAsName, InvalidName
from gusset.package.problems import ProblemCollector, type_name
from gusset.package.yaml_tree import Location, Path
from gusset.secrets.credentials import find_credentials, looks_like_credential
from gusset.secrets.name import check_name, fold_name, is_deployment_name, spelling_clashes


@dataclass(frozen=True, slots=True)
class SecretEntry:
    """A secret that the file names: its location, and whether the model can start without its value."""

    name: str
    line: int | None
    column: int | None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Declarations:
    """The secrets that a file declares, by name: those for the model, and its callers' keys."""

    secrets: dict[str, SecretEntry]
    callers: dict[str, SecretEntry]


def prepare(data: dict[Any, Any], problems: ProblemCollector) -> tuple[dict[Any, Any], Declarations]:
    """The data for the schema, and the declared secrets. Adds what is wrong to `problems`."""
    data = dict(data)
    _no_cache(data, problems)
    _hf_cache(data, problems)
    _environment(data, problems)
    _folders(data, problems)
    declared = _secrets(data, problems)
    callers = _callers(data, declared, problems)
    _check_between_sections(data, problems)
    _check_docker_server(data, problems)
    _deprecated(data, problems)
    _model_name(data, problems)
    return data, Declarations(declared, callers)


def _get(data: Any, *keys: str) -> Any:
    """The value at a path of maps, or None."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _is_true(value: object) -> bool:
    """Whether the schema reads `value` as true."""
    if isinstance(value, str):
        return value.lower() in ("1", "t", "y", "true", "yes", "on")
    return isinstance(value, int | float) and value == 1


def _decoded(value: object) -> object:
    """`value`, with `!!binary` as text, as the schema reads it. Parsing has refused what is not UTF-8."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _no_cache(data: dict[Any, Any], problems: ProblemCollector) -> None:
    if _get(data, "build", "no_cache") is True:
        problems.add(("build", "no_cache"), "Truss refuses no_cache: true in this file", "remove it")


def _hf_cache(data: dict[Any, Any], problems: ProblemCollector) -> None:
    """Move `hf_cache` to its new name, `model_cache`."""
    if "hf_cache" not in data:
        return
    problems.add(("hf_cache",), "the old name of model_cache", code="deprecated", warning=True)
    if "model_cache" not in data:
        moved = data.pop("hf_cache")
        data["model_cache"] = moved or []
        problems.tree.keys |= {
            ("model_cache", *path[1:]): p for path, p in problems.tree.keys.items() if path[0] == "hf_cache"
        }
        problems.tree.values |= {
            ("model_cache", *path[1:]): p for path, p in problems.tree.values.items() if path[0] == "hf_cache"
        }


def _environment(data: dict[Any, Any], problems: ProblemCollector) -> None:
    """Convert every value to a text, as Truss does."""
    variables = data.get("environment_variables", {})
    if not isinstance(variables, dict):
        problems.add(
            ("environment_variables",),
            f"expected a map, found {type_name(variables)}",
            "write `NAME: text` lines, or {}",
        )
        data["environment_variables"] = {}
        return
    data["environment_variables"] = {name: _as_text(value) for name, value in variables.items()}
    for name, value in data["environment_variables"].items():
        _check_variable(name, value, problems)
        if variables[name] is None:
            problems.add(
                ("environment_variables", name),
                "null becomes the text 'None', as in Truss",
                "write '' for an empty text, or remove the line",
                code="environment_null",
                warning=True,
                at_key=True,
            )
    _warn_of_platform_names(variables, problems)


def _warn_of_platform_names(variables: Mapping[object, object], problems: ProblemCollector) -> None:
    for name in ("PORT", "HOSTNAME"):
        if name in variables:
            problems.add(
                ("environment_variables", name),
                f"{name} is also set by platforms that run models",
                "choose another name",
                code="environment_name",
                warning=True,
                at_key=True,
            )


def _check_variable(name: object, value: str, problems: ProblemCollector) -> None:
    """Refuse a variable that no process can have. Neither its name nor its value is shown."""
    path = ("environment_variables", name)
    name = _decoded(name)
    if isinstance(name, str) and (not name or "=" in name or "\0" in name):
        message = "the name of an environment variable cannot be empty or contain '=' or NUL"
        problems.add(path, message, "write `NAME: text`", at_key=True, key="environment_variables")
    if "\0" in value:
        problems.add(
            path, "an environment variable cannot contain NUL", "keep binary data in a file of data_dir"
        )


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _folders(data: dict[Any, Any], problems: ProblemCollector) -> None:
    """Refuse paths that leave the model folder; symbolic links in it are not checked.

    `external_package_dirs` are for code that several models share, and may be anywhere.
    """
    module_dir = _decoded(data.get("model_module_dir", "model"))
    for key in ("model_module_dir", "data_dir", "bundled_packages_dir"):
        _check_inside(key, data.get(key), "", problems)
    if isinstance(module_dir, str) and _stays_inside(module_dir):
        _check_inside("model_class_filename", data.get("model_class_filename"), module_dir, problems)
    external = data.get("external_package_dirs")
    _check_path(("requirements_file",), data.get("requirements_file"), problems)
    for index, path in enumerate(external if isinstance(external, list) else []):
        _check_path(("external_package_dirs", index), path, problems)


def _check_path(path: tuple[str | int, ...], value: object, problems: ProblemCollector) -> None:
    value = _decoded(value)
    if isinstance(value, str) and "\0" in value:
        problems.add(path, "a path cannot contain NUL", "correct the path")


def _check_inside(key: str, value: object, start: str, problems: ProblemCollector) -> None:
    value = _decoded(value)
    if isinstance(value, str) and not _stays_inside(value, start):
        problems.add(
            (key,),
            f"{key} leaves the model folder",
            "write a path within the model folder; list folders that several models share under "
            "external_package_dirs",
            code="outside_folder",
        )


def _stays_inside(path: str, start: str = "") -> bool:
    """Whether `path`, relative to `start` in the model folder, stays within that folder."""
    if path.startswith("/") or "\0" in path:
        return False
    return normpath(join(start, path)).split("/")[0] != ".."


# secrets


def _secrets(data: dict[Any, Any], problems: ProblemCollector) -> dict[str, SecretEntry]:
    section = data.pop("secrets", None)
    if section is None:
        section = {}
    if not isinstance(section, dict):
        problems.add(
            ("secrets",),
            f"expected a map, found {type_name(section)}",
            "write one `name: null` per line below `secrets:`",
            key="secrets",
        )
        section = {}
    declarations = {}
    for name, value in section.items():
        if _is_valid_name(name, problems, ("secrets", name)):
            location = problems.tree.keys.get(("secrets", name))
            declarations[name] = SecretEntry(
                name, location.line if location else None, location.column if location else None
            )
            _check_declaration_text(name, value, problems)
    _report_spellings(data, declarations, problems)
    optional = _optional(data, declarations, problems)
    data["secrets"] = dict.fromkeys(declarations)
    return {
        name: SecretEntry(name, declaration.line, declaration.column, optional=name in optional)
        for name, declaration in declarations.items()
    }


def _is_valid_name(name: object, problems: ProblemCollector, path: tuple[Any, ...]) -> bool:
    """Whether a name, written at `path`, can be that of a secret."""
    key = ".".join(path[:-1])
    at_key = path[0] == "secrets"
    if not isinstance(name, str):
        problems.add(path, "the name of a secret must be a string", "quote it", at_key=at_key, key=key)
        return False
    try:
        check_name(name)
    except CredentialAsName as error:
        message = f"{error.message}; it is not repeated here"
        problems.add(path, message, _EXPOSED, code="credential", at_key=at_key, key=key)
        return False
    except InvalidName as error:
        problems.add(path, error.message, error.hint, code="invalid_name", at_key=at_key, key=key)
        return False
    return True


_EXPOSED = (
    "have its issuer replace it (it is in a file, perhaps in git), write the secret's name and `null` here, "
    "and store the value with `gusset secret set`"
)


def _check_declaration_text(name: str, value: object, problems: ProblemCollector) -> None:
    """Warn about text after a name, which is never used as the value. A credential is an error."""
    path = ("secrets", name)
    value = _decoded(value)
    if value is None or value == "":
        return
    if not isinstance(value, str):
        hint = f"write `{name}: null`; store the value with `gusset secret set {name}`"
        problems.add(path, f"expected null, found {type_name(value)}", hint)
    elif kind := looks_like_credential(value):
        message = f"the text after {name}: looks like {kind}; it is not repeated here"
        hint = (
            "have its issuer replace it (it is in a file, perhaps in git), "
            f"write `{name}: null`, and store the value with `gusset secret set {name}`"
        )
        problems.add(path, message, hint, code="credential")
    else:
        problems.add(
            path,
            f"the text after {name}: is never used as its value",
            f"write `{name}: null`; store the value with `gusset secret set {name}`",
            code="secret_text",
            warning=True,
        )


def _report_spellings(
    data: dict[Any, Any], declarations: dict[str, SecretEntry], problems: ProblemCollector
) -> None:
    """Refuse two spellings of one secret in the file, since files and code use the exact name."""
    paths: dict[str, tuple[Any, ...]] = {name: ("secrets", name) for name in declarations}
    mapping = _get(data, "build", "secret_to_path_mapping")
    for name in mapping if isinstance(mapping, dict) else ():
        if isinstance(name, str):
            paths.setdefault(name, ("build", "secret_to_path_mapping", name))
    for first, other in spelling_clashes(paths):
        if _is_name(first) and _is_name(other):
            message = f"{other} and {first} are two spellings of one secret"
            problems.add(
                paths[other], message, "use one spelling everywhere", code="two_spellings", at_key=True
            )


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidName:
        return False
    return True


def _optional(
    data: dict[Any, Any], declarations: dict[str, SecretEntry], problems: ProblemCollector
) -> set[str]:
    """The names under `model_metadata: {gusset: {optional_secrets: [NAME]}}`."""
    path = ("model_metadata", "gusset", "optional_secrets")
    names = _get(data, *path)
    if names is None:
        return set()
    if not isinstance(names, list):
        problems.add(path, f"expected a list, found {type_name(names)}", "write `[NAME, ...]`")
        return set()
    for position, name in enumerate(names):
        if not isinstance(name, str) or name not in declarations:
            problems.add(
                (*path, position),
                "not one of the declared secrets",
                "write a name that is under `secrets:`",
            )
    return {name for name in names if isinstance(name, str)}


def _callers(
    data: dict[Any, Any], declared: dict[str, SecretEntry], problems: ProblemCollector
) -> dict[str, SecretEntry]:
    """The names under `model_metadata: {gusset: {callers: [NAME]}}`."""
    path = ("model_metadata", "gusset", "callers")
    names = _get(data, *path)
    if names is None:
        return {}
    if not isinstance(names, list):
        problems.add(path, f"expected a list, found {type_name(names)}", "write `[NAME, ...]`")
        return {}
    callers = {}
    for position, name in enumerate(names):
        at = (*path, position)
        if not _is_valid_name(name, problems, at):
            continue
        if secret := same_secret(name, declared):
            problems.add(at, caller_is_secret(name, secret), CALLER_HINT, code="caller_is_secret")
        location = problems.tree.values.get(at)
        callers[name] = SecretEntry(
            name, location.line if location else None, location.column if location else None
        )
    return callers


CALLER_HINT = "remove it from one of the two, or give the callers a key of their own"


def same_secret(name: str, declared: Iterable[str]) -> str | None:
    """The declared name that is `name`, in whichever spelling."""
    return next((other for other in declared if fold_name(other) == fold_name(name)), None)


def caller_is_secret(name: str, secret: str) -> str:
    """The message about a caller that is also one of the model's secrets."""
    spelling = "" if secret == name else f" as {secret}"
    return (
        f"the caller {name} is also listed under `secrets:`{spelling}: the model would have the caller's key"
    )


# between sections


def _check_between_sections(data: dict[Any, Any], problems: ProblemCollector) -> None:
    if _is_true(_get(data, "runtime", "remote_ssh", "enabled")) and (
        _get(data, "docker_server", "run_as_user_id") is not None
    ):
        problems.add(
            ("runtime", "remote_ssh", "enabled"),
            "remote_ssh and docker_server.run_as_user_id cannot be used together",
            "remove one of them",
        )
    if data.get("requirements") and data.get("requirements_file"):
        problems.add(
            ("requirements_file",),
            "requirements_file and requirements cannot be used together",
            "keep one of them",
            at_key=True,
        )
    if data.get("model_cache") and data.get("weights"):
        problems.add(
            ("model_cache",),
            "model_cache and weights cannot be used together",
            "keep one of them",
            at_key=True,
        )


_DOCKER_SERVER = {
    "start_command": "./server --port 8000  # how your server is started",
    "server_port": "8000",
    "predict_endpoint": "/predict",
    "readiness_endpoint": "/health",
    "liveness_endpoint": "/health",
}


def _check_docker_server(data: dict[Any, Any], problems: ProblemCollector) -> None:
    """Report all missing keys together, with a block to paste."""
    section = data.get("docker_server")
    if not isinstance(section, dict):
        return
    missing = [key for key in _DOCKER_SERVER if key not in section]
    if section.get("start_command", 0) is None:
        missing.append("start_command")
    if _is_true(section.get("no_build")):
        missing = [key for key in missing if key != "start_command"]
    if missing:
        lines = "\n".join(f"  {key}: {_DOCKER_SERVER[key]}" for key in missing)
        problems.add(
            ("docker_server",),
            f"docker_server has no {', '.join(missing)}",
            f"add these lines, with the values of your server:\ndocker_server:\n{lines}",
            code="missing",
            at_key=True,
        )


# The old forms of `weights` are not here: gusset supports them, and `_hf_cache` warns of that name.
_DEPRECATED = {
    ("runtime", "is_websocket_endpoint"): "transport: {kind: websocket}",
}


def _deprecated(data: dict[Any, Any], problems: ProblemCollector) -> None:
    for path, successor in _DEPRECATED.items():
        if _get(data, *path) and path in problems.tree.keys:
            message = f"{'.'.join(path)} is deprecated in Truss"
            problems.add(path, message, f"write {successor}", code="deprecated", warning=True, at_key=True)


def _model_name(data: dict[Any, Any], problems: ProblemCollector) -> None:
    """Warn of a name that only works without a manager."""
    name = _decoded(data.get("model_name"))
    if isinstance(name, str) and name and not is_deployment_name(name):
        message = "a manager does not register a deployment with this name"
        hint = "use 1 to 253 printable characters, without '/'"
        problems.add(("model_name",), message, hint, code="deployment_name", warning=True)


def report_credentials(problems: ProblemCollector) -> None:
    """Warn about each credential outside `secrets:`, also in comments, without repeating it."""
    named: set[str] = set()
    for path, text in problems.tree.texts():
        matches = find_credentials(text)
        named.update(text[match.start : match.end] for match in matches)
        if matches and path[:1] != ("secrets",):
            _credential(problems, path, matches[0].kind)
    written = problems.tree.text
    for match in find_credentials(written):
        if written[match.start : match.end] not in named:
            _credential(problems, (), match.kind, problems.tree.location_at(match.start))


def _credential(problems: ProblemCollector, path: Path, kind: str, location: Location | None = None) -> None:
    problems.add(
        path,
        f"the file contains what looks like {kind}; it is not repeated here",
        "have its issuer replace it, declare a secret under `secrets:`, "
        "and store the value with `gusset secret set`",
        code="credential",
        warning=True,
        location=location,
    )
