"""`gusset serve DIR`: joins a model folder, its secrets and the supervisor."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.forked import ForkedTask
from gusset.cli.sources import open_source
from gusset.errors import ConfigInvalid, UsageError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.errors import Problem
    from gusset.package.config import Package
    from gusset.runtime.declared_secrets import DeclaringDeployment
    from gusset.secrets.sources.source import SecretSource
    from gusset.serving.deployment import ModelDeployment

CONFIG_FILE = "config.yaml"


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--host", default="127.0.0.1", show_default=True, help="The address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any free one."
)
@click.option(
    "--secrets-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read secrets from the files of this folder instead of the vault.",
)
@click.option(
    "--manager", metavar="URL", help="Read secrets from this manager, as the one that is logged in to it."
)
@click.option(
    "--allow-missing", multiple=True, metavar="NAME|all", help="Start without this secret (repeatable)."
)
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    help="How many processes run the model, each its own copy.",
)
@click.option("--reload", is_flag=True, help="Serve the folder anew whenever it changes.")
@click.option(
    "--network",
    type=click.Choice(["bridge", "host"]),
    default="bridge",
    show_default=True,
    help="Of a custom image's container.",
)
@click.option("--gpus", type=int, help="Pass so many GPUs on to a custom image; -1: all.")
@click.option(
    "--debuggable", is_flag=True, help="Let debuggers and profilers attach; they can then read values."
)
@pass_app
def serve(
    app: App,
    folder: Path,
    host: str,
    port: int,
    secrets_dir: Path | None,
    manager: str | None,
    allow_missing: Sequence[str],
    workers: int,
    reload: bool,
    network: str,
    gpus: int | None,
    debuggable: bool,
) -> int:
    """Serve a model folder. Its code gets the secrets that config.yaml declares.

    Runs until Ctrl-C or SIGTERM, which let requests under way finish. A secret
    set meanwhile, by `gusset secret set`, reaches the running model at once.
    """
    for name in allow_missing:
        check_name(name)
    if manager is not None and secrets_dir is not None:
        raise UsageError("secrets come from a manager or from a folder, not from both")
    if package := _image(folder):
        if workers > 1 or reload:
            raise UsageError("--workers and --reload are for Python models, this is a custom image")
        return _serve_image(
            app,
            package,
            secrets_dir=secrets_dir,
            manager=manager,
            allow_missing=allow_missing,
            host=host,
            port=port,
            host_network=network == "host",
            gpus=gpus,
            debuggable=debuggable,
        )
    if network != "bridge" or gpus is not None:
        raise UsageError("--network and --gpus are for custom images, this is a Python model")
    preparation = ForkedTask(partial(_prepared, folder))  # beside the imports below and the vault's
    from gusset.serving.supervisor.supervisor import serve

    ready: dict[str, Any] = {}

    @contextmanager
    def prepare() -> Iterator[tuple[ModelDeployment, SecretSource]]:
        deployment, warnings, ready["example"] = preparation.result()
        ready["name"] = deployment.name
        app.output.problems(warnings)
        with open_source(
            app,
            secrets_dir=secrets_dir,
            manager=manager,
            reader=deployment.name,
            needed=bool(deployment.declared),
        ) as source:
            if secrets_dir is None and manager is None and not app.output.json:
                _offer_to_ask(app, deployment, source, allow_missing)
            yield deployment, source

    return serve(
        prepare,
        host=host,
        port=port,
        allow_missing=frozenset(allow_missing),
        debuggable=debuggable,
        announce=lambda address: _announce(app, address, **ready),
        output_fd=sys.stderr.fileno() if app.output.json else sys.stdout.fileno(),
        workers=workers,
        reread=(lambda: _prepared(folder)[0]) if reload else None,
    )


def _image(folder: Path) -> Package | None:
    """The folder of a custom image, read and checked; None when it has a Python model."""
    try:
        if b"docker_server" not in (folder / CONFIG_FILE).read_bytes():
            return None  # as most, told at a glance: whoever serves a model reads it in another process
    except OSError:
        return None
    from gusset.package.config import load_package

    package = load_package(folder)
    return package if package.is_image else None


def _serve_image(
    app: App,
    package: Package,
    *,
    secrets_dir: Path | None,
    manager: str | None,
    allow_missing: Sequence[str],
    **options: Any,
) -> int:
    """Serve a custom image; for the options see `serve_image`."""
    from gusset.containers.image_deployment import ImageDeployment
    from gusset.containers.image_supervisor import serve_image
    from gusset.package.config import unsupported_for_serving

    if refused := unsupported_for_serving(package):
        raise ConfigInvalid(f"{package.folder} cannot be served", problems=[*package.warnings, *refused])
    deployment = ImageDeployment.from_package(package)
    app.output.problems(package.warnings)

    @contextmanager
    def prepare() -> Iterator[tuple[ImageDeployment, SecretSource]]:
        with open_source(
            app,
            secrets_dir=secrets_dir,
            manager=manager,
            reader=deployment.name,
            needed=bool(deployment.declared or deployment.login),
        ) as source:
            if secrets_dir is None and manager is None and not app.output.json:
                _offer_to_ask(app, deployment, source, allow_missing)
            yield deployment, source

    return serve_image(
        prepare,
        docker_host=app.settings.docker_host,
        allow_missing=frozenset(allow_missing),
        announce=lambda address: _announce(app, address, name=deployment.name, example=_example(package)),
        output_fd=sys.stderr.fileno() if app.output.json else sys.stdout.fileno(),
        **options,
    )


def _prepared(folder: Path) -> tuple[ModelDeployment, tuple[Problem, ...], str]:
    """The deployment at `folder`, its warnings, and an input to try it with.

    Raises:
        ConfigInvalid: it is not sound, or wants what cannot be served here.
    """
    from gusset.package.check import code_problems, code_warnings
    from gusset.package.config import load_package, unsupported_for_serving
    from gusset.serving.deployment import ModelDeployment

    package = load_package(folder)
    refused = unsupported_for_serving(package) or [p for p in code_problems(package) if not p.warning]
    if refused:
        raise ConfigInvalid(f"{folder} cannot be served", problems=[*package.warnings, *refused])
    warnings = (*package.warnings, *code_warnings(package))
    return ModelDeployment.from_package(package), warnings, _example(package)


def _example(package: Package) -> str:
    return json.dumps(package.config.model_metadata.get("example_model_input", {}), default=str)


def _announce(app: App, address: str, *, name: str, example: str) -> None:
    """Say that it is ready, with a call to try: on the input that the model gives as an example."""
    if app.output.json:
        app.output.result({"name": name, "address": address})
        sys.stdout.flush()
    else:
        call = f"curl -d {shlex.quote(example)} {address}/v1/models/model:predict"
        app.output.note(f"{name} is ready at {address}\n  {call}")


def _offer_to_ask(
    app: App, deployment: DeclaringDeployment, source: SecretSource, allow_missing: Sequence[str]
) -> None:
    """At a terminal, ask for the declared secrets that nobody has yet, and store what is typed."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()) or "all" in allow_missing:
        return
    wanted = [s.name for s in deployment.secrets if not s.optional and s.name not in allow_missing]
    missing = [name for name in wanted if name not in source.read(wanted)] if wanted else []
    if not missing:
        return
    app.output.note(f"{deployment.name} declares secrets that do not exist yet (Enter leaves one out)")
    with app.secret_writer() as secrets:
        for name in missing:
            text: str = click.prompt(
                f"Value of {name}", hide_input=True, default="", show_default=False, err=True
            )
            if text:
                app.held.append(value := SecretValue(text.encode("utf-8", "surrogateescape")))
                secrets.set(name, value, actor=app.actor)
