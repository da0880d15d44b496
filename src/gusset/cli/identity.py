"""`gusset identity ...` and `gusset issuer ...`: workloads that show their platform's tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from gusset.cli.app import App, Command, Group, pass_app
from gusset.cli.token import secret_names
from gusset.errors import UsageError

_MAX_JWKS = 262_144  # bytes

_jwks_option = click.option(
    "--jwks",
    metavar="URL|FILE",
    help="The issuer's keys, as a URL or a file, whose content is sent. Default: the issuer says where.",
)


@click.group(name="identity", cls=Group)
def identity() -> None:
    """Manage which platform tokens act as which deployment."""


@identity.command("add", cls=Command)
@click.argument("name")
@click.option("--deployment", required=True, metavar="NAME", help="The deployment that the token stands for.")
@click.option("--issuer", required=True, metavar="URL", help="The token's `iss`.")
@click.option("--subject", required=True, metavar="TEXT", help="The token's `sub`.")
@click.option("--audience", metavar="TEXT", help="The token's `aud`.  [default: gusset]")
@click.option(
    "--claim",
    "claims",
    multiple=True,
    metavar="POINTER=TEXT",
    help="Another claim, by JSON Pointer, as /kubernetes.io/namespace=prod (repeatable).",
)
@_jwks_option
@click.option(
    "--secrets",
    metavar="A,B",
    help="Register the deployment with these secrets, separated by commas, without a token.",
)
@click.option("--team", "team_id", metavar="ID", help="The deployment's team.  [default: your first team]")
@pass_app
def add_identity(
    app: App,
    /,
    *,
    name: str,
    deployment: str,
    issuer: str,
    subject: str,
    audience: str | None,
    claims: Sequence[str],
    jwks: str | None,
    secrets: str | None,
    team_id: str | None,
) -> None:
    """Let tokens of an issuer stand for a deployment. All that is given must match exactly.

    A missing issuer is added if you are an administrator.

    \b
      gusset identity add ranker-prod --deployment ranker --secrets db_password \\
        --issuer https://kubernetes.default.svc.cluster.local --jwks jwks.json \\
        --subject system:serviceaccount:prod:ranker
    """
    body: dict[str, Any] = {
        "name": name,
        "deployment": deployment,
        "issuer": issuer,
        "subject": subject,
        "claims": dict(map(_claim, claims)),
    }
    optional = {"audience": audience, "jwks": _jwks(jwks), "team_id": team_id}
    body |= {key: value for key, value in optional.items() if value is not None}
    if secrets is not None:
        body["secrets"] = secret_names(secrets)
    with app.manager() as client:
        made = client.request("POST", "/v1/identities", body)
    app.output.result(made, f"added; its tokens stand for {made['team_name']}/{made['deployment']}")


@identity.command("list", cls=Command)
@pass_app
def list_identities(app: App) -> None:
    """List the identities of your teams."""
    with app.manager() as client:
        found = client.request("GET", "/v1/identities")["identities"]
    rows = [
        {**each, "more": ",".join(f"{pointer}={value}" for pointer, value in each["claims"].items()) or None}
        for each in found
    ]
    columns = {"name": "NAME", "team_name": "TEAM", "deployment": "DEPLOYMENT", "issuer": "ISSUER"}
    columns |= {"audience": "AUDIENCE", "subject": "SUBJECT", "more": "CLAIMS", "last_used_at": "USED"}
    if app.output.json:
        rows = found
    app.output.table("identities", rows, columns, empty="no identities")


@identity.command("remove", cls=Command)
@click.argument("name")
@click.option(
    "--team", "team_id", metavar="ID", help="The identity's team, if several have one of that name."
)
@pass_app
def remove_identity(app: App, name: str, team_id: str | None) -> None:
    """Remove an identity. Tokens issued for it stop working at once."""
    query = {"team_id": team_id} if team_id else {}
    with app.manager() as client:
        client.request("DELETE", f"/v1/identities/{quote(name, safe='')}", query=query)
    app.output.result({"name": name}, f"removed {name}; its tokens read nothing any more")


@click.group(name="issuer", cls=Group)
def issuer() -> None:
    """Manage trusted issuers of JSON Web Tokens (administrators)."""


@issuer.command("add", cls=Command)
@click.argument("url")
@_jwks_option
@click.option("--allow-private", is_flag=True, help="Let its keys be fetched from a private address.")
@click.option("--replace", is_flag=True, help="Change how the keys of a trusted issuer are found.")
@pass_app
def add_issuer(app: App, url: str, jwks: str | None, *, allow_private: bool, replace: bool) -> None:
    """Trust the issuer at URL, which is exactly the `iss` of its tokens."""
    body: dict[str, Any] = {"url": url, "allow_private": allow_private, "replace": replace}
    if (keys := _jwks(jwks)) is not None:
        body["jwks"] = keys
    with app.manager() as client:
        made = client.request("POST", "/v1/issuers", body)
    app.output.result(made, f"added, with {made['keys']} keys")
    if made["problem"]:
        app.output.warn(f"its keys cannot be fetched at the moment: {made['problem']}")


@issuer.command("list", cls=Command)
@pass_app
def list_issuers(app: App) -> None:
    """List the issuers, and what the manager knows of their keys."""
    with app.manager() as client:
        found = client.request("GET", "/v1/issuers")["issuers"]
    columns = {"url": "ISSUER", "keys_from": "KEYS FROM", "keys": "KEYS", "fetched_at": "FETCHED"}
    app.output.table("issuers", found, columns | {"problem": "PROBLEM"}, empty="no issuers")


@issuer.command("remove", cls=Command)
@click.argument("url")
@pass_app
def remove_issuer(app: App, url: str) -> None:
    """Stop trusting an issuer. Remove its identities first."""
    with app.manager() as client:
        client.request("DELETE", "/v1/issuers", query={"url": url})
    app.output.result({"url": url}, f"removed {url}")


def _claim(text: str) -> tuple[str, str]:
    pointer, separator, value = text.partition("=")
    if not separator or not pointer.startswith("/"):
        raise UsageError("--claim takes a JSON Pointer and a text", hint="as in --claim /ref=refs/heads/main")
    return pointer, value


def _jwks(text: str | None) -> str | None:
    """The URL of an issuer's keys, or the content of the file with them. Raises UsageError."""
    if text is None or text.startswith(("https://", "http://")):
        return text
    try:
        with Path(text).open("rb") as file:
            data = file.read(_MAX_JWKS + 1)
        if len(data) > _MAX_JWKS:
            raise UsageError(f"{text} has more than {_MAX_JWKS} bytes: it holds more than an issuer's keys")
        content = data.decode("utf-8").strip()
    except OSError as error:
        raise UsageError(
            f"cannot read {text}: {error.strerror}", hint="--jwks takes a URL or a file"
        ) from None
    except UnicodeDecodeError:
        content = ""
    if not content.startswith("{"):
        raise UsageError(f"{text} is not a JSON Web Key Set", hint='it begins with {"keys": [')
    return content
