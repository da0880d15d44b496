"""`gusset demo`: stores a secret and serves a model with it, step by step, in a temporary vault."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import secrets
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.needs_linux import docker_run, require_linux, run_in_container
from gusset.cli.predict import call
from gusset.cli.served_process import serving
from gusset.errors import ModelFailed

MODEL = Path(__file__).parent / "demo_model"
TEXT = "hello"


@click.command(cls=Command)
@click.option(
    "--once", is_flag=True, help="Exit after the call, with status 0 if the prediction was correct."
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port to serve on. Default: any free port."
)
@pass_app
def demo(app: App, once: bool, port: int) -> None:
    """Store a secret, serve a model that uses it, and call it, all in a temporary folder."""
    require_linux("demo", lambda: run_in_container(docker_run([], "demo", "--once")))
    with tempfile.TemporaryDirectory(prefix="gusset-demo-") as scratch:
        home = Path(scratch)
        key = secrets.token_urlsafe(24)
        click.echo("1. store a random secret in a new vault:")
        _set_secret(home, "signing_key", key)
        click.echo(f"2. serve the model in {MODEL}, which declares the secret:")
        with serving(MODEL, home=home, port=port) as address:
            click.echo(f'3. call it with {{"text": "{TEXT}"}}; the output of the model is masked:')
            with call(address, json.dumps({"text": TEXT}).encode()) as response:
                prediction = json.loads(response.read())
            _check(prediction, key)
            click.echo(f"4. the prediction is correct, made with the secret: {prediction}")
            if not once:
                _wait_for_ctrl_c(address, home)


def _set_secret(home: Path, name: str, value: str) -> None:
    """Run the command that a person would type, with the value on standard input."""
    click.echo(f"   $ gusset secret set {name}")
    subprocess.run(
        [sys.executable, "-m", "gusset", "secret", "set", name],
        input=value.encode(),
        env={**os.environ, "GUSSET_HOME": str(home)},
        check=True,
    )


def _check(prediction: object, key: str) -> None:
    signature = hmac.new(key.encode(), TEXT.encode(), hashlib.sha256).hexdigest()
    if prediction != {"signature": signature}:
        raise ModelFailed("the demo's model returned a wrong result", hint="please report this")


def _wait_for_ctrl_c(address: str, home: Path) -> None:
    click.echo(
        "\nCall it yourself:\n"
        f'   curl -d \'{{"text": "hello"}}\' {address}/v1/models/model:predict\n'
        "and replace the secret while the model runs:\n"
        f"   GUSSET_HOME={home} gusset secret set signing_key\n"
        "Ctrl-C ends the demo and removes its vault."
    )
    threading.Event().wait()
