"""From a model folder to an application of Ray Serve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ray.serve import Application

import ray
from gusset.errors import CheckFailed, ConfigInvalid, Problem, UsageError
from gusset.package.check import check_package
from gusset.package.config import Package, load_package
from gusset.portable import real_path
from gusset.ray.environment import python_problems, requirements_for, resources_of
from gusset.ray.folders import store_folder
from gusset.ray.plan import FolderOnNodes, ReplicaPlan, SecretAccess, StoredFolder
from gusset.ray.replica import ModelReplica
from gusset.secrets.credentials import find_credentials
from gusset.secrets.name import check_name
from gusset.serving.deployment import ModelDeployment
from gusset.weights.plan import find_problems
from ray import serve

RayEnv = Literal["auto", "current"]

_PROBE_REQUESTS = 4  # that a replica takes in addition to those that `predict` works on: probes, metrics
_RETRIES = 3  # starts of a replica that fail, until Ray gives up: each has taken as long as its `load`


def application(
    folder: Path | str,
    *,
    name: str | None = None,
    manager: str | None = None,
    token_file: str | None = None,
    identity_token_file: str | None = None,
    secrets_dir: str | None = None,
    manager_ca: str | None = None,
    insecure_http: bool = False,
    allow_missing: Sequence[str] = (),
    mask_responses: bool = False,
    env: RayEnv = "auto",
    on_nodes: bool = False,
    ray_actor_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Application:
    """A Ray Serve application that serves the model folder; pass it to `serve.run`.

    `name` is the deployment's, by which the manager knows it; None: the model's name.

    Each replica reads its secrets itself. `manager` is the manager's address, or several with commas
    between them; `token_file`, `identity_token_file`, `secrets_dir` and `manager_ca` are paths on
    the nodes. What is
    left out is taken from the environment of each node; see `SecretAccess`. Values are never passed.

    The folder is put into Ray's control store, unless it is `on_nodes` at the same path. Ray installs
    its requirements for each replica, unless `env` is "current".
    `ray_actor_options` and `options`, such as `num_replicas` and `autoscaling_config`, are those of
    `serve.deployment`, and replace what config.yaml says.

    Connects to Ray as `serve.run` does if this process is not connected yet, unless the folder is `on_nodes`.

    Raises:
        ConfigInvalid: the folder cannot be served, or Ray cannot install what it needs.
        CheckFailed: the folder contains a credential, or its code cannot be served.
        UsageError: an option is wrong, or contains a credential.
        HostError: the folder is too large, or cannot be read.
    """
    package = _load(Path(folder))
    deployment = ModelDeployment.from_package(package)
    name = name or deployment.name
    access = SecretAccess(
        manager=manager,
        token_file=token_file,
        identity_token_file=identity_token_file,
        secrets_dir=secrets_dir,
        manager_ca=manager_ca,
        insecure_http=insecure_http,
    )
    missing = tuple(name if name == "all" else check_name(name) for name in allow_missing)
    _refuse_credentials(manager, ray_actor_options)
    actor_options = _actor_options(package, env, ray_actor_options or {})
    plan = ReplicaPlan(
        name=name,
        folder=FolderOnNodes(path=str(deployment.folder)) if on_nodes else _store(deployment.folder, name),
        access=access,
        allow_missing=missing,
        masks_responses=mask_responses,
    )
    chosen = {
        "max_ongoing_requests": deployment.predict_concurrency + _PROBE_REQUESTS,
        "max_constructor_retry_count": _RETRIES,
        **options,
        "ray_actor_options": actor_options,
    }
    return serve.deployment(name=name, **chosen)(ModelReplica).bind(plan)


def _store(folder: Path, name: str) -> StoredFolder:
    if not ray.is_initialized():
        ray.init()
    return store_folder(folder, name)


def _load(folder: Path) -> Package:
    package = load_package(folder)
    if package.is_image:
        raise ConfigInvalid(
            f"{folder} is a custom image, which Ray does not run",
            hint="deploy it on Kubernetes: gusset deploy kubernetes",
        )
    problems = check_package(package, has_own_environment=True)
    problems += [*find_problems(package), *_outside(package)]
    if any(not problem.warning for problem in problems):
        raise CheckFailed(f"{folder} cannot be served", problems=problems)
    return package


def _outside(package: Package) -> Iterator[Problem]:
    """An error for each folder with code that would not reach the nodes."""
    problems = package.problem_collector()
    for index, name in enumerate(package.config.external_package_dirs):
        path = real_path(package.folder / name)
        if not path.is_relative_to(package.folder.resolve()):
            problems.add(
                ("external_package_dirs", index),
                "this folder is outside of the model's folder, and does not reach the nodes",
                "put its code into `packages/`",
                code="outside",
            )
    yield from problems.found


def _actor_options(package: Package, env: RayEnv, given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of Ray's actors: those of config.yaml, replaced by those given."""
    runtime_env = dict(given.get("runtime_env") or {})
    if env == "auto" and (lines := requirements_for(package)):
        runtime_env.setdefault("uv", lines)
    elif problems := list(python_problems(package)):
        raise ConfigInvalid(f"{package.folder} cannot be served by this cluster", problems=problems)
    options = {**resources_of(package), **given}
    return options | {"runtime_env": runtime_env} if runtime_env else options


def _refuse_credentials(manager: str | None, actor_options: Mapping[str, Any] | None) -> None:
    """Refuse what Ray would store and show."""
    if "@" in (manager or ""):
        raise UsageError("the manager's address contains a login", hint="name a file: token_file=PATH")
    variables = ((actor_options or {}).get("runtime_env") or {}).get("env_vars") or {}
    for name, text in variables.items():
        if found := find_credentials(str(text)):
            raise UsageError(
                f"the variable {name} in runtime_env looks like {found[0].kind}, which Ray would store",
                hint="store it with `gusset secret set`, and declare its name under `secrets:`",
            )


def build(args: Mapping[str, Any]) -> Application:
    """`application`, for the config files of Ray Serve: `import_path: gusset.ray:build`, and `args`."""
    return application(**args)
