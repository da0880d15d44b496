"""`gusset deploy ...`: runs a model folder on a cluster. Each subcommand has a module of its own."""

from __future__ import annotations

import click

from gusset.cli.app import Group
from gusset.cli.deploy_kubernetes import kubernetes
from gusset.cli.deploy_ray import ray


@click.group(name="deploy", cls=Group)
def deploy() -> None:
    """Run a model folder on a cluster."""


deploy.add_command(kubernetes)
deploy.add_command(ray)
