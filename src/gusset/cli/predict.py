"""`gusset predict DIR|URL`: calls a model once."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import codecs
import io
import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gusset.addresses import is_host
from gusset.cli.app import App, Command, check_exclusive, pass_app
from gusset.cli.environment import environment_options
from gusset.cli.needs_linux import (
    docker_run,
    mount,
    require_linux,
    run_in_container,
    source_in_container,
)
from gusset.errors import Denied, ModelFailed, Unreachable, UsageError
from gusset.printable import printable_json, printable_lines
from gusset.secrets.name import check_name
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    import httpx

_KEY = re.compile(rb"[\x20-\x7e\x80-\xff]+")  # what a header can contain
PREDICT_PATH = "/v1/models/model:predict"
READINESS_PATH = "/v1/models/model"


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
@environment_options
@pass_app
def predict(
    app: App,
    *,
    target: str,
    data: str | None,
    secrets_dir: Path | None,
    caller: str | None,
    caller_file: Path | None,
    env: str,
    python: str,
) -> None:
    """Call a model and print its response.

    A folder is served for this one call. A URL leads to a model that is being
    served already; one that is served with --callers needs a key. A streamed
    response is printed as it arrives.
    """
    check_exclusive(caller=caller, caller_file=caller_file)
    is_url = target.startswith(("http://", "https://"))
    if not is_url:
        require_linux(
            "predict with a folder", lambda: _predict_in_container(app, Path(target), data, secrets_dir)
        )
    body = _body(target, data)
    key = _caller_key(app, caller, caller_file, secrets_dir)
    options = ("--env", env, "--python", python)
    served = nullcontext(target) if is_url else _serving(app, Path(target), secrets_dir, options)
    with served as address, call(address, body, key) as response:
        _print(app, response)


def _serving(
    app: App, folder: Path, secrets_dir: Path | None, options: Sequence[str]
) -> AbstractContextManager[str]:
    """Serve the folder for the time of the context, whose value is the address."""
    from gusset.cli.served_process import serving

    return serving(folder, secrets_dir=secrets_dir, home=app.settings.home, options=options)


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


def _predict_in_container(app: App, folder: Path, data: str | None, secrets_dir: Path | None) -> str:
    """The hint to call the model in a container. It does not repeat the input, which may be confidential."""
    source = source_in_container(app, secrets_dir)
    options = [*mount(folder, "/model"), *source.options]
    command = docker_run(options, "predict", "/model", *source.arguments, terminal=False)
    file = data[1:] if data and data.startswith("@") else "input.json"
    return run_in_container(f"{command} < {shlex.quote(file)}", source.before)


def _body(target: str, data: str | None) -> bytes:
    """The input, checked to be JSON before a model is started for it."""
    if data is None:
        if sys.stdin.isatty():
            shown = "URL" if "@" in target else shlex.quote(target)  # it may have a password
            raise UsageError(
                "there is no input",
                hint=f"pass it with --data, --data @FILE or on standard input:\n"
                f"  gusset predict {shown} --data '{{}}'",
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


@contextmanager
def call(address: str, body: bytes, key: SecretValue | None = None) -> Iterator[httpx.Response]:
    """POST `body` to the model at `address`, with a caller's key if given. The response is not read yet.

    Raises:
        Denied: the model demands the key of a caller, or another one.
        Unreachable: nothing responds there, or the model is not ready.
        ModelFailed: the model responded with an error, or the response broke off.
    """
    import httpx

    from gusset.client.http_environment import environment_errors

    url = _predict_url(address)
    # Not compressed, since a compressed stream arrives in larger pieces.
    headers = {b"content-type": b"application/json", b"accept-encoding": b"identity"}
    if key is not None:
        headers[b"authorization"] = b"Api-Key " + key.reveal().strip()
    received = False
    with environment_errors():
        http = httpx.Client(timeout=None)  # noqa: S113  # a prediction may take long
    try:
        with http, http.stream("POST", url, content=body, headers=headers) as response:
            received = True
            _raise_for_error(response)
            yield response
    except httpx.HTTPError as error:
        if received:
            raise ModelFailed(
                f"the response broke off ({type(error).__name__})", hint="the model's log has the reason"
            ) from None
        raise Unreachable(
            f"nothing responds at {_without_password(url)} ({type(error).__name__})", hint=_start_hint(url)
        ) from None


def _predict_url(address: str) -> httpx.URL:
    import httpx

    address = address.rstrip("/")
    try:
        url = httpx.URL(address if address.endswith((":predict", "/predict")) else address + PREDICT_PATH)
        valid = is_host(url.host)
    except (httpx.InvalidURL, UnicodeError):
        valid = False
    if not valid:
        raise UsageError("this is not a URL of a model")
    return url


def _without_password(url: httpx.URL) -> str:
    return str(url.copy_with(username=None, password=None))


def _start_hint(url: httpx.URL) -> str:
    if url.host not in ("localhost", "127.0.0.1", "::1"):
        return "check the address, and whether the model is being served there"
    return f"serve the model first, in its folder:\n  gusset serve . --port {url.port or 80}"


def _raise_for_error(response: httpx.Response) -> None:
    if not response.is_error:
        return
    response.read()
    if response.status_code == 503:
        probe = _without_password(response.url.copy_with(path=READINESS_PATH, query=None))
        raise Unreachable(
            f"the model at {_without_password(response.url)} is not ready: {_error_text(response)}",
            hint=f"it is ready once this succeeds:\n  curl --fail {shlex.quote(probe)}",
        )
    if response.status_code == 401:
        raise Denied(
            f"the model at {_without_password(response.url)} refused the request: {_error_text(response)}",
            hint="send a caller's key with --caller NAME or --caller-file FILE",
        )
    raise ModelFailed(f"the model responded with status {response.status_code}: {_error_text(response)}")


def _error_text(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return response.reason_phrase


def _print(app: App, response: httpx.Response) -> None:
    """Print JSON that arrives whole on one line, and everything else as it arrives.

    A pipe gets the exact bytes; a terminal gets text, with control characters as escapes.
    """
    is_json = response.headers.get("content-type", "").partition(";")[0].strip().endswith("json")
    if app.output.json or (is_json and "content-length" in response.headers):
        _print_whole(app, response)
    elif sys.stdout.isatty():
        _print_to_terminal(response.iter_bytes())
    else:
        for chunk in response.iter_bytes():
            sys.stdout.buffer.write(chunk)
            sys.stdout.buffer.flush()


def _print_whole(app: App, response: httpx.Response) -> None:
    data = response.read()
    try:
        result = json.loads(data)
    except (ValueError, RecursionError):
        result = _decoded(data) if app.output.json else None
        if result is None:
            sys.stdout.buffer.write(data)
            return
    click.echo(printable_json(json.dumps(result, ensure_ascii=False)))


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(
            f"the response is {len(data)} bytes that are not text, which JSON cannot hold",
            hint="leave out --output json, and write standard output to a file",
        ) from None


def _print_to_terminal(chunks: Iterable[bytes]) -> None:
    decoder = io.IncrementalNewlineDecoder(
        codecs.getincrementaldecoder("utf-8")("backslashreplace"), translate=True
    )
    last = "\n"
    for chunk in chain(chunks, (b"",)):
        text = decoder.decode(chunk, final=not chunk)
        click.echo(printable_lines(text), nl=False)
        last = text[-1:] or last
    if last != "\n":
        click.echo()
