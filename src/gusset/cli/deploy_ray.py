"""`gusset deploy ray`: deploys a model folder to a cluster of Ray, and waits until it is running."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gusset.cli.app import App, Command, pass_app
from gusset.errors import HostError, ModelFailed, Unreachable, UsageError

if TYPE_CHECKING:
    from ray.serve import Application

_POLL = 0.5  # seconds
_FAILURE = "gusset.errors.ModelFailed: "  # what Ray's message has before the text of a replica's failure


@click.command(name="ray", cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--address",
    metavar="GCS_HOST:PORT",
    help="The cluster.  [default: RAY_ADDRESS, else the cluster that runs on this machine]",
)
@click.option("--name", help="The name of the application and the deployment.  [default: the model's]")
@click.option(
    "--route-prefix", default="/", show_default=True, help="The path below which Ray's proxy serves it."
)
@click.option(
    "--replicas", type=click.IntRange(1, 10_000), help="The number of replicas.  [default: Ray's, which is 1]"
)
@click.option("--manager", metavar="URL[,URL]", help="The manager, as the nodes reach it.")
@click.option("--token-file", metavar="PATH", help="The file on each node with the deployment's token.")
@click.option(
    "--identity-token-file",
    metavar="PATH",
    help="The file on each node with a JSON Web Token, which is exchanged at the manager.",
)
@click.option("--secrets-dir", metavar="PATH", help="The folder on each node with one file per secret.")
@click.option(
    "--manager-ca", metavar="PATH", help="The file on each node with the manager's CA certificates (PEM)."
)
@click.option("--insecure-http", is_flag=True, help="Let nodes read secrets over HTTP without TLS.")
@click.option(
    "--allow-missing",
    multiple=True,
    metavar="NAME|all",
    help="Start even if this secret has no value (repeatable).",
)
@click.option("--mask-responses", is_flag=True, help="Mask secrets in the model's results too.")
@click.option(
    "--env",
    type=click.Choice(["auto", "current"]),
    default="auto",
    show_default=True,
    help="Have Ray install the requirements for each replica, or use what the nodes have.",
)
@click.option("--on-nodes", is_flag=True, help="Every node has the folder at this path: do not send it.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=600.0,
    show_default=True,
    help="Seconds to wait until it is running.",
)
@pass_app
def ray(
    app: App, /, folder: Path, *, address: str | None, route_prefix: str, timeout: float, **options: Any
) -> None:
    """Deploy a model folder to a running cluster of Ray.

    It becomes an application of Ray Serve. Each replica reads its secrets itself, using a file on its node.
    Returns when all replicas are running; the application keeps running after this command ends. Remove it
    with Ray: serve delete NAME.
    """
    from gusset.package.config import load_package

    name, replicas = options.pop("name"), options.pop("replicas")
    if not route_prefix.startswith("/"):
        raise UsageError("--route-prefix is a path, and begins with /")
    if options["secrets_dir"] and options["manager"]:
        raise UsageError("--manager and --secrets-dir cannot be used together")
    name = name or load_package(folder).config.model_name or folder.resolve().name
    with _connected(address):
        from gusset.ray import application

        if replicas is not None:
            options["num_replicas"] = replicas
        _deploy(application(folder, name=name, **options), name, route_prefix, timeout)
    app.output.result(
        {"application": name, "route_prefix": route_prefix}, f"{name} is running, at {route_prefix}"
    )


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """A connection to the cluster.

    Raises:
        HostError: Ray is not installed.
        Unreachable: there is no cluster at the address.
    """
    try:
        import ray.serve

        import ray
    except ImportError:
        raise HostError("Ray is not installed", hint="install gusset with it: gusset[ray]") from None
    import logging

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # set by the import, too
    try:
        ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        where = f"at {address}" if address else "on this machine"
        raise Unreachable(
            f"there is no cluster of Ray {where}: {str(error).splitlines()[0]}",
            hint="start one: ray start --head",
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _deploy(application: Application, name: str, route_prefix: str, timeout: float) -> None:
    """Deploy, and return when it is running. Raises ModelFailed."""
    from ray import serve

    serve.run_many(
        [serve.RunTarget(application, name=name, route_prefix=route_prefix)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    ends_at = time.monotonic() + timeout
    while True:
        state = serve.status().applications.get(name)
        if state is not None and state.status == "RUNNING":
            return
        messages = [each.message for each in state.deployments.values()] if state is not None else []
        if state is not None and state.status in ("DEPLOY_FAILED", "UNHEALTHY"):
            raise ModelFailed(f"{name} did not start: {_reason(messages) or state.message}")
        if time.monotonic() > ends_at:
            raise ModelFailed(
                f"{name} is not running after {timeout:g} s: {_reason(messages) or 'Ray gives no reason'}",
                hint="Ray continues; see `serve status`. Are there enough CPUs and GPUs for all replicas?",
            )
        time.sleep(_POLL)


def _reason(messages: list[str]) -> str:
    """Why a replica did not start: gusset's own text, which is masked, if Ray's message has one."""
    message = "\n".join(filter(None, messages))
    return message.rpartition(_FAILURE)[2].strip()
