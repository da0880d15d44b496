"""`gusset serve DIR`: serves a model folder or image with secrets from a source."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import gc
import json
import shlex
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from gusset.addresses import is_loopback, is_wildcard
from gusset.cli.account import Account
from gusset.cli.app import App, Command, check_exclusive, identity_token_option, pass_app
from gusset.cli.environment import (
    EnvironmentOptions,
    Environments,
    chosen,
    decide_for,
    environment_options,
    login_names,
)
from gusset.cli.forked import ForkedTask
from gusset.cli.needs_linux import (
    docker_run,
    mount,
    publish,
    require_linux,
    run_in_container,
    source_in_container,
)
from gusset.cli.prompts import prompt_for_value
from gusset.errors import ConfigInvalid, UsageError
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.environments.plan import EnvironmentPlan, Mode
    from gusset.errors import Problem
    from gusset.package.config import Package
    from gusset.runtime.declared_secrets import DeclaringDeployment
    from gusset.runtime.supervision import ServingOptions
    from gusset.runtime.tls import TlsFiles
    from gusset.secrets.sources.source import SecretSource
    from gusset.serving.deployment import ModelDeployment

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options of the command."""

    host: str
    port: int
    secrets_dir: Path | None
    manager: str | None
    allow_missing: frozenset[str]
    callers: tuple[str, ...]
    tls: TlsFiles | None
    debuggable: bool
    allowed_hosts: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    quiet_stop: bool
    # For models
    workers: int
    reload: bool
    mask_responses: bool
    env: Mode
    python: str
    model_python: str | None
    # For custom images
    network: str
    gpus: int | None

    def check_combination(self, *, is_image: bool) -> None:
        """Check that the options can be used together, and for a model or a custom image.

        Raises:
            UsageError: they cannot.
        """
        if is_image and (self.workers > 1 or self.reload or self.mask_responses or self.env != "auto"):
            raise UsageError(
                "--workers, --reload, --mask-responses and --env are for Python models, "
                "this is a custom image"
            )
        if not is_image and (self.network != "bridge" or self.gpus is not None):
            raise UsageError("--network and --gpus are for custom images, this is a Python model")

    def for_supervisor(self, app: App, announce: Callable[[str], object]) -> ServingOptions:
        """What the supervisors of models and of images have in common.

        Raises:
            UsageError: an allowed host or origin is malformed.
        """
        from gusset.runtime.browser_rules import BrowserRules
        from gusset.runtime.supervision import ServingOptions

        return ServingOptions(
            cache=app.settings.cache,
            host=self.host,
            port=self.port,
            allow_missing=self.allow_missing,
            debuggable=self.debuggable,
            announce=announce,
            # With `--output json`, standard output is for JSON only.
            output_fd=sys.stderr.fileno() if app.output.json else sys.stdout.fileno(),
            browser_rules=BrowserRules.make(
                self.host, hosts=self.allowed_hosts, origins=self.allowed_origins
            ),
            tls=self.tls,
            quiet_stop=self.quiet_stop,
        )


_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


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
    metavar="URL[,URL]",
    help="Read secrets from this manager, with the key of `gusset login`.",
)
@click.option(
    "--allow-missing",
    multiple=True,
    metavar="NAME|all",
    help="Start even if this secret has no value (repeatable).",
)
@click.option(
    "--callers",
    multiple=True,
    metavar="NAME[,NAME]",
    help="Serve only callers who present the value of one of these secrets as a key (repeatable).",
)
@click.option(
    "--tls-certificate", "certificate", type=_FILE, help="Serve HTTPS with this certificate chain (PEM)."
)
@click.option("--tls-key", "key", type=_FILE, help="Private key of the certificate (PEM).")
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
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    metavar="NAME",
    help="Serve this Host too, besides this machine's own names (repeatable).",
)
@click.option(
    "--allow-origin",
    "allowed_origins",
    multiple=True,
    metavar="ORIGIN",
    help="Let web pages of this origin send requests and read responses (repeatable).",
)
@environment_options
@click.option("--gpus", type=int, help="Number of GPUs for a custom image's container; -1 for all.")
@click.option(
    "--mask-responses",
    is_flag=True,
    help="Mask secrets in the model's results too, not only in its errors and output.",
)
@click.option(
    "--debuggable",
    is_flag=True,
    help="Allow debuggers and profilers to attach; they can then read the values of secrets.",
)
@click.option("--model-python", hidden=True)  # for images of `gusset build`: it has all that the model needs
@click.option("--quiet-stop", is_flag=True, hidden=True)  # for commands that serve a model for one purpose
@identity_token_option
@pass_app
def serve(
    app: App,
    /,
    *,
    folder: Path,
    allow_missing: Sequence[str],
    callers: Sequence[str],
    certificate: Path | None,
    key: Path | None,
    **options: Any,
) -> int:
    """Serve a model folder; its code gets the secrets that config.yaml declares.

    Runs until Ctrl-C or SIGTERM, and then finishes the requests in flight. A new
    value of a secret reaches the running model within a second.
    """
    for name in allow_missing:
        check_name(name)
    settings = ServeOptions(
        allow_missing=frozenset(allow_missing),
        callers=_names(callers),
        tls=_tls_files(certificate, key),
        **options,
    )
    check_exclusive(manager=settings.manager, secrets_dir=settings.secrets_dir)
    image = _load_image(folder)
    require_linux("serve", lambda: _on_other_systems(app, folder, image, settings))
    settings.check_combination(is_image=image is not None)
    if image is not None:
        return _serve_image(app, image, settings)
    return _serve_model(app, folder, settings)


def _names(given: Sequence[str]) -> tuple[str, ...]:
    """The names in texts of the form NAME[,NAME]."""
    return tuple(check_name(name.strip()) for text in given for name in text.split(","))


def _tls_files(certificate: Path | None, key: Path | None) -> TlsFiles | None:
    if certificate is None and key is None:
        return None  # without importing ssl
    from gusset.runtime.tls import TlsFiles

    return TlsFiles.given(certificate, key)


_PORT_IN_CONTAINER = 8080  # when the engine picks the one outside


def _on_other_systems(app: App, folder: Path, image: Package | None, options: ServeOptions) -> str:
    """The hint to serve a Python model in a container, with the same options."""
    if image is not None:
        return "serve a custom image from Linux, on the machine where its container engine runs"
    source = source_in_container(app, options.secrets_dir, options.manager)
    port = options.port or _PORT_IN_CONTAINER
    mounts = mount(folder, "/model")
    tls_arguments: tuple[str, ...] = ()
    if options.tls is not None:
        mounts += mount(options.tls.certificate, "/tls/certificate.pem")
        mounts += mount(options.tls.key, "/tls/key.pem")
        tls_arguments = ("--tls-certificate", "/tls/certificate.pem", "--tls-key", "/tls/key.pem")
    command = docker_run(
        [*publish(options.host, options.port, port), *mounts, *source.options],
        *("serve", "/model", "--host", "0.0.0.0", "--port", str(port)),  # noqa: S104  # inside the container
        *source.arguments,
        *tls_arguments,
        *_arguments_in_container(options),
        *(("--output", "json") if app.output.json else ()),
        terminal=not app.output.json,
    )
    return run_in_container(command, source.before)


def _arguments_in_container(options: ServeOptions) -> list[str]:
    """The options, as arguments, that are the same in a container."""
    flags = [word for name in sorted(options.allow_missing) for word in ("--allow-missing", name)]
    # In the container it does not listen on loopback, so the hosts that it serves are named.
    hosts = ("localhost", *options.allowed_hosts) if is_loopback(options.host) else options.allowed_hosts
    flags += [word for name in hosts for word in ("--allowed-host", name)]
    flags += [word for origin in options.allowed_origins for word in ("--allow-origin", origin)]
    flags += ["--callers", ",".join(options.callers)] if options.callers else []
    flags += ["--workers", str(options.workers)] if options.workers > 1 else []
    flags += ["--reload"] if options.reload else []
    flags += ["--mask-responses"] if options.mask_responses else []
    flags += ["--env", options.env] if options.env != "auto" else []
    flags += ["--python", options.python] if options.python != "nearest" else []
    flags += ["--debuggable"] if options.debuggable else []
    return flags


def _serve_model(app: App, folder: Path, options: ServeOptions) -> int:
    gc.disable()  # until `open`: looking for garbage would take a twentieth of the start
    served = ServedModel.start(app, folder, options)
    from gusset.serving.supervisor.supervisor import serve as supervise

    return supervise(
        served.open,
        options.for_supervisor(app, served.announce),
        workers=options.workers,
        reread=served.reread if options.reload else None,
        mask_responses=options.mask_responses,
        likely_python=served.likely_python(),
        not_ready_reason=lambda: served.not_ready_reason,
    )


class ServedModel:
    """The model folder of one `gusset serve`: checked, opened, and read again when it changes."""

    def __init__(
        self,
        app: App,
        folder: Path,
        options: ServeOptions,
        checking: ForkedTask[CheckedModel],
        *,
        account: Account | None,
    ) -> None:
        self._app = app
        self._folder = folder
        self._options = options
        self._checking = checking
        self._account = account
        self._environments = Environments(app)
        self._source: SecretSource | None = None
        self.not_ready_reason = "It is starting."

    @classmethod
    def start(cls, app: App, folder: Path, options: ServeOptions) -> ServedModel:
        """Check the folder in another process, while this one imports the supervisor and opens the vault."""
        checking = ForkedTask.start(partial(_check_model, folder, options))
        return cls(app, folder, options, checking, account=_start_account(app, options))

    def likely_python(self) -> str:
        """The Python that the model will probably run on."""
        options = self._options
        return options.model_python or self._environments.guess(self._folder, _environment_options(options))

    @contextmanager
    def open(self) -> Iterator[tuple[ModelDeployment, SecretSource]]:
        """The deployment, once it is checked and its environment is made, and the source of its secrets."""
        model = self._checking.result()
        self._app.output.problems(model.warnings)
        _warn_if_open(self._app, model.deployment, self._options)
        other_names = login_names(model.environment)
        with open_deployment(
            self._app, model.deployment, self._options, self._account, other_names=other_names
        ) as source:
            self._source = source
            deployment = self._with_environment(model, source)
            gc.freeze()
            gc.enable()
            yield deployment, source

    def reread(self) -> ModelDeployment:
        """The deployment as the folder is now, while `open` is in use."""
        assert self._source is not None  # noqa: S101  # set by `open`
        return self._with_environment(_check_model(self._folder, self._options), self._source)

    def announce(self, address: str) -> None:
        """Print that the model is ready at this address."""
        model = self._checking.result()
        _print_address(self._app, address, model.deployment, self._options, model.example)

    def _with_environment(self, model: CheckedModel, source: SecretSource) -> ModelDeployment:
        """The deployment on the Python of its environment, which is made if necessary."""
        if self._options.model_python is not None:
            return replace(model.deployment, python=self._options.model_python)
        from gusset.runtime.declared_secrets import read_secrets

        def before_making() -> None:
            read_secrets(model.deployment, source, self._options.allow_missing)
            self.not_ready_reason = "Its Python environment is being made."

        python = self._environments.use(model.environment, self._folder, source, before_making=before_making)
        return replace(model.deployment, python=python)


def _serve_image(app: App, package: Package, options: ServeOptions) -> int:
    from gusset.containers.image_deployment import ImageDeployment
    from gusset.containers.image_supervisor import serve_image
    from gusset.package.config import unsupported_for_serving
    from gusset.weights.plan import find_problems

    if refused := [*unsupported_for_serving(package), *find_problems(package)]:
        raise ConfigInvalid(f"{package.folder} cannot be served", problems=[*package.warnings, *refused])
    deployment = ImageDeployment.from_package(package.with_callers(options.callers))
    example = None if deployment.is_grpc else _example_input(package)
    app.output.problems(package.warnings)
    _warn_if_open(app, deployment, options)
    account = _start_account(app, options)
    logins = deployment.login.declared if deployment.login else ()
    other_names = (*logins, *deployment.build_secrets.declared)

    @contextmanager
    def prepare() -> Iterator[tuple[ImageDeployment, SecretSource]]:
        with open_deployment(app, deployment, options, account, other_names=other_names) as source:
            yield deployment, source

    return serve_image(
        prepare,
        options.for_supervisor(
            app, lambda address: _print_address(app, address, deployment, options, example)
        ),
        docker_host=app.settings.docker_host,
        host_network=options.network == "host",
        gpus=options.gpus,
    )


def _warn_if_open(app: App, deployment: DeclaringDeployment, options: ServeOptions) -> None:
    if not deployment.callers and not is_loopback(options.host):
        app.output.warn(
            f"everyone who can connect to {options.host} can use this model; "
            "--callers NAME serves only those who present a key"
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
    """The source of a deployment's secrets. At a terminal, prompts for those that are missing.

    It is also read for `other_names`. The account is closed: nothing that serves has its key.
    """
    from gusset.cli.sources import open_source
    from gusset.runtime.declared_secrets import names_to_read

    with open_source(
        app,
        secrets_dir=options.secrets_dir,
        reader=deployment.name,
        names={*names_to_read(deployment), *other_names},
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
            return None  # without importing pydantic: a model's config is read in another process
    except OSError:
        return None
    from gusset.package.config import load_package

    package = load_package(folder)
    return package if package.is_image else None


class CheckedModel(NamedTuple):
    """A model folder that can be served. `example` is an input to try it with, as JSON.

    `environment` is what its environment is made from, None if it runs on this Python.
    """

    deployment: ModelDeployment
    warnings: tuple[Problem, ...]
    example: str
    environment: EnvironmentPlan | None


def _environment_options(options: ServeOptions) -> EnvironmentOptions:
    return chosen(options.env, options.python)


def _check_model(folder: Path, options: ServeOptions) -> CheckedModel:
    """Read and check the model folder.

    Raises:
        ConfigInvalid: it has errors, or needs features that gusset does not support.
    """
    from gusset.package.check import code_problems, code_warnings
    from gusset.package.config import load_package, unsupported_for_serving
    from gusset.serving.deployment import ModelDeployment
    from gusset.weights.plan import find_problems

    package = load_package(folder).with_callers(options.callers)
    refused = [*unsupported_for_serving(package), *find_problems(package)]
    refused = refused or [p for p in code_problems(package) if not p.warning]
    if refused:
        raise ConfigInvalid(f"{folder} cannot be served", problems=[*package.warnings, *refused])
    decision = None if options.model_python else decide_for(package, _environment_options(options))
    found = decision.problems if decision else ()
    warnings = (*package.warnings, *code_warnings(package), *found)
    if any(not problem.warning for problem in found):
        raise ConfigInvalid(f"{folder} cannot be served", problems=warnings)
    return CheckedModel(
        ModelDeployment.from_package(package),
        warnings,
        _example_input(package),
        decision.plan if decision else None,
    )


def _example_input(package: Package) -> str:
    return json.dumps(package.config.model_metadata.get("example_model_input", {}), default=str)


def _print_address(
    app: App, address: str, deployment: DeclaringDeployment, options: ServeOptions, example: str | None
) -> None:
    """Print the address, with a command that calls the model with `example`, which is None for gRPC."""
    name = deployment.name
    if app.output.json:
        app.output.result({"name": name, "address": address})
        sys.stdout.flush()
    else:
        key = '-H "Authorization: Api-Key $KEY" ' if deployment.callers else ""
        if example is None:
            call = f"gRPC: {address.rpartition('/')[2]}"
        else:
            call = f"curl {key}-d {shlex.quote(example)} {address}/v1/models/model:predict"
        app.output.note(f"{name} is ready at {address}\n  {call}")
        if is_wildcard(options.host):
            app.output.note("it listens on all addresses of this machine")


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
    declared = (*deployment.secrets, *deployment.callers)
    wanted = [s.name for s in declared if not s.optional and s.name not in allow_missing]
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
    data = prompt_for_value(name)
    if not data:
        return None
    app.held.append(value := SecretValue(data))
    return value
