"""`gusset demo`: the main job in a throw-away vault, shown step by step."""

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
    with tempfile.TemporaryDirectory(prefix="gusset-demo-") as scratch:
        home = Path(scratch)
        key = secrets.token_urlsafe(24)
        click.echo("1. a secret goes into a new vault (random, never shown):")
        _set_secret(home, "signing_key", key)
        click.echo(f"2. the model in {MODEL} declares it and is served:")
        with serving(MODEL, home=home, port=port) as address:
            click.echo(f'3. a call, {{"text": "{TEXT}"}}, and what the model prints meanwhile:')
            answer = call(address, json.dumps({"text": TEXT}).encode())
            _check(answer, key)
            click.echo(f"4. the answer is right, made with the secret: {answer}")
            if not once:
                _stay(address, home)


def _set_secret(home: Path, name: str, value: str) -> None:
    """By the command that a person would type, its value on standard input."""
    click.echo(f"   $ gusset secret set {name}")
    subprocess.run(
        [sys.executable, "-m", "gusset", "secret", "set", name],
        input=value.encode(),
        env={**os.environ, "GUSSET_HOME": str(home)},
        check=True,
    )


def _check(answer: object, key: str) -> None:
    right = hmac.new(key.encode(), TEXT.encode(), hashlib.sha256).hexdigest()
    if answer != {"signature": right}:
        raise ModelFailed("the demo's model returned a wrong result", hint="please report this")


def _stay(address: str, home: Path) -> None:
    click.echo(
        "\nTry it by hand:\n"
        f'   curl -d \'{{"text": "hello"}}\' {address}/v1/models/model:predict\n'
        "and give the running model a new secret:\n"
        f"   GUSSET_HOME={home} gusset secret set signing_key\n"
        "Ctrl-C ends the demo and removes its vault."
    )
    threading.Event().wait()
