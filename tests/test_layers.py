"""The house of docs/architecture.md: imports point down only."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import gusset

ROOT = Path(gusset.__file__).parent

# Layer -> what it may import, besides itself. Nothing may import `cli`.
MAY_IMPORT = {
    "errors": set(),
    "settings": {"errors", "secrets"},
    "secrets": {"errors"},
    "package": {"errors", "secrets"},
    "vault": {"errors", "secrets", "settings"},
    "serving": {"errors", "secrets", "package"},
    "containers": {"errors", "secrets", "package", "serving"},
    "client": {"errors", "secrets"},
    "manager": {"errors", "secrets", "vault"},
    "cli": {
        "errors",
        "secrets",
        "settings",
        "package",
        "vault",
        "serving",
        "containers",
        "manager",
        "client",
    },
    "__main__": {"cli"},
    "__init__": set(),
}
MODULES = sorted(ROOT.rglob("*.py"))


def layer_of(module: Path) -> str:
    return module.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_layers(module: Path) -> set[str]:
    """The layers of gusset that a module imports, anywhere in it, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (
                [node.module] if node.module != "gusset" else [f"gusset.{alias.name}" for alias in node.names]
            )
        found |= {name.split(".")[1] for name in names if name.startswith("gusset.")}
    return found - {"__version__"}


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down_only(module: Path) -> None:
    """A module imports its own layer and those below it, nothing else."""
    layer = layer_of(module)
    assert imported_layers(module) <= MAY_IMPORT[layer] | {layer}


def test_only_settings_and_processes_read_the_environment() -> None:
    """gusset's own settings come from one place; only what makes processes touches `os.environ`."""
    readers = {layer_of(m) for m in MODULES if "os.environ" in m.read_text() or "os.getenv" in m.read_text()}
    assert readers <= {"settings", "cli", "serving"}


def test_only_the_envelope_and_the_keyring_touch_ciphers() -> None:
    """Cryptography can be reviewed by reading few files."""
    users = {str(m.relative_to(ROOT)) for m in MODULES if "cryptography" in m.read_text()}
    assert users <= {"vault/envelope.py", "vault/keyring.py", "vault/rootkey.py", "vault/audit.py"}


def test_values_leave_in_few_places() -> None:
    """Every file that calls `reveal` is known: a new one is a decision, not an accident."""
    users = {str(m.relative_to(ROOT)) for m in MODULES if ".reveal()" in m.read_text()}
    assert users <= REVEALERS


REVEALERS = {
    "client.py",  # to the manager: values that people set, keys
    "cli/exec.py",  # into the environment of the command, where a person asked for it by name
    "cli/secret.py",  # to the doctor, and by `reveal` to a person at a terminal
    "cli/manager.py",  # a key, shown once
    "containers/mount.py",  # into files in memory
    "containers/sidecar.py",  # into files in the memory of an engine elsewhere
    "containers/registry.py",  # into the request to pull an image, for its registry
    "manager/api.py",  # to the doctor; a key or a link, shown once
    "manager/pages.py",  # a new session's token, into its cookie
    "manager/secret_pages.py",  # to the doctor
    "manager/team_pages.py",  # a key or a link, shown once
    "manager/watch.py",  # to a deployment
    "secrets/mapping.py",  # to the model
    "secrets/masking.py",  # to know what must not be printed
    "serving/supervisor.py",  # to the worker, over an inherited socket
    "settings.py",  # an API key, into the settings file of its owner
    "vault/access.py",  # a key, to be compared by its hash
    "vault/passwords.py",  # a password, to be hashed
    "vault/secrets.py",  # to be sealed
}
