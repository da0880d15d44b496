"""The house of docs/architecture.md: imports point down only."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import gusset
from tests.source_trees import tree_of

ROOT = Path(gusset.__file__).parent

# Layer -> what it may import, besides itself. Nothing may import `cli`.
MAY_IMPORT = {
    "errors": set(),
    "addresses": set(),
    "backoff": set(),
    "bugs": {"errors"},
    "portable": set(),
    "printable": set(),
    "trusted_folders": {"errors", "portable"},
    "settings": {"errors", "secrets", "portable"},
    "secrets": {"errors", "backoff", "bugs", "portable"},
    "rotation": {"errors", "printable", "secrets"},
    "package": {"errors", "secrets"},
    "environments": {"errors", "package", "portable", "printable", "trusted_folders"},
    "vault": {"errors", "addresses", "secrets", "settings", "portable", "printable", "rotation"},
    "runtime": {"errors", "addresses", "backoff", "bugs", "printable", "secrets"},
    "weights": {
        "errors",
        "addresses",
        "backoff",
        "portable",
        "printable",
        "trusted_folders",
        "secrets",
        "package",
        "runtime",
    },
    "serving": {"errors", "bugs", "portable", "secrets", "package", "runtime", "weights"},
    "containers": {
        "errors",
        "bugs",
        "portable",
        "trusted_folders",
        "secrets",
        "package",
        "environments",
        "images",
        "runtime",
        "weights",
    },
    "ray": {
        "backoff",
        "errors",
        "portable",
        "trusted_folders",
        "settings",
        "secrets",
        "package",
        "environments",
        "client",
        "runtime",
        "weights",
        "serving",
    },
    "images": {"errors", "secrets", "portable", "printable"},
    "agent": {"errors", "portable", "secrets"},
    "kubernetes": {"errors"},
    "client": {"errors", "addresses", "backoff", "bugs", "printable", "secrets", "rotation"},
    "manager": {"errors", "addresses", "bugs", "printable", "secrets", "vault", "rotation", "runtime"},
    "cli": {
        "addresses",
        "backoff",
        "portable",
        "printable",
        "errors",
        "secrets",
        "settings",
        "package",
        "environments",
        "runtime",
        "weights",
        "vault",
        "serving",
        "containers",
        "images",
        "manager",
        "client",
        "agent",
        "kubernetes",
        "rotation",
        "ray",
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
    for node in ast.walk(tree_of(module)):
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


def folder_of(parts: tuple[str, ...]) -> str:
    """The folder, or the module at its layer's root, that a module belongs to: `vault/audit`, `vault/wiring`."""
    return "/".join(parts[:2]).removesuffix(".py")


def module_of(file: Path) -> tuple[str, ...]:
    """A module's name without `gusset`, in parts; a package has that of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def imported_modules(module: Path) -> set[tuple[str, ...]]:
    """The modules of gusset that a module imports, inside functions too, but not for typing alone."""
    tree = tree_of(module)
    typing_only = {
        id(each)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for each in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    parts = [tuple(name.split(".")) for name in found]
    modules = {path[1:] for path in parts if path[0] == "gusset"}
    return modules & KNOWN - {module_of(module), ()}


KNOWN = {module_of(each) for each in MODULES}


def test_no_import_circle_between_folders() -> None:
    """The folders of all layers can be put in one order in which each imports only those before it."""
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        own = folder_of(module.relative_to(ROOT).parts)
        imported = {folder_of((*path[:-1], f"{path[-1]}.py")) for path in imported_modules(module)}
        graph.setdefault(own, set()).update(imported - {own})
    assert list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_no_import_circle_between_modules() -> None:
    """Neither within a folder: each module can be read, and tested, without those that import it."""
    graph = {module_of(module): imported_modules(module) for module in MODULES}
    assert list(TopologicalSorter(graph).static_order())


def test_only_settings_and_processes_read_the_environment() -> None:
    """gusset's own settings come from one place; only what makes processes touches `os.environ`."""
    readers = {layer_of(m) for m in MODULES if "os.environ" in m.read_text() or "os.getenv" in m.read_text()}
    assert readers <= {"settings", "cli", "runtime", "serving", "ray"}


def test_only_the_envelope_and_the_keyring_touch_ciphers() -> None:
    """Cryptography can be reviewed by reading few files."""
    users = {str(m.relative_to(ROOT)) for m in MODULES if "cryptography" in m.read_text()}
    assert users <= {
        "vault/crypto/envelope.py",
        "vault/crypto/keyring.py",
        "vault/crypto/public_keys.py",
        "vault/crypto/root_key.py",
    }


def test_values_leave_in_few_places() -> None:
    """Every file that calls `reveal` is known: a new one is a decision, not an accident."""
    users = {str(m.relative_to(ROOT)) for m in MODULES if ".reveal()" in m.read_text()}
    assert users <= REVEALERS


REVEALERS = {
    "agent/folder.py",  # into files in memory
    "client/exchanged_token.py",  # to know which token the manager has refused
    "client/manager_client.py",  # an API key or token, to the manager
    "client/registration.py",  # to tell a token from a person's key
    "client/remote_rotations.py",  # a provider's new credential, to the manager
    "client/remote_secrets.py",  # values that people set, to the manager
    "cli/account.py",  # between this process and the one that has the key for the manager
    "cli/provided_secrets.py",  # into the environment of a command, where a person asked for it by name
    "cli/environment.py",  # logins of package indexes, into files in memory for the installation
    "cli/predict.py",  # a caller's key, into the request to the model
    "cli/secret.py",  # by `reveal` to a person at a terminal
    "cli/value_warnings.py",  # to the doctor
    "secrets/dotenv.py",  # into the .env lines of `gusset secret export`, which a person confirms
    "cli/manager.py",  # a key, shown once
    "containers/build/build_plan.py",  # into files in memory for the commands of a build
    "containers/build/builder.py",  # into a keyed digest, by which the engine's cache notices a change
    "containers/secrets/memory_folder.py",  # into files in memory
    "containers/secrets/sidecar.py",  # into files in the memory of an engine elsewhere
    "containers/downloads.py",  # to the process that downloads, over an inherited pipe
    "containers/engine/registry.py",  # into the request to pull an image, for its registry
    "images/value_search.py",  # to know what must not be in an image
    "vault/crypto/root_key.py",  # a passphrase, into the derivation of the key that it stands for
    "manager/api/handlers.py",  # a key or a link, shown once
    "manager/api/secret_handlers.py",  # to the value doctor
    "ray/secrets.py",  # to the process that downloads
    "rotation/contract.py",  # a new credential, to the provider's program that made it, to be verified
    "manager/pages/responder.py",  # a new session's token, into its cookie
    "manager/pages/secret_pages.py",  # to the doctor
    "manager/pages/api_key_pages.py",  # a key, shown once
    "manager/pages/people_pages.py",  # a link, shown once
    "manager/identity/json_web_token.py",  # a workload's token, to be verified
    "manager/identity/token_route.py",  # a short-lived token, to its deployment
    "manager/live/delivery.py",  # to a deployment
    "manager/read_routes.py",  # to a deployment, by other tools
    "runtime/caller_auth.py",  # callers' keys, to be hashed
    "runtime/supervision.py",  # to the value doctor
    "secrets/mapping.py",  # to the model
    "secrets/masking.py",  # to know what must not be printed
    "serving/supervisor/secret_distributor.py",  # to the worker, and to the process that downloads
    "settings.py",  # an API key, into the settings file of its owner
    "vault/services/identity_tokens.py",  # a short-lived token, to be compared
    "vault/services/access_keys.py",  # a key, to be compared by its hash
    "vault/crypto/passwords.py",  # a password, to be hashed
    "vault/services/provider_rotations.py",  # to check the length
    "vault/services/secret_rows.py",  # to be sealed
    "vault/services/secret_writer.py",  # to check the length
}
