"""`gusset build`: makes a container image of a model folder or custom image, without secrets in it."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.cli.account import Account
from gusset.cli.app import App, Command, check_exclusive, pass_app
from gusset.cli.needs_linux import require_linux
from gusset.cli.scan import print_notes
from gusset.errors import ConfigInvalid, Denied, HostError, Problem, UsageError
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.containers.build.build_plan import BuildPlan
    from gusset.containers.build.builder import BuildValues, BuiltImage
    from gusset.containers.build.image_recipe import ImageRecipe
    from gusset.containers.build.model_recipe import ModelRecipe
    from gusset.containers.build.model_requirements import IndexSettings
    from gusset.containers.build.secret_mounts import BuildSecretNames
    from gusset.containers.engine.engine import Engine
    from gusset.containers.engine.registry import Credentials, RegistryLogin
    from gusset.containers.reaper import Reaper
    from gusset.package.config import Package

_FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--tag", "tags", metavar="NAME", multiple=True, help="Name of the image; include its registry to push it."
)
@click.option("--push", is_flag=True, help="Push the image to its registry after it was searched.")
@click.option(
    "--context-only",
    metavar="FOLDER",
    type=_FOLDER,
    help="Write the Containerfile and all that it copies into this folder, and build nothing.",
)
@click.option(
    "--allow", "allowed", metavar="NAME", multiple=True, help="Accept this secret in the image (repeatable)."
)
@click.option("--secrets-dir", type=_FOLDER, help="Read build secrets from the files of this folder.")
@click.option(
    "--manager",
    metavar="URL[,URL]",
    help="Read build secrets from this manager, with the key of `gusset login`.",
)
@pass_app
def build(
    app: App,
    /,
    *,
    folder: Path,
    tags: Sequence[str],
    push: bool,
    context_only: Path | None,
    allowed: Sequence[str],
    secrets_dir: Path | None,
    manager: str | None,
) -> None:
    """Build a container image of a model folder, with Docker or Podman.

    The image has the folder, its requirements and gusset, and no secrets: mount them at /secrets, or
    name a manager. Secrets of the build (build.secret_to_path_mapping) are in memory only. The image is
    searched for their values, and is removed if it contains one.
    """
    tag = _tag(tags)
    if push and (tag is None or context_only):
        raise UsageError("--push needs the name to push to", hint="as in --tag registry.example/team/model:1")
    check_exclusive(manager=manager, secrets_dir=secrets_dir)
    require_linux("build", lambda: "build on the machine where the container engine runs")
    from gusset.containers.build.context import dangling_links

    job = _read_job(app, folder)
    app.output.problems([*job.package.warnings, *job.warnings, *dangling_links(job.plan(""))])
    if context_only:
        _write_context(app, job, context_only)
        return
    with ExitStack() as stack:
        values, credentials = _read_values(app, job, secrets_dir, manager)
        stack.enter_context(_ending_on_sigterm())
        engine, reaper = stack.enter_context(_engine(app))
        built = _build(app, engine, reaper, job, values=values, credentials=credentials, allowed=allowed)
        name = _name(app, engine, built, tag, job)
        if push:
            _push(app, engine, name, job, credentials)
    _print(app, built, name, pushed=push)


def _tag(tags: Sequence[str]) -> str | None:
    """The name that was given, if one was.

    Raises:
        UsageError: there are several, or no image can have it.
    """
    from gusset.containers.engine.registry import check_image_name

    if len(tags) > 1:
        raise UsageError("--tag was given twice", hint="give one name, and others with `docker tag`")
    for tag in tags:
        check_image_name(tag)
    return tags[0] if tags else None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """A checked folder and what is built from it. `values` are logins that URLs had, by what they are for.

    `warnings` are those of the requirements.
    """

    package: Package
    recipe: ImageRecipe | ModelRecipe
    secrets: BuildSecretNames
    login: RegistryLogin | None
    values: dict[str, SecretValue]
    warnings: Sequence[Problem] = ()

    def plan(self, user: str) -> BuildPlan:
        """The plan, on a base image that runs as `user`."""
        from gusset.containers.build.image_recipe import ImageRecipe

        return self.recipe.plan(user) if isinstance(self.recipe, ImageRecipe) else self.recipe.plan()


def _read_job(app: App, folder: Path) -> _Job:
    """Read and check the folder.

    Raises:
        ConfigInvalid: it has errors, or cannot be built.
    """
    from gusset.package.check import code_problems
    from gusset.package.config import load_package, unsupported_for_serving

    package = load_package(folder)
    refused = [*unsupported_for_serving(package), *([] if package.is_image else code_problems(package))]
    if any(not problem.warning for problem in refused):
        raise ConfigInvalid(f"{folder} cannot be built", problems=[*package.warnings, *refused])
    return _image_job(package) if package.is_image else _model_job(app, package)


def _image_job(package: Package) -> _Job:
    from gusset.containers.image_deployment import ImageDeployment

    deployment = ImageDeployment.from_package(package)
    server = package.config.docker_server
    if server is not None and server.no_build:
        raise UsageError(
            "docker_server.no_build is set: the image is run as it is", hint="remove the key to build"
        )
    return _Job(
        package=package,
        recipe=deployment.recipe,
        secrets=deployment.build_secrets,
        login=deployment.login,
        values={},
    )


def _model_job(app: App, package: Package) -> _Job:
    from gusset.cli.environment import read_request
    from gusset.containers.build.model_recipe import ModelRecipe
    from gusset.containers.build.model_requirements import Installation
    from gusset.containers.build.secret_mounts import BuildSecretNames
    from gusset.containers.engine.registry import RegistryLogin
    from gusset.runtime.environment import child_environment
    from gusset.weights.libraries import extras_of
    from gusset.weights.plan import find_problems, plan_downloads

    report = package.problem_collector()
    request = read_request(package)
    found = [*find_problems(package), *request.requirements.problems]
    if any(not problem.warning for problem in found):
        raise ConfigInvalid(f"{package.folder} cannot be built", problems=found)
    environ = child_environment()
    settings = _index_settings(environ)
    for url in Installation.unreachable(settings):
        app.output.warn(f"a build does not reach the index {url} of this machine")
    installation = Installation.make(request, settings, environ, extras_of(plan_downloads(package)))
    recipe = ModelRecipe.from_package(package, request, installation, report)
    login = RegistryLogin.from_package(package, report)
    if faults := report.sorted():
        raise ConfigInvalid(f"{package.folder} cannot be built", problems=faults)
    return _Job(
        package=package,
        recipe=recipe,
        secrets=BuildSecretNames.from_package(package, recipe.secrets.names),
        login=login,
        values=installation.login_values(),
        warnings=found,
    )


def _index_settings(environ: dict[str, str]) -> IndexSettings:
    """This machine's settings for package indexes, as far as a build can use them."""
    from gusset.cli.environment import translated_settings
    from gusset.containers.build.model_requirements import IndexSettings
    from gusset.environments.index_settings import constraint_files, identifying

    translated = translated_settings(environ)
    settings = {**environ, **translated}
    also = ("UV_INSECURE_HOST", "UV_HTTP_TIMEOUT", "UV_HTTP_RETRIES")
    certificates = Path(settings.get("SSL_CERT_FILE") or "/")
    return IndexSettings(
        variables={**identifying(settings), **{name: settings[name] for name in also if name in settings}},
        translated=frozenset(translated),
        certificates=certificates if certificates.is_file() else None,
        constraints=[line for file in constraint_files(settings) for line in _lines(file)],
    )


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UsageError(
            f"the constraints in {file} cannot be read: {reason}",
            hint="UV_CONSTRAINT or PIP_CONSTRAINT names it",
        ) from None


def _read_values(
    app: App, job: _Job, secrets_dir: Path | None, manager: str | None
) -> tuple[dict[str, SecretValue], Credentials | None]:
    """The values that the build is given, and the login to the registry.

    Raises:
        SecretsMissing: it names those that have no value.
        Denied, Unreachable: as raised by the source.
    """
    from gusset.cli.sources import open_source

    app.hold_values()
    logins = job.login.declared if job.login else ()
    names = {*job.secrets.declared, *logins}
    account = Account.start(app, secrets_dir=secrets_dir, manager=manager) if names else None
    reader = job.recipe.name
    with open_source(app, secrets_dir=secrets_dir, reader=reader, names=names, account=account) as source:
        if account is not None:
            account.close()
        values = job.secrets.read(source)
        credentials = job.login.read(source) if job.login else None
    values |= job.values
    if credentials is not None:
        values[credentials.secret] = credentials.whole
        values[f"the password in {credentials.secret}"] = credentials.password
    app.held.extend(values.values())
    return values, credentials


@contextmanager
def _ending_on_sigterm() -> Iterator[None]:
    """End on SIGTERM as on Ctrl-C, so that what the build has made is removed."""

    def end(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


@contextmanager
def _engine(app: App) -> Iterator[tuple[Engine, Reaper]]:
    """The engine, and the process that removes what is left if gusset is killed."""
    from gusset.containers.engine.engine import Engine
    from gusset.containers.engine.run_id import run_id
    from gusset.containers.reaper import Reaper

    with ExitStack() as stack:
        reaper = Reaper.start(run_id())  # ends the service that gusset starts if no engine runs
        stack.callback(reaper.close)
        engine = Engine.find(app.settings.docker_host, reaper.notify)
        stack.callback(engine.close)
        yield engine, reaper
        reaper.notify("done")


def _build(
    app: App,
    engine: Engine,
    reaper: Reaper,
    job: _Job,
    *,
    values: dict[str, SecretValue],
    credentials: Credentials | None,
    allowed: Sequence[str],
) -> BuiltImage:
    from gusset.containers.build.builder import build as build_image
    from gusset.secrets.masking import Masker

    given = _build_values(app, values, allowed)
    masker = Masker(values.values())
    base = engine.images.get(job.recipe.base, app.output.note, credentials)
    is_shown = not app.output.json
    return build_image(
        engine,
        job.plan(base.user),
        given,
        masker=masker,
        notify=reaper.notify,
        on_line=lambda line: click.echo(line, err=True) if is_shown else None,
    )


def _build_values(app: App, values: dict[str, SecretValue], allowed: Sequence[str]) -> BuildValues:
    """The values, of which the image may contain those that are `allowed`.

    Raises:
        UsageError: a name in `allowed` is not that of a value.
    """
    from gusset.containers.build.builder import BuildValues
    from gusset.containers.build.cache_key import load_key

    if unknown := sorted(set(allowed) - values.keys()):
        raise UsageError(
            f"{', '.join(unknown)} cannot be allowed: the build is not given it",
            hint="allow a secret of build.secret_to_path_mapping by its exact name",
        )
    key = load_key(app.settings.cache) if values else b""
    return BuildValues(values=values, key=key, allowed=tuple(allowed))


def _name(app: App, engine: Engine, built: BuiltImage, tag: str | None, job: _Job) -> str:
    """Name the image, and note if another one had that name."""
    from gusset.containers.build.builder import local_name

    name = tag or local_name(job.package.folder)
    before = engine.images.id_of(name)
    engine.images.tag(built.id, name)
    if before is not None and before.removeprefix("sha256:") != built.id.removeprefix("sha256:"):
        app.output.note(f"{name} was another image before, {before.removeprefix('sha256:')[:12]}")
    return name


def _push(app: App, engine: Engine, name: str, job: _Job, credentials: Credentials | None) -> None:
    """Push the image. The base image's login is used only for its own registry."""
    from gusset.containers.engine.registry import registry_of
    from gusset.secrets.masking import Masker

    if registry_of(name) != registry_of(job.recipe.base):
        credentials = None
    try:
        engine.images.push(name, app.output.note, credentials)
    except (Denied, HostError) as error:  # a registry's message may quote the credentials
        masker = Masker(credentials.parts if credentials else ())
        raise type(error)(masker.mask_text(error.message), hint=error.hint) from None


def _print(app: App, built: BuiltImage, name: str, *, pushed: bool) -> None:
    report = built.report
    if report is not None:
        print_notes(app, report)
        app.output.problems(report.problems())
    app.output.result(
        {
            "image": name,
            "id": built.id,
            "pushed": pushed,
            "scan": report.data() if report is not None else None,
        },
        f"{'built and pushed' if pushed else 'built'} {name}\n  run it: "
        f"docker run --rm -p 8080:8080 -v DIR:/secrets:ro {shlex.quote(name)}",
    )


def _write_context(app: App, job: _Job, folder: Path) -> None:
    """Write the context, and print the command that builds it."""
    from gusset.containers.build.context import unwritable, write_context

    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"the folder {folder} is not empty", hint="name a new one")
    except OSError as error:
        raise unwritable(folder, error) from None
    user = ""
    if job.package.is_image:
        with _engine(app) as (engine, _):
            user = engine.images.get(job.recipe.base, app.output.note).user
    plan = job.plan(user)
    write_context(plan, folder)
    secrets = [word for each in plan.secrets for word in ("--secret", f"id={each.id},src=FILE")]
    command = shlex.join(["docker", "build", "-f", str(folder / "Containerfile"), *secrets, str(folder)])
    app.output.result(
        {"context": str(folder), "secrets": [each.id for each in plan.secrets]},
        f"wrote the context of the build to {folder}\n  {command}",
    )
