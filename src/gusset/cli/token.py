"""`gusset token ...` and `gusset deployment ...`: deployments that are registered with a manager."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import click

from gusset.cli.app import App, Command, Group, pass_app
from gusset.cli.dates import DATE
from gusset.errors import UsageError
from gusset.secrets.name import check_name

if TYPE_CHECKING:
    from gusset.client.manager_client import ManagerClient


_team_option = click.option(
    "--team", "team_id", metavar="ID", help="The deployment's team, if several have one of that name."
)


@click.group(name="token", cls=Group)
def token() -> None:
    """Create, list and revoke tokens. A token lets a deployment read its secrets and nothing else."""


@token.command("create", cls=Command)
@click.option("--deployment", required=True, metavar="NAME", help="The deployment that uses the token.")
@click.option(
    "--secrets",
    required=True,
    metavar="A,B",
    help="The secrets that the token can read, separated by commas.",
)
@click.option(
    "--expires", type=DATE, metavar="DATE", help="Expiry date, such as 2031-01-31 or 2031-01-31T12:00:00Z."
)
@pass_app
def create(app: App, deployment: str, secrets: str, expires: datetime | None) -> None:
    """Create a token for a deployment that runs unattended. It is printed once.

    Give it to `gusset serve` in a file that GUSSET_TOKEN_FILE names.
    """
    names = secret_names(secrets)
    if not names:
        raise UsageError("the token would read no secrets", hint="--secrets hf_access_token,db_password")
    body: dict[str, Any] = {"name": deployment, "secrets": names}
    if expires is not None:
        body["expires_at"] = expires.isoformat()
    with app.manager() as client:
        created = client.request("POST", "/v1/deployments", body)
    app.output.note(f"a token for {deployment} that reads {', '.join(names)}; it is shown only once:")
    app.output.result(
        {"token": created["token"], "prefix": created["prefix"], "deployment": deployment}, created["token"]
    )


@token.command("list", cls=Command)
@click.option("--deployment", required=True, metavar="NAME", help="The deployment whose tokens to list.")
@_team_option
@pass_app
def list_(app: App, deployment: str, team_id: str | None) -> None:
    """List a deployment's tokens by prefix."""
    with app.manager() as client:
        found = client.request("GET", _path(deployment, "/tokens", team_id))["tokens"]
    rows = [{**each, "reads": ",".join(each["secrets"])} for each in found]
    columns = {"prefix": "PREFIX", "reads": "READS", "created_at": "CREATED", "last_used_at": "USED"}
    columns |= {"revoked_at": "REVOKED"}
    app.output.table("tokens", rows, columns, empty="no tokens")


@token.command("revoke", cls=Command)
@click.argument("prefix")
@pass_app
def revoke(app: App, prefix: str) -> None:
    """Revoke a token permanently."""
    with app.manager() as client:
        client.request("DELETE", f"/v1/tokens/{quote(prefix, safe='')}")
    app.output.result({"prefix": prefix}, "revoked; it can read nothing any more")


@click.group(name="deployment", cls=Group)
def deployment() -> None:
    """Show deployments and which versions their replicas hold."""


@deployment.command("list", cls=Command)
@pass_app
def list_deployments(app: App) -> None:
    """List deployments."""
    with app.manager() as client:
        found = client.request("GET", "/v1/deployments")["deployments"]
    rows = [
        {**each, "reads": ",".join(each["secrets"]), "live": sum(r["live"] for r in each["replicas"])}
        for each in found
    ]
    columns = {"name": "NAME", "team_name": "TEAM", "live": "REPLICAS", "seen_at": "SEEN", "reads": "READS"}
    app.output.table("deployments", rows, columns, empty="no deployments; `gusset serve DIR` registers one")


@deployment.command("register", cls=Command)
@click.argument("name")
@click.option(
    "--secrets", required=True, metavar="A,B", help="The secrets that it declares, separated by commas."
)
@click.option("--team", "team_id", metavar="ID", help="Its team.  [default: your first team]")
@pass_app
def register_deployment(app: App, name: str, secrets: str, team_id: str | None) -> None:
    """Register a deployment without a token, or change what it declares. Its identities read just that."""
    names = secret_names(secrets)
    with app.manager() as client:
        made = declare(client, name, names, team_id)
    app.output.result(made, f"{name} declares {', '.join(names) or 'no secrets'}")


@deployment.command("show", cls=Command)
@click.argument("name")
@_team_option
@pass_app
def show(app: App, name: str, team_id: str | None) -> None:
    """Show a deployment's replicas and the version of each secret that they hold."""
    with app.manager() as client:
        found = client.request("GET", _path(name, team_id=team_id))
    if app.output.json:
        app.output.result(found)
        return
    rows = [
        {**each, "state": "live" if each["live"] else "gone", "holds": _versions(each["versions"])}
        for each in found["replicas"]
    ]
    columns = {"id": "REPLICA", "host": "HOST", "state": "STATE", "seen_at": "SEEN", "holds": "HOLDS"}
    app.output.table("replicas", rows, columns, empty=f"{name} has no replica")


@deployment.command("remove", cls=Command)
@click.argument("name")
@_team_option
@pass_app
def remove(app: App, name: str, team_id: str | None) -> None:
    """Remove a deployment and revoke its tokens; its replicas get no new values."""
    with app.manager() as client:
        client.request("DELETE", _path(name, team_id=team_id))
    app.output.result({"name": name}, f"removed {name}; its tokens are revoked")


def declare(client: ManagerClient, name: str, secrets: Sequence[str], team_id: str | None) -> dict[str, Any]:
    """Register a deployment, or change the secrets it declares, without a token."""
    body = {"secrets": list(secrets)} | ({"team_id": team_id} if team_id else {})
    return client.request("PUT", _path(name), body)


def secret_names(text: str) -> list[str]:
    """The names in a list with commas. Raises InvalidName."""
    return [check_name(name.strip()) for name in text.split(",") if name.strip()]


def _path(name: str, part: str = "", team_id: str | None = None) -> str:
    query = f"?team_id={quote(team_id, safe='')}" if team_id else ""
    return f"/v1/deployments/{quote(name, safe='')}{part}{query}"


def _versions(held: dict[str, int]) -> str:
    return ",".join(f"{name}={version}" for name, version in sorted(held.items()))
