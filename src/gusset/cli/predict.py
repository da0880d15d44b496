"""`gusset predict DIR|URL`: calls a model once."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.needs_linux import (
    docker_run,
    mount,
    require_linux,
    run_in_container,
    source_in_container,
)
from gusset.errors import Denied, HostError, ModelFailed, Unreachable, UsageError
from gusset.printable import printable_json
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

_KEY = re.compile(rb"[\x20-\x7e\x80-\xff]+")  # what a header can contain
PREDICT_PATH = "/v1/models/model:predict"


@click.command(cls=Command)
@click.argument("target", metavar="DIR|URL")
@click.option("--data", "-d", help="Input as JSON, or @FILE to read it from a file. Default: standard input.")
@click.option(
    "--secrets-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help="Read secrets from the files of this folder.",
)
@click.option("--caller", metavar="NAME", help="Send the value of this secret as a caller's key.")
@click.option(
    "--caller-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Send the content of this file as a caller's key.",
)
@pass_app
def predict(
    app: App,
    target: str,
    data: str | None,
    secrets_dir: Path | None,
    caller: str | None,
    caller_file: Path | None,
) -> None:
    """Call a model and print its response.

    A folder is served for this one call. A URL is that of a model that is being
    served already; one that is served with --callers needs a key.
    """
    if caller is not None and caller_file is not None:
        raise UsageError("--caller and --caller-file exclude each other", hint="leave one of them out")
    is_url = target.startswith(("http://", "https://"))
    if not is_url:
        require_linux("predict with a folder", lambda: _predict_in_container(app, Path(target), secrets_dir))
    body = _body(data)
    key = _caller_key(app, caller, caller_file, secrets_dir)
    if is_url:
        result = call(target, body, key)
    else:
        from gusset.cli.served_process import serving

        with serving(Path(target), secrets_dir=secrets_dir, home=app.settings.home) as address:
            result = call(address, body, key)
    click.echo(printable_json(json.dumps(result, ensure_ascii=False)))


def _caller_key(
    app: App, name: str | None, file: Path | None, secrets_dir: Path | None
) -> SecretValue | None:
    """The key of a caller: the value of a secret, or the content of a file.

    Raises:
        UsageError: no header can contain it.
        SecretsMissing, Denied, Unreachable: as `read_values`.
    """
    if name is None and file is None:
        return None
    app.hold_values()
    if file is not None:
        try:
            key = SecretValue(file.read_bytes())
        except OSError as error:
            raise UsageError(f"cannot read {file}: {error.strerror}") from None
    else:
        assert name is not None  # noqa: S101  # see above
        from gusset.cli.sources import read_values

        key = read_values(app, {check_name(name)}, secrets_dir, reader="predict")[name]
    app.held.append(key)
    if not _KEY.fullmatch(key.reveal().strip()):
        raise UsageError("a caller's key must be one line without control characters, and not empty")
    return key


def _predict_in_container(app: App, folder: Path, secrets_dir: Path | None) -> str:
    """The hint to call the model in a container. It does not repeat the input, which may be confidential."""
    source = source_in_container(app, secrets_dir)
    options = [*mount(folder, "/model"), *source.options]
    command = docker_run(options, "predict", "/model", *source.arguments, terminal=False)
    return run_in_container(f"{command} < input.json", source.before)


def _body(data: str | None) -> bytes:
    """The input, checked to be JSON before a model is started for it."""
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


def call(address: str, body: bytes, key: SecretValue | None = None) -> Any:
    """POST `body` to the model at `address`, with a caller's key if given, and return its response.

    Raises:
        Denied: the model demands the key of a caller, or another one.
        Unreachable: nothing responds there, or the model is not ready.
        ModelFailed: the model responded with an error.
    """
    import httpx

    address = address.rstrip("/")
    url = address if address.endswith((":predict", "/predict")) else address + PREDICT_PATH
    headers = {b"content-type": b"application/json"}
    if key is not None:
        headers[b"authorization"] = b"Api-Key " + key.reveal().strip()
    try:
        response = httpx.post(url, content=body, headers=headers, timeout=None)  # noqa: S113  # a prediction may take long
    except httpx.InvalidURL:
        raise UsageError("this is not a URL of a model") from None
    except httpx.HTTPError as error:
        raise Unreachable(
            f"nothing responds at {url} ({type(error).__name__})", hint="is `gusset serve` running?"
        ) from None
    if response.status_code == 503:
        raise Unreachable(f"the model at {address} is not ready: {_error_text(response)}")
    if response.status_code == 401:
        raise Denied(
            f"the model at {address} refused the request: {_error_text(response)}",
            hint="send a caller's key with --caller NAME or --caller-file FILE",
        )
    if response.is_error:
        raise ModelFailed(f"the model responded with status {response.status_code}: {_error_text(response)}")
    try:
        return response.json()
    except ValueError:
        raise HostError("the model's response is not JSON", hint=f"see it with `curl {url}`") from None


def _error_text(response: Any) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return str(response.reason_phrase)
