"""`gusset scan`: searches a container image for the values of secrets. It changes nothing."""

# Imports in functions: each command imports only what it uses, so that it starts fast.

from __future__ import annotations

import errno
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from gusset.cli.app import App, Command, pass_app
from gusset.cli.needs_linux import require_linux
from gusset.errors import (
    CheckFailed,
    Denied,
    GussetError,
    HostError,
    ImageUnreadable,
    NotFound,
    UsageError,
    outcome_of,
)
from gusset.secrets.sources.folder import FolderSource
from gusset.secrets.value import SecretValue

if TYPE_CHECKING:
    from gusset.images.report import Report
    from gusset.images.sources import ImageSource

_FOUND_HINT = (
    "anyone who has the image has these values: replace them where they were issued, build the image again\n"
    "without them, and remove this one with its build cache. `--allow NAME` accepts a secret in an image"
)
_LARGE = 50_000_000  # bytes of a file that takes a while


@click.command(cls=Command)
@click.argument("image", metavar="IMAGE|ARCHIVE|FOLDER|-")
@click.option(
    "--allow", "allowed", metavar="NAME", multiple=True, help="Accept this secret in the image (repeatable)."
)
@click.option(
    "--secrets-dir",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Search for the contents of the files in this folder.",
)
@pass_app
def scan(app: App, image: str, allowed: Sequence[str], secrets_dir: Path | None) -> int:
    """Search an image for values of secrets, in all layers and all encodings that are masked.

    IMAGE is an image of Docker or Podman, ARCHIVE a file as `docker save` or `podman save` writes it,
    FOLDER an OCI folder, and - an archive on standard input.

    The values are all those in the vault, with older versions, or those of --secrets-dir. With a manager,
    they are those of the deployment whose token GUSSET_TOKEN_FILE names.
    """
    from gusset.images.scan import Wanted, scan_image

    with ExitStack() as stack:
        source = stack.enter_context(_open_image(app, image))
        values = _read_values(app, secrets_dir)
        if not values:
            raise UsageError(
                "there is no secret to search for", hint="store one in the vault, or use --secrets-dir"
            )
        app.held.extend(value for versions in values.values() for value in versions)
        progress = _Progress(app)
        report = scan_image(source, Wanted(values, allowed), target=image, on_file=progress.on_file)
    return _print(app, report)


class _Progress:
    """Reports large files at a terminal. Their names come from the image, and are left out."""

    def __init__(self, app: App) -> None:
        self._output = app.output
        self._is_shown = sys.stderr.isatty() and not app.output.json

    def on_file(self, name: str, size: int) -> None:
        if self._is_shown and size >= _LARGE:
            self._output.note(f"searching a layer of {size / 1e6:,.0f} MB")


# --- the image


@contextmanager
def _open_image(app: App, image: str) -> Iterator[ImageSource]:
    """The files of an archive, a folder, or an image of the engine, in this order.

    A folder without an image in it, such as a model's, does not hide an image of that name.
    """
    from gusset.images.sources import ImageSource, is_image_folder, read_chunks

    path = Path(image)
    if image == "-":
        if sys.stdin.isatty():
            raise UsageError("standard input is a terminal", hint="as in `docker save IMAGE | gusset scan -`")
        name = "standard input"
        yield ImageSource.from_archive(read_chunks(sys.stdin.buffer, name), name=name)
    elif path.is_dir() and (is_image_folder(path) or image.startswith((".", "/")) or image.endswith("/")):
        if not is_image_folder(path):
            raise UsageError(
                f"{image} is not an OCI folder", hint="it has neither index.json nor manifest.json"
            )
        yield ImageSource.from_folder(path)
    elif path.exists() and not path.is_dir():
        with _open_file(path) as file:
            yield ImageSource.from_archive(read_chunks(file, image), name=image)
    else:
        with _exported(app, image) as chunks:
            yield ImageSource.from_archive(chunks, name=image)


def _open_file(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        reason = os.strerror(error.errno or errno.EIO).lower()
        raise HostError(f"{path} cannot be read: {reason}") from None


@contextmanager
def _exported(app: App, image: str) -> Iterator[Iterator[bytes]]:
    """An image of the engine, as an archive that is read while the engine makes it."""
    hint = f"docker save {shlex.quote(image)} | gusset scan -"
    require_linux("an engine's image", lambda: hint)
    from gusset.containers.engine.engine import Engine
    from gusset.containers.engine.library import check_library
    from gusset.containers.engine.run_id import run_id
    from gusset.containers.reaper import Reaper

    check_library()
    with ExitStack() as stack:
        reaper = Reaper.start(run_id())  # ends the service that gusset starts if no engine runs
        stack.callback(reaper.close)
        stack.callback(reaper.notify, "done")
        engine = Engine.find(app.settings.docker_host, reaper.notify)
        stack.callback(engine.close)
        try:
            chunks = engine.images.export(image)
        except NotFound as error:
            is_folder = Path(image).is_dir()
            local = (
                f"the folder {image} is not an OCI folder"
                if is_folder
                else f"there is no file or folder {image}"
            )
            hint = "pull or build the image first, or correct the path"
            raise NotFound(f"{error.message}, and {local}", hint=hint) from None
        yield chunks


# --- the values


def _read_values(app: App, secrets_dir: Path | None) -> Mapping[str, Sequence[SecretValue]]:
    """The values of each secret. Reading them is recorded in the audit log of vault or manager.

    Raises:
        Denied: they are at a manager, and there is no deployment's token.
    """
    app.hold_values()
    if secrets_dir is not None:
        folder = FolderSource(secrets_dir)
        return {name: [each.value] for name, each in folder.read(folder.names()).items()}
    if app.settings.manager is not None:
        return _values_of_deployment(app, app.settings.manager)
    with app.vault() as vault:
        reader, delivery = vault.secrets.reader, vault.secrets.delivery
        return {
            info.name: [
                delivery.reveal(info.name, version=version.version, actor=app.actor)
                for version in reader.history(info.name)
                if version.state != "destroyed"
            ]
            for info in reader.list()
        }


def _values_of_deployment(app: App, url: str) -> Mapping[str, Sequence[SecretValue]]:
    from gusset.client.manager_client import ManagerClient
    from gusset.client.manager_source import ManagerSource
    from gusset.client.registration import is_token

    key = app.settings.key_for(url)
    app.held.append(key)
    if not is_token(key):
        raise Denied(
            "a manager never returns a value to a person, so there is nothing to search for",
            hint="name the file of a deployment's token in GUSSET_TOKEN_FILE, or use --secrets-dir",
        )
    client = ManagerClient(
        url, key, insecure_http=app.settings.insecure_http, ca_certificates=app.settings.manager_ca
    )
    try:
        names = client.request("GET", "/v1/deployment")["secrets"]
        source = ManagerSource(client)
        try:
            return {name: [each.value] for name, each in source.read(names).items()}
        finally:
            source.close()
    finally:
        client.close()


# --- the result


def print_notes(app: App, report: Report) -> None:
    """Print what a report says besides its problems."""
    for finding in report.accepted:
        app.output.note(f"accepted with --allow: {finding.location}: {finding.problem(warning=True).message}")
    for note in report.notes:
        app.output.warn(note)
    if report.ignored:
        app.output.warn(f"not searched for, as too short or too simple: {', '.join(report.ignored)}")


def _print(app: App, report: Report) -> int:
    """Print the report; the exit status."""
    error = _error_of(report)
    if app.output.json:
        failure = {"code": error.code, "message": error.message, "hint": error.hint} if error else {}
        app.output.result({**failure, **report.data()})
        return outcome_of(error).exit if error else 0
    print_notes(app, report)
    if error is None:
        app.output.problems(report.problems())
        app.output.result(report.data(), f"{report.target}: no value found; {_searched(report)}")
        return 0
    if report.found:
        for each in report.errors:
            app.output.warn(f"not searched completely: {each}")
    app.output.error(error)
    return outcome_of(error).exit


def _error_of(report: Report) -> GussetError | None:
    """The error that the report amounts to: values that were found, else what could not be read."""
    if report.found:
        names = sorted({each.secret for each in report.found})
        return CheckFailed(
            f"{report.target} contains values of secrets: {', '.join(names)}; {_searched(report)}",
            problems=report.problems(),
            hint=_FOUND_HINT,
        )
    if report.errors:
        return ImageUnreadable(
            f"{report.target} could not be searched completely, so it may contain values:\n"
            + "\n".join(report.errors),
            hint="save, pull or build the image again",
        )
    return None


def _searched(report: Report) -> str:
    return (
        f"searched {_count(report.layers, 'layer')}, {_count(report.files, 'file')}, "
        f"{report.size / 1e6:,.1f} MB for {_count(len(report.secrets), 'secret')}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
