"""`gusset serve DIR`: joins a model folder, the source of its secrets, and a supervisor."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gusset.cli.account import Account
from gusset.cli.app import App, Command, pass_app
from gusset.cli.forked import ForkedTask
from gusset.cli.sources import open_source
from gusset.errors import ConfigInvalid, HostError, UsageError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.errors import Problem
    from gusset.package.config import Package
    from gusset.runtime.declared_secrets import DeclaringDeployment
    from gusset.secrets.sources.source import SecretSource
    from gusset.serving.deployment import ModelDeployment

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """What both kinds of deployments are served with."""

    host: str
    port: int
    secrets_dir: Path | None
    manager: str | None
    allow_missing: frozenset[str]
    debuggable: bool


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8080,
    show_default=True,
    help="Port to listen on; 0 takes a free one.",
)
@click.option(
    "--secrets-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read secrets from the files of this folder.",
)
@click.option(
    "--manager",
    metavar="URL",
    help="Read secrets from this manager, with the key of `gusset login`.",
)
@click.option(
    "--allow-missing",
    multiple=True,
    metavar="NAME|all",
    help="Start without this secret (repeatable).",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="Number of processes, each with its own copy of the model.",
)
@click.option("--reload", is_flag=True, help="Restart the model when a file of the folder changes.")
@click.option(
    "--network",
    type=click.Choice(["bridge", "host"]),
    default="bridge",
    show_default=True,
    help="Network of a custom image's container.",
)
@click.option("--gpus", type=int, help="Number of GPUs for a custom image's container; -1 for all.")
@click.option(
    "--debuggable",
    is_flag=True,
    help="Allow debuggers and profilers to attach; they can then read the values of secrets.",
)
@pass_app
def serve(
    app: App,
    /,
    *,
    folder: Path,
    allow_missing: Sequence[str],
    workers: int,
    reload: bool,
    network: str,
    gpus: int | None,
    **options: Any,
) -> int:
    """Serve a model folder; its code gets the secrets that config.yaml declares.

    Runs until Ctrl-C or SIGTERM, and then finishes the requests in flight. A new
    value of a secret reaches the running model within a second.
    """
    for name in allow_missing:
        check_name(name)
    if sys.platform != "linux":
        raise _not_on_this_system(folder, options["port"])
    settings = ServeOptions(allow_missing=frozenset(allow_missing), **options)
    if settings.manager is not None and settings.secrets_dir is not None:
        raise UsageError("--manager and --secrets-dir exclude each other", hint="leave one of them out")
    if package := _load_image(folder):
        if workers > 1 or reload:
            raise UsageError("--workers and --reload are for Python models, this is a custom image")
        return _serve_image(app, package, settings, host_network=network == "host", gpus=gpus)
    if network != "bridge" or gpus is not None:
        raise UsageError("--network and --gpus are for custom images, this is a Python model")
    return _serve_model(app, folder, settings, workers=workers, reload=reload)


def _not_on_this_system(folder: Path, port: int) -> HostError:
    """The error of systems that cannot serve, with a command that serves in a container there."""
    command = [
        "podman run --rm -it",
        f"-p 127.0.0.1:{port}:{port}",
        f"-v {shlex.quote(str(folder.resolve()))}:/model:ro",
        "-v gusset:/data",
        f"gusset serve /model --host 0.0.0.0 --port {port}",
    ]
    return HostError(
        "serve needs Linux: other systems cannot protect a model's secrets in memory",
        hint="run it in a container, from the image that packaging/Containerfile builds:\n  "
        + " ".join(command),
    )


def _serve_model(app: App, folder: Path, options: ServeOptions, *, workers: int, reload: bool) -> int:
    # In a process of its own, while this one imports the supervisor and opens the vault.
    checking = ForkedTask(partial(_check_model, folder))
    account = _start_account(app, options)
    from gusset.serving.supervisor.supervisor import serve as supervise

    @contextmanager
    def prepare() -> Iterator[tuple[ModelDeployment, SecretSource]]:
        model = checking.result()
        app.output.problems(model.warnings)
        with open_deployment(app, model.deployment, options, account) as source:
            yield model.deployment, source

    def announce(address: str) -> None:
        model = checking.result()
        _announce(app, address, model.deployment.name, model.example)

    return supervise(
        prepare,
        host=options.host,
        port=options.port,
        allow_missing=options.allow_missing,
        debuggable=options.debuggable,
        announce=announce,
        output_fd=_output_fd(app),
        workers=workers,
        reread=(lambda: _check_model(folder).deployment) if reload else None,
    )


def _serve_image(
    app: App, package: Package, options: ServeOptions, *, host_network: bool, gpus: int | None
) -> int:
    from gusset.containers.image_deployment import ImageDeployment
    from gusset.containers.image_supervisor import serve_image
    from gusset.package.config import unsupported_for_serving

    if refused := unsupported_for_serving(package):
        raise ConfigInvalid(f"{package.folder} cannot be served", problems=[*package.warnings, *refused])
    deployment = ImageDeployment.from_package(package)
    app.output.problems(package.warnings)
    account = _start_account(app, options)
    login_names = deployment.login.declared if deployment.login else ()

    @contextmanager
    def prepare() -> Iterator[tuple[ImageDeployment, SecretSource]]:
        with open_deployment(app, deployment, options, account, other_names=login_names) as source:
            yield deployment, source

    return serve_image(
        prepare,
        host=options.host,
        port=options.port,
        allow_missing=options.allow_missing,
        debuggable=options.debuggable,
        announce=lambda address: _announce(app, address, deployment.name, _example_input(package)),
        output_fd=_output_fd(app),
        docker_host=app.settings.docker_host,
        host_network=host_network,
        gpus=gpus,
    )


def _start_account(app: App, options: ServeOptions) -> Account | None:
    return Account.start(app, secrets_dir=options.secrets_dir, manager=options.manager)


@contextmanager
def open_deployment(
    app: App,
    deployment: DeclaringDeployment,
    options: ServeOptions,
    account: Account | None,
    *,
    other_names: Collection[str] = (),
) -> Iterator[SecretSource]:
    """The source of a deployment's secrets, after offering to ask for those that are missing.

    It is also read for `other_names`. The account is closed: nothing that serves has its key.
    """
    with open_source(
        app,
        secrets_dir=options.secrets_dir,
        reader=deployment.name,
        names={*deployment.declared, *other_names},
        account=account,
    ) as source:
        if options.secrets_dir is None and options.manager is None and not app.output.json:
            _prompt_for_missing(app, deployment, source, options.allow_missing, account)
        if account is not None:
            account.close()
        yield source


def _load_image(folder: Path) -> Package | None:
    """The folder of a custom image, read and checked; None if it has a Python model."""
    try:
        if b"docker_server" not in (folder / CONFIG_FILE).read_bytes():
            return None  # spares the import of pydantic: a model's config is read in another process
    except OSError:
        return None
    from gusset.package.config import load_package

    package = load_package(folder)
    return package if package.is_image else None


class CheckedModel(NamedTuple):
    """A model folder that can be served. `example` is an input to try it with, as JSON."""

    deployment: ModelDeployment
    warnings: tuple[Problem, ...]
    example: str


def _check_model(folder: Path) -> CheckedModel:
    """Read and check the model folder.

    Raises:
        ConfigInvalid: it has errors, or needs what gusset does not support.
    """
    from gusset.package.check import code_problems, code_warnings
    from gusset.package.config import load_package, unsupported_for_serving
    from gusset.serving.deployment import ModelDeployment

    package = load_package(folder)
    refused = unsupported_for_serving(package) or [p for p in code_problems(package) if not p.warning]
    if refused:
        raise ConfigInvalid(f"{folder} cannot be served", problems=[*package.warnings, *refused])
    warnings = (*package.warnings, *code_warnings(package))
    return CheckedModel(ModelDeployment.from_package(package), warnings, _example_input(package))


def _example_input(package: Package) -> str:
    return json.dumps(package.config.model_metadata.get("example_model_input", {}), default=str)


def _output_fd(app: App) -> int:
    """Where the model's output goes: with `--output json`, standard output has only the JSON document."""
    return sys.stderr.fileno() if app.output.json else sys.stdout.fileno()


def _announce(app: App, address: str, name: str, example: str) -> None:
    """Print the address, with a command that calls the model on its example input."""
    if app.output.json:
        app.output.result({"name": name, "address": address})
        sys.stdout.flush()
    else:
        call = f"curl -d {shlex.quote(example)} {address}/v1/models/model:predict"
        app.output.note(f"{name} is ready at {address}\n  {call}")


def _prompt_for_missing(
    app: App,
    deployment: DeclaringDeployment,
    source: SecretSource,
    allow_missing: Collection[str],
    account: Account | None,
) -> None:
    """At a terminal, prompt for the declared secrets that have no value, and store what is typed."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or "all" in allow_missing:
        return
    wanted = [s.name for s in deployment.secrets if not s.optional and s.name not in allow_missing]
    missing = [name for name in wanted if name not in source.read(wanted)] if wanted else []
    if not missing:
        return
    app.output.note(f"{deployment.name} declares secrets that have no value yet (press Enter to skip one)")
    typed = {name: value for name in missing if (value := _prompt_for(app, name))}
    if account is not None:
        account.set_secrets(typed)
        return
    with app.vault() as vault:
        for name, value in typed.items():
            vault.secrets.writer.set(name, value, actor=app.actor)


def _prompt_for(app: App, name: str) -> SecretValue | None:
    text: str = click.prompt(f"Value of {name}", hide_input=True, default="", show_default=False, err=True)
    if not text:
        return None
    app.held.append(value := SecretValue(text.encode("utf-8", "surrogateescape")))
    return value
