"""What is done with `config.yaml` before its fields are checked: old names, secrets, rules between sections.

Each rule works on the plain data and bears any shape of it, so that whatever
else is wrong, these are reported in the same run.
"""

from __future__ import annotations

from dataclasses import dataclass
from posixpath import join, normpath
from typing import Any

from gusset.errors import CredentialAsName, InvalidName
from gusset.package.problems import Reporter, kind_of
from gusset.package.yaml_tree import Path, Place
from gusset.secrets.credentials import find_credentials, looks_like_credential
from gusset.secrets.name import check_name, spelling_clashes


@dataclass(frozen=True, slots=True)
class SecretSlot:
    """A name under `secrets:`, where it stands, and whether the model can start without its value."""

    name: str
    line: int | None
    column: int | None
    optional: bool = False


def prepare(data: dict[Any, Any], report: Reporter) -> tuple[dict[Any, Any], dict[str, SecretSlot]]:
    """`data` as the schema takes it, and the declared secrets; everything wrong goes to `report`."""
    data = dict(data)
    _no_cache(data, report)
    _hf_cache(data, report)
    _environment(data, report)
    _folders(data, report)
    slots = _secrets(data, report)
    _between_sections(data, report)
    _docker_server(data, report)
    _deprecated(data, report)
    return data, slots


def _section(data: Any, *keys: str) -> Any:
    """What is at a path of maps; None where there is none."""
    for key in keys:
        data = data.get(key) if isinstance(data, dict) else None
    return data


def _is_true(value: object) -> bool:
    """Whether the schema takes `value` for true."""
    if isinstance(value, str):
        return value.lower() in ("1", "t", "y", "true", "yes", "on")
    return isinstance(value, int | float) and value == 1


def _plain(value: object) -> object:
    """The text of `!!binary`, which the schema takes for one: as UTF-8, or the tree would have refused it."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _no_cache(data: dict[Any, Any], report: Reporter) -> None:
    if _section(data, "build", "no_cache") is True:
        report.add(
            ("build", "no_cache"), "a build without cache is not set here", "remove it; say it when building"
        )


def _hf_cache(data: dict[Any, Any], report: Reporter) -> None:
    """The old name of `model_cache`."""
    if "hf_cache" not in data:
        return
    report.add(("hf_cache",), "hf_cache is an old name", "write model_cache", code="deprecated", warning=True)
    if "model_cache" not in data:
        moved = data.pop("hf_cache")
        data["model_cache"] = moved or []
        report.tree.keys |= {
            ("model_cache", *path[1:]): p for path, p in report.tree.keys.items() if path[0] == "hf_cache"
        }
        report.tree.values |= {
            ("model_cache", *path[1:]): p for path, p in report.tree.values.items() if path[0] == "hf_cache"
        }


def _environment(data: dict[Any, Any], report: Reporter) -> None:
    """Every value becomes a text, as Truss makes it one."""
    variables = data.get("environment_variables", {})
    if not isinstance(variables, dict):
        report.add(
            ("environment_variables",),
            f"{kind_of(variables)} where a map belongs",
            "write `NAME: text` lines, or {}",
        )
        data["environment_variables"] = {}
        return
    data["environment_variables"] = {name: _as_text(value) for name, value in variables.items()}
    for name, value in data["environment_variables"].items():
        _check_variable(name, value, report)
    for name in ("PORT", "HOSTNAME"):
        if name in variables:
            report.add(
                ("environment_variables", name),
                f"{name} is also set by platforms that run models",
                "choose another name",
                code="environment_name",
                warning=True,
                at_key=True,
            )


def _check_variable(name: object, value: str, report: Reporter) -> None:
    """What no process can be given; neither is shown."""
    path = ("environment_variables", name)
    name = _plain(name)
    if isinstance(name, str) and (not name or "=" in name or "\0" in name):
        message = "an environment variable's name cannot be empty, nor hold '=' or NUL"
        report.add(path, message, "write `NAME: text`", at_key=True, key="environment_variables")
    if "\0" in value:
        report.add(path, "an environment variable cannot hold NUL", "keep binary data in a file of data_dir")


def _as_text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _folders(data: dict[Any, Any], report: Reporter) -> None:
    """What belongs to the model lies in its folder, as the file says it; links are the author's affair.

    `external_package_dirs` are for what is shared by several models, and may lie anywhere.
    """
    module_dir = _plain(data.get("model_module_dir", "model"))
    for key in ("model_module_dir", "data_dir", "bundled_packages_dir"):
        _check_inside(key, data.get(key), "", report)
    if isinstance(module_dir, str) and _stays_inside(module_dir):
        _check_inside("model_class_filename", data.get("model_class_filename"), module_dir, report)


def _check_inside(key: str, value: object, start: str, report: Reporter) -> None:
    value = _plain(value)
    if isinstance(value, str) and not _stays_inside(value, start):
        report.add(
            (key,),
            f"{key} leaves the model folder",
            "write a path from the model folder to what lies in it; what models share goes into "
            "external_package_dirs",
            code="outside_folder",
        )


def _stays_inside(path: str, start: str = "") -> bool:
    """Whether `path`, from `start` in the model folder, is a path into that folder."""
    if path.startswith("/") or "\0" in path:
        return False
    return normpath(join(start, path)).split("/")[0] != ".."


# secrets


def _secrets(data: dict[Any, Any], report: Reporter) -> dict[str, SecretSlot]:
    section = data.pop("secrets", None)
    if section is None:
        section = {}
    if not isinstance(section, dict):
        report.add(
            ("secrets",),
            f"{kind_of(section)} where a map belongs",
            "write one `name: null` a line below `secrets:`",
            key="secrets",
        )
        section = {}
    slots = {}
    for name, value in section.items():
        if _name_is_sound(name, report):
            place = report.tree.keys.get(("secrets", name))
            slots[name] = SecretSlot(name, place.line if place else None, place.column if place else None)
            _slot_text(name, value, report)
    _spellings(data, slots, report)
    optional = _optional(data, slots, report)
    data["secrets"] = dict.fromkeys(slots)
    return {
        name: SecretSlot(name, slot.line, slot.column, optional=name in optional)
        for name, slot in slots.items()
    }


def _name_is_sound(name: object, report: Reporter) -> bool:
    path = ("secrets", name)
    if not isinstance(name, str):
        report.add(path, "a secret's name is a text", "quote it", at_key=True, key="secrets")
        return False
    try:
        check_name(name)
    except CredentialAsName as error:
        message = f"{error.message}; it is not repeated here"
        report.add(path, message, _ADVICE, code="credential", at_key=True, key="secrets")
        return False
    except InvalidName as error:
        report.add(path, error.message, error.hint, code="invalid_name", at_key=True, key="secrets")
        return False
    return True


_ADVICE = (
    "replace it by a new one where it was issued (it is in a file, perhaps in git), write the secret's name "
    "and `null` here, and store the value with `gusset secret set`"
)


def _slot_text(name: str, value: object, report: Reporter) -> None:
    """A text in the slot is never the value: a warning, or an error where it is surely a credential."""
    path = ("secrets", name)
    if value is None:
        return
    value = _plain(value)
    if not isinstance(value, str):
        hint = f"write `{name}: null`; store the value with `gusset secret set {name}`"
        report.add(path, f"{kind_of(value)} where null belongs", hint)
    elif kind := looks_like_credential(value):
        message = f"the text in the slot of {name} looks like {kind}; it is not repeated here"
        hint = (
            "replace it by a new one where it was issued (it is in a file, perhaps in git), "
            f"write `{name}: null`, and store the value with `gusset secret set {name}`"
        )
        report.add(path, message, hint, code="credential")
    else:
        report.add(
            path,
            f"the text in the slot of {name} is never used as its value",
            f"write `{name}: null`; store the value with `gusset secret set {name}`",
            code="secret_text",
            warning=True,
        )


def _spellings(data: dict[Any, Any], slots: dict[str, SecretSlot], report: Reporter) -> None:
    """Two spellings of one secret in the file are an error: files and code use names exactly."""
    places: dict[str, tuple[Any, ...]] = {name: ("secrets", name) for name in slots}
    mapping = _section(data, "build", "secret_to_path_mapping")
    for name in mapping if isinstance(mapping, dict) else ():
        if isinstance(name, str):
            places.setdefault(name, ("build", "secret_to_path_mapping", name))
    for first, other in spelling_clashes(places):
        if _is_name(first) and _is_name(other):
            message = f"{other} and {first} are two spellings of one secret"
            report.add(
                places[other], message, "use one spelling everywhere", code="two_spellings", at_key=True
            )


def _is_name(text: str) -> bool:
    try:
        check_name(text)
    except InvalidName:
        return False
    return True


def _optional(data: dict[Any, Any], slots: dict[str, SecretSlot], report: Reporter) -> set[str]:
    """`model_metadata: {gusset: {optional_secrets: [NAME]}}`."""
    path = ("model_metadata", "gusset", "optional_secrets")
    names = _section(data, *path)
    if names is None:
        return set()
    if not isinstance(names, list):
        report.add(path, f"{kind_of(names)} where a list belongs", "write `[NAME, ...]`")
        return set()
    for position, name in enumerate(names):
        if not isinstance(name, str) or name not in slots:
            report.add(
                (*path, position),
                "not one of the declared secrets",
                "write a name that stands under `secrets:`",
            )
    return {name for name in names if isinstance(name, str)}


# between sections


def _between_sections(data: dict[Any, Any], report: Reporter) -> None:
    if _is_true(_section(data, "runtime", "remote_ssh", "enabled")) and (
        _section(data, "docker_server", "run_as_user_id") is not None
    ):
        report.add(
            ("runtime", "remote_ssh", "enabled"),
            "remote_ssh does not go with docker_server.run_as_user_id",
            "remove one of them",
        )
    if data.get("requirements") and data.get("requirements_file"):
        report.add(
            ("requirements_file",),
            "requirements_file does not go with requirements",
            "keep one of them",
            at_key=True,
        )
    if data.get("model_cache") and data.get("weights"):
        report.add(
            ("model_cache",),
            "model_cache does not go with weights",
            "keep weights, the newer one",
            at_key=True,
        )


_DOCKER_SERVER = {
    "start_command": "./server --port 8000  # how your server is started",
    "server_port": "8000",
    "predict_endpoint": "/predict",
    "readiness_endpoint": "/health",
    "liveness_endpoint": "/health",
}


def _docker_server(data: dict[Any, Any], report: Reporter) -> None:
    """All keys that lack, in one block to paste."""
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
        report.add(
            ("docker_server",),
            f"docker_server lacks {', '.join(missing)}",
            f"add, with your server's own values:\ndocker_server:\n{lines}",
            code="missing",
            at_key=True,
        )


_OLD = {
    ("model_cache",): "weights",
    ("external_data",): "weights",
    ("runtime", "is_websocket_endpoint"): "transport: {kind: websocket}",
}


def _deprecated(data: dict[Any, Any], report: Reporter) -> None:
    for path, successor in _OLD.items():
        if _section(data, *path) and path in report.tree.keys:
            message = f"{'.'.join(path)} is deprecated in Truss"
            report.add(path, message, f"write {successor}", code="deprecated", warning=True, at_key=True)
    if data.get("python_version") == "py39":
        message = "Python 3.9 gets no more fixes"
        report.add(("python_version",), message, "write py311 or newer", code="deprecated", warning=True)


def credentials_in(report: Reporter) -> None:
    """Warn about each text outside `secrets:`, comments too, that is surely a credential; repeat none."""
    named: set[str] = set()
    for path, text in report.tree.texts():
        matches = find_credentials(text)
        named.update(text[match.start : match.end] for match in matches)
        if matches and path[:1] != ("secrets",):
            _credential(report, path, matches[0].kind)
    written = report.tree.text
    for match in find_credentials(written):
        if written[match.start : match.end] not in named:
            _credential(report, (), match.kind, report.tree.place_at(match.start))


def _credential(report: Reporter, path: Path, kind: str, place: Place | None = None) -> None:
    report.add(
        path,
        f"what looks like {kind} stands in the file; it is not repeated here",
        "replace it by a new one where it was issued, declare a secret under `secrets:`, "
        "and store the value with `gusset secret set`",
        code="credential",
        warning=True,
        place=place,
    )
