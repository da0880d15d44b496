"""`gusset deploy kubernetes`: prints manifests, and binds their service account at the manager."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gusset.cli.app import App, Command, pass_app
from gusset.errors import UsageError

if TYPE_CHECKING:
    from gusset.cli.kubernetes_workload import Plan

_MAX_REPLICAS = 100_000
_MAX_USER = 2**31 - 1  # Kubernetes' largest


@click.command(name="kubernetes", cls=Command)
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--image", required=True, metavar="REF", help="The image to run, best with its digest.")
@click.option("--namespace", default="default", show_default=True, help="The namespace of all objects.")
@click.option("--name", help="The name of all objects, and of the deployment.  [default: the model's name]")
@click.option(
    "--replicas",
    type=click.IntRange(0, _MAX_REPLICAS),
    help="The number of pods. Omit it if an autoscaler sets it.  [default: 1]",
)
@click.option("--gpus", type=click.IntRange(0, 64), help="GPUs of each pod.  [default: as in config.yaml]")
@click.option(
    "--manager", metavar="URL[,URL]", help="The manager, as pods reach it.  [default: as in `gusset login`]"
)
@click.option(
    "--manager-ca",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Certificates (PEM) of the authority that signed the manager's, if it is not a public one.",
)
@click.option(
    "--manager-cidr",
    "manager_networks",
    metavar="CIDR",
    multiple=True,
    help="Where the manager is, for --egress strict (repeatable).",
)
@click.option(
    "--sidecar",
    type=click.Choice(["native", "ordinary"]),
    default="native",
    show_default=True,
    help="How the agent runs with a custom image; `ordinary` is for Kubernetes before 1.29.",
)
@click.option("--agent-image", metavar="REF", help="gusset's own image, for the agent of a custom image.")
@click.option(
    "--user",
    type=click.IntRange(1, _MAX_USER),
    help="The user id of a custom image's server.  [default: docker_server.run_as_user_id, else 60000]",
)
@click.option(
    "--egress",
    type=click.Choice(["open", "strict"]),
    default="open",
    show_default=True,
    help="Where pods may connect to: all but the cloud's metadata address, or DNS and the manager alone.",
)
@click.option(
    "--register", is_flag=True, help="Also let the pods' service account read the secrets at the manager."
)
@click.option("--issuer", metavar="URL", help="The cluster's issuer of tokens, for --register.")
@click.option(
    "--team", metavar="ID", help="The deployment's team, for --register.  [default: your first team]"
)
@pass_app
def kubernetes(app: App, /, folder: Path, **options: Any) -> None:
    """Print the manifests that run a model folder on Kubernetes. They contain no secret values.

    \b
      gusset deploy kubernetes my-model --image registry.example/my-model@sha256:... \\
        --manager https://secrets.example.com | kubectl apply --server-side -f -
    """
    register, issuer, team = options.pop("register"), options.pop("issuer"), options.pop("team")
    if register and not issuer:
        raise UsageError(
            "--register needs the cluster's issuer: --issuer URL",
            hint="this prints it: kubectl get --raw /.well-known/openid-configuration",
        )
    from gusset.cli.kubernetes_workload import KubernetesOptions, make_plan
    from gusset.kubernetes.manifests import objects
    from gusset.kubernetes.yaml_text import to_yaml

    plan = make_plan(app, folder, KubernetesOptions(**options))
    for warning in plan.warnings:
        app.output.warn(warning)
    if register:
        _register(app, plan, issuer, team)
    found = objects(plan.workload)
    app.output.result({"manifests": found}, to_yaml(found).removesuffix("\n"))


def _register(app: App, plan: Plan, issuer: str, team_id: str | None) -> None:
    """Declare the deployment's secrets, and bind its service account. Doing it again changes nothing."""
    from gusset.cli.token import declare
    from gusset.kubernetes.manifests import subject
    from gusset.kubernetes.pod import AUDIENCE

    workload = plan.workload
    if workload.manager is None:
        app.output.note(f"{workload.name} declares no secrets: there is nothing to register")
        return
    rule = {"issuer": issuer, "audience": AUDIENCE, "subject": subject(workload)}
    wanted = {**rule, "deployment": workload.name, "claims": {}} | ({"team_id": team_id} if team_id else {})
    with app.manager() as client:
        known = client.request("GET", "/v1/identities")["identities"]
        if found := next((each for each in known if wanted.items() <= each.items()), None):
            declare(client, workload.name, plan.secrets, found["team_id"])
        else:  # one request: a refused identity leaves no deployment behind
            name = _identity_name(workload.namespace, workload.name, issuer)
            body = {"name": name, "secrets": list(plan.secrets), **wanted}
            found = client.request("POST", "/v1/identities", body)
    app.output.note(f"{rule['subject']} stands for {found['team_name']}/{workload.name}")


def _identity_name(namespace: str, name: str, issuer: str) -> str:
    """A name that differs between clusters."""
    return f"{namespace}.{name}.{hashlib.sha256(issuer.encode()).hexdigest()[:8]}"
