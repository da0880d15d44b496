"""`gusset predict DIR|URL`: one call of a model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from gusset.cli.app import App, Command, pass_app
from gusset.errors import HostError, ModelFailed, Unreachable, UsageError

PREDICT_PATH = "/v1/models/model:predict"


@click.command(cls=Command)
@click.argument("target", metavar="DIR|URL")
@click.option("--data", "-d", help="Input as JSON, or @FILE to read it from a file. Default: standard input.")
@click.option(
    "--secrets-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read the model's secrets from this folder.",
)
@pass_app
def predict(app: App, target: str, data: str | None, secrets_dir: Path | None) -> None:
    """Call a model and print its response.

    A folder is served for the length of one call; an address is one where a
    model is being served already.
    """
    body = _body(data)
    if target.startswith(("http://", "https://")):
        answer = call(target, body)
    else:
        from gusset.cli.served_process import serving

        with serving(Path(target), secrets_dir=secrets_dir, home=app.settings.home) as address:
            answer = call(address, body)
    click.echo(json.dumps(answer, ensure_ascii=False))


def _body(data: str | None) -> bytes:
    """The input's JSON, checked before anything is started for it."""
    if data is None:
        if sys.stdin.isatty():
            raise UsageError(
                "there is no input", hint="pass it with --data '{...}', --data @FILE, or on standard input"
            )
        body = sys.stdin.buffer.read()
    elif data.startswith("@"):
        try:
            body = Path(data[1:]).read_bytes()
        except OSError as error:
            raise UsageError(f"cannot read {data[1:]}: {error.strerror}") from error
    else:
        body = data.encode()
    try:
        json.loads(body)
    except (ValueError, RecursionError) as error:
        where = (
            f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        )
        raise UsageError(f"the input is not JSON{where}") from None
    return body


def call(address: str, body: bytes) -> Any:
    """POST `body` to the model at `address` and return its answer.

    Raises:
        Unreachable: nothing answers there, or the model is not ready.
        ModelFailed: the model answered with an error.
    """
    import httpx

    address = address.rstrip("/")
    url = address if address.endswith((":predict", "/predict")) else address + PREDICT_PATH
    try:
        answer = httpx.post(url, content=body, headers={"content-type": "application/json"}, timeout=None)  # noqa: S113  # a model may take its time
    except httpx.InvalidURL:
        raise UsageError("this is not a URL of a model") from None
    except httpx.HTTPError as error:
        raise Unreachable(
            f"nothing responds at {url} ({type(error).__name__})", hint="is `gusset serve` running?"
        ) from None
    if answer.status_code == 503:
        raise Unreachable(f"the model at {address} is not ready: {_error_text(answer)}")
    if answer.is_error:
        raise ModelFailed(f"the model responded with status {answer.status_code}: {_error_text(answer)}")
    try:
        return answer.json()
    except ValueError:
        raise HostError("the model's response is not JSON", hint=f"see it with `curl {url}`") from None


def _error_text(answer: Any) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return str(answer.reason_phrase)
